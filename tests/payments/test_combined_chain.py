"""Several backends, of which some stall, lie, go back or vanish: what is believed, and what is lost at most."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from payments.adapters.combined_chain import (
    BLOCK_INTERVAL,
    FASTEST_BLOCK_INTERVAL,
    MAX_LEAP,
    RETRY_INTERVAL,
    STALL_INTERVAL,
    CombinedChain,
)
from payments.ports import BroadcastResult, ChainError, ChainTip, Outpoint, OutputStatus, TransactionStatus, Utxo

OUTPUT = Outpoint(b"f" * 32, 0)
SCRIPT, VALUE = b"\x00\x20" + bytes(32), 100_000
CLAIM, OTHER = b"c" * 32, b"o" * 32


@dataclass
class Fake:
    """A backend that says what the test wants. `seen`: the height of OUTPUT; `spends`: of who spends it."""

    height: int = 1000
    seen: int | None = 990
    is_known: bool = True
    spender: bytes | None = None
    spent: int | None = None
    rate: float = 2.0
    verdict: BroadcastResult = field(default_factory=lambda: BroadcastResult(accepted=True))
    is_away: bool = False
    hangs: float = 0.0
    script: bytes = SCRIPT
    calls: int = 0

    async def _come(self) -> None:
        self.calls += 1
        await trio.sleep(self.hangs)
        if self.is_away:
            raise ChainError("away")

    async def tip(self) -> ChainTip:
        await self._come()
        return ChainTip(self.height, self.height.to_bytes(32, "big"))

    async def fee_rate(self) -> float:
        await self._come()
        return self.rate

    async def broadcast(self, raw: bytes) -> BroadcastResult:
        await self._come()
        return self.verdict

    async def transaction(self, txid: bytes) -> TransactionStatus | None:
        await self._come()
        return TransactionStatus(b"raw", self.seen, None) if self.is_known else None

    async def output(self, outpoint: Outpoint) -> OutputStatus | None:
        await self._come()
        return OutputStatus(VALUE, self.script, self.seen, self.spender, self.spent) if self.is_known else None

    async def utxos(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]:
        await self._come()
        is_there = self.is_known and self.spender is None
        return [Utxo(OUTPUT, VALUE, SCRIPT, self.seen)] if is_there else []

    def tips(self) -> AsyncIterator[ChainTip]:
        raise NotImplementedError("the combined one asks for the tip")


def combined(*fakes: Fake, quorum: int | None = None, is_real: bool = True) -> CombinedChain:
    return CombinedChain([(f"b{n}", fake) for n, fake in enumerate(fakes)], quorum=quorum, is_real=is_real)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


async def depth(chain: CombinedChain) -> int:
    """As the payment core counts it."""
    height = (await chain.tip()).height
    status = await chain.output(OUTPUT)
    return 0 if status is None or status.height is None else height - status.height + 1


# --- heights ---


def test_the_highest_is_the_height_so_that_claims_begin_early() -> None:
    async def scenario() -> None:
        a, b = Fake(height=1000), Fake(height=1003)
        chain = combined(a, b)
        assert (await chain.tip()).height == 1003
        b.is_away = True
        a.height = 1001
        assert (await chain.tip()).height == 1003  # never back

    run(scenario)


def test_a_backend_that_goes_back_does_not_take_us_along() -> None:
    async def scenario() -> None:
        a = Fake(height=1000)
        chain = combined(a)
        assert (await chain.tip()).height == 1000
        a.height = 990
        assert (await chain.tip()).height == 1000

    run(scenario)


def test_a_lie_about_the_height_moves_us_no_faster_than_blocks_can_come() -> None:
    """Lost at most: the fees of claims that come too early, and not before 138 minutes for a margin of 144 blocks."""

    async def scenario() -> None:
        honest, liar = Fake(height=1000), Fake(height=10**6)
        chain = combined(honest, liar)
        assert (await chain.tip()).height == 1000 + MAX_LEAP
        for _ in range(50):
            assert (await chain.tip()).height == 1000 + MAX_LEAP
        for _ in range(60):
            await trio.sleep(FASTEST_BLOCK_INTERVAL)
            await chain.tip()
        assert (await chain.tip()).height == 1000 + MAX_LEAP + 60

    run(scenario)


def test_after_days_without_any_backend_we_come_to_the_true_height_at_once() -> None:
    async def scenario() -> None:
        a, b = Fake(height=1000), Fake(height=1000)
        chain = combined(a, b)
        await chain.tip()
        a.is_away = b.is_away = True
        await trio.sleep(3 * 24 * 3600.0)
        a.is_away, a.height = False, 1432
        assert (await chain.tip()).height == 1432

    run(scenario)


def test_when_nobody_has_a_block_for_hours_the_clock_stands_in() -> None:
    """Else a channel would expire unseen. Lost at most: the fee of a claim that came early."""

    async def scenario() -> None:
        a, b = Fake(height=1000), Fake(height=1000)
        chain = combined(a, b)
        await chain.tip()
        await trio.sleep(STALL_INTERVAL - 1)
        assert (await chain.tip()).height == 1000
        for _ in range(24 * 6):
            await trio.sleep(BLOCK_INTERVAL)
            await chain.tip()
        day = 24 * 3600 / BLOCK_INTERVAL
        assert 1000 + 0.8 * day <= (await chain.tip()).height <= 1000 + 1.2 * day

    run(scenario)


def test_a_regtest_has_its_own_time() -> None:
    async def scenario() -> None:
        a = Fake(height=1000)
        chain = combined(a, is_real=False)
        await chain.tip()
        await trio.sleep(10 * STALL_INTERVAL)
        assert (await chain.tip()).height == 1000
        a.height = 5000
        assert (await chain.tip()).height == 5000

    run(scenario)


# --- what brings us money needs all ---


def test_credit_waits_for_the_one_that_sees_the_fewest_confirmations() -> None:
    """Lost at most: nothing, while one of them is honest and not behind."""

    async def scenario() -> None:
        a, b = Fake(height=1000, seen=998), Fake(height=1000, seen=None)
        chain = combined(a, b)
        assert await depth(chain) == 0
        b.seen = 1000
        assert await depth(chain) == 1
        b.is_known = False
        assert await depth(chain) == 0

    run(scenario)


def test_a_height_that_is_a_lie_makes_nothing_deeper() -> None:
    async def scenario() -> None:
        honest, liar = Fake(height=1000, seen=1000), Fake(height=1005, seen=1000)
        chain = combined(honest, liar)
        assert (await chain.tip()).height == 1005
        assert await depth(chain) == 1

    run(scenario)


def test_a_backend_that_falls_silent_keeps_what_it_has_said_and_confirms_nothing_new() -> None:
    async def scenario() -> None:
        a, b = Fake(height=1000, seen=999), Fake(height=1000, seen=999)
        chain = combined(a, b)
        assert await depth(chain) == 2
        b.is_away = True
        a.height = 1010
        assert await depth(chain) == 2
        status = await chain.output(Outpoint(b"new" + bytes(29), 0))
        assert status is not None
        assert status.height is None  # one that is away has never heard of it

    run(scenario)


def test_backends_that_disagree_on_what_an_output_is_are_not_believed() -> None:
    async def scenario() -> None:
        chain = combined(Fake(), Fake(script=b"\x00\x20" + b"x" * 32))
        await chain.tip()
        with pytest.raises(ChainError, match="do not agree"):
            await chain.output(OUTPUT)

    run(scenario)


def test_a_spend_that_one_alone_tells_is_none_else_it_would_hide_a_channel_that_expires() -> None:
    async def scenario() -> None:
        a, b = Fake(), Fake(spender=OTHER, spent=995)
        chain = combined(a, b)
        await chain.tip()
        status = await chain.output(OUTPUT)
        assert status is not None
        assert status.spent_by is None
        a.spender = OTHER
        status = await chain.output(OUTPUT)
        assert status is not None
        assert (status.spent_by, status.spent_height) == (OTHER, None)
        a.spent = 1000
        status = await chain.output(OUTPUT)
        assert status is not None
        assert (status.spent_by, status.spent_height) == (OTHER, 1000)

    run(scenario)


def test_two_of_three_suffice_where_the_quorum_says_so() -> None:
    async def scenario() -> None:
        a, b, c = Fake(spender=CLAIM, spent=995), Fake(spender=CLAIM, spent=995), Fake(spender=OTHER, spent=995)
        chain = combined(a, b, c, quorum=2)
        await chain.tip()
        status = await chain.output(OUTPUT)
        assert status is not None
        assert (status.spent_by, status.spent_height) == (CLAIM, None)

    run(scenario)


def test_what_nobody_knows_is_unknown_and_unspent_money_is_what_all_find() -> None:
    async def scenario() -> None:
        a, b = Fake(is_known=False), Fake(is_known=False)
        chain = combined(a, b)
        await chain.tip()
        assert await chain.output(OUTPUT) is None
        assert await chain.transaction(CLAIM) is None
        a.is_known = True
        assert await chain.utxos([SCRIPT]) == []
        b.is_known, b.seen = True, 995
        assert await chain.utxos([SCRIPT]) == [Utxo(OUTPUT, VALUE, SCRIPT, 995)]
        status = await chain.transaction(CLAIM)
        assert status is not None
        assert status.height == 995

    run(scenario)


# --- broadcasts and fees ---


def test_one_that_takes_a_transaction_is_enough_and_one_that_refuses_is_not() -> None:
    async def scenario() -> None:
        a, b = Fake(), Fake(verdict=BroadcastResult(accepted=False, code="no"))
        chain = combined(a, b)
        assert (await chain.broadcast(b"raw")).accepted
        a.is_away = True
        with pytest.raises(ChainError, match="the others do not answer"):
            await chain.broadcast(b"raw")
        a.is_away, a.verdict = False, BroadcastResult(accepted=False, code="no")
        await trio.sleep(RETRY_INTERVAL)
        assert await chain.broadcast(b"raw") == BroadcastResult(accepted=False, code="no")

    run(scenario)


def test_fees_follow_the_highest_within_reason() -> None:
    async def scenario() -> None:
        assert await combined(Fake(rate=2.0), Fake(rate=15.0)).fee_rate() == 15.0
        assert await combined(Fake(rate=2.0), Fake(rate=9_999.0)).fee_rate() == 20.0

    run(scenario)


def test_one_that_hangs_is_waited_for_once_and_then_left_alone_for_a_while() -> None:
    async def scenario() -> None:
        a, b = Fake(), Fake(hangs=1e6)
        chain = combined(a, b)
        for _ in range(5):
            assert (await chain.tip()).height == 1000
        assert (a.calls, b.calls) == (5, 1)
        assert [backend.is_answering for backend in chain.backends] == [True, False]
        b.hangs = 0.0
        await trio.sleep(RETRY_INTERVAL)
        await chain.tip()
        assert b.calls == 2
        a.is_away = b.is_away = True
        for _ in range(2):
            with pytest.raises(ChainError, match="b0: away; b1: away"):
                await chain.fee_rate()

    run(scenario)


def test_each_new_tip_is_told_once_and_the_end_of_all_is_told() -> None:
    async def scenario() -> None:
        a = Fake()
        tips = combined(a, is_real=False).tips()
        assert (await anext(tips)).height == 1000
        a.height = 1001
        assert (await anext(tips)).height == 1001
        a.is_away = True
        with pytest.raises(ChainError):
            await anext(tips)

    run(scenario)


def test_a_quorum_that_cannot_be_is_refused() -> None:
    for quorum in (0, 3, -1):
        with pytest.raises(ValueError, match="quorum"):
            combined(Fake(), Fake(), quorum=quorum)
    with pytest.raises(ValueError, match="quorum"):
        combined()
