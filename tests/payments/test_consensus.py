"""Every transaction that channels make, on Bitcoin Core's own consensus code; and what it must refuse.

`MESHD_MUTATED_CLAIMS=3000` (tools/prove-money --mutations) is the full number of the comparison at the end.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import coincurve
import pytest
from embit.script import Script, Witness
from embit.transaction import SIGHASH, Transaction, TransactionOutput

from payments import mutual_tx
from payments.adapters.kernel_chain import KernelChain
from payments.adapters.p2wpkh import OwnedOutput, sign_p2wpkh
from payments.adapters.script_judge import reads_as
from payments.channel_tx import (
    Claim,
    build_claim,
    build_refund,
    channel_script,
    funding_script_pubkey,
    parse_transaction,
)
from payments.ports import Outpoint
from payments.spend_check import InvalidSpendError, Moment, check_spend, spend_digest
from tests.payments.chain_support import (
    CAPACITY,
    FEE_RATE,
    PAYEE,
    PAYEE_SCRIPT,
    PAYER,
    PAYER_SCRIPT,
    OpenChannel,
    balance,
    key,
    make_terms,
    open_channel,
    own_script,
)

MUTATIONS = int(os.environ.get("MESHD_MUTATED_CLAIMS", "300"))
PAID = 40_000


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[KernelChain]:
    chain = KernelChain(tmp_path / "chain")
    yield chain
    chain.close()


def confirms(chain: KernelChain, *raws: bytes) -> None:
    """Through the pool into one block."""
    for raw in raws:
        result = chain.submit(raw)
        assert result.accepted, result.code
    chain.mine()
    for raw in raws:
        status = chain.transaction(parse_transaction(raw).hash())
        assert status is not None and status.height == chain.tip().height


def refused(chain: KernelChain, raw: bytes) -> bool:
    return not chain.submit(raw).accepted and not chain.force_into_block(raw).accepted


def both_sign(channel: OpenChannel, raw: bytes) -> bytes:
    payer = mutual_tx.sign_mutual(PAYER, raw, channel.terms, channel.outpoint)
    payee = mutual_tx.sign_mutual(PAYEE, raw, channel.terms, channel.outpoint)
    mutual_tx.verify_mutual(channel.terms.payee_pubkey, payee, raw, channel.terms, channel.outpoint)
    return mutual_tx.complete(raw, channel.terms, channel.outpoint, payer_signature=payer, payee_signature=payee)


def spliced(chain: KernelChain, channel: OpenChannel, *, top_up: bool) -> tuple[bytes, OpenChannel]:
    """A complete splice that pays out PAID, and the channel that it makes."""
    if top_up:
        new = replace(channel.terms, expiry_height=400)
        coin = OwnedOutput(Outpoint(chain.faucet(own_script("coin"), 50_000), 0), 50_000, key("coin"))
        chain.mine()
        outputs = mutual_tx.splice_outputs(new, paid_out_sat=PAID, payout_script=PAYEE_SCRIPT)
        foreign = mutual_tx.foreign_input(channel.terms, channel.outpoint)
        raw = sign_p2wpkh([coin], [*outputs, (own_script("change"), 9_000)], foreign).raw
    else:
        new = replace(channel.terms, expiry_height=400, capacity_sat=CAPACITY - PAID - 400)
        raw = mutual_tx.build_splice(
            channel.outpoint, new, paid_out_sat=PAID, payout_script=PAYEE_SCRIPT, fee_sat=400
        ).raw
    bare = mutual_tx.stripped(raw)
    funding = mutual_tx.check_splice(bare, channel.outpoint, new, paid_out_sat=PAID, payout_script=PAYEE_SCRIPT)
    assert parse_transaction(raw).hash() == funding.txid
    return both_sign(channel, raw), OpenChannel(new, funding)


# --- what confirms ---


def test_fund_and_claim(chain: KernelChain) -> None:
    channel = open_channel(chain)
    confirms(chain, build_claim([channel.claim_of(PAID)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE).raw)
    assert balance(chain, PAYER_SCRIPT) == CAPACITY - PAID


@pytest.mark.parametrize("count", [20, 60])
def test_a_batch_of_claims(chain: KernelChain, count: int) -> None:
    coin = OwnedOutput(Outpoint(chain.faucet(own_script("all"), 10**8), 0), 10**8, key("all"))
    payers = [key(f"payer {n}") for n in range(count)]
    terms = [make_terms(payer=payer, payer_change_script=own_script(f"change {n}")) for n, payer in enumerate(payers)]
    funding = sign_p2wpkh([coin], [(funding_script_pubkey(each), CAPACITY) for each in terms] + [(PAYER_SCRIPT, 10**6)])
    confirms(chain, funding.raw)
    channels = [OpenChannel(each, Outpoint(funding.txid, n), payers[n]) for n, each in enumerate(terms)]
    claims = [channel.claim_of(1_000 + n) for n, channel in enumerate(channels)]
    batch = build_claim(claims, destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    confirms(chain, batch.raw)
    assert balance(chain, PAYEE_SCRIPT) == sum(1_000 + n for n in range(count)) - batch.fee_sat
    assert all(balance(chain, own_script(f"change {n}")) == CAPACITY - 1_000 - n for n in range(count))


def test_a_refund_after_the_expiry(chain: KernelChain) -> None:
    channel = open_channel(chain, make_terms(expiry_height=chain.tip().height + 3))
    refund = build_refund(channel.terms, channel.outpoint, payer_key=PAYER, fee_rate=FEE_RATE)
    assert refused(chain, refund.raw)
    chain.mine(2)
    confirms(chain, refund.raw)


@pytest.mark.parametrize("paid_sat", [0, 200, PAID, CAPACITY - 1_000])
def test_closing_together(chain: KernelChain, paid_sat: int) -> None:
    channel = open_channel(chain)
    close = mutual_tx.build_close(
        channel.terms, channel.outpoint, paid_sat=paid_sat, payout_script=PAYEE_SCRIPT, fee_sat=360
    )
    raw = both_sign(channel, close.raw)
    confirms(chain, raw)
    assert parse_transaction(raw).hash() == close.txid
    assert balance(chain, PAYEE_SCRIPT) == (paid_sat if paid_sat >= 294 else 0)
    assert balance(chain, PAYER_SCRIPT) == CAPACITY - paid_sat - 360


@pytest.mark.parametrize("top_up", [True, False])
def test_a_splice_then_payments_and_a_claim_of_its_output(chain: KernelChain, top_up: bool) -> None:
    channel = open_channel(chain)
    raw, after = spliced(chain, channel, top_up=top_up)
    confirms(chain, raw)
    assert balance(chain, PAYEE_SCRIPT) == PAID
    claim = build_claim([after.claim_of(10_000)], destination=own_script("claimed"), fee_rate=FEE_RATE)
    confirms(chain, claim.raw)
    assert balance(chain, own_script("claimed")) == 10_000 - claim.fee_sat


@pytest.mark.parametrize("top_up", [True, False])
def test_a_claim_of_a_splice_that_is_not_in_a_block_yet(chain: KernelChain, top_up: bool) -> None:
    raw, after = spliced(chain, open_channel(chain), top_up=top_up)
    confirms(chain, raw, build_claim([after.claim_of(10_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE).raw)


def test_the_old_output_is_claimed_instead_of_the_splice_by_paying_more(chain: KernelChain) -> None:
    channel = open_channel(chain)
    raw, after = spliced(chain, channel, top_up=False)
    assert chain.submit(raw).accepted
    claim = build_claim([channel.claim_of(PAID + 5_000)], destination=PAYEE_SCRIPT, fee_rate=10.0)
    confirms(chain, claim.raw)
    assert chain.output(after.outpoint) is None
    assert refused(chain, raw)


def test_a_claim_a_refund_and_a_close_are_replaced_by_dearer_ones(chain: KernelChain) -> None:
    channel = open_channel(chain, make_terms(expiry_height=chain.tip().height + 1))
    for rate in (2.0, 4.0, 8.0):
        claim = build_claim([channel.claim_of(PAID)], destination=PAYEE_SCRIPT, fee_rate=rate)
        assert chain.submit(claim.raw).accepted
    for rate in (16.0, 32.0):
        refund = build_refund(channel.terms, channel.outpoint, payer_key=PAYER, fee_rate=rate)
        assert chain.submit(refund.raw).accepted
    close = mutual_tx.build_close(
        channel.terms, channel.outpoint, paid_sat=PAID, payout_script=PAYEE_SCRIPT, fee_sat=9_000
    )
    assert chain.pool_size == 1
    confirms(chain, both_sign(channel, close.raw))


# --- what does not ---


def resigned(channel: OpenChannel, transaction: Transaction, *, payer: bool, items: list[bytes] | None = None) -> bytes:
    """As whoever holds the keys would sign it; without `payer`, the payer's old signature stays."""
    script = channel_script(channel.terms)
    digest = transaction.sighash_segwit(0, Script(script), CAPACITY, SIGHASH.ALL)
    ours = [coincurve.PrivateKey(each).sign(digest, hasher=None) + b"\x01" for each in (PAYER, PAYEE)]
    if not payer:
        ours[0] = transaction.vin[0].witness.items[0]
    transaction.vin[0].witness = Witness(items or [*ours, b"\x01", script])
    raw: bytes = transaction.serialize()
    return raw


