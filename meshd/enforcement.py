"""Who is held to the free tier: those who owe more than their window, and those who cannot pay at all.

The payment engine says which *peers* are suspended; the kernel holds *ports* (interface and MAC address). A peer is
held on all its links, now and later. Who is held is written to a file before the kernel is told, so that the next start
holds the same ports from the first packet on, before any session has said who is behind them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import msgspec
import trio

from meshd.kernel import Kernel, NetlinkError, NftError, Port
from meshd.logs import Logger
from meshd.neighbours import Neighbours

log = Logger("meshd.enforcement")
MAX_STRANGERS_HELD = 1024
MAX_HELD = 4096  # of a file; it is ours, but it may be damaged


class State(Enum):
    """Of a neighbour, by what becomes of the traffic that it wants carried."""

    OPEN = "open"  # it pays, or has not used up its window: all is carried, and billed
    FREE = "free"  # without a payment session, and beyond its window: it shares one free tier with others like it
    SUSPENDED = "suspended"  # it owes more than its window: a free tier of its own, until it pays


class _Entry(msgspec.Struct, frozen=True):
    interface: str
    mac: str
    is_shared: bool


class HeldFile:
    """The ports that are held, across restarts. In memory only without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> dict[Port, bool]:
        """Those of the last run, and whether each is in the shared tier. A file that cannot be read holds nobody."""
        if self._path is None or not self._path.exists():
            return {}
        try:
            entries = msgspec.json.decode(self._path.read_bytes(), type=list[_Entry])[:MAX_HELD]
            return {(entry.interface, bytes.fromhex(entry.mac)): entry.is_shared for entry in entries}
        except (OSError, ValueError) as error:
            log.error("it is not known who was held to the free tier", file=self._path, reason=error)
            return {}

    async def save(self, held: Mapping[Port, bool]) -> None:
        """On the disk when it returns. Raises OSError."""
        if self._path is not None:
            with trio.CancelScope(shield=True):  # the kernel is told next: both or neither
                await trio.to_thread.run_sync(self._write, self._path, dict(held))

    @staticmethod
    def _write(path: Path, held: Mapping[Port, bool]) -> None:
        entries = [_Entry(interface, mac.hex(), shared) for (interface, mac), shared in held.items()]
        temporary = path.with_name(path.name + ".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(entries))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


class Enforcement:
    """`held`: the ports that the kernel holds already, as `HeldFile.load` gave them. `free_rate`: bits per second."""

    def __init__(
        self,
        kernel: Kernel,
        neighbours: Neighbours,
        *,
        file: HeldFile,
        held: Mapping[Port, bool],
        free_rate: int,
    ) -> None:
        self.neighbours = neighbours
        self.free_rate = free_rate
        self.failures = 0  # what the kernel or the disk refused; it is tried again
        self._kernel = kernel
        self._file = file
        self._held = dict(held)  # whether in the shared tier; the oldest first
        self._suspended_peers: set[bytes] = set()
        self._lock = trio.Lock()

    async def set_carrying(self, peer: bytes, carrying: bool) -> None:
        """Hold what this peer hands us to carry on to the free tier, or no more, on all its links, now and later."""
        (self._suspended_peers.discard if carrying else self._suspended_peers.add)(peer)
        await self.apply()

    def state_of(self, port: Port | None) -> State:
        """As the kernel has it."""
        if port not in self._held:
            return State.OPEN
        return State.FREE if self._held[port] else State.SUSPENDED

    async def apply(self) -> None:
        """Brings the ports of all whom we know in line with what the engine said of them. Who is behind the others is
        not known, and they stay as they are."""
        if not (self._held or self._suspended_peers or self._lock.locked()):
            return  # mostly; this is called twice a second
        async with self._lock:  # one after the other: each computes what is wanted when it is its turn
            wanted = {port for peer in self._suspended_peers for port in self.neighbours.ports_of(peer)}
            unknown = {port for port in self._held if self.neighbours.peer_of(port) is None}
            for port in self._held.keys() - wanted - unknown:
                await self._release(port)
            for port in wanted:
                if self._held.get(port) is not False:
                    await self._hold(port, is_shared=False)

    async def hold_stranger(self, port: Port) -> list[Port]:
        """It has no payment session and has used up what a newcomer is trusted with. Returns who had to make room."""
        async with self._lock:
            if port in self._held or self.neighbours.peer_of(port) is not None:
                return []
            log.warning("a neighbour without a payment session falls to the free tier", interface=port[0], mac=port[1])
            await self._hold(port, is_shared=True)
            strangers = [old for old in self._held if self.neighbours.peer_of(old) is None]
            gone = strangers[: max(0, len(strangers) - MAX_STRANGERS_HELD)]
            for old in gone:
                await self._release(old)
            return gone

    async def _hold(self, port: Port, *, is_shared: bool) -> None:
        """A disk that refuses is no reason to carry for nothing; a kernel that refuses is asked again."""
        held = {known: shared for known, shared in self._held.items() if known != port} | {port: is_shared}
        await self._save(port, held)
        try:
            await self._kernel.gate.suspend(*port, is_shared=is_shared)
            self._held = held
        except (NetlinkError, NftError) as error:
            self._failed(port, error)

    async def _release(self, port: Port) -> None:
        held = {known: shared for known, shared in self._held.items() if known != port}
        try:
            await self._kernel.gate.resume(*port)
            self._held = held
        except (NetlinkError, NftError) as error:
            self._failed(port, error)
        else:
            await self._save(port, held)

    async def _save(self, port: Port, held: Mapping[Port, bool]) -> None:
        try:
            await self._file.save(held)
        except OSError as error:
            self._failed(port, error)

    def _failed(self, port: Port, error: Exception) -> None:
        self.failures += 1
        log.error("gate not set", interface=port[0], mac=port[1], reason=error)
