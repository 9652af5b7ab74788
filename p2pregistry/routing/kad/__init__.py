"""A Kademlia provider core: pure, on the libp2p kad-dht wire format."""
