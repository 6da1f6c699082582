"""Other libraries that share state between processes, measured beside ours in one run: `python -m benchmarks peers`."""
