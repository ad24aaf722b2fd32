"""A mesh of daemons on one machine: a network namespace and a `meshd` each, links with rates, one regtest chain.

`Lab` is the library (tools/demo, tests/lab); `tools/meshlab` is the command.
"""
