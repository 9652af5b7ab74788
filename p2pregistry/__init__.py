"""p2pregistry: peer-to-peer distribution of container images."""

__version__ = "0.1.0"
