"""Two payment engines on Bitcoin Core's own consensus code: what they build is what the chain takes, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from payments import channel_tx
from payments import events as ev
from payments import messages as msg
from payments.adapters.kernel_chain import KernelChain
from payments.adapters.p2wpkh import OwnedOutput, p2wpkh_script, sign_p2wpkh
from payments.channel import Channel
from payments.channel_tx import Claim, build_claim, build_refund, public_key
from payments.ports import BroadcastResult, ForeignInput, Outpoint, OutputStatus, SignedTransaction
from payments.records import ChannelState, Direction
from payments.splicing import RIPE_DEPTH
from tests.payments.chain_support import PAYEE_SCRIPT, balance, key
from tests.payments.world import CONFIG, FakeChain, Node, World

FUNDING_FEE = 500
WALLET_KEY = key("wallet of both")
WALLET_SCRIPT = p2wpkh_script(public_key(WALLET_KEY))


class RealChain(FakeChain):
    """The embedded chain in the place of the fake one, and a wallet that signs with one key."""

    def __init__(self, kernel: KernelChain) -> None:
        self.kernel = kernel
        self.raw = _Raw(kernel)
        self.is_wallet_empty, self.fee_rate = False, 1.0

    @property
    def height(self) -> int:  # type: ignore[override]
        return self.kernel.tip().height

    def fund(self, script_pubkey: bytes, amount_sat: int) -> SignedTransaction:
        return sign_p2wpkh([self._coin(amount_sat + FUNDING_FEE)], [(script_pubkey, amount_sat)])

    def fund_splice(self, foreign: ForeignInput, outputs: tuple[tuple[bytes, int], ...]) -> SignedTransaction:
        missing_sat = sum(value for _, value in outputs) - foreign.value_sat
        return sign_p2wpkh([self._coin(missing_sat + 2 * FUNDING_FEE)], outputs, foreign)

    def scripts(self, outpoints: tuple[Outpoint, ...]) -> tuple[bytes | None, ...]:
        found = [self.kernel.output(outpoint) for outpoint in outpoints]
        return tuple(None if status is None else status.script_pubkey for status in found)

    def _coin(self, value_sat: int) -> OwnedOutput:
        txid = self.kernel.faucet(WALLET_SCRIPT, value_sat)
        status = self.kernel.transaction(txid)
        assert status is not None
        outpoint = next(
            Outpoint(txid, index)
            for index in range(2)
            if (found := self.kernel.output(Outpoint(txid, index))) and found.script_pubkey == WALLET_SCRIPT
        )
        return OwnedOutput(outpoint, value_sat, WALLET_KEY)

    def broadcast(self, raw: bytes) -> BroadcastResult:
        return self.kernel.submit(raw)

    def mine(self, blocks: int = 1) -> None:
        self.kernel.mine(blocks)

    def output(self, outpoint: Outpoint) -> OutputStatus | None:
        return self.kernel.output(outpoint)


class _Raw(dict[bytes, bytes]):
    def __init__(self, kernel: KernelChain) -> None:
        self._kernel = kernel

    def __getitem__(self, txid: bytes) -> bytes:
        status = self._kernel.transaction(txid)
        assert status is not None
        return status.raw


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    kernel = KernelChain(tmp_path / "chain")
    yield World(CONFIG, RealChain(kernel)).with_channel()
    kernel.close()


def kernel_of(world: World) -> KernelChain:
    assert isinstance(world.chain, RealChain)
    return world.chain.kernel


def channel_of(node: Node) -> Channel:
    """The engine's own object: the tests of forgeries need its keys and terms."""
    (channel,) = node.engine._core.channels.values()
    return channel


