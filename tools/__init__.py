"""Commands for developers and for the demo."""
