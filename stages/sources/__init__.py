"""Sources of data: one module per source, each read into an `ImageSet`."""
