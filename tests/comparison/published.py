"""A published convergence curve of babeld, and the simulator's with babeld's timers.

meshnet-lab (data/README.md) started babeld on 49 nodes, a grid of 7 by 7, waited for 0, 2, 4, ... 58 s, and sent 200
pings between random pairs at least two hops apart, over 2 s; and began anew for each of these waits. It did so twice:
in 2020 with babeld 1.8.3 on a laptop, in 2024 with 1.13.1 on a server. How far these two are apart, and what a sample
of 200 leaves open, is the spread that the simulated curve has to keep within.

What babeld does there, by its source (1.13.1) and by a look at 1.12.1: one interface of unknown kind, so cost 96, no
split horizon, 2-out-of-3 Hellos. The script that starts it takes the interface down and up, so that its link-local
address is tentative for 1 to 2 s (RFC 4862), and all that babeld sends at its start fails ("Cannot assign requested
address"). So it is met by Hellos 3 to 5 s apart only, and its own prefix is first announced by the first regular
update, 12 to 20 s after the start: that makes the curve. Every timer is within a quarter of its interval. Hellos and
IHUs wait in a buffer for about a second (`BufferedNetwork`); the update of a new route waits for some 0.1 s and takes
them along.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx

from routing.config import SpeakerConfig
from routing.events import SendPacket
from routing.tlv import Hello
from simulator import topology
from simulator.network import Network, Options

DATA = Path(__file__).parent / "data"
CURVES = ("babel-grid4-2020.tsv", "babel-grid4-2024.tsv")
TOPOLOGY = "grid:7x7"
PING_SECONDS = 2.0
LOOK_INTERVAL = 0.5
LATENCY = 0.001
PINGS = 200
NORMAL_95 = 1.96
BABELD = SpeakerConfig(
    router_id=b"\xff" * 7 + b"\0",
    hello_interval=4.0,
    update_interval=16.0,
    urgent_timeout=0.15,  # 75 to 150 ms
    split_horizon=False,
    is_eager=False,
)
BUFFERED = (0.56, 1.56)  # seconds that a Hello waits
FLUSHED = (0.006, 0.016)  # and an update, which takes the Hello along
TENTATIVE = (1.0, 2.0)  # from the start of a node: nothing is sent


class BufferedNetwork(Network):
    """With babeld's buffer in front of each interface."""

    def __init__(self, graph: nx.Graph, options: Options) -> None:
        super().__init__(graph, dict.fromkeys(graph, 0), options)
        self._buffer: dict[int, list[SendPacket]] = {node: [] for node in graph}
        self._flush_at: dict[int, float] = dict.fromkeys(graph, math.inf)
        self._ready_at: dict[int, float] = {}
        self._rng = random.Random(f"{options.seed}/buffer")

    def _send(self, sender: int, packet: SendPacket) -> None:
        if self.now <= self._ready_at.setdefault(sender, self.now + self._rng.uniform(*TENTATIVE)):
            return
        is_hello = any(isinstance(tlv, Hello) for tlv in packet.tlvs)
        at = self.now + self._rng.uniform(*(BUFFERED if is_hello else FLUSHED))
        self._buffer[sender].append(packet)
        if at < self._flush_at[sender]:
            self._flush_at[sender] = at
            self.call_at(at, lambda: self._flush(sender, at))

    def _flush(self, sender: int, at: float) -> None:
        if at == self._flush_at[sender]:
            self._flush_at[sender] = math.inf
            waiting, self._buffer[sender] = self._buffer[sender], []
            for packet in waiting:
                super()._send(sender, packet)


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds from when the last daemon was started; the share of pings that arrived."""

    at: float
    share: float


def published(name: str) -> tuple[list[Point], float]:
    """The curve, and how long it took to start all daemons."""
    with (DATA / name).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    starting = sum(float(row["software_ms"]) for row in rows) / len(rows) / 1000
    return [
        Point(float(row["offset_ms"]) / 1000, int(row["packets_received"]) / int(row["packets_send"])) for row in rows
    ], starting


def simulated(seed: int, times: Sequence[float], starting: float) -> list[Point]:
    """The share of all pairs at least two hops apart that can reach each other, both ways, in the 2 s after each."""
    graph = topology.build(TOPOLOGY, random.Random(f"{seed}/graph"))
    options = Options(seed, LATENCY, starting, config=BABELD, is_shared=True)
    network = BufferedNetwork(graph, options)
    far = [
        (a, b)
        for a, found in nx.all_pairs_shortest_path_length(graph)
        for b, hops in found.items()
        if a < b and hops >= 2
    ]
    looks = sorted({at + k * LOOK_INTERVAL for at in times for k in range(1, int(PING_SECONDS / LOOK_INTERVAL) + 1)})
    seen: dict[float, float] = {}
    for look in looks:
        while network.next_at() <= starting + look:
            network.step()
        seen[look] = sum(_arrives(network, a, b) and _arrives(network, b, a) for a, b in far) / len(far)
    if network.loops:
        raise RuntimeError(f"{len(network.loops)} loops with seed {seed}")
    return [_mean(at, seen) for at in times]


def _mean(at: float, seen: dict[float, float]) -> Point:
    shares = [share for look, share in seen.items() if at < look <= at + PING_SECONDS]
    return Point(at, sum(shares) / len(shares))


def _arrives(network: Network, source: int, destination: int) -> bool:
    hops, at = network.next_hops.of(destination), source
    for _ in range(len(hops) + 1):
        if at == destination:
            return True
        following = hops.get(at)
        if following is None:
            return False
        at = following
    return False


def reached_at(curve: Sequence[Point], share: float) -> float:
    """When it first reaches a share, between two points by a straight line; inf: never."""
    before = Point(0.0, 0.0)
    for point in curve:
        if point.share >= share:
            rise = point.share - before.share
            return before.at + (point.at - before.at) * ((share - before.share) / rise if rise > 0 else 1.0)
        before = point
    return math.inf


def margin(share: float, pings: int) -> float:
    """What a sample of so many pings leaves open, in 95 of 100 samples; where all or none arrived, by the rule of
    three."""
    return max(NORMAL_95 * math.sqrt(share * (1 - share) / pings), 3 / pings)


def margin_of_mean(shares: Sequence[float]) -> float:
    """The same of the mean of several runs."""
    return NORMAL_95 * statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    return [Point(points[0].at, sum(p.share for p in points) / len(points)) for points in zip(*curves, strict=True)]


@dataclass(frozen=True, slots=True)
class Row:
    at: float
    published: tuple[float, ...]
    simulated: float
    is_within: bool


def compare(runs: int, until: float) -> list[Row]:
    """`runs` simulated ones, half with the time that each of the published ones took to start its daemons."""
    curves, starting = zip(*(published(name) for name in CURVES), strict=True)
    times = [point.at for point in curves[0] if point.at <= until]
    ours = [simulated(seed, times, starting[seed % len(starting)]) for seed in range(runs)]
    rows = []
    for number, point in enumerate(mean_curve(ours)):
        shares = tuple(curve[number].share for curve in curves)
        open_ = margin_of_mean([curve[number].share for curve in ours])
        low = min(share - margin(share, PINGS) for share in shares) - open_
        high = max(share + margin(share, PINGS) for share in shares) + open_
        rows.append(Row(point.at, shares, point.share, low <= point.share <= high))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/compare babeld", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20, help="simulated runs (default: %(default)s)")
    parser.add_argument("--until", type=float, default=40.0, help="seconds (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(argv)
    rows = compare(options.runs, options.until)
    halves = {
        name: [reached_at(curve, share) for share in (0.1, 0.5, 0.9)]
        for name, curve in (
            *((name, published(name)[0]) for name in CURVES),
            ("simulated", [Point(row.at, row.simulated) for row in rows]),
        )
    }
    is_good = all(row.is_within for row in rows)
    if options.json:
        cases = [{"at": r.at, "published": r.published, "ours": r.simulated, "ok": r.is_within} for r in rows]
        print(json.dumps({"runs": options.runs, "cases": cases, "reached_10_50_90": halves, "ok": is_good}, indent=2))
        return 0 if is_good else 1
    print(f"{'wait':>6}{'2020':>8}{'2024':>8}{'simulated':>11}")
    for row in rows:
        shares = "".join(f"{share:8.1%}" for share in row.published)
        print(f"{row.at:5.0f}s{shares}{row.simulated:11.1%}{'' if row.is_within else '  outside'}")
    for name, times in halves.items():
        print(f"10, 50, 90 % after {', '.join(f'{at:.1f}' for at in times)} s: {name}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
