"""How well neighbours are reached, as those see it who know better than Hellos: drivers of radios, and batman-adv.

One task asks every two seconds, for the interfaces that are radios (`meshd.kernel.nl80211`) or batman-adv's
(`meshd.kernel.batman`), or have tunnels over such ones. It tells the routing engine what has changed
(`events.LinkQuality`), and `meshctl neighbours` where it is from. How a cost is made of it is in `routing.rules`.
"""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address
from typing import Protocol

import trio

from meshd.config import InterfaceConfig
from meshd.kernel import NetlinkError
from meshd.kernel.batman import Mesh, Path
from meshd.kernel.nl80211 import Radio, Station
from meshd.logs import Logger
from meshd.ticks import tick_after
from routing import rules
from routing.events import LinkQuality
from routing.speaker import NeighbourView

log = Logger("meshd.radio")
READ_INTERVAL = 2.0
LOOK_INTERVAL = 30.0  # for interfaces that have become radios, and neighbours that have another MAC address
FRAMES_MIN = 25  # from one reading to the next: a driver learns from what is sent, and guesses low on an idle link
INACTIVE_MAX = 60.0  # seconds
TABLE_INTERVAL = 10.0  # between two readings of batman-adv's table of clients, which strangers can make long
MISSES_MAX = 5  # readings without a figure, until it is forgotten
CHANGE_MIN = 1 / 32  # what the engine is told of; it takes no notice of less than an eighth
KBIT_PER_MBIT = 1000

Neighbour = tuple[str, IPv6Address]  # the speaker's interface, and the address on it


class Source(Enum):
    EXPECTED = "expected throughput"  # nl80211, from the driver's rate control
    BITRATE = "bitrate"  # nl80211, less what is sent in vain
    TQ = "TQ"  # B.A.T.M.A.N. IV
    THROUGHPUT = "throughput"  # B.A.T.M.A.N. V


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure. `throughput`: kbit/s; `signal`: dBm."""

    quality: float
    source: Source
    throughput: int | None = None
    tq: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Frames:
    """A station's counters."""

    sent: int
    retries: int
    failed: int


@dataclass(slots=True)
class Track:
    """What is known of one neighbour. `quality` is smoothed, `last` is not."""

    mac: bytes | None = None
    looked_at: float = -math.inf
    frames: Frames | None = None
    quality: float | None = None
    last: Sample | None = None
    misses: int = 0


class Macs(Protocol):
    """`meshd.kernel.Links`."""

    async def neighbour_mac(self, interface: str, address: IPv6Address) -> bytes | None: ...


class Radios(Protocol):
    """`meshd.kernel.nl80211.Nl80211`."""

    async def radios(self) -> dict[int, Radio]: ...

    async def stations(self, index: int) -> dict[bytes, Station]: ...

    def close(self) -> None: ...


class Meshes(Protocol):
    """`meshd.kernel.batman.Batman`."""

    async def is_there(self) -> bool: ...

    async def mesh(self, index: int) -> Mesh | None: ...

    async def originators(self, index: int) -> list[Path]: ...

    async def clients(self, index: int) -> dict[bytes, bytes]: ...

    def close(self) -> None: ...


