"""Search of training parameters with Optuna: the space, the study, and its report."""
