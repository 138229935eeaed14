"""Prefect flows: train the variants, validate data, choose a network, search parameters, promote, measure champions."""

from stages.project.redaction import redact_process

# Prefect sends the logs of a run to its server, with the messages of all libraries.
redact_process()
