"""A mesh whose nodes have radios (mac80211_hwsim) and not wires. Who hears whom is said by groups of radios.

In a virtual machine only: it takes all radios that the kernel has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from tests.lab.mesh import CONFIG, Mesh, Record, await_routes, lab_name, until
from tools.lab import network
from tools.lab.lab import Lab
from tools.lab.state import LabError
from tools.lab.topology import Link, Node, Topology

PHYS = Path("/sys/class/ieee80211")
GROUPS = Path("/sys/kernel/debug/ieee80211")
RADIO, BATMAN = "wlan0", "bat0"
MESH_ID, FREQUENCY, CELL = "vmlab", "2412", "02:ca:fe:ca:ca:40"
MTU_UNDER_BATMAN = "1532"
RATE = "20mbit"  # hwsim knows no airtime: without a limit any sum is carried at once
POLL = 0.5  # seconds: each look costs as much as a second of the mesh
PATIENCE = 300.0  # virtual seconds, where the machine skips those in which nothing happens
NODES = ("n1", "n2", "n3", "n4")


def eventually(what: str, is_so: Callable[[], bool]) -> None:
    """The test fails if it is never so."""
    until(what, is_so, PATIENCE, interval=POLL)


class Layer(StrEnum):
    """What the daemons run on."""

    AD_HOC = "ad-hoc"
    MESH_POINT = "802.11s"
    BATMAN = "bat0"


def line() -> tuple[Link, ...]:
    return tuple(Link(a, b) for a, b in pairwise(NODES))


class RadioLab(Lab):
    """The topology's links say who hears whom at first."""

    def __init__(self, topology: Topology, layer: Layer, *, name: str, options: dict[str, Any]) -> None:
        super().__init__(topology, name=name)
        self.layer = layer
        self.options = options  # of [[interface]]
        self.phys: dict[str, str] = {}

    @property
    def interface(self) -> str:
        return BATMAN if self.layer is Layer.BATMAN else RADIO

    def interfaces(self, node: str) -> list[dict[str, Any]]:
        del node
        table = {"name": self.interface, "security": self.topology.security, "kind": "wireless"}
        return [table | self.options]

    def make_links(self) -> None:
        phys = sorted((path.name for path in PHYS.iterdir()), key=lambda name: int(name.removeprefix("phy")))
        assert len(phys) >= len(self.nodes), f"{len(phys)} radios for {len(self.nodes)} nodes"
        self.phys = dict(zip(self.nodes, phys, strict=False))
        self.hear(self.topology.links)
        for node, phy in self.phys.items():
            network.run(["iw", "phy", phy, "set", "netns", "name", self.namespace(node)])
        for node in self.nodes:
            for command in self._commands(node):
                self.exec(node, command.split())

    def down(self, *, keep_files: bool = False) -> None:
        """The radios go back first: a namespace that is deleted lives on while TCP has farewells to send in it."""
        for node, phy in self.phys.items():
            self.exec(node, ["iw", "phy", phy, "set", "netns", "1"], check=False)
        super().down(keep_files=keep_files)

    def hear(self, links: Sequence[Link]) -> None:
        """From now on the ends of these hear each other, and nobody else: a group of radios for each."""
        for node, phy in self.phys.items():
            groups = sum(1 << number for number, link in enumerate(links) if node in (link.a, link.b))
            (GROUPS / phy / "hwsim" / "group").write_text(f"{groups:#x}\n")

    def _commands(self, node: str) -> Iterator[str]:
        """`meshd radio setup` has tests of its own: this is what others do, with their tools."""
        words = self.exec(node, ["iw", "dev"]).stdout.split()
        old = words[words.index("Interface") + 1]
        yield f"ip link set {old} down"
        if old != RADIO:
            yield f"ip link set {old} name {RADIO}"
        if self.layer is Layer.MESH_POINT:
            yield f"iw {RADIO} set type mp"
            yield f"ip link set {RADIO} up"
            yield f"iw {RADIO} mesh join {MESH_ID} freq {FREQUENCY}"
            yield f"iw {RADIO} set mesh_param mesh_fwding 0"  # every hop is to be paid, so layer 3 forwards
        else:
            yield f"iw {RADIO} set type ibss"
            yield f"ip link set {RADIO} mtu {MTU_UNDER_BATMAN} up"
            yield f"iw {RADIO} ibss join {MESH_ID} {FREQUENCY} HT20 fixed-freq {CELL}"
        if self.layer is Layer.BATMAN:
            yield "batctl routing_algo BATMAN_IV"
            yield f"batctl meshif {BATMAN} interface create"
            yield f"batctl meshif {BATMAN} interface add {RADIO}"
            yield f"batctl meshif {BATMAN} bridge_loop_avoidance 0"  # else broadcasts wait for half a minute
            yield f"ip link set {BATMAN} up"
        yield f"tc qdisc replace dev {RADIO} root handle 1: tbf rate {RATE} burst 32k limit 1m"


