"""Connections to a server: opening them, sending commands, listening to messages."""