def pay(world: World, sat: int) -> None:
    """`a` hands `b` traffic worth so much, as fast as its window lets it."""
    due_msat = sat * 1000
    while due_msat > 0:
        step_msat = min(due_msat, world.b.ledger(world.a).window_msat // 2)
        world.meter(world.b, world.a, step_msat)
        world.advance(0.2)
        due_msat -= step_msat
    world.advance(CONFIG.tick_interval)


def received(world: World, node: Node) -> int:
    return sum(balance(kernel_of(world), script) for script in node.scripts)


def broadcasts(node: Node, kind: ev.TransactionKind) -> list[ev.BroadcastTransaction]:
    return [o for o in node.log if isinstance(o, ev.BroadcastTransaction) and o.kind is kind]


def mine_without_payee(world: World, blocks: int) -> None:
    for _ in range(blocks):
        world.chain.mine()
        world.a.new_block()
        world.work(world.a)


def test_open_pay_claim(world: World) -> None:
    (opened,) = world.a.channels(state=ChannelState.OPEN)
    assert opened.capacity_sat == CONFIG.capacity_sat
    pay(world, 3_000)
    (incoming,) = world.b.channels(direction=Direction.IN)
    assert incoming.cumulative_msat == 3_000_000 + 1  # the 1 msat that opened the channel
    world.b.give(ev.OperatorCloseChannels())
    world.advance(CONFIG.closing_timeout)
    world.mine()
    assert not world.a.channels(state=ChannelState.OPEN)
    claim, *again = broadcasts(world.b, ev.TransactionKind.CLAIM)
    assert all(other.raw == claim.raw for other in again)
    assert claim.fee_sat is not None
    assert received(world, world.b) == 3_000 - claim.fee_sat
    assert received(world, world.a) == CONFIG.capacity_sat - 3_000
    world.mine(CONFIG.min_confirmations + 6)
    assert [c.state for node in world.nodes for c in node.channels()] == [ChannelState.CLOSED] * 2


def test_open_pay_and_refund_when_the_payee_never_returns(world: World) -> None:
    pay(world, 3_000)
    world.a.give(ev.PeerDisconnected(world.b.key))
    left = channel_of(world.a).terms.expiry_height - world.chain.height
    mine_without_payee(world, left - 1)
    assert not broadcasts(world.a, ev.TransactionKind.REFUND)
    mine_without_payee(world, 3)
    refund = broadcasts(world.a, ev.TransactionKind.REFUND)[0]  # and again at later tips, until it is in a block
    assert refund.fee_sat is not None
    assert not world.a.notices(ev.BroadcastRefused)
    assert received(world, world.a) == CONFIG.capacity_sat - refund.fee_sat


def test_payee_claims_before_the_payer_can_refund(world: World) -> None:
    """With the payer out of reach; both follow the same chain."""
    pay(world, 3_000)
    world.disconnect()
    expiry = channel_of(world.b).terms.expiry_height
    world.mine(expiry - CONFIG.expiry_margin - world.chain.height)
    world.advance(CONFIG.closing_timeout)
    world.mine(CONFIG.expiry_margin + 2)
    assert received(world, world.b) > 2_000
    assert received(world, world.a) == CONFIG.capacity_sat - 3_000


def test_early_refund_is_refused_by_the_chain(world: World) -> None:
    channel = channel_of(world.a)
    secret = world.a.engine._core.key_of(channel.channel_id)
    refund = build_refund(channel.terms, channel.outpoint, payer_key=secret, fee_rate=2.0)
    assert not kernel_of(world).submit(refund.raw).accepted
    assert not kernel_of(world).force_into_block(refund.raw).accepted
    # With an earlier locktime, which it signs, the transaction is final, and the script refuses it.
    sooner = replace(channel.terms, expiry_height=world.chain.height)
    early = build_refund(sooner, channel.outpoint, payer_key=secret, fee_rate=2.0)
    assert not kernel_of(world).force_into_block(early.raw).accepted
    world.chain.mine(channel.terms.expiry_height - world.chain.height)
    assert kernel_of(world).submit(refund.raw).accepted


def last_payment(world: World, sat: int) -> msg.Payment:
    """What `a` sends for so much more traffic; it has not reached `b`."""
    world.meter(world.b, world.a, sat * 1000)
    for _ in range(100):
        world.work(world.a)
        world.deliver(world.a, 100)
        world.work(world.b)
        world.collect()
        for data in world.wire["b"]:
            message = msg.decode(data)
            if isinstance(message, msg.Payment):
                world.wire["b"].clear()
                return message
        world.deliver(world.b, 100)
        deadline = min(node.engine.next_deadline() for node in world.nodes)
        world.time = max(world.time, deadline)
        for node in world.nodes:
            if node.engine.next_deadline() <= world.time:
                node.give(ev.TimerExpired())
    raise AssertionError("no payment")


def test_stale_and_altered_payments_are_refused_by_the_payee(world: World) -> None:
    first = last_payment(world, 5)
    world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(first)))
    before = channel_of(world.b)
    assert before.cumulative_msat == first.cumulative_msat
    flipped = bytes((first.signature[0] ^ 1,)) + first.signature[1:]
    forgeries = [
        msg.Payment(first.channel_id, 0, first.cumulative_msat + 5_000, first.signature, b"", first.accounts),
        msg.Payment(first.channel_id, 0, first.cumulative_msat + 5_000, flipped, b"", first.accounts),
        msg.Payment(first.channel_id, 0, first.cumulative_msat - 1_000, first.signature, b"", first.accounts),
    ]
    for number, forgery in enumerate(forgeries, start=1):
        world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(forgery)))
        assert len(world.b.notices(ev.PeerFaultSeen)) == number
        assert channel_of(world.b).cumulative_msat == first.cumulative_msat
        assert channel_of(world.b).signature == first.signature