class QualityReader:
    """`below(interface, address)`: the interface and address that a neighbour is reached by under its tunnel; None:
    elsewhere than on the link. `index_of(name)` raises OSError for an interface that is not there."""

    def __init__(
        self,
        interfaces: Iterable[InterfaceConfig],
        macs: Macs,
        radios: Radios,
        meshes: Meshes,
        *,
        neighbours: Callable[[], Iterable[NeighbourView]],
        below: Callable[[str, IPv6Address], Neighbour | None],
        tell: Callable[[LinkQuality], Awaitable[None]],
        index_of: Callable[[str], int] = socket.if_nametoindex,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._configured = {i.name: i for i in interfaces if i.quality == "auto"}
        self._macs = macs
        self._radios = radios
        self._meshes = meshes
        self._neighbours = neighbours
        self._below = below
        self._tell = tell
        self._index_of = index_of
        self._tracks: dict[Neighbour, Track] = {}
        self._looked_at = -math.inf
        self._is_radio: dict[str, bool] = {}  # by interface; those missing are neither radio nor batman-adv's
        self._clients: dict[
            str, tuple[float, dict[bytes, bytes]]
        ] = {}  # when read, originators by MAC address behind them

    def known(self, interface: str, address: IPv6Address) -> tuple[float, Sample] | None:
        """The smoothed quality of a neighbour, and the last figure that went into it."""
        track = self._tracks.get((interface, address))
        return None if track is None or track.quality is None or track.last is None else (track.quality, track.last)

    async def run(self) -> None:
        """Until cancelled, whatever the kernel says."""
        try:
            while self._configured:
                await self.read(now=trio.current_time())
                await trio.sleep_until(tick_after(trio.current_time(), READ_INTERVAL))
        finally:
            self._radios.close()
            self._meshes.close()

    async def read(self, *, now: float) -> None:
        """All neighbours, once."""
        is_known = any(track.quality is not None for track in self._tracks.values())
        if not (self._is_radio or is_known or now - self._looked_at >= LOOK_INTERVAL):
            return  # there is nothing to be read
        views = {(view.interface, view.address): view for view in self._neighbours()}
        self._tracks = {key: track for key, track in self._tracks.items() if key in views}
        by_interface: dict[str, dict[Neighbour, IPv6Address]] = {}
        for key in views:
            below = self._below(*key)
            if below is not None and below[0] in self._configured:
                by_interface.setdefault(below[0], {})[key] = below[1]
        if not by_interface:
            return
        if now - self._looked_at >= LOOK_INTERVAL:
            await self._look(now=now)
        for name, addresses in by_interface.items():
            samples: dict[Neighbour, Sample | None] = dict.fromkeys(addresses)
            if name in self._is_radio:
                try:
                    samples |= await self._ask(name, addresses, now=now)
                except (NetlinkError, OSError) as error:
                    self.counters["link quality not read"] += 1
                    log.debug("link quality not read", interface=name, reason=error)
            for key, sample in samples.items():
                await self._take(views[key], sample)

    async def _look(self, *, now: float) -> None:
        """Which interfaces are what."""
        found: dict[str, bool] = {}
        try:
            radios = await self._radios.radios()
            has_meshes = await self._meshes.is_there()
            for name in self._configured:
                try:
                    index = self._index_of(name)
                except OSError:
                    continue
                if index in radios:
                    found[name] = True
                elif has_meshes and await self._meshes.mesh(index) is not None:
                    found[name] = False
        except (NetlinkError, OSError) as error:
            self.counters["link quality not read"] += 1
            log.debug("radios not recognised", reason=error)
            return
        for name in found.keys() - self._is_radio.keys():
            log.info("link quality is read", interface=name, source="nl80211" if found[name] else "batman-adv")
        self._is_radio = found
        self._looked_at = now

    async def _ask(
        self, name: str, addresses: Mapping[Neighbour, IPv6Address], *, now: float
    ) -> dict[Neighbour, Sample | None]:
        macs = {key: await self._mac(key, name, address, now=now) for key, address in addresses.items()}
        index, full = self._index_of(name), self._configured[name].full_throughput * KBIT_PER_MBIT
        if self._is_radio[name]:
            stations = await self._radios.stations(index)
            return {key: self._of_station(self._tracks[key], stations.get(mac), full) for key, mac in macs.items()}
        paths = {path.mac: path for path in await self._meshes.originators(index) if path.is_best}
        clients = await self._clients_of(name, index, macs.values(), now=now)
        return {key: _of_path(paths.get(clients.get(mac, b"")), full) for key, mac in macs.items()}

    async def _clients_of(self, name: str, index: int, macs: Iterable[bytes], *, now: float) -> dict[bytes, bytes]:
        """Where everybody is in this mesh; read again when it is old, sooner if somebody is missing."""
        read_at, clients = self._clients.get(name, (-math.inf, {}))
        is_complete = all(not mac or mac in clients for mac in macs)
        if now - read_at >= (LOOK_INTERVAL if is_complete else TABLE_INTERVAL):
            clients = await self._meshes.clients(index)
            self._clients[name] = now, clients
        return clients

    async def _mac(self, key: Neighbour, name: str, address: IPv6Address, *, now: float) -> bytes:
        """Empty: not known, or not any more."""
        track = self._tracks.setdefault(key, Track())
        if track.mac is None or now - track.looked_at >= LOOK_INTERVAL:
            track.mac = await self._macs.neighbour_mac(name, address) or track.mac
            track.looked_at = now
        return track.mac or b""

    @staticmethod
    def _of_station(track: Track, station: Station | None, full: float) -> Sample | None:
        """The last one again, where there was too little traffic to tell more; None: there was none."""
        if station is None or not station.is_peer or (station.inactive or 0.0) > INACTIVE_MAX:
            return None
        frames = Frames(station.tx_packets or 0, station.tx_retries or 0, station.tx_failed or 0)
        before = track.frames or Frames(0, 0, 0)
        if frames.sent < before.sent or frames.retries < before.retries or frames.failed < before.failed:
            before = Frames(0, 0, 0)  # it went, and came back
        sent = frames.sent - before.sent
        track.frames = frames
        if station.tx_packets is not None and sent < FRAMES_MIN:
            return track.last
        if station.expected_throughput:
            throughput, source = float(station.expected_throughput), Source.EXPECTED
        elif station.tx_bitrate:
            retries, failed = frames.retries - before.retries, frames.failed - before.failed
            throughput, source = rules.radio_throughput(station.tx_bitrate, sent, retries, failed), Source.BITRATE
        else:
            return None
        quality = rules.throughput_quality(throughput, full)
        return Sample(quality, source, throughput=int(throughput), signal=station.signal)

    async def _take(self, view: NeighbourView, sample: Sample | None) -> None:
        """Smooth it, and tell the engine what it does not know yet."""
        track = self._tracks.setdefault((view.interface, view.address), Track())
        track.misses = track.misses + 1 if sample is None else 0
        if sample is not None:
            if sample is not track.last:
                known = track.quality
                track.quality = sample.quality if known is None else rules.smooth_quality(known, sample.quality)
            track.last = sample
        elif track.misses >= MISSES_MAX:
            track.quality = track.last = track.frames = None
        if _is_news(view.quality, track.quality):
            await self._tell(LinkQuality(view.interface, view.address, track.quality))


def _of_path(path: Path | None, full: float) -> Sample | None:
    if path is None or path.last_seen > INACTIVE_MAX:
        return None
    if path.throughput is not None:
        quality = rules.throughput_quality(float(path.throughput), full)
        return Sample(quality, Source.THROUGHPUT, throughput=path.throughput)
    return None if path.tq is None else Sample(rules.tq_quality(path.tq), Source.TQ, tq=path.tq)


def _is_news(told: float | None, known: float | None) -> bool:
    if told is None or known is None:
        return told is not known
    return abs(known - told) > told * CHANGE_MIN
