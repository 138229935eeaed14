"""Data sets: annotation formats, the index, decoding, the image cache, and loaders for training and evaluation."""
