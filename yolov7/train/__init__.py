"""Training: the loop and its parts (schedule, optimiser, averages, states, processes, records)."""
