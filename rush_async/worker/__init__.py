"""A worker: a client with an identity, and its life."""
