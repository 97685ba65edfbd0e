"""One run per file: `get_config(arg='')` returns an `ml_collections.ConfigDict`."""
