"""Measurements on one accelerator, part by part within given minutes: `python benchmarks/gpu.py`."""
