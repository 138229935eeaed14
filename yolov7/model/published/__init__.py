"""Published checkpoints: read without executing them, and converted to this project's files."""
