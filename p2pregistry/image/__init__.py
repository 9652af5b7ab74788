"""Images in any registry, for the person at the command line: their root CIDs, and CAR files of them."""
