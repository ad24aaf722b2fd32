"""What a payment costs: signed, sent through a session over TCP, verified, stored on disk at both ends, acknowledged.

CPU time of whole processes, both ends and the threads that write to the disk included; the chain and the kernel's meter
are made up. In the same run: what coincurve's signature and its verification cost alone.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import coincurve
import trio

from payments.adapters.store import Store
from payments.records import Direction
from tools.bench.common import Case, report
from tools.bench.payments_tick import tick_case
from tools.bench.payments_world import PAYMENT_MSAT, Pair, bench_config, build_end, payer_manager, seller_manager

_TARGET_PER_CPU_SECOND = 4_000
_PAYMENT, _ACK = 7, 8  # tags of messages
_RAW_ROUNDS = 2_000
_PATIENCE = 120.0


def raw_us() -> tuple[float, float]:
    """Microseconds of CPU of one signature, and of one verification, by coincurve."""
    key, digest = coincurve.PrivateKey(b"\x07" * 32), bytes(32)
    public, signature = key.public_key, key.sign(digest, hasher=None)
    started = time.process_time()
    for _ in range(_RAW_ROUNDS):
        key.sign(digest, hasher=None)
    signed = time.process_time()
    for _ in range(_RAW_ROUNDS):
        if not public.verify(signature, digest, hasher=None):
            raise RuntimeError("its own signature")
    verified = time.process_time()
    return (signed - started) / _RAW_ROUNDS * 1e6, (verified - signed) / _RAW_ROUNDS * 1e6


async def _updates_cpu(directory: Path, pairs: Sequence[Pair], readings: int) -> float:
    """CPU seconds, in this process, of so many payments of each pair. Each end reads its meter as it is told of a
    payment, before the engine is: so does the daemon. The traffic does not wait for payments."""
    config = bench_config(tick_interval=3600.0, min_interval=1e-6)
    managers = [await seller_manager(pair) for pair in pairs]
    sellers = build_end(Direction.IN, pairs, [manager for manager, _ in managers], directory / "sellers.sqlite", config)
    dialling = [payer_manager(pair, port) for pair, (_, port) in zip(pairs, managers, strict=True)]
    payers = build_end(Direction.OUT, pairs, dialling, directory / "payers.sqlite", config)
    sold_to = {sellers.neighbour(pair): pair for pair in pairs}
    bought_of = {payers.neighbour(pair): pair for pair in pairs}
    paid = acknowledged = 0
    is_done = trio.Event()

    async def at_the_seller(peer: bytes, data: bytes) -> None:
        nonlocal paid
        if data[1] == _PAYMENT:
            paid += 1
            if paid <= (readings - 1) * len(pairs):
                await sellers.meter(sold_to[peer])

    async def at_the_payer(peer: bytes, data: bytes) -> None:
        nonlocal acknowledged
        if data[1] == _ACK:
            acknowledged += 1
            if acknowledged <= (readings - 1) * len(pairs):
                await payers.meter(bought_of[peer])
        if acknowledged == readings * len(pairs):
            is_done.set()

    sellers.before_message, payers.before_message = at_the_seller, at_the_payer
    async with trio.open_nursery() as nursery:
        await nursery.start(sellers.run)
        await nursery.start(payers.run)
        while not (payers.is_ready and sellers.is_ready):
            await trio.sleep(0.05)
        gc.collect()
        started = time.process_time()
        with trio.fail_after(_PATIENCE):
            for pair in pairs:
                await payers.meter(pair)
                await sellers.meter(pair)
            await is_done.wait()
        spent = time.process_time() - started
        nursery.cancel_scope.cancel()
    _check(directory, readings * len(pairs))
    return spent


def _check(directory: Path, updates: int) -> None:
    """What is on the disk of both ends is what was paid."""
    for name in ("payers.sqlite", "sellers.sqlite"):
        store = Store.open(directory / name)
        paid = sum(channel.cumulative_msat for channel in store.load().channels)
        store.close()
        if paid != updates * PAYMENT_MSAT:
            raise RuntimeError(f"{name}: {paid} msat of {updates * PAYMENT_MSAT}")


def throughput_cases(repeats: int, neighbours: int, readings: int, directory: Path) -> list[Case]:
    rates, costs, raws = [], [], []
    updates = neighbours * readings
    pairs = [Pair(number, number) for number in range(neighbours)]
    for repeat in range(repeats):
        sign_us, verify_us = raw_us()
        here = directory / str(repeat)
        here.mkdir()
        spent = trio.run(_updates_cpu, here, pairs, readings)
        rates.append(updates / spent)
        costs.append(spent / updates * 1e6)
        raws.append(sign_us + verify_us)
        print(f"{rates[-1]:.0f} updates per CPU-second; raw {sign_us:.1f} + {verify_us:.1f} us", file=sys.stderr)
    notes: dict[str, object] = {"neighbours": neighbours, "updates": updates}
    return [
        Case("updates per CPU-second", "1/s", rates, [_TARGET_PER_CPU_SECOND] * repeats, notes=notes),
        Case("CPU of an update, beside coincurve's sign and verify", "us", costs, raws, higher_is_better=False),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/payments", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each kind (default 5)")
    parser.add_argument("--neighbours", type=int, default=50, help="of each end (default 50)")
    parser.add_argument("--readings", type=int, default=200, help="payments of each neighbour (default 200)")
    parser.add_argument("--ticks", type=int, default=6, help="of the daemon with neighbours that pay (default 6)")
    parser.add_argument("--directory", type=Path, help="where the databases are made: on a disk that syncs")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mp-bench-", dir=options.directory) as directory:
        cases = throughput_cases(options.repeats, options.neighbours, options.readings, Path(directory))
        cases.append(tick_case(options.neighbours, options.ticks, Path(directory)))
    print(report(cases, as_json=options.json))
    return 0


if __name__ == "__main__":
    sys.exit(main())
