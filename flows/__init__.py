"""Prefect flows: train the variants, validate data, promote, measure champions. Commands: `demo`, `reproduce`."""
