"""meshsim: the same protocol code, in virtual time."""
