"""The distance-vector protocol: Babel (RFC 8966) with prices. Pure: no I/O, no clock, no randomness of its own."""
