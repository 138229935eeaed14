"""What MLflow runs when a registered model is served."""
