"""A web service that optimises: see `app.py`."""
