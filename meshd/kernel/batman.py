"""batman-adv's view of its mesh, by its generic netlink family (linux/batman_adv.h).

A `bat0` interface is a switch over many hops. *Originators* are the nodes in it, by the MAC address of one of their
hard interfaces; *clients* are the MAC addresses behind them, the node's own `bat0` among them. B.A.T.M.A.N. IV rates
the way to an originator by TQ (1 to 255: the share of packets that arrive, and come back), V by throughput.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from meshd.kernel.generic import GenericNetlink, mac_address, number, text, u32, values
from meshd.kernel.netlink import Conversation, NetlinkError, attribute

FAMILY = "batadv"
MAX_ENTRIES = 4096  # of each table: strangers can announce as many nodes and clients as they like

_GET_MESH, _GET_HARDIF, _GET_CLIENTS, _GET_ORIGINATORS, _GET_NEIGHBOURS, _SET_MESH = 1, 5, 7, 8, 9, 15
_VERSION, _ALGORITHM, _MESH_INDEX, _MESH_NAME, _HARD_INDEX, _ORIGINATOR = 1, 2, 3, 4, 6, 9
_CLIENT, _CLIENT_VLAN, _IS_BEST, _LAST_SEEN, _NEIGHBOUR, _TQ, _THROUGHPUT, _LOOP_AVOIDANCE = (
    16, 20, 22, 23, 24, 25, 26, 46,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mesh:
    """A `bat0`. `algorithm`: BATMAN_IV or BATMAN_V. `loop_avoidance`: bridge loop avoidance; None: not built in."""

    index: int
    name: str
    algorithm: str
    version: str
    loop_avoidance: bool | None


@dataclass(frozen=True, slots=True)
class Path:
    """To an originator (`mac`) by way of `neighbour`; to a neighbour itself both are the same.

    `tq`: 0 to 255, of B.A.T.M.A.N. IV; `throughput`: kbit/s, of V. `last_seen`: seconds. `is_best`: the one in use.
    """

    mac: bytes
    neighbour: bytes
    interface_index: int
    tq: int | None
    throughput: int | None
    last_seen: float
    is_best: bool


class Batman(Conversation):
    def __init__(self) -> None:
        self._family = GenericNetlink(FAMILY)

    def close(self) -> None:
        self._family.close()

    async def is_there(self) -> bool:
        """False: batman-adv is not loaded."""
        return await self._family.is_there()

    async def mesh(self, index: int) -> Mesh | None:
        """None: that interface is none of batman-adv's."""
        try:
            answers = await self._family.get(_GET_MESH, u32(_MESH_INDEX, index))
        except NetlinkError as error:
            if error.code in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                return None
            raise
        return next((mesh for mesh in map(read_mesh, answers) if mesh is not None), None)

    async def members(self, index: int) -> list[int]:
        """Indexes of the interfaces that it runs over."""
        found = (values(data) for data in await self._family.dump(_GET_HARDIF, u32(_MESH_INDEX, index)))
        return [member for member in (number(item, _HARD_INDEX, 4) for item in found) if member is not None]

    async def originators(self, index: int) -> list[Path]:
        """All ways to all nodes."""
        return _paths(await self._family.dump(_GET_ORIGINATORS, u32(_MESH_INDEX, index)))

    async def neighbours(self, index: int) -> list[Path]:
        """Nodes that are heard directly. B.A.T.M.A.N. IV does not rate them here: see `originators`."""
        return _paths(await self._family.dump(_GET_NEIGHBOURS, u32(_MESH_INDEX, index)))

    async def clients(self, index: int) -> dict[bytes, bytes]:
        """The originator that each client's MAC address is behind, of untagged traffic."""
        found: dict[bytes, bytes] = {}
        for data in (await self._family.dump(_GET_CLIENTS, u32(_MESH_INDEX, index)))[:MAX_ENTRIES]:
            read_client(data, found)
        return found

    async def set_loop_avoidance(self, index: int, *, is_on: bool) -> None:
        await self._family.request(_SET_MESH, u32(_MESH_INDEX, index) + attribute(_LOOP_AVOIDANCE, bytes([is_on])))


def read_mesh(data: bytes) -> Mesh | None:
    found = values(data)
    index, name, algorithm = number(found, _MESH_INDEX, 4), text(found, _MESH_NAME), text(found, _ALGORITHM)
    if index is None or name is None or algorithm is None:
        return None
    avoidance = number(found, _LOOP_AVOIDANCE, 1)
    loop_avoidance = None if avoidance is None else bool(avoidance)
    return Mesh(index, name, algorithm, text(found, _VERSION) or "", loop_avoidance)


def read_path(data: bytes) -> Path | None:
    found = values(data)
    neighbour = mac_address(found, _NEIGHBOUR)
    mac = mac_address(found, _ORIGINATOR) or neighbour
    interface_index, last_seen = number(found, _HARD_INDEX, 4), number(found, _LAST_SEEN, 4)
    if neighbour is None or mac is None or interface_index is None or last_seen is None:
        return None
    return Path(
        mac=mac,
        neighbour=neighbour,
        interface_index=interface_index,
        tq=number(found, _TQ, 1),
        throughput=number(found, _THROUGHPUT, 4),
        last_seen=last_seen / 1000,
        is_best=_IS_BEST in found,
    )


def read_client(data: bytes, found_by_client: dict[bytes, bytes]) -> None:
    """Into `found_by_client`. A client that several originators announce belongs to the best of them."""
    found = values(data)
    client, originator = mac_address(found, _CLIENT), mac_address(found, _ORIGINATOR)
    if client is None or originator is None or number(found, _CLIENT_VLAN, 2):
        return
    if _IS_BEST in found:
        found_by_client[client] = originator
    else:
        found_by_client.setdefault(client, originator)


def _paths(dump: list[bytes]) -> list[Path]:
    return [path for path in map(read_path, dump[:MAX_ENTRIES]) if path is not None]
