"""What payments cost a daemon with 50 neighbours that pay it at every tick: the share of one processor core.

The daemon's payment parts run in this process, and nothing else; each neighbour has its own, in another process. The
meter is read ten times a second, as under load; what reading the kernel costs is in tools/bench/counting.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from payments.counts import Signer
from payments.records import Direction
from tools.bench.common import Case
from tools.bench.payments_world import PAYMENT_MSAT, End, Pair, bench_config, build_end, payer_manager, seller_manager

_TARGET_SHARE = 0.02
_TICK = 5.0
_READING_INTERVAL = 0.1
_PATIENCE = 120.0


async def _read_meters(end: End) -> None:
    """Once all are there, by the clock, so that both ends count alike. A little less than one payment a tick."""
    while not end.is_ready:
        await trio.sleep(_READING_INTERVAL)
    read_at = time.monotonic()
    while True:
        await trio.sleep(_READING_INTERVAL)
        now = time.monotonic()
        for pair in end.pairs:
            await end.meter(pair, share=0.9 * (now - read_at) / _TICK)
        read_at = now


async def _daemon(directory: Path, neighbours: int, ticks: int) -> tuple[float, int]:
    """The share of a core, and what was paid, msat."""
    pairs = [Pair(number, 0) for number in range(neighbours)]
    manager, port = await seller_manager(pairs[0])
    identity = pairs[0].seller
    config = bench_config(tick_interval=_TICK, min_interval=0.1)
    signer = Signer(identity.public_key, identity.sign)
    seller = build_end(Direction.IN, pairs, [manager], directory / "seller.sqlite", config, signer=signer)
    argv = [sys.executable, "-m", "tools.bench.payments_tick", str(port), str(neighbours), str(directory)]
    child = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(seller.run)
            nursery.start_soon(_read_meters, seller)
            with trio.fail_after(_PATIENCE):
                while not seller.is_ready or _received(seller) == 0:
                    await trio.sleep(0.2)
            await trio.sleep(_TICK)
            before, spent, began = _received(seller), time.process_time(), time.monotonic()
            await trio.sleep(ticks * _TICK)
            share = (time.process_time() - spent) / (time.monotonic() - began)
            paid_msat = _received(seller) - before
            nursery.cancel_scope.cancel()
    finally:
        child.terminate()
        child.wait()
    return share, paid_msat


def _received(seller: End) -> int:
    """In msat."""
    return sum(channel.cumulative_msat for channel in seller.paymaster.engine.channels())


def tick_case(neighbours: int, ticks: int, directory: Path) -> Case:
    share, paid_msat = trio.run(_daemon, directory, neighbours, ticks)
    print(f"{share:.2%} of a core; {paid_msat} msat in {ticks} ticks", file=sys.stderr)
    if paid_msat < neighbours * ticks * PAYMENT_MSAT // 2:
        raise RuntimeError(f"only {paid_msat} msat were paid")
    notes: dict[str, object] = {"paid_msat": paid_msat, "neighbours": neighbours, "ticks": ticks}
    name = f"share of a core with {neighbours} paying neighbours, tick 5 s"
    return Case(name, "", [share], [_TARGET_SHARE], higher_is_better=False, notes=notes)


async def _payers(port: int, neighbours: int, directory: Path) -> None:
    config = bench_config(tick_interval=_TICK, min_interval=0.1)
    async with trio.open_nursery() as nursery:
        for number in range(neighbours):
            pair = Pair(number, 0)
            signer = Signer(pair.payer.public_key, pair.payer.sign)
            path = directory / f"payer-{number}.sqlite"
            end = build_end(Direction.OUT, [pair], [payer_manager(pair, port)], path, config, signer=signer)
            await nursery.start(end.run)
            nursery.start_soon(_read_meters, end)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="payers-", dir=sys.argv[3]) as _directory:
        trio.run(_payers, int(sys.argv[1]), int(sys.argv[2]), Path(_directory))
