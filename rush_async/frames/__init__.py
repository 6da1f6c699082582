"""Finished records as polars frames."""
