"""Data validation with Great Expectations, reported record by record.

`tables` lays the annotations out as data frames, `images` decodes the files, `suite` reads the rules, `check` runs the
expectations and collects findings, `page` and `pictures` show the outcome.
"""
