"""The base of every stage: parameters, folders, provenance, redaction, the command line."""