class RadioMesh(Mesh):
    """Many neighbours on one interface: told apart by who they are."""

    lab: RadioLab

    def __init__(self, lab: RadioLab) -> None:
        super().__init__(lab)
        self._tunnels: dict[tuple[str, str], str] = {}
        self._node_by_address = {lab.rpc(node, "status")["address"]: node for node in lab.nodes}

    def find(self, node: str, peer: str) -> Record | None:
        rows = [row for row in self.lab.rpc(node, "neighbours") if row["identity"] == self.identity[peer]]
        return dict(rows[0]) if rows else None

    def neighbour(self, node: str, peer: str) -> Record:
        found = self.find(node, peer)
        assert found is not None, f"{node} has no neighbour {peer}"
        return found

    def tunnel(self, node: str, peer: str) -> str:
        """The name of its interface. Also of a neighbour that is lost for the moment."""
        found = self._tunnels.get((node, peer))
        if found is None:
            found = self._tunnels[node, peer] = str(self.neighbour(node, peer)["interface"])
        return found

    def neighbours(self, node: str) -> set[str]:
        by_identity = {identity: name for name, identity in self.identity.items()}
        return {by_identity[row["identity"]] for row in self.lab.rpc(node, "neighbours")}

    def bytes_out(self, node: str, peer: str) -> int:
        return int(self.neighbour(node, peer)["bytes_out"])

    def bytes_in(self, node: str, peer: str) -> int:
        return int(self.neighbour(node, peer)["bytes_in"])

    def next_hop(self, node: str, destination: str) -> str | None:
        try:
            chosen = self.lab.rpc(node, "path", destination=self.lab.address(destination))["chosen"]
        except LabError:  # there is no route
            return None
        if chosen is None:
            return None
        return self._node_by_address.get(chosen["neighbour"])

    def way(self, source: str, destination: str) -> list[str]:
        """The nodes that a packet passes, as the daemons have it; shorter where one has no route."""
        nodes = [source]
        while nodes[-1] != destination and len(nodes) <= len(self.lab.nodes):
            hop = self.next_hop(nodes[-1], destination)
            if hop is None:
                break
            nodes.append(hop)
        return nodes

    def pairs(self) -> list[tuple[str, str]]:
        return [pair for a, b in combinations(self.lab.nodes, 2) for pair in ((a, b), (b, a))]


@contextmanager
def on_air(
    subject: str, layer: Layer, links: Sequence[Link], fee_by_node: dict[str, int], **options: Any
) -> Iterator[RadioMesh]:
    """The mesh, when every node has a route to every other. `options`: keys of [[interface]]."""
    nodes = tuple(Node(name, fee, CONFIG) for name, fee in fee_by_node.items())
    graph = Topology(nodes, tuple(links), "wireguard")
    with RadioLab(graph, layer, name=lab_name(subject), options=options) as lab:
        await_routes(lab)
        yield RadioMesh(lab)
