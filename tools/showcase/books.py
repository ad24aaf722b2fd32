"""The accounts of a whole lab: what each node carried, earned, spent and has on chain, and whether it adds up.

Money appears as msat in channels and as sat on the chain; a claim pays out whole sats (design section 3).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import trio
from embit.transaction import Transaction

from payments.adapters.chain_client import KernelChainClient
from payments.mutual_tx import is_payment_claim
from payments.ports import Outpoint, TransactionStatus
from tools.lab.lab import Lab
from tools.lab.network import interface_to

TOLERANCE = 0.01  # of what the two ends of a hop meter; they differ by what is lost between them


@dataclass(slots=True)
class NodeBooks:
    bytes_carried: int
    earned_msat: int
    spent_msat: int
    onchain_sat_before: int
    onchain_sat_after: int
    locked_in_channels_sat: int  # of its own money, in channels that are not closed
    fees_sat: int
    claimed_sat: int
    paid_out_sat: int  # what others claimed from its channels


@dataclass(slots=True)
class Hop:
    from_node: str
    to_node: str
    bytes_sender: int
    bytes_receiver: int
    bytes_refused: int  # of what was received: dropped, because the sender was suspended
    paid_msat: int

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        return {"from": fields.pop("from_node"), "to": fields.pop("to_node"), **fields}


@dataclass(slots=True)
class ChainTransaction:
    txid: str
    kind: str  # funding, claim, close (signed by both), refund
    height: int | None
    fee_sat: int
    node: str  # whose it is, and who pays its fee
    channels: list[str] = field(default_factory=list)
    pays_out: bool = True  # of a close: what the payee was paid is above its dust limit; else it is in the fee


@dataclass(slots=True)
class Snapshot:
    """What every daemon says of itself at one moment."""

    status: dict[str, Any]
    neighbours: dict[str, list[dict[str, Any]]]
    channels: dict[str, list[dict[str, Any]]]
    ledger: dict[str, list[dict[str, Any]]]

    @property
    def name_by_identity(self) -> dict[str, str]:
        return {status["identity"]: name for name, status in self.status.items()}


def take(lab: Lab) -> Snapshot:
    asked = {method: {n: lab.rpc(n, method) for n in lab.nodes} for method in ("neighbours", "channels", "ledger")}
    return Snapshot(status={n: lab.rpc(n, "status") for n in lab.nodes}, **asked)


def hops(lab: Lab, now: Snapshot) -> list[Hop]:
    """Both directions of every link that carried anything."""
    found = []
    for link in lab.topology.links:
        for sender, receiver in ((link.a, link.b), (link.b, link.a)):
            out = _sum(now, sender, receiver, "bytes_out")
            arrived = _sum(now, receiver, sender, "bytes_in")
            refused = _sum(now, receiver, sender, "bytes_refused")
            identity = now.status[receiver]["identity"]
            paid = sum(entry["sent_msat"] for entry in now.ledger[sender] if entry["peer"] == identity)
            if out or arrived or paid:
                found.append(Hop(sender, receiver, out, arrived, refused, paid))
    return found


def _sum(now: Snapshot, node: str, neighbour: str, key: str) -> int:
    return sum(row[key] for row in now.neighbours[node] if row["under"] == interface_to(neighbour))


def chain_transactions(lab: Lab, now: Snapshot) -> list[ChainTransaction]:
    """All that the channels put on the chain, in the order of their height."""
    found: dict[str, ChainTransaction] = {}
    for name, channels in now.channels.items():
        for channel in channels:
            if channel["direction"] == "out" and channel["funding"] is not None:
                txid = channel["funding"].partition(":")[0]
                _add(found, ChainTransaction(txid, "funding", None, 0, name), channel)
            if channel["closing_txid"] is not None:
                # Which of the three ends it is, the chain says (below).
                node = name if channel["direction"] == "in" else now.name_by_identity[channel["peer"]]
                _add(found, ChainTransaction(channel["closing_txid"], "claim", None, 0, node), channel)
    statuses = _look_up(lab, list(found))
    for txid, transaction in found.items():
        status = statuses[txid]
        if status is None:
            continue
        transaction.height, transaction.fee_sat = status.height, status.fee_sat or 0
        if transaction.kind == "claim":
            tell_end(transaction, status.raw, now)
    return sorted(found.values(), key=lambda t: (t.height is None, t.height, t.txid))


def tell_end(transaction: ChainTransaction, raw: bytes, now: Snapshot) -> None:
    """Payees pay for claims; payers for refunds, which alone are locked until the expiry, and for closes."""
    parsed = Transaction.parse(raw)
    spent = parsed.vin[0]
    if parsed.locktime:
        transaction.kind = "refund"
    elif not is_payment_claim(raw, Outpoint(bytes(spent.txid)[::-1], spent.vout)):
        transaction.kind, transaction.pays_out = "close", len(parsed.vout) > 1
    else:
        return
    transaction.node = _payer(now, transaction.channels[0])


def _add(found: dict[str, ChainTransaction], transaction: ChainTransaction, channel: dict[str, Any]) -> None:
    known = found.setdefault(transaction.txid, transaction)
    if channel["channel_id"] not in known.channels:
        known.channels.append(channel["channel_id"])


def _payer(now: Snapshot, channel_id: str) -> str:
    for name, channels in now.channels.items():
        if any(c["channel_id"] == channel_id and c["direction"] == "out" for c in channels):
            return name
    raise LookupError(f"nobody pays through channel {channel_id}")


def _look_up(lab: Lab, txids: list[str]) -> dict[str, TransactionStatus | None]:
    async def ask() -> dict[str, TransactionStatus | None]:
        client = KernelChainClient(lab.chain_socket)
        try:
            return {txid: await client.transaction(bytes.fromhex(txid)[::-1]) for txid in txids}
        finally:
            client.close()

    return trio.run(ask)


def node_books(now: Snapshot, before_sat: dict[str, int], transactions: list[ChainTransaction]) -> dict[str, NodeBooks]:
    end_by_channel = {c: t for t in transactions for c in t.channels if t.kind != "funding"}
    books = {}
    for name, status in now.status.items():
        own = NodeBooks(
            bytes_carried=status["totals"]["carried_bytes"],
            earned_msat=status["totals"]["earned_msat"],
            spent_msat=status["totals"]["spent_msat"],
            onchain_sat_before=before_sat[name],
            onchain_sat_after=status["wallet"]["balance_sat"],
            locked_in_channels_sat=0,
            fees_sat=sum(t.fee_sat for t in transactions if t.node == name),
            claimed_sat=0,
            paid_out_sat=0,
        )
        for channel in now.channels[name]:
            _book_channel(own, channel, end_by_channel.get(channel["channel_id"]))
        books[name] = own
    return books


def _book_channel(books: NodeBooks, channel: dict[str, Any], end: ChainTransaction | None) -> None:
    whole_sat = channel["cumulative_msat"] // 1000
    is_paid = end is not None and end.kind in ("claim", "close") and end.pays_out
    if is_paid and channel["direction"] == "in":
        books.claimed_sat += whole_sat
    elif is_paid:
        books.paid_out_sat += whole_sat
    elif end is None and channel["direction"] == "out" and channel["funding"] is not None:
        books.locked_in_channels_sat += channel["capacity_sat"]


def problems(
    books: dict[str, NodeBooks], all_hops: list[Hop], transactions: list[ChainTransaction], *, restarted: str | None
) -> list[str]:
    """Everything that does not add up, in words. Empty: the books balance."""
    wrong = []
    earned, spent = (sum(getattr(b, key) for b in books.values()) for key in ("earned_msat", "spent_msat"))
    if earned != spent:
        wrong.append(f"{earned} msat earned, {spent} msat spent")
    before = sum(b.onchain_sat_before for b in books.values())
    after = sum(b.onchain_sat_after + b.locked_in_channels_sat for b in books.values())
    fees = sum(t.fee_sat for t in transactions)
    if before - after != fees:
        wrong.append(f"{before} sat before, {after} sat after, but {fees} sat of fees")
    for name, b in books.items():
        expected = b.onchain_sat_before + b.claimed_sat - b.paid_out_sat - b.fees_sat - b.locked_in_channels_sat
        if b.onchain_sat_after != expected:
            wrong.append(f"{name} has {b.onchain_sat_after} sat on chain; its channels say {expected}")
    for hop in all_hops:
        counted_since_start = restarted not in (hop.from_node, hop.to_node)  # a restarted daemon counts from zero
        difference = abs(hop.bytes_sender - hop.bytes_receiver)
        if counted_since_start and difference > TOLERANCE * max(hop.bytes_sender, hop.bytes_receiver):
            wrong.append(f"{hop.from_node} sent {hop.bytes_sender} B, {hop.to_node} received {hop.bytes_receiver} B")
    wrong += [f"{t.kind} {t.txid} is not confirmed" for t in transactions if t.height is None]
    return wrong
