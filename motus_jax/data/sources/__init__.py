"""One file per data format: `Config`, `scan` and `read_window`."""
