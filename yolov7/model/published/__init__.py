"""Published checkpoints: read without executing them, and converted to files of this project."""
