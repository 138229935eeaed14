"""Serving of registered models: the model that MLflow loads, and the limits of its HTTP server."""