def claim_of(channel: OpenChannel, paid_sat: int = PAID) -> Transaction:
    return parse_transaction(build_claim([channel.claim_of(paid_sat)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE).raw)


@pytest.mark.parametrize("locktime", [0, 111, 400, 499])
def test_a_refund_with_a_lower_locktime(chain: KernelChain, locktime: int) -> None:
    channel = open_channel(chain, make_terms(expiry_height=500))
    transaction = parse_transaction(
        build_refund(channel.terms, channel.outpoint, payer_key=PAYER, fee_rate=FEE_RATE).raw
    )
    transaction.locktime = locktime
    script = channel_script(channel.terms)
    digest = transaction.sighash_segwit(0, Script(script), CAPACITY, SIGHASH.ALL)
    signature = coincurve.PrivateKey(PAYER).sign(digest, hasher=None) + b"\x01"
    transaction.vin[0].witness = Witness([signature, b"", script])
    assert refused(chain, transaction.serialize())


def test_a_refund_with_a_final_sequence(chain: KernelChain) -> None:
    channel = open_channel(chain, make_terms(expiry_height=chain.tip().height + 1))
    transaction = parse_transaction(
        build_refund(channel.terms, channel.outpoint, payer_key=PAYER, fee_rate=FEE_RATE).raw
    )
    transaction.vin[0].sequence = 0xFFFFFFFF
    script = channel_script(channel.terms)
    digest = transaction.sighash_segwit(0, Script(script), CAPACITY, SIGHASH.ALL)
    signature = coincurve.PrivateKey(PAYER).sign(digest, hasher=None) + b"\x01"
    transaction.vin[0].witness = Witness([signature, b"", script])
    assert refused(chain, transaction.serialize())


def test_an_older_signature_for_the_newer_amount_and_moved_change(chain: KernelChain) -> None:
    channel = open_channel(chain)
    old = channel.pay(10_000)

    def edited(edit: Callable[[Transaction], None]) -> bytes:
        transaction = claim_of(channel)
        edit(transaction)
        return resigned(channel, transaction, payer=False)

    def stale(transaction: Transaction) -> None:
        transaction.vin[0].witness.items[0] = old

    def steal(transaction: Transaction) -> None:
        transaction.vout[0] = TransactionOutput(transaction.vout[0].value, Script(PAYEE_SCRIPT))

    def shrink(transaction: Transaction) -> None:
        transaction.vout[0] = TransactionOutput(transaction.vout[0].value - 1, Script(PAYER_SCRIPT))

    def swap(transaction: Transaction) -> None:
        transaction.vout.reverse()

    def drop(transaction: Transaction) -> None:
        transaction.vout = transaction.vout[1:]

    def lock(transaction: Transaction) -> None:
        transaction.locktime = 1

    def finalise(transaction: Transaction) -> None:
        transaction.vin[0].sequence = 0xFFFFFFFF

    for edit in (stale, steal, shrink, swap, drop, lock, finalise):
        assert refused(chain, edited(edit)), edit.__name__
    confirms(chain, edited(lambda _: None))


def test_nothing_of_a_splice_or_a_close_can_be_changed_by_one_side(chain: KernelChain) -> None:
    channel = open_channel(chain)
    splice, _ = spliced(chain, channel, top_up=True)
    close = both_sign(
        channel,
        mutual_tx.build_close(
            channel.terms, channel.outpoint, paid_sat=PAID, payout_script=PAYEE_SCRIPT, fee_sat=400
        ).raw,
    )
    for raw in (splice, close):
        for position in (0, 1):
            transaction = parse_transaction(raw)
            output = transaction.vout[position]
            transaction.vout[position] = TransactionOutput(output.value - 1, output.script_pubkey)
            assert refused(chain, transaction.serialize())
        transaction = parse_transaction(raw)
        transaction.vin[0].witness.items[1] = b""
        assert refused(chain, transaction.serialize())
        transaction = parse_transaction(raw)
        transaction.vin[0].witness.items[0] = transaction.vin[0].witness.items[1]
        assert refused(chain, transaction.serialize())
    confirms(chain, close)
    assert refused(chain, splice)


def test_a_payment_is_for_one_output_of_a_spliced_channel(chain: KernelChain) -> None:
    channel = open_channel(chain)
    raw, after = spliced(chain, channel, top_up=False)
    confirms(chain, raw)
    wrong = Claim(after.terms, after.outpoint, 10_000, after.pay(10_000), PAYEE)
    transaction = parse_transaction(build_claim([wrong], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE).raw)
    transaction.vin[0].witness.items[0] = channel.pay(10_000)
    assert refused(chain, transaction.serialize())


def test_dust_is_not_relayed(chain: KernelChain) -> None:
    channel = open_channel(chain)
    transaction = claim_of(channel, 1_000)
    transaction.vout[1] = TransactionOutput(293, Script(PAYEE_SCRIPT))
    assert chain.submit(resigned(channel, transaction, payer=False)).code == "dust"
    dusty = mutual_tx.build_splice(
        channel.outpoint, make_terms(capacity_sat=50_000), paid_out_sat=0, payout_script=PAYEE_SCRIPT, fee_sat=0
    )
    transaction = parse_transaction(dusty.raw)
    transaction.vout.append(TransactionOutput(200, Script(PAYEE_SCRIPT)))
    assert chain.submit(both_sign(channel, transaction.serialize())).code == "dust"


# --- our predicate against consensus ---


class Mutator:
    """Claims, refunds and closes with something changed, before or after they are signed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def mutate(self, channel: OpenChannel, height: int) -> tuple[str, bytes]:
        rng = self.rng
        kind = rng.choice(["claim", "claim", "claim", "refund", "close"])
        transaction = self.honest(channel, kind)
        when = rng.choice(["never", "before", "before", "after", "after", "bytes", "witness"])
        if when == "before":
            self.change_fields(transaction, height)
            self.sign(channel, transaction, kind)
            return f"{kind} before", transaction.serialize()
        if when == "after":
            self.change_fields(transaction, height)
            return f"{kind} after", transaction.serialize()
        if when == "witness":
            self.change_witness(channel, transaction)
            return f"{kind} witness", transaction.serialize()
        raw: bytes = transaction.serialize()
        if when == "bytes":
            raw = self.change_bytes(raw)
        return f"{kind} {when}", raw

    def honest(self, channel: OpenChannel, kind: str) -> Transaction:
        if kind == "claim":
            return claim_of(channel, self.rng.randrange(1_000, CAPACITY - 330))
        if kind == "refund":
            refund = build_refund(channel.terms, channel.outpoint, payer_key=channel.payer, fee_rate=FEE_RATE)
            return parse_transaction(refund.raw)
        close = mutual_tx.build_close(
            channel.terms, channel.outpoint, paid_sat=PAID, payout_script=PAYEE_SCRIPT, fee_sat=400
        )
        return parse_transaction(both_sign(channel, close.raw))

    def change_fields(self, transaction: Transaction, height: int) -> None:
        rng = self.rng
        for _ in range(rng.choice([1, 1, 1, 2])):
            what = rng.randrange(8)
            if what == 0:
                choices = [0, 1, height - 1, height, height + 1, 120, 121, 130, 499_999_999, 500_000_000, 2**32 - 1]
                transaction.locktime = rng.choice(choices)
            elif what == 1:
                choices = [0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD, 0x80000000, 0, 1, 2, 3, 200, 1 << 22, (1 << 22) + 1]
                transaction.vin[0].sequence = rng.choice(choices)
            elif what == 2:
                transaction.version = rng.choice([0, 1, 2, 3, 4, 2**31 - 1])
            elif what == 3:
                output = transaction.vout[rng.randrange(len(transaction.vout))]
                output.value = max(0, output.value + rng.choice([-1, -500, -output.value]))
            elif what == 4:
                transaction.vout.reverse()
            elif what == 5:
                script = rng.choice([PAYEE_SCRIPT, PAYER_SCRIPT, b"\x51", b"\x6a\x01x"])
                transaction.vout[rng.randrange(len(transaction.vout))].script_pubkey = Script(script)
            elif what == 6 and len(transaction.vout) > 1:
                del transaction.vout[rng.randrange(len(transaction.vout))]
            elif what == 7:
                transaction.vin[0].vout += rng.choice([0, 0, 1_000])

    def sign(self, channel: OpenChannel, transaction: Transaction, kind: str) -> None:
        """Anew, by any of both, with any type of sighash, defined or not."""
        rng = self.rng
        items = list(transaction.vin[0].witness.items)
        signers = [(0, channel.payer)] if kind == "refund" else [(0, channel.payer), (1, PAYEE)]
        for position, secret in signers:
            if rng.random() < 0.85:
                sighash = rng.choice([0x01, 0x01, 0x02, 0x03, 0x81, 0x82, 0x83, 0x83, 0x00, 0x04, 0x41, 0xE3])
                digest = spend_digest(transaction, 0, channel.terms, sighash)
                items[position] = coincurve.PrivateKey(secret).sign(digest, hasher=None) + bytes((sighash,))
        transaction.vin[0].witness = Witness(items)

    def change_witness(self, channel: OpenChannel, transaction: Transaction) -> None:
        rng = self.rng
        items = list(transaction.vin[0].witness.items)
        what, position = rng.randrange(9), rng.randrange(len(items))
        branch = len(items) - 2
        if what == 0:
            items[branch] = rng.choice(
                [b"", b"\x00", b"\x80", b"\x00\x80", b"\x02", b"\x00\x01", b"\x80\x00", bytes(521)]
            )
        elif what == 1:
            items[0], items[1] = items[1], items[0]
        elif what == 2:
            items.insert(0, rng.choice([b"", b"\x01"]))
        elif what == 3:
            del items[position]
        elif what == 4:
            items[0] = high_s(items[0])
        elif what == 5:
            items[0] = padded(items[0])
        elif what == 6:
            items[rng.randrange(max(1, branch))] = b""
        elif what == 7:
            other = replace(channel.terms, expiry_height=channel.terms.expiry_height + 1)
            items[-1] = channel_script(other)
        else:
            item = bytearray(items[position] or b"\x00")
            item[rng.randrange(len(item))] ^= 1 << rng.randrange(8)
            items[position] = bytes(item)
        transaction.vin[0].witness = Witness(items)

    def change_bytes(self, raw: bytes) -> bytes:
        rng, changed = self.rng, bytearray(raw)
        what, position = rng.randrange(4), rng.randrange(len(raw))
        if what == 0:
            del changed[position]
        elif what == 1:
            changed.insert(position, rng.randrange(256))
        else:
            changed[position] ^= 1 << rng.randrange(8)
        return bytes(changed)


ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def high_s(signature: bytes) -> bytes:
    """The same signature as anybody may write it: consensus takes it, no node relays it."""
    r_bytes = signature[3]
    head, s = signature[4 : 4 + r_bytes], int.from_bytes(signature[6 + r_bytes : -1], "big")
    high = (ORDER - s).to_bytes(33, "big")
    high = high[1:] if not high[1] & 0x80 else high
    body = b"\x02" + bytes((len(head),)) + head + b"\x02" + bytes((len(high),)) + high
    return b"\x30" + bytes((len(body),)) + body + signature[-1:]


def padded(signature: bytes) -> bytes:
    """With a zero that it does not need: refused since BIP66."""
    return b"\x30" + bytes((signature[1] + 1,)) + b"\x02" + bytes((signature[3] + 1,)) + b"\x00" + signature[4:]


class Coins:
    """Channels to try it on, funded many at a time."""

    def __init__(self, chain: KernelChain) -> None:
        self.chain, self.left, self.height, self.median = chain, list[OpenChannel](), 0, 0

    def take(self) -> OpenChannel:
        if not self.left:
            coin = OwnedOutput(Outpoint(self.chain.faucet(own_script("all"), 10**8), 0), 10**8, key("all"))
            terms = [make_terms(expiry_height=self.expiry()) for _ in range(100)]
            outputs = [(funding_script_pubkey(each), CAPACITY) for each in terms]
            funding = sign_p2wpkh([coin], [*outputs, (PAYER_SCRIPT, 10**8 - 100 * CAPACITY - 20_000)])
            self.median = median_time(self.chain)
            assert self.chain.submit(funding.raw).accepted
            self.chain.mine()
            self.height = self.chain.tip().height
            self.left = [OpenChannel(each, Outpoint(funding.txid, n)) for n, each in enumerate(terms)]
        return self.left.pop()

    def expiry(self) -> int:
        return self.chain.tip().height + 20  # soon over: refunds are tried on both sides of it

    def moment(self) -> Moment:
        return Moment(self.chain.tip().height + 1, median_time(self.chain), self.height, self.median)


def median_time(chain: KernelChain) -> int:
    """BIP113: of the last eleven blocks."""
    height = chain.tip().height
    return sorted(chain._timestamp_at(each) for each in range(max(0, height - 10), height + 1))[
        (min(height + 1, 11)) // 2
    ]


def by_our_predicate(raw: bytes, channel: OpenChannel, moment: Moment) -> bool:
    try:
        check_spend(raw, channel.terms, channel.outpoint, moment)
    except InvalidSpendError:
        return False
    return sum(output.value for output in parse_transaction(raw).vout) <= CAPACITY


def by_consensus(chain: KernelChain, raw: bytes) -> bool:
    if reads_as(raw) != raw:
        return False
    return chain.force_into_block(raw).accepted  # raises where Core reads a transaction and we do not


def test_our_predicate_agrees_with_consensus_on_every_mutated_claim(chain: KernelChain) -> None:
    mutator, coins, tally = Mutator(2026), Coins(chain), Counter[tuple[str, bool]]()
    channel = coins.take()
    for number in range(MUTATIONS):
        kind, raw = mutator.mutate(channel, chain.tip().height + 1)
        ours = by_our_predicate(raw, channel, coins.moment())
        theirs = by_consensus(chain, raw)
        assert ours == theirs, (number, kind, raw.hex())
        tally[kind, theirs] += 1
        if theirs or chain.output(channel.outpoint) is None:
            channel = coins.take()
    if "MESHD_MUTATED_CLAIMS" in os.environ:
        for (kind, accepted), count in sorted(tally.items()):
            print(f"{count:6} {kind}: {'accepted' if accepted else 'refused'}")
        print(f"{MUTATIONS} mutated transactions; our predicate and consensus agree on every one")
    assert sum(count for (_, accepted), count in tally.items() if accepted) >= MUTATIONS // 20
    assert sum(count for (_, accepted), count in tally.items() if not accepted) >= MUTATIONS // 3


def test_the_predicate_can_fail() -> None:
    """An honest claim passes; so each refusal above is of what was changed."""
    channel = OpenChannel(make_terms(), Outpoint(key("coin"), 1))
    raw = claim_of(channel).serialize()
    moment = Moment(112, 0, 111, 0)
    check_spend(raw, channel.terms, channel.outpoint, moment)
    other = dataclasses.replace(channel.terms, capacity_sat=CAPACITY + 1)
    with pytest.raises(InvalidSpendError):
        check_spend(raw, other, channel.outpoint, moment)
