"""Where a registry keeps the bytes of its blobs: files, S3, memory."""
