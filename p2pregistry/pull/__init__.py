"""Choosing pieces and sources: events in, commands out. No I/O, clock or randomness of its own."""
