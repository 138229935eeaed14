"""Training: the loop, and what it is made of (schedule, optimiser, averages, states, processes, records)."""
