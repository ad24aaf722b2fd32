"""Who is who: the neighbours of routing, of payments and of the kernel's counters, brought together."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshd.billing import LinkKey
from meshd.kernel import Port


@dataclass(slots=True)
class Neighbours:
    """Who is behind which MAC address: a link-local address by the kernel, a public key by the session on the link.

    One MAC address may have several link-local addresses, as when a neighbour came back under a new one and its old
    one has not timed out; then the newest with a session counts.
    """

    port_by_link: dict[LinkKey, Port] = field(default_factory=dict)
    links_by_port: dict[Port, list[LinkKey]] = field(default_factory=dict)  # the oldest first
    peer_by_link: dict[LinkKey, bytes] = field(default_factory=dict)

    def learn_port(self, link: LinkKey, mac: bytes) -> None:
        port = (link[0], mac)
        if self.port_by_link.get(link) != port:
            self._forget_port(link)
            self.port_by_link[link] = port
            self.links_by_port.setdefault(port, []).append(link)

    def forget(self, link: LinkKey) -> None:
        self._forget_port(link)
        self.peer_by_link.pop(link, None)

    def _forget_port(self, link: LinkKey) -> None:
        port = self.port_by_link.pop(link, None)
        if port is not None:
            self.links_by_port[port].remove(link)
            if not self.links_by_port[port]:
                del self.links_by_port[port]

    def ports_of(self, peer: bytes) -> list[Port]:
        """Of all links on which it is the one that counts."""
        ports = (self.port_by_link.get(link) for link, known in self.peer_by_link.items() if known == peer)
        return [port for port in ports if port is not None and self.peer_of(port) == peer]

    def link_of(self, port: Port) -> LinkKey | None:
        links = self.links_by_port.get(port, ())
        newest = links[-1] if links else None
        return next((link for link in reversed(links) if link in self.peer_by_link), newest)

    def peer_of(self, port: Port) -> bytes | None:
        link = self.link_of(port)
        return None if link is None else self.peer_by_link.get(link)
