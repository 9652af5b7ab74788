"""Images that are on a node before anybody asks for them: patterns, pins, and what an operator asks to be fetched."""
