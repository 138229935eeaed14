"""Data validation with Great Expectations, reported record by record.

`tables` lays the annotations out as data frames, `images` decodes the files, `rules` says what is expected of them,
`check` runs the expectations and collects findings, `page` and `pictures` show the outcome.
"""
