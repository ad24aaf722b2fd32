"""The demo's books, with channels that end in each of the three ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from payments import channel_tx, mutual_tx
from payments.channel_tx import ChannelTerms, Claim, public_key
from payments.ports import Outpoint
from tools.showcase.books import ChainTransaction, Snapshot, node_books, problems, tell_end

PAYER_KEY, PAYEE_KEY = b"\x01" * 32, b"\x02" * 32
CHANGE, PAYOUT = b"\x00\x14" + bytes(20), b"\x00\x14" + b"\x01" * 20
CAPACITY, BEFORE, FUNDING_FEE = 100_000, 1_000_000, 308
TERMS = ChannelTerms(public_key(PAYER_KEY), public_key(PAYEE_KEY), 2_000, CAPACITY, CHANGE)
FUNDING = Outpoint(b"\x03" * 32, 0)


def _close(paid_sat: int) -> bytes:
    raw = mutual_tx.build_close(TERMS, FUNDING, paid_sat=paid_sat, payout_script=PAYOUT, fee_sat=280).raw
    payer, payee = (mutual_tx.sign_mutual(key, raw, TERMS, FUNDING) for key in (PAYER_KEY, PAYEE_KEY))
    return mutual_tx.complete(raw, TERMS, FUNDING, payer_signature=payer, payee_signature=payee)


def _claim(paid_sat: int) -> bytes:
    signature = channel_tx.sign_payment(PAYER_KEY, TERMS, FUNDING, paid_sat)
    claim = Claim(TERMS, FUNDING, paid_sat, signature, PAYEE_KEY)
    return channel_tx.build_claim([claim], destination=PAYOUT, fee_rate=1.0).raw


def _refund(_: int) -> bytes:
    return channel_tx.build_refund(TERMS, FUNDING, payer_key=PAYER_KEY, destination=CHANGE, fee_rate=1.0).raw


@pytest.mark.parametrize(
    ("make", "paid_sat", "kind"),
    [(_claim, 5_000, "claim"), (_close, 5_000, "close"), (_close, 116, "close"), (_refund, 116, "refund")],
    ids=["claim", "close", "close below dust", "refund"],
)
def test_the_books_balance_however_a_channel_ends(make: Callable[[int], bytes], paid_sat: int, kind: str) -> None:
    raw = make(paid_sat)
    outputs = {script: mutual_tx.paid_to(raw, script) for script in (CHANGE, PAYOUT)}
    locked = BEFORE - FUNDING_FEE - CAPACITY
    now = _snapshot(paid_sat, after={"payer": locked + outputs[CHANGE], "payee": BEFORE + outputs[PAYOUT]})
    end = ChainTransaction("end", "claim", 2, CAPACITY - sum(outputs.values()), "payee", ["channel"])
    tell_end(end, raw, now)
    assert end.kind == kind
    transactions = [ChainTransaction("funding", "funding", 1, FUNDING_FEE, "payer", ["channel"]), end]
    books = node_books(now, dict.fromkeys(now.status, BEFORE), transactions)
    assert problems(books, [], transactions, restarted=None) == []
    assert problems(books, [], [transactions[0]], restarted=None) != []


def _snapshot(paid_sat: int, after: dict[str, int]) -> Snapshot:
    channel = {"channel_id": "channel", "funding": "x:0", "capacity_sat": CAPACITY, "cumulative_msat": paid_sat * 1000}
    totals = {"carried_bytes": 0, "earned_msat": 0, "spent_msat": 0}
    return Snapshot(
        status={name: {"totals": totals, "wallet": {"balance_sat": sat}} for name, sat in after.items()},
        neighbours={},
        channels={"payer": [channel | {"direction": "out"}], "payee": [channel | {"direction": "in"}]},
        ledger={},
    )
