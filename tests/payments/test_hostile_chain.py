"""Two engines on Bitcoin Core's own consensus code, with a chain that turns against them: reorganisations of 1 to 6
blocks over every kind of transaction, fees of 500 sat/vB, backends that go back, stop, or deny what is there.

Each test names what is lost at most. A reorganisation here is the worst one: what was in the lost blocks is in no pool
any more, and only who made it sends it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from payments import events as ev
from payments.adapters.kernel_chain import KernelChain
from payments.adapters.p2wpkh import OwnedOutput, sign_p2wpkh
from payments.adapters.transaction_pool import TransactionPool
from payments.ports import ForeignInput, Outpoint, SignedTransaction
from payments.records import ChannelState, Direction
from tests.payments.chain_support import balance
from tests.payments.test_engine_on_chain import FUNDING_FEE, WALLET_KEY, WALLET_SCRIPT, RealChain, kernel_of, pay
from tests.payments.world import CONFIG, Node, World

DEPTHS = range(1, 7)
FINAL = 7  # confirmations: more than any reorganisation here takes away
SPIKE = 500.0  # sat/vB
MARGIN = 12
SETTINGS: dict[str, object] = {"expiry_blocks": 300, "max_expiry_blocks": 1_000, "expiry_margin": MARGIN}


class HostileChain(RealChain):
    """What pays for channels is a block deeper than they are: it stays when their block goes."""

    def fund(self, script_pubkey: bytes, amount_sat: int) -> SignedTransaction:
        own = self._own(amount_sat + FUNDING_FEE)
        return sign_p2wpkh([own], [(script_pubkey, amount_sat)])

    def fund_splice(self, foreign: ForeignInput, outputs: tuple[tuple[bytes, int], ...]) -> SignedTransaction:
        missing = sum(value for _, value in outputs) - foreign.value_sat
        return sign_p2wpkh([self._own(max(missing, 0) + 1_000)], outputs, foreign)

    def _own(self, value_sat: int) -> OwnedOutput:
        txid = self.kernel.faucet(WALLET_SCRIPT, value_sat)
        self.kernel.mine(1)
        outpoint = next(
            Outpoint(txid, index)
            for index in range(2)
            if (found := self.kernel.output(Outpoint(txid, index))) and found.script_pubkey == WALLET_SCRIPT
        )
        return OwnedOutput(outpoint, value_sat, WALLET_KEY)

    def scripts(self, outpoints: tuple[Outpoint, ...]) -> tuple[bytes | None, ...]:
        found = [self.kernel.output(outpoint) for outpoint in outpoints]
        return tuple(None if each is None else each.script_pubkey for each in found)

    def lose(self, depth: int) -> None:
        """The last blocks are replaced, and what was in them is in no pool."""
        self.kernel.fork(depth, depth + 1)
        self.kernel._pool = TransactionPool(self.kernel._index)


Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes a world whose two nodes have met; settings beside those here."""
    kernel = KernelChain(tmp_path / "chain")

    def made(**changes: object) -> World:
        world = World(CONFIG, HostileChain(kernel), **{**SETTINGS, **changes})
        world.connect()
        world.pump()
        return world

    yield made
    kernel.close()


@pytest.fixture
def world(make: Make) -> World:
    """A channel, of which 3,000 sat and a msat are used; nothing counts before seven confirmations."""
    world = make(min_confirmations=FINAL)
    open_channel(world)
    pay(world, 3_000)
    return world


def open_channel(world: World) -> None:
    world.meter(world.b, world.a, 1)
    world.pump()
    world.mine(world.a.config.min_confirmations)


def tell(world: World) -> None:
    for node in world.nodes:
        node.new_block()
    world.pump()


def lose_again_and_again(world: World) -> None:
    """Blocks to depths from 1 to 6, each time all gone with what is in them, and sent again."""
    assert isinstance(world.chain, HostileChain)
    for depth in DEPTHS:
        world.mine(depth)
        world.chain.lose(depth)
        tell(world)
    world.mine(FINAL)


def states(node: Node) -> list[ChannelState]:
    return [channel.state for channel in node.channels()]


def received(world: World, node: Node) -> int:
    return sum(balance(kernel_of(world), script) for script in node.scripts)


def fees(node: Node, kind: ev.TransactionKind) -> list[int]:
    sent = [o for o in node.log if isinstance(o, ev.BroadcastTransaction) and o.kind is kind]
    return [o.fee_sat for o in sent if o.fee_sat is not None]


