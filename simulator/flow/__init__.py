"""Large meshes at rest: shortest-path trees, the load on them, and the prices that load makes."""
