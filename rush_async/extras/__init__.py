"""Bridges to other packages; each module needs the extra of its name, `pip install "rush-async[fastapi]"`."""