# --- reorganisations ---


def test_over_a_funding_nothing_is_lost_as_nothing_counts_before_it_is_deep(make: Make) -> None:
    """Lost at most: nothing, by neither."""
    world = make(min_confirmations=FINAL)
    world.meter(world.b, world.a, 1)
    world.pump()
    lose_again_and_again(world)
    assert states(world.a) == states(world.b) == [ChannelState.OPEN]
    assert world.b.ledger(world.a).unpaid_msat <= 1
    pay(world, 2_000)
    assert world.b.ledger(world.a).received_msat == 2_000_001


def test_over_a_funding_that_counted_at_once_nothing_is_lost_to_a_payer_that_sends_it_again(make: Make) -> None:
    """Lost at most: what was paid through it, if the payer spends the same money otherwise instead."""
    world = make(min_confirmations=1)
    open_channel(world)
    assert isinstance(world.chain, HostileChain)
    for depth in DEPTHS:
        pay(world, 100)
        world.mine(depth - 1)
        world.chain.lose(depth)
        tell(world)
        assert states(world.b) == [ChannelState.PENDING]
        world.mine(1)
        assert states(world.a) == states(world.b) == [ChannelState.OPEN]
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    world.mine(2)
    assert received(world, world.b) == 600 - fees(world.b, ev.TransactionKind.CLAIM)[-1]


def test_over_a_claim_nothing_is_lost(world: World) -> None:
    """Lost at most: nothing. The payee sends its claim again until it is final."""
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    lose_again_and_again(world)
    assert states(world.a) == states(world.b) == [ChannelState.CLOSED]
    fee_sat = fees(world.b, ev.TransactionKind.CLAIM)[-1]
    assert received(world, world.b) == 3_000 - fee_sat
    assert received(world, world.a) == CONFIG.capacity_sat - 3_000


def test_over_a_refund_the_payer_loses_nothing_and_the_payee_what_it_never_claimed(world: World) -> None:
    """Lost at most: by the payer nothing; by a payee that is away for the whole margin what it was paid."""
    (channel,) = world.a.channels()
    world.disconnect()
    for _ in range(channel.expiry_height - world.chain.height):
        world.chain.mine()
        world.a.new_block()
        world.work(world.a)
    assert ChannelState.REFUNDING in states(world.a)
    assert isinstance(world.chain, HostileChain)
    for depth in DEPTHS:
        for _ in range(depth):
            world.chain.mine()
            world.a.new_block()
            world.work(world.a)
        world.chain.lose(depth)
        world.a.new_block()
        world.work(world.a)
    for _ in range(FINAL):
        world.chain.mine()
        world.a.new_block()
        world.work(world.a)
    assert states(world.a) == [ChannelState.CLOSED]
    assert received(world, world.a) == CONFIG.capacity_sat - fees(world.a, ev.TransactionKind.REFUND)[-1]


def test_over_a_close_together_nothing_is_lost(world: World) -> None:
    """Lost at most: nothing, by neither."""
    (channel,) = world.a.channels()
    world.a.give(ev.OperatorCloseChannel(channel.channel_id))
    world.pump()
    assert states(world.a) == states(world.b) == [ChannelState.COOPERATING]
    lose_again_and_again(world)
    assert states(world.a) == states(world.b) == [ChannelState.CLOSED]
    assert received(world, world.b) >= 3_000 - 1_000
    fee_sat = CONFIG.capacity_sat - received(world, world.a) - received(world, world.b)
    assert 0 < fee_sat < 1_000


def test_over_a_splice_what_was_paid_before_while_and_after_counts_once(make: Make) -> None:
    """Lost at most: nothing, by neither."""
    world = make(min_confirmations=FINAL, capacity_sat=2_000, max_window_msat=20_000)
    open_channel(world)
    pay(world, 1_600)
    assert states(world.a) == states(world.b) == [ChannelState.SPLICING]
    assert isinstance(world.chain, HostileChain)
    for depth in DEPTHS:
        world.mine(depth)
        world.chain.lose(depth)
        tell(world)
        pay(world, 10)
        assert states(world.a) == states(world.b) == [ChannelState.SPLICING]
    world.mine(FINAL)
    assert states(world.a) == states(world.b) == [ChannelState.OPEN]
    pay(world, 200)
    assert world.b.ledger(world.a).received_msat == world.a.ledger(world.b).sent_msat == 1_860_001
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    world.mine(FINAL)
    assert states(world.b) == [ChannelState.CLOSED]
    assert received(world, world.b) == 1_860 - fees(world.b, ev.TransactionKind.CLAIM)[-1]


