"""Exported files side by side."""
