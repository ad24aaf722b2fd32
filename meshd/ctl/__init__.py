"""meshctl: the command line of the daemon. Imports nothing heavy: it starts in well under 100 ms."""
