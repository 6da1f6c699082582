"""Finished records as polars frames: columns are inferred, rows are decoded once."""
