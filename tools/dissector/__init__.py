"""Babel packets in words: `tools/dissect`. Reads the wire by code of its own, to be a check on `routing.codec`."""
