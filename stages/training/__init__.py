"""One training run: its processes and its resumable state, here and on a remote."""
