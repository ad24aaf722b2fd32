"""The compiler of the fast lane."""
