"""What is made of the figures of drivers and of batman-adv, with others in the kernel's place."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address

import pytest
import trio

from meshd.config import InterfaceConfig
from meshd.kernel import NetlinkError
from meshd.kernel.batman import Mesh, Path
from meshd.kernel.nl80211 import Radio, RadioType, Station
from meshd.radio import FRAMES_MIN, LOOK_INTERVAL, MISSES_MAX, READ_INTERVAL, QualityReader, Source
from routing.events import LinkQuality
from routing.speaker import NeighbourView
from tests.meshd.fakes import run

NEAR, FAR = IPv6Address("fe80::1"), IPv6Address("fe80::2")
MAC, CLIENT, ORIGINATOR = b"mac-01", b"bat-01", b"orig-1"
INDEX = {"wlan0": 1, "bat0": 2, "eth0": 3}
WLAN = ("wlan0", NEAR)
BAT = ("bat0", NEAR)


def station(sent: int = 1000, **other: int | None) -> Station:
    plain = Station(MAC, 0.1, -50, 54_000, sent, 0, 0, 20_000, is_peer=True)
    return replace(plain, **other)  # type: ignore[arg-type]


def path(tq: int | None = 204, throughput: int | None = None, **other: object) -> Path:
    return replace(Path(ORIGINATOR, ORIGINATOR, 1, tq, throughput, 0.5, is_best=True), **other)  # type: ignore[arg-type]


@dataclass
class Kernel:
    """Radios, batman-adv and neighbour tables, and the engine that is told. All of it can fail."""

    stations_now: dict[bytes, Station] = field(default_factory=dict)
    paths: list[Path] = field(default_factory=list)
    macs: dict[tuple[str, IPv6Address], bytes] = field(default_factory=lambda: {WLAN: MAC, BAT: CLIENT})
    views: dict[tuple[str, IPv6Address], NeighbourView] = field(default_factory=dict)
    told: list[LinkQuality] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    closed: int = 0
    looked: int = 0  # who is there

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.failing:
            raise NetlinkError(errno.ENODEV)

    async def radios(self) -> dict[int, Radio]:
        self._ask("radios")
        return {1: Radio(1, "wlan0", 0, b"own-01", RadioType.IBSS, b"cell", 2412)}

    async def stations(self, index: int) -> dict[bytes, Station]:
        self._ask(f"stations {index}")
        return self.stations_now

    async def is_there(self) -> bool:
        return True

    async def mesh(self, index: int) -> Mesh | None:
        return Mesh(2, "bat0", "BATMAN_IV", "2022.3", loop_avoidance=False) if index == 2 else None

    async def originators(self, index: int) -> list[Path]:
        self._ask(f"originators {index}")
        return self.paths

    async def clients(self, index: int) -> dict[bytes, bytes]:
        self._ask(f"clients {index}")
        return {CLIENT: ORIGINATOR}

    async def neighbour_mac(self, interface: str, address: IPv6Address) -> bytes | None:
        self._ask(f"mac {interface}")
        return self.macs.get((interface, address))

    async def tell(self, event: LinkQuality) -> None:
        self.told.append(event)
        key = (event.interface, event.address)
        self.views[key] = replace(self.views[key], quality=event.quality)

    def neighbours(self) -> list[NeighbourView]:
        self.looked += 1
        return list(self.views.values())

    def close(self) -> None:
        self.closed += 1

    def meet(self, *links: tuple[str, IPv6Address]) -> None:
        for link in links:
            self.views[link] = NeighbourView(*link, 96, 96, 96, 0xFFFF, 0)


@dataclass
class Bench:
    kernel: Kernel
    reader: QualityReader
    now: float = 0.0

    async def read(self, times: int = 1) -> None:
        for _ in range(times):
            await self.reader.read(now=self.now)
            self.now += READ_INTERVAL

    def share(self, link: tuple[str, IPv6Address]) -> float | None:
        known = self.reader.known(*link)
        return None if known is None else known[0]


def index_of(name: str) -> int:
    if name not in INDEX:
        raise OSError(errno.ENODEV, name)
    return INDEX[name]


def bench(
    *interfaces: InterfaceConfig, below: Callable[[str, IPv6Address], tuple[str, IPv6Address] | None] | None = None
) -> Bench:
    kernel = Kernel()
    configured = interfaces or tuple(InterfaceConfig(name=name) for name in (*INDEX, "gone0"))
    reader = QualityReader(
        configured,
        kernel,
        kernel,
        kernel,
        neighbours=kernel.neighbours,
        below=below or (lambda name, address: (name, address)),
        tell=kernel.tell,
        index_of=index_of,
    )
    return Bench(kernel, reader)


def checked(scenario: Callable[[Bench], Awaitable[None]], made: Bench | None = None) -> None:
    run(lambda: scenario(made or bench()))


def test_what_the_driver_expects_is_taken_first() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(WLAN, ("eth0", FAR))
        b.kernel.stations_now = {MAC: station()}
        await b.read()
        assert b.kernel.told == [LinkQuality("wlan0", NEAR, 0.5)]
        known = b.reader.known(*WLAN)
        assert known is not None
        assert (known[1].source, known[1].throughput, known[1].signal) == (Source.EXPECTED, 20_000, -50)
        assert b.reader.known("eth0", FAR) is None

    checked(scenario)


def test_without_that_the_bitrate_less_what_is_lost() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(WLAN)
        b.kernel.stations_now = {MAC: station(1000, expected_throughput=None, tx_retries=1000)}
        await b.read()
        assert b.kernel.told == [LinkQuality("wlan0", NEAR, 54_000 / 4 / 40_000)]
        # Since then as many failed: the difference counts.
        b.kernel.stations_now = {MAC: station(1100, expected_throughput=None, tx_retries=1000, tx_failed=100)}
        await b.read()
        known = b.reader.known(*WLAN)
        assert known is not None and (known[1].source, known[1].throughput) == (Source.BITRATE, 0)

    checked(scenario)


def test_an_idle_link_keeps_its_figure_and_a_new_one_has_none() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(WLAN)
        b.kernel.stations_now = {MAC: station(FRAMES_MIN - 1, expected_throughput=1000)}
        await b.read(2)
        assert b.kernel.told == []  # a driver that has sent nothing guesses low
        b.kernel.stations_now = {MAC: station(1000)}
        await b.read()
        b.kernel.stations_now = {MAC: station(1010, expected_throughput=1000)}
        await b.read(10 * MISSES_MAX)
        assert b.share(WLAN) == 0.5
        assert len(b.kernel.told) == 1
        b.kernel.stations_now = {MAC: station(FRAMES_MIN, expected_throughput=40_000)}  # it left, and came back
        await b.read()
        assert b.share(WLAN) == 0.625

    checked(scenario)


def test_one_outlier_is_smoothed_and_small_steps_are_not_told() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(WLAN)
        sent = 0
        for expected in (20_000, 20_400, 19_700, 20_200):
            sent += 100
            b.kernel.stations_now = {MAC: station(sent, expected_throughput=expected)}
            await b.read()
        assert [event.quality for event in b.kernel.told] == [0.5]
        b.kernel.stations_now = {MAC: station(sent + 100, expected_throughput=1)}
        await b.read()
        assert b.kernel.told[-1].quality == pytest.approx(0.375, rel=0.02)

    checked(scenario)


@pytest.mark.parametrize("what", ["gone", "not a peer", "silent", "another MAC address"])
def test_who_is_not_seen_any_more_has_no_quality(what: str) -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(WLAN)
        b.kernel.stations_now = {MAC: station()}
        await b.read()
        match what:
            case "gone":
                b.kernel.stations_now = {}
            case "not a peer":
                b.kernel.stations_now = {MAC: replace(station(2000), is_peer=False)}
            case "silent":
                b.kernel.stations_now = {MAC: replace(station(2000), inactive=100.0)}
            case _:
                b.kernel.macs[WLAN] = b"mac-02"
                b.now += LOOK_INTERVAL
        await b.read(MISSES_MAX)
        assert b.kernel.told[-1] == LinkQuality("wlan0", NEAR, None)
        assert b.share(WLAN) is None

    checked(scenario)


def test_batman_adv_by_tq_or_throughput_of_the_originator_that_the_neighbour_is_behind() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(BAT)
        b.kernel.paths = [path(10, is_best=False), path()]
        await b.read()
        assert b.kernel.told == [LinkQuality("bat0", NEAR, 0.8)]
        known = b.reader.known(*BAT)
        assert known is not None and (known[1].source, known[1].tq) == (Source.TQ, 204)
        b.kernel.paths = [path(None, 10_000)]
        await b.read()
        known = b.reader.known(*BAT)
        assert known is not None and (known[1].source, known[1].throughput) == (Source.THROUGHPUT, 10_000)
        b.kernel.paths = [path(last_seen=100.0)]
        await b.read(MISSES_MAX)
        assert b.kernel.told[-1].quality is None
        assert b.kernel.asked.count("clients 2") == 1  # long tables are not read each time

    checked(scenario)


def test_who_is_unknown_to_batman_adv_does_not_make_us_read_its_tables_all_the_time() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(BAT)
        b.kernel.macs[BAT] = b"bat-02"
        b.kernel.paths = [path()]
        await b.read(11)  # 0 to 20 s
        assert b.kernel.told == []
        assert b.kernel.asked.count("clients 2") == 3
        b.kernel.macs[BAT] = CLIENT
        b.now += LOOK_INTERVAL
        await b.read()
        assert b.share(BAT) == 0.8

    checked(scenario)


def test_through_a_tunnel_the_link_under_it_counts() -> None:
    def below(name: str, address: IPv6Address) -> tuple[str, IPv6Address] | None:
        return {"mw1": WLAN, "mw2": None}.get(name, (name, address))

    async def scenario(b: Bench) -> None:
        b.kernel.meet(("mw1", FAR), ("mw2", FAR))
        b.kernel.stations_now = {MAC: station()}
        await b.read()
        assert b.kernel.told == [LinkQuality("mw1", FAR, 0.5)]

    checked(scenario, bench(below=below))


def test_a_neighbour_that_has_restarted_is_rated_again() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(WLAN)
        b.kernel.stations_now = {MAC: station()}
        await b.read()
        b.kernel.meet(WLAN)  # the engine has forgotten
        await b.read()
        assert [event.quality for event in b.kernel.told] == [0.5, 0.5]

    checked(scenario)


def test_what_the_operator_does_not_want_is_not_read() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(WLAN)
        b.kernel.stations_now = {MAC: station()}
        await b.read(2)
        await b.reader.run()  # ends by itself: there is nothing to do
        assert b.kernel.told == [] and b.kernel.asked == [] and b.kernel.closed == 2

    checked(scenario, bench(InterfaceConfig(name="wlan0", quality="hello")))


def test_where_nothing_is_a_radio_little_is_asked() -> None:
    async def scenario(b: Bench) -> None:
        await b.read(3)
        b.kernel.meet(("eth0", NEAR))
        await b.read(10)
        assert b.kernel.asked == ["radios"] and b.kernel.looked == 4
        await b.read(10)  # it may have become one
        assert b.kernel.asked == ["radios"] * 2

    checked(scenario, bench(InterfaceConfig(name="eth0")))


def test_full_throughput_is_the_operators_choice() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(WLAN)
        b.kernel.stations_now = {MAC: station()}
        await b.read()
        assert b.share(WLAN) == 0.1

    checked(scenario, bench(InterfaceConfig(name="wlan0", full_throughput=200.0)))


def test_errors_of_the_kernel_end_nothing() -> None:
    async def scenario(b: Bench) -> None:
        b.kernel.meet(WLAN, BAT)
        b.kernel.stations_now = {MAC: station()}
        b.kernel.paths = [path()]
        b.kernel.failing = {"radios"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.reader.run)
            await trio.sleep(READ_INTERVAL * 1.5)  # from here on always between two readings
            assert b.kernel.told == []
            b.kernel.failing = {"stations 1"}
            await trio.sleep(LOOK_INTERVAL)
            assert b.kernel.told == [LinkQuality("bat0", NEAR, 0.8)]  # one interface does not spoil the other
            b.kernel.failing = set()
            await trio.sleep(READ_INTERVAL)
            assert b.kernel.told[-1] == LinkQuality("wlan0", NEAR, 0.5)
            b.kernel.failing = {"stations 1", "originators 2"}
            await trio.sleep((MISSES_MAX + 1) * READ_INTERVAL)
            assert {event.quality for event in b.kernel.told[-2:]} == {None}
            nursery.cancel_scope.cancel()
        assert b.kernel.closed == 2
        assert b.reader.counters["link quality not read"] > MISSES_MAX

    checked(scenario)
