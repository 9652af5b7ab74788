"""The operator's commands, one file an area; all but ``config`` ask the running tracker over its admin socket."""
