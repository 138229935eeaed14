"""Charts and HTML pages about an evaluation."""
