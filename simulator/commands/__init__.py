"""Subcommands of meshsim besides run and report."""
