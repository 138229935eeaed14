"""Published weights by the name of a variant: fetched once, checked, and kept in the user's cache folder."""
