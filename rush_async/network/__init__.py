"""The one view of a network in an event loop."""
