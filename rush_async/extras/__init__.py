"""Bridges to other packages. Each one needs the optional dependencies of its name: `pip install "rush-async[fastapi]"`."""
