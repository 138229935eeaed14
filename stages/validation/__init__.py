"""What the data must satisfy, checked with Great Expectations and reported record by record.

`tables` lays the annotations out as data frames, `images` decodes the files, `rules` says what is expected of them,
`check` runs the expectations and collects findings, `page` and `pictures` show the outcome.
"""
