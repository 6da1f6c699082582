"""The ways to start a worker; each returns a `WorkerHandle` for it."""
