"""Pieces, metainfo, the UnixFS DAG and CAR files: pure functions over bytes."""
