"""The protocol for thousands of nodes, one destination after the other."""
