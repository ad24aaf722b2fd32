"""The paymaster carries out what the engine says: in order, what is to be written first, and all of it at the end."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

from meshd.paymaster import Paymaster
from payments import events as ev
from payments.adapters.store import Store, StoreError
from payments.engine import PaymentEngine
from payments.ports import BroadcastResult, ChainError, ChainPort, ChainTip, SignedTransaction, WalletError, WalletPort
from payments.records import HeightRecord, LedgerRecord, Reading

PEER = b"P" * 32
PERSIST = ev.Persist((HeightRecord(7),))
FUNDED = SignedTransaction(b"raw", b"t" * 32, 100)


class Engine:
    """Says what the test wants it to say, and remembers what it was given."""

    def __init__(self, journal: list[Any]) -> None:
        self.journal = journal
        self.given: list[ev.Input] = []
        self.rounds = 0
        self.on_start: list[ev.Output] = []
        self.answers: dict[type, list[ev.Output]] = {}
        self.fault: Exception | None = None
        self.needs_chain = True
        self.friends: set[bytes] = set()  # whose sums are never written

    def is_paid(self, peer: bytes) -> bool:
        return peer not in self.friends

    def start(self, *, now: float) -> list[ev.Output]:
        return self.on_start

    def handle_all(self, inputs: Sequence[ev.Input], *, now: float) -> list[ev.Output]:
        if self.fault is not None:
            raise self.fault
        self.rounds += bool(inputs)
        self.given += inputs
        return [output for event in inputs for output in self.answers.get(type(event), [])]

    def flush(self, *, now: float) -> list[ev.Output]:
        self.journal.append("flush")
        return []

    def next_deadline(self) -> float:
        return math.inf

    def channels(self) -> list[ev.ChannelView]:
        return []


class Chain:
    def __init__(self) -> None:
        self.is_away = False
        self.broadcasts = 0
        self.verdicts: dict[bytes, BroadcastResult] = {}
        self.heights, self._heights = trio.open_memory_channel[int](10)

    async def tips(self) -> AsyncIterator[ChainTip]:
        async for height in self._heights:
            if height < 0:
                raise ChainError("gone")
            yield ChainTip(height, bytes(32))

    async def fee_rate(self) -> float:
        if self.is_away:
            raise ChainError("gone")
        return 3.0

    async def broadcast(self, raw: bytes) -> BroadcastResult:
        self.broadcasts += 1
        if raw not in self.verdicts:
            raise ChainError("gone")
        return self.verdicts[raw]

    async def output(self, outpoint: object) -> None:
        return None


class Wallet:
    def __init__(self, journal: list[Any]) -> None:
        self.journal = journal
        self.is_poor = False
        self.left_over = [FUNDED]

    async def fund(self, script_pubkey: bytes, amount_sat: int, *, fee_rate: float) -> SignedTransaction:
        if self.is_poor:
            raise WalletError("poor")
        return FUNDED

    async def release(self, txid: bytes) -> None:
        self.journal.append(("release", txid))
        self.left_over = []

    async def pending(self) -> list[SignedTransaction]:
        return self.left_over

    async def sent(self) -> list[SignedTransaction]:
        return []

    async def new_script_pubkey(self) -> bytes:
        return b"script"


class Desk:
    def __init__(self) -> None:
        self.journal: list[Any] = []
        self.engine, self.chain, self.wallet = Engine(self.journal), Chain(), Wallet(self.journal)
        self.store_failure: Exception | None = None
        self.wallet_failures = 0
        self.set_carrying_takes = 0.0
        self.paymaster = Paymaster(
            cast("PaymentEngine", self.engine),
            cast("Store", self),
            cast("ChainPort", self.chain),
            self._open_wallet,
            deliver=self._deliver,
            drop=lambda peer: self.journal.append(("drop", peer)),
            set_carrying=self._set_carrying,
            set_trusted=self._set_trusted,
            counters=lambda: {7, 8},
        )
        self.has_many_readings = False
        self.applied: list[tuple[Mapping[bytes, Reading], object]] = []

    def apply(self, changes: Sequence[object], readings: Mapping[bytes, Reading], counters: object) -> None:
        self.applied.append((readings, counters))
        if self.store_failure is not None:
            raise self.store_failure
        self.journal.append("persist")

    def _deliver(self, peer: bytes, *messages: bytes) -> bool:
        self.journal.extend(("send", data) for data in messages)
        return False

    async def _set_carrying(self, peer: bytes, carrying: bool) -> None:
        await trio.sleep(self.set_carrying_takes)
        self.journal.append(("carry", carrying))

    async def _set_trusted(self, peer: bytes, trusted: bool) -> None:
        self.journal.append(("trust", trusted))

    async def _open_wallet(self) -> WalletPort:
        if self.wallet_failures:
            self.wallet_failures -= 1
            raise WalletError("locked")
        return cast("WalletPort", self.wallet)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Paymaster]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.paymaster.run)
            yield self.paymaster
            nursery.cancel_scope.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        """The store's thread takes real time."""
        with trio.fail_after(60):
            while not condition():
                await trio.sleep(0.001)

    def given(self, kind: type) -> list[Any]:
        return [event for event in self.engine.given if isinstance(event, kind)]


def run(scenario: Callable[[Desk], Any]) -> None:
    async def main() -> None:
        await scenario(Desk())

    trio.run(main)


def test_outputs_run_in_order_and_only_when_they_are_written() -> None:
    async def scenario(desk: Desk) -> None:
        desk.engine.answers[ev.PeerConnected] = [
            PERSIST,
            ev.SendMessage(PEER, b"1"),
            ev.Suspend(PEER),
            ev.Distrust(PEER),
        ]
        desk.engine.answers[ev.PeerDisconnected] = [ev.Resume(PEER), ev.Trust(PEER), ev.DropConnection(PEER, "no")]
        await desk.paymaster.put(ev.PeerConnected(PEER))
        await desk.paymaster.put(ev.PeerDisconnected(PEER))
        async with desk.running():
            await desk.until(lambda: ("drop", PEER) in desk.journal)
            gates = [("carry", False), ("trust", False), ("carry", True), ("trust", True)]
            expected = ["persist", ("send", b"1"), *gates, ("drop", PEER)]
            assert desk.journal == expected
            assert desk.engine.rounds == 1  # what waits together is written together

    run(scenario)


def test_nothing_leaves_when_the_store_fails_and_nothing_is_flushed_over_it() -> None:
    async def scenario(desk: Desk) -> None:
        desk.store_failure = StoreError("disk full")
        desk.engine.answers[ev.PeerConnected] = [PERSIST, ev.SendMessage(PEER, b"1")]
        with pytest.raises(BaseExceptionGroup) as caught:
            async with desk.running() as paymaster:
                await paymaster.put(ev.PeerConnected(PEER))
                await trio.sleep_forever()
        assert caught.group_contains(StoreError)
        assert desk.journal == []

    run(scenario)


def test_after_a_fault_of_the_engine_nothing_of_it_is_written() -> None:
    async def scenario(desk: Desk) -> None:
        desk.engine.fault = RuntimeError("invariant")
        with pytest.raises(BaseExceptionGroup) as caught:
            async with desk.running() as paymaster:
                await paymaster.put(ev.PeerConnected(PEER))
                await trio.sleep_forever()
        assert caught.group_contains(RuntimeError)
        assert desk.journal == []

    run(scenario)


def test_what_waits_at_the_end_is_taken_in_and_written() -> None:
    async def scenario(desk: Desk) -> None:
        desk.set_carrying_takes = 60.0  # the paymaster is busy when the end comes
        desk.engine.answers[ev.PeerConnected] = [ev.Suspend(PEER)]
        desk.engine.answers[ev.MeteredTraffic] = [PERSIST]
        async with desk.running() as paymaster:
            await paymaster.put(ev.PeerConnected(PEER))
            await trio.testing.wait_all_tasks_blocked()
            await paymaster.put(ev.MeteredTraffic(PEER, 5, 0))
        assert desk.given(ev.MeteredTraffic) == [ev.MeteredTraffic(PEER, 5, 0)]
        assert desk.journal == ["persist", "flush"]

    run(scenario)


def test_readings_are_written_with_their_sums_and_those_of_nothing_with_anything() -> None:
    async def scenario(desk: Desk) -> None:
        paid, free = Reading(9, 5, 7), Reading(9, 0, 8)
        desk.engine.answers[ev.PeerConnected] = [ev.Persist(())]
        async with desk.running() as paymaster:
            await paymaster.put_metered(ev.MeteredTraffic(PEER, 45, 0), {b"paid": paid, b"free": free})
            await paymaster.put(ev.PeerConnected(PEER))
            await desk.until(lambda: desk.applied == [({b"free": free}, None)])
            desk.has_many_readings = True
            desk.engine.answers[ev.PeerConnected] = [ev.Persist((LedgerRecord(PEER, 0, 0, 0, 0, 0, 0, 1, 0),))]
            await paymaster.put(ev.PeerConnected(PEER))
            await desk.until(lambda: len(desk.applied) == 2)
            readings, counters = desk.applied[1]
            assert readings[b"paid"] == paid and counters == {7, 8}

    run(scenario)


