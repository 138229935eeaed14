"""Outputs of the evaluate stage."""
