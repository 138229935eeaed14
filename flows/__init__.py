"""Prefect flows: train the variants, validate data, promote, measure champions. Commands: `demo`, `reproduce`."""

from stages.project.redaction import redact_process

# Prefect sends the logs of a run to its server, with the messages of all libraries.
redact_process()
