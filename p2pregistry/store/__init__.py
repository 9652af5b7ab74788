"""Where a node and a tracker keep their bytes and records."""
