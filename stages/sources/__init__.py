"""Where data comes from: one module per source, each read into an `ImageSet`."""
