"""Recordings of meshd's routing engine, run again offline: `tools/replay`."""
