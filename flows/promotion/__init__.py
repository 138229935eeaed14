"""The gate: rules, judgement, promotion and rollback."""
