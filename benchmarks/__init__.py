"""Benchmarks of the library on a private server: `python -m benchmarks`."""
