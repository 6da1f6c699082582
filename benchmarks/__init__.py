"""What the library costs, measured on a server of its own: `python -m benchmarks`."""
