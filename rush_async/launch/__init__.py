"""The ways a worker is started; each answers to one `WorkerHandle`."""
