from __future__ import annotations

from dataclasses import replace

import pytest

from payments.channel import Channel, PeerFaultError, channel_key, claimed_sat
from payments.channel_tx import ChannelTerms, build_claim, build_refund, funding_script_pubkey, public_key, sign_payment
from payments.life import InvariantError
from payments.ports import Outpoint, OutputStatus
from payments.records import ChannelState, Direction

PAYER_KEY, PAYEE_KEY = b"\x01" * 32, b"\x02" * 32
CHANNEL_ID, FUNDING = b"c" * 16, Outpoint(b"f" * 32, 3)
TERMS = ChannelTerms(public_key(PAYER_KEY), public_key(PAYEE_KEY), 2_000, 10_000, b"\x00\x14" + bytes(20))
LIMIT_MSAT = (10_000 - 330) * 1_000


def make(direction: Direction, state: ChannelState = ChannelState.OPEN) -> Channel:
    channel = Channel(CHANNEL_ID, b"p" * 32, direction, state, TERMS, 100, funding=FUNDING)
    channel.is_confirmed = True
    return channel


def paid(*amounts_msat: int) -> tuple[Channel, Channel]:
    """Payer's and payee's end after these payments."""
    payer, payee = make(Direction.OUT), make(Direction.IN)
    for amount_msat in amounts_msat:
        payer.pay(amount_msat, PAYER_KEY)
        assert payer.signature is not None
        assert payee.receive(0, payer.cumulative_msat, payer.signature, b"") == amount_msat
        payer.acknowledged_msat = payer.cumulative_msat
    return payer, payee


def test_payments_up_to_the_reserve_and_no_further() -> None:
    payer, payee = paid(1, 999, 1, LIMIT_MSAT - 1_001)
    assert payer.remaining_msat == payee.remaining_msat == 0
    assert payee.counted_msat == LIMIT_MSAT
    with pytest.raises(InvariantError):
        payer.pay(1, PAYER_KEY)


@pytest.mark.parametrize("amount_msat", [0, -1, LIMIT_MSAT + 1])
def test_impossible_payments_are_faults_of_ours(amount_msat: int) -> None:
    payer = make(Direction.OUT)
    with pytest.raises(InvariantError):
        payer.pay(amount_msat, PAYER_KEY)
    assert payer.cumulative_msat == 0


def sign(sat: int, *, key: bytes = PAYER_KEY, terms: ChannelTerms = TERMS, funding: Outpoint = FUNDING) -> bytes:
    return sign_payment(key, terms, funding, sat)


HOSTILE = {
    "replayed": (2_000, sign(2)),
    "lower": (1_000, sign(1)),
    "sum raised, signature not": (3_000, sign(2)),
    "above the capacity": (LIMIT_MSAT + 1_000, sign(9_670)),
    "no signature": (3_000, b""),
    "cut signature": (3_000, sign(3)[:-1]),
    "another sighash": (3_000, sign(3)[:-1] + b"\x01"),
    "another output": (3_000, sign(3, funding=Outpoint(b"f" * 32, 4))),
    "another channel": (3_000, sign(3, terms=replace(TERMS, expiry_height=2_001))),
    "another change script": (3_000, sign(3, terms=replace(TERMS, payer_change_script=b"\x00\x14" + b"x" * 20))),
    "the payee's key": (
        3_000,
        sign(3, key=PAYEE_KEY, terms=replace(TERMS, payer_pubkey=TERMS.payee_pubkey, payee_pubkey=TERMS.payer_pubkey)),
    ),
}


@pytest.mark.parametrize(("cumulative_msat", "signature"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_payment_changes_nothing(cumulative_msat: int, signature: bytes) -> None:
    _, payee = paid(2_000)
    before = payee.record()
    with pytest.raises(PeerFaultError):
        payee.receive(0, cumulative_msat, signature, b"")
    assert payee.record() == before


@pytest.mark.parametrize("state", [ChannelState.OPENING, ChannelState.CLAIMING, ChannelState.CLOSED])
def test_no_payment_is_taken_where_it_could_not_be_claimed(state: ChannelState) -> None:
    payee = make(Direction.IN, state)
    with pytest.raises(PeerFaultError):
        payee.receive(0, 1_000, sign(1), b"")


def test_an_unconfirmed_channel_stores_payments_and_does_not_count_them() -> None:
    payee = make(Direction.IN, ChannelState.PENDING)
    payee.is_confirmed = False
    payee.receive(0, 1_000, sign(1), b"")
    assert payee.counted_msat == 0


def test_the_payer_believes_its_own_signature_only() -> None:
    payer, _ = paid(2_000)
    payer.adopt(payer.stage, 5_000, sign(5), PAYER_KEY)
    assert payer.cumulative_msat == payer.acknowledged_msat == 5_000
    with pytest.raises(PeerFaultError):
        payer.adopt(payer.stage, 6_000, sign(5), PAYER_KEY)
    assert payer.cumulative_msat == 5_000


def test_record_and_back() -> None:
    for channel in paid(2_500):
        assert Channel.from_record(channel.record()).record() == channel.record()


def test_what_the_chain_shows_is_what_was_paid() -> None:
    payer, payee = paid(2_500_500, 2_000_000)
    claim = build_claim([payee.claim(PAYEE_KEY)], destination=b"\x00\x14" + b"d" * 20, fee_rate=1.0)
    assert claimed_sat(payer, claim.raw) == 4_500
    refund = build_refund(TERMS, Outpoint(b"e" * 32, 0), payer_key=PAYER_KEY, fee_rate=1.0)
    assert claimed_sat(payer, refund.raw) is None  # of another output
    assert claimed_sat(payer, b"nothing") is None


@pytest.mark.parametrize(
    ("claimed", "counted_msat"),
    [
        (4, 4_500),  # the last payment was claimed
        (2, 2_500),  # it was lost on the way: the one before it, which was confirmed
        (9, 9_000),  # an old backup of ours
        (1, 4_500),  # the payee confirmed more than it claims: its own loss
    ],
)
def test_settling_at_the_claim(claimed: int, counted_msat: int) -> None:
    payer, _ = paid(2_500)
    payer.pay(2_000, PAYER_KEY)
    payer.settle_at_claim(claimed)
    assert payer.counted_msat == counted_msat


def test_funding_must_be_exact() -> None:
    channel = make(Direction.IN)
    good = OutputStatus(10_000, funding_script_pubkey(TERMS), 100)
    assert channel.matches(good)
    assert not channel.matches(replace(good, value_sat=9_999))
    assert not channel.matches(replace(good, script_pubkey=b"\x00\x20" + bytes(32)))


def test_each_channel_has_its_own_key() -> None:
    keys = {channel_key(seed, bytes([i]) * 16) for seed in (b"s" * 32, b"t" * 32) for i in range(20)}
    assert len(keys) == 40


def test_a_refund_is_not_taken_for_a_claim_by_a_payer_that_has_forgotten_it() -> None:
    channel = make(Direction.OUT)
    refund = build_refund(TERMS, FUNDING, payer_key=PAYER_KEY, fee_rate=1.0)
    assert claimed_sat(channel, refund.raw) is None