def test_stale_and_altered_payments_are_refused_by_the_chain(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_tx, "verify_payment", lambda *_: None)  # the chain is asked, not we
    pay(world, 1_000)
    old = channel_of(world.b).signature
    pay(world, 2_000)
    channel, kernel = channel_of(world.b), kernel_of(world)
    assert old is not None and channel.signature is not None and channel.paid_sat == 3_000
    secret = world.b.engine._core.key_of(channel.channel_id)

    def claim(paid_sat: int, signature: bytes) -> bool:
        built = Claim(channel.terms, channel.outpoint, paid_sat, signature, secret)
        transaction = build_claim([built], destination=PAYEE_SCRIPT, fee_rate=2.0)
        return kernel.force_into_block(transaction.raw).accepted

    assert not claim(3_000, old)
    assert not claim(3_001, channel.signature)
    assert not claim(3_000, channel.signature[:-2] + bytes((channel.signature[-2] ^ 1, channel.signature[-1])))
    assert claim(3_000, channel.signature)
    assert balance(kernel, PAYEE_SCRIPT) > 0


def test_a_splice_between_two_engines_confirms_and_goes_on(world: World) -> None:
    world.mine(RIPE_DEPTH)
    pay(world, 82_000)
    for node in world.nodes:
        assert channel_of(node).state is ChannelState.SPLICING
    pay(world, 1_000)
    world.mine()
    pay(world, 5_000)
    assert not world.a.notices(ev.BroadcastRefused)
    payee = channel_of(world.b)
    assert (payee.state, payee.number, payee.cumulative_msat) == (ChannelState.OPEN, 1, 88_000_001)
    assert received(world, world.b) == payee.base_msat // 1000
    world.b.give(ev.OperatorCloseChannels())
    world.advance(CONFIG.closing_timeout)
    world.mine(2)
    (claim,) = {o.fee_sat for o in broadcasts(world.b, ev.TransactionKind.CLAIM) if o.fee_sat is not None}
    assert received(world, world.b) == 88_000 - claim
    assert [c.state for node in world.nodes for c in node.channels()] == [ChannelState.CLOSED] * 2


def test_two_engines_close_together_on_chain(world: World) -> None:
    pay(world, 3_000)
    world.a.give(ev.OperatorCloseChannel(channel_of(world.a).channel_id))
    world.pump()
    world.mine(2)
    (close,) = {o.fee_sat for o in broadcasts(world.a, ev.TransactionKind.CLOSE) if o.fee_sat is not None}
    assert received(world, world.b) == 3_000
    assert received(world, world.a) == CONFIG.capacity_sat - 3_000 - close
    assert [c.state for node in world.nodes for c in node.channels()] == [ChannelState.CLOSED] * 2
