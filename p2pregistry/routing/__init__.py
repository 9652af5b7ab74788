"""Who has what: the DHT and its stand-ins."""
