"""Bytes: connections to a server."""
