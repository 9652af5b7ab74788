"""The JSON API ``/api/v1``: accounts, repositories, tokens, nodes and keys, for programs and for the command line."""
