"""How the package is built, measured from its sources, beside the goals: `python -m benchmarks.house`."""
