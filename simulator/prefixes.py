"""Prefixes of simulated nodes."""

from __future__ import annotations

from ipaddress import IPv6Network


class HashedNetwork(IPv6Network):
    """As any other, but for its hash, which is computed once: tables of a large run ask for it millions of times."""

    def __init__(self, address: tuple[int, int] | str) -> None:
        super().__init__(address)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash
