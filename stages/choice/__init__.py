"""Choice of the network: the rungs of the trainings, the limits, the recommendation."""
