"""Names that the operator has given to nodes: of a [[peer]], and nicknames in [[neighbour]]."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from meshd.config import Config
from meshd.identity import overlay_address


def identity_of(config: Config, name: str) -> bytes | None:
    """None: nobody is called so."""
    known = {peer.name: peer.identity for peer in config.peers}
    known |= {neighbour.name: neighbour.identity for neighbour in config.neighbours if neighbour.name}
    return known.get(name)


def address_of(config: Config, text: str) -> IPv4Address | IPv6Address:
    """An address as it is written, or the overlay address of who is called so. Raises ValueError."""
    identity = identity_of(config, text)
    return ip_address(text) if identity is None else overlay_address(identity)
