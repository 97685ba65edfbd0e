"""Data: sources -> samples -> batches, in numpy only."""
