"""A network in one file: written, read without a server, and imported."""
