"""Everything of payments/ that touches the world: the chain, the wallet, the store."""
