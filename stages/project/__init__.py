"""What every stage stands on: parameters, folders, provenance, redaction, the command line."""
