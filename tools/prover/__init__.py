"""tools/prove: random disasters on the real engine in virtual time; no forwarding loop at any change of a next hop."""
