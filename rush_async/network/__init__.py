"""The one view of a network in an event loop, which all its clients share: position, events, results, local workers."""
