"""Names, paths, manifests, ranges and media types of OCI: pure functions."""
