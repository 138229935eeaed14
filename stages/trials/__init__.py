"""Trainings beside the pipeline: candidates of a choice and trials of a search, resumable, outside DVC."""
