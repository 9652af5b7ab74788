"""What is spoken with IPFS software: its RPC."""
