"""The tracker: the registry that takes pushes and owns the tags."""
