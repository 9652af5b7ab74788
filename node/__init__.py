"""The node: the sidecar beside a container engine."""
