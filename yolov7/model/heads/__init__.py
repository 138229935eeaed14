"""Detection heads: a spec dataclass and its module in each file."""
