"""A web page on which a person tries a model."""
