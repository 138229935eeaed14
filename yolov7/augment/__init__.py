"""Augmentation: a sample as a pure function of images, parameters and a random generator."""
