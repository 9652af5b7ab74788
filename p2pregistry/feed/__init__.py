"""How a node follows the tracker's changes, so that it can serve tags without asking.

``interest`` decides of what it wants to be told, ``batch`` what follows from what it is told; both know neither clock
nor network. ``follow`` holds the connection and writes to the index (``store.applied``).
"""
