"""A worker: a client with an identity that takes tasks, and how its loop is run."""
