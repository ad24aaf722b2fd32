"""What tools/package runs: a Debian package with meshd, its libraries and a systemd service in it."""
