"""What tools/docs runs: the reference, a search for dead links, and mkdocs."""
