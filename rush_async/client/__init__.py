"""What manager and worker share: opening and closing, tasks, waiting, reading and events."""
