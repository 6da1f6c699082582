"""The manager, the group of workers it started, and their log."""
