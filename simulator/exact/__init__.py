"""The exact fidelity: real speakers and payment engines, in virtual time."""