# --- fees ---


def test_a_fee_spike_costs_a_claim_its_fee_and_no_more_than_it_is_worth(world: World) -> None:
    """Lost at most: the claim's fee at 500 sat/vB; and where that is more than the claim, the claim."""
    world.chain.fee_rate = SPIKE  # type: ignore[attr-defined]
    for node in world.nodes:
        node.give(ev.ChainTipChanged(world.chain.height, SPIKE))
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    assert states(world.b) == [ChannelState.CLOSING]  # 3,000 sat are not worth 90,000 of fees: it waits
    for node in world.nodes:
        node.give(ev.ChainTipChanged(world.chain.height, 2.0))
    world.mine(FINAL)
    assert states(world.b) == [ChannelState.CLOSED]
    assert received(world, world.b) >= 3_000 - 2 * 300


def test_no_channel_is_opened_while_its_claim_would_cost_more_than_its_share(make: Make) -> None:
    """Lost at most: the window, as nothing can be paid meanwhile."""
    world = make(max_claim_fee_share=0.02)
    for node in world.nodes:
        node.give(ev.ChainTipChanged(world.chain.height, SPIKE))
    world.meter(world.b, world.a, 50_000)
    world.advance(60.0)
    assert world.a.channels() == [] and world.b.suspended
    assert world.b.ledger(world.a).unpaid_msat == 50_000
    for node in world.nodes:
        node.give(ev.ChainTipChanged(world.chain.height, 2.0))
    world.advance(20.0)
    world.mine(2)
    world.advance(20.0)
    assert world.b.ledger(world.a).unpaid_msat == 0


# --- backends ---


def test_a_backend_that_goes_back_does_not_make_a_shallow_funding_deep(make: Make) -> None:
    """Lost at most: nothing. Confirmations are counted from the tip that the backend tells now, expiries from the
    highest ever told."""
    world = make(min_confirmations=3)
    world.b.give(ev.ChainTipChanged(world.chain.height + 10, 1.0))  # then it was killed, and came back
    world.meter(world.b, world.a, 1)
    world.pump()
    world.mine(1)
    assert states(world.b) == [ChannelState.PENDING]  # by the height of before, it would be eleven deep
    world.mine(2)
    assert states(world.b) == [ChannelState.OPEN]


@pytest.mark.parametrize("lie", ["denies it", "is silent", "calls it spent"])
def test_a_backend_that_hides_a_channel_does_not_make_the_payee_miss_its_end(world: World, lie: str) -> None:
    """Lost at most: the fee of the claim."""
    (channel,) = world.b.channels(direction=Direction.IN)
    status = world.chain.output(world.b.watched[channel.channel_id])
    assert status is not None

    def report() -> None:
        if lie == "is silent":
            return
        said = (
            None
            if lie == "denies it"
            else ev.OutputStatus(status.value_sat, status.script_pubkey, status.height, b"nonsense" * 4, None)
        )
        outpoint = world.b.watched[channel.channel_id]
        world.b.give(ev.ChannelOutputSeen(channel.channel_id, outpoint, said, None))

    while world.chain.height < channel.expiry_height - MARGIN:
        world.chain.mine()
        world.b.give(ev.ChainTipChanged(world.chain.height, 1.0))
        report()
        world.pump()
    world.advance(10.0)
    claims = [o for o in world.b.log if isinstance(o, ev.BroadcastTransaction)]
    assert [claim.kind for claim in claims[-1:]] == [ev.TransactionKind.CLAIM]
    world.chain.mine(1)
    assert received(world, world.b) == 3_000 - fees(world.b, ev.TransactionKind.CLAIM)[-1]


def test_a_backend_that_stops_for_less_than_the_margin_costs_nothing(world: World) -> None:
    """Lost at most: nothing; for longer, where it is the only one, what was paid."""
    (channel,) = world.b.channels(direction=Direction.IN)
    world.disconnect()
    world.chain.mine(channel.expiry_height - 2 - world.chain.height)  # and nobody hears of it
    world.b.new_block()
    world.work(world.b)
    world.advance(10.0)
    world.chain.mine(1)
    assert received(world, world.b) == 3_000 - fees(world.b, ev.TransactionKind.CLAIM)[-1]
