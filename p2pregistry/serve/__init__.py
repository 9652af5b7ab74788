"""HTTP: the listener and the handlers behind it."""
