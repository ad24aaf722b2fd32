"""How fast routing daemons converge, side by side: meshd, babeld and BIRD over the same links. See `main`."""
