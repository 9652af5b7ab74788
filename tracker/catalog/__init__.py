"""The tracker's records: repositories, blobs, manifests and tags."""
