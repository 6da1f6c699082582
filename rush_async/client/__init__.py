"""What manager and worker share."""
