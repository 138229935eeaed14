LAYOUT = None
