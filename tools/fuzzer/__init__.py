"""tools/fuzz: octets that nobody would send, coverage-guided, into the decoder and into a whole speaker."""