def test_what_was_free_of_a_flow_is_not_written_before_what_was_not() -> None:
    async def scenario(desk: Desk) -> None:
        paid, later = Reading(9, 5, 7), Reading(12, 0, 7)
        desk.engine.answers[ev.PeerConnected] = [ev.Persist(())]
        async with desk.running() as paymaster:
            await paymaster.put_metered(ev.MeteredTraffic(PEER, 45, 0), {b"flow": paid})
            await paymaster.put_metered(ev.MeteredTraffic(PEER, 0, 0), {b"flow": later})
            await paymaster.put(ev.PeerConnected(PEER))  # which writes the ledger of nobody
            await desk.until(lambda: desk.applied == [({}, None)])
            desk.engine.answers[ev.PeerConnected] = [ev.Persist((LedgerRecord(PEER, 0, 0, 0, 0, 0, 0, 1, 0),))]
            await paymaster.put(ev.PeerConnected(PEER))
            await desk.until(lambda: desk.applied == [({}, None), ({b"flow": later}, None)])

    run(scenario)


@pytest.mark.parametrize("is_friend", [False, True])
def test_readings_that_no_ledger_waits_for_are_not_kept_in_memory(
    is_friend: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is carried for nothing, by a rule or by the method, may have ever new flows."""
    monkeypatch.setattr("meshd.paymaster.MANY_READINGS", 10)

    async def scenario(desk: Desk) -> None:
        desk.engine.friends = {PEER} if is_friend else set()
        traffic = ev.MeteredTraffic(PEER, 45 * is_friend, 0)
        async with desk.running() as paymaster:
            for number in range(9):
                await paymaster.put_metered(traffic, {b"flow %d" % number: Reading(9, 5, 7)})
            await trio.testing.wait_all_tasks_blocked()
            assert desk.applied == []
            await paymaster.put_metered(traffic, {b"flow 9": Reading(9, 5, 7)})
            await desk.until(lambda: [len(readings) for readings, _ in desk.applied] == [10])
            assert not paymaster._readings and not paymaster._free_readings

    run(scenario)


def test_wallet_answers_and_refusals_come_back_as_inputs() -> None:
    async def scenario(desk: Desk) -> None:
        fund = ev.FundChannel(b"c" * 32, b"script", 1000)
        desk.engine.on_start = [fund]
        async with desk.running() as paymaster:
            await desk.until(lambda: bool(desk.given(ev.ChannelFunded)))
            # Signed by a process that was killed before its engine knew: no channel waits for it.
            assert desk.journal == [("release", FUNDED.txid)]
            desk.wallet.is_poor = True
            desk.engine.answers[ev.PeerConnected] = [fund]
            await paymaster.put(ev.PeerConnected(PEER))
            await desk.until(lambda: bool(desk.given(ev.FundingFailed)))
            desk.wallet.is_poor, desk.chain.is_away = False, True
            await paymaster.put(ev.PeerConnected(PEER))
            await desk.until(lambda: len(desk.given(ev.FundingFailed)) == 2)
        assert len(desk.given(ev.ChannelFunded)) == 1

    run(scenario)


def test_a_backend_that_is_away_has_not_refused_a_broadcast() -> None:
    """Else a claim would be given up as refused, because the node was busy."""

    async def scenario(desk: Desk) -> None:
        one, other = (ev.BroadcastTransaction(raw, raw * 32, ev.TransactionKind.CLAIM) for raw in (b"1", b"2"))
        desk.chain.verdicts[b"2"] = BroadcastResult(False, "-26")
        desk.engine.on_start = [one, other]
        async with desk.running():
            await desk.until(lambda: bool(desk.given(ev.BroadcastDone)))
            await desk.until(lambda: desk.chain.broadcasts == 2)
        (done,) = desk.given(ev.BroadcastDone)
        assert (done.txid, done.result.code) == (b"2" * 32, "-26")

    run(scenario)


def test_tips_are_followed_again_after_the_backend_was_away() -> None:
    async def scenario(desk: Desk) -> None:
        await desk.chain.heights.send(5)
        await desk.chain.heights.send(-1)
        await desk.chain.heights.send(6)
        async with desk.running() as paymaster:
            await desk.until(lambda: paymaster.height == 6)
            assert paymaster.is_chain_connected
            await desk.until(lambda: len(desk.given(ev.ChainTipChanged)) == 2)

    run(scenario)


def test_a_script_is_asked_for_until_the_wallet_opens() -> None:
    async def scenario(desk: Desk) -> None:
        desk.wallet_failures = 1
        desk.engine.on_start = [ev.NeedScript()]
        async with desk.running():
            await desk.until(lambda: bool(desk.given(ev.NewScript)))

    run(scenario)
