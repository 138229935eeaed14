"""The promotion gate: which models, what must hold, and the decision."""
