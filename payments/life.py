"""The life of a channel at either end: one table of what happens in which state, and what may never happen at all.

`next_state` and the checks are pure. The engine moves channels by `Core.move` alone, which looks here, and compares
everything with what was last written before it writes it anew (`Core.drain`), so that a fault of ours stops the node
with the good state on the disk, instead of paying.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from operator import attrgetter, le

from payments.records import ChannelRecord, ChannelState, Direction, LedgerRecord, PaidRecord


class InvariantError(Exception):
    """A fault of ours: the engine's state contradicts itself. Never caused by a peer."""


class Cause(Enum):
    """Why a channel moves; for people, too."""

    FUNDING_SIGNED = "the funding transaction is signed"
    FUNDING_TOLD = "the payer says where the funding output is"
    CONFIRMED = "the funding transaction has its confirmations"
    FUNDING_LOST = "the funding transaction has left the chain"
    NEVER_FUNDED = "never funded"
    NOT_AS_AGREED = "the funding output is not what was agreed"
    REJECTED = "the payee does not know it"
    OPERATOR_CLOSES = "closed by the operator"
    EXPIRES_SOON = "expires soon"
    PAYEE_CLOSES = "the payee claims"
    NOTHING_TO_CLAIM = "nothing to claim"
    CLAIM_SENT = "claimed, not confirmed"
    CLAIM_LOST = "the claim cannot confirm as it is"
    CLAIM_VANISHED = "the claim has vanished"
    CLAIM_SEEN = "the payee's claim is on its way"
    EXPIRED = "expired"
    SPLICE_AGREED = "a splice is proposed by the payer, or signed by the payee"
    SPLICE_REJECTED = "the payee rejects the splice"
    SPLICE_CONFIRMED = "the splice has its confirmations"
    CLOSE_AGREED = "closing together is proposed by the payer, or signed by the payee"
    CLAIM_OVERDUE = "the payee's claim does not come"
    CLOSE_CONFIRMED = "closed together"
    CLAIM_CONFIRMED = "claimed"
    REFUND_CONFIRMED = "refunded"
    SPENT_OTHERWISE = "spent by another transaction than our claim"


_OPENING, _PENDING, _OPEN = ChannelState.OPENING, ChannelState.PENDING, ChannelState.OPEN
_SPLICING, _COOPERATING = ChannelState.SPLICING, ChannelState.COOPERATING
_CLOSING, _CLAIMING = ChannelState.CLOSING, ChannelState.CLAIMING
_REFUNDING, _CLOSED = ChannelState.REFUNDING, ChannelState.CLOSED

Table = dict[tuple[ChannelState, Cause], ChannelState]

_PAYER: Table = {
    (_OPENING, Cause.FUNDING_SIGNED): _PENDING,
    (_PENDING, Cause.CONFIRMED): _OPEN,
    (_PENDING, Cause.REJECTED): _CLOSING,
    (_PENDING, Cause.PAYEE_CLOSES): _CLOSING,
    (_PENDING, Cause.CLAIM_SEEN): _CLAIMING,
    (_PENDING, Cause.SPLICE_AGREED): _SPLICING,  # an old backup of ours had forgotten it
    (_OPEN, Cause.FUNDING_LOST): _PENDING,
    (_OPEN, Cause.REJECTED): _CLOSING,
    (_OPEN, Cause.PAYEE_CLOSES): _CLOSING,
    (_OPEN, Cause.CLAIM_SEEN): _CLAIMING,
    (_OPEN, Cause.EXPIRED): _REFUNDING,
    (_OPEN, Cause.SPLICE_AGREED): _SPLICING,
    (_OPEN, Cause.CLOSE_AGREED): _COOPERATING,
    (_SPLICING, Cause.SPLICE_REJECTED): _OPEN,
    (_SPLICING, Cause.SPLICE_CONFIRMED): _OPEN,
    (_SPLICING, Cause.PAYEE_CLOSES): _CLOSING,
    (_SPLICING, Cause.CLAIM_SEEN): _CLAIMING,
    (_SPLICING, Cause.EXPIRED): _REFUNDING,
    (_COOPERATING, Cause.CLAIM_SEEN): _CLAIMING,
    (_COOPERATING, Cause.EXPIRED): _REFUNDING,
    (_COOPERATING, Cause.SPLICE_CONFIRMED): _OPEN,  # an old backup of ours had forgotten it
    (_CLOSING, Cause.SPLICE_CONFIRMED): _CLOSING,
    (_CLOSING, Cause.CLAIM_OVERDUE): _COOPERATING,
    (_CLOSING, Cause.CLAIM_SEEN): _CLAIMING,
    (_CLOSING, Cause.EXPIRED): _REFUNDING,
    (_CLAIMING, Cause.CLAIM_VANISHED): _CLOSING,
    (_CLAIMING, Cause.SPLICE_CONFIRMED): _CLOSING,  # instead of the claim
    (_CLAIMING, Cause.CLAIM_CONFIRMED): _CLOSED,
    (_REFUNDING, Cause.CLAIM_SEEN): _CLAIMING,
    (_REFUNDING, Cause.SPLICE_CONFIRMED): _OPEN,  # instead of the refund
    (_REFUNDING, Cause.REFUND_CONFIRMED): _CLOSED,
    **{
        (state, Cause.CLOSE_CONFIRMED): _CLOSED  # where we have not proposed it: an old backup of ours has forgotten it
        for state in (_PENDING, _OPEN, _SPLICING, _COOPERATING, _CLOSING, _CLAIMING, _REFUNDING)
    },
}

_PAYEE: Table = {
    (_OPENING, Cause.FUNDING_TOLD): _PENDING,
    (_PENDING, Cause.CONFIRMED): _OPEN,
    (_PENDING, Cause.SPLICE_AGREED): _SPLICING,  # an old backup of ours had forgotten it
    (_PENDING, Cause.EXPIRES_SOON): _CLOSING,
    (_OPEN, Cause.FUNDING_LOST): _PENDING,
    (_OPEN, Cause.OPERATOR_CLOSES): _CLOSING,
    (_OPEN, Cause.EXPIRES_SOON): _CLOSING,
    (_OPEN, Cause.SPLICE_AGREED): _SPLICING,
    (_OPEN, Cause.CLOSE_AGREED): _COOPERATING,
    (_SPLICING, Cause.SPLICE_CONFIRMED): _OPEN,
    (_SPLICING, Cause.OPERATOR_CLOSES): _CLOSING,
    (_SPLICING, Cause.EXPIRES_SOON): _CLOSING,
    (_COOPERATING, Cause.OPERATOR_CLOSES): _CLOSING,
    (_COOPERATING, Cause.EXPIRES_SOON): _CLOSING,
    (_CLOSING, Cause.CLOSE_AGREED): _COOPERATING,
    (_CLOSING, Cause.SPLICE_CONFIRMED): _CLOSING,
    (_CLOSING, Cause.NOTHING_TO_CLAIM): _CLOSED,
    (_CLOSING, Cause.CLAIM_SENT): _CLAIMING,
    (_CLAIMING, Cause.SPLICE_CONFIRMED): _CLAIMING,
    (_CLAIMING, Cause.CLAIM_LOST): _CLOSING,
    **{
        (state, cause): _CLOSED
        for state in (_PENDING, _OPEN, _SPLICING, _COOPERATING, _CLOSING, _CLAIMING)
        for cause in (Cause.NOT_AS_AGREED, Cause.SPENT_OTHERWISE)
    },
    **{(state, Cause.NEVER_FUNDED): _CLOSED for state in (_PENDING, _SPLICING, _COOPERATING, _CLOSING, _CLAIMING)},
    # Of several that we made, any may get into the block, also one that was thought lost.
    **{
        (state, cause): _CLOSED
        for state in (_PENDING, _OPEN, _SPLICING, _COOPERATING, _CLOSING, _CLAIMING)
        for cause in (Cause.CLAIM_CONFIRMED, Cause.CLOSE_CONFIRMED)
    },
}

TABLE: dict[Direction, Table] = {Direction.OUT: _PAYER, Direction.IN: _PAYEE}


def next_state(direction: Direction, state: ChannelState, cause: Cause) -> ChannelState:
    """Raises InvariantError for what cannot happen there."""
    try:
        return TABLE[direction][state, cause]
    except KeyError:
        raise InvariantError(f"{direction.value} channel in {state.value}: {cause.value}") from None


def _reachable(table: Table) -> dict[ChannelState, frozenset[ChannelState]]:
    """What can become of each state in any number of steps, none included."""
    reached = {state: {state} for state in ChannelState}
    is_growing = True
    while is_growing:
        is_growing = False
        for (old, _), new in table.items():
            for found in reached.values():
                if old in found and new not in found:
                    found.add(new)
                    is_growing = True
    return {state: frozenset(found) for state, found in reached.items()}


_fixed = attrgetter("channel_id", "peer", "direction", "opened_height", "payout_script")
_output = attrgetter("number", "base_msat", "terms", "splice")
_keys = attrgetter("terms.payer_pubkey", "terms.payee_pubkey", "terms.payer_change_script")
_CUMULATIVE = (
    "billed_units",
    "acknowledged_units",
    "their_billed_units",
    "accepted_units",
    "owed_limit_units",
    "lost_meter_units",
)
_cumulative = attrgetter(*_CUMULATIVE)
_REACHABLE = {direction: _reachable(table) for direction, table in TABLE.items()}


def check_channel_step(before: ChannelRecord, after: ChannelRecord) -> None:
    """Between two rows of one channel. Raises InvariantError for what no sequence of events can bring about."""
    if _fixed(before) != _fixed(after):
        raise InvariantError("a channel became another one")
    if before.funding != after.funding or _output(before) != _output(after):
        _check_output_step(before, after)
    if after.state not in _REACHABLE[before.direction][before.state]:
        raise InvariantError(f"{before.direction.value} channel from {before.state.value} to {after.state.value}")
    if before.state is _CLOSED and replace(after, funding_raw=before.funding_raw, spend_raw=before.spend_raw) != before:
        raise InvariantError("a closed channel changed")
    if before.is_confirmed and not after.is_confirmed:
        raise InvariantError("a proof was forgotten")
    # The chain shows a payer at the end that its last payment never arrived.
    is_settled_on_chain = after.direction is Direction.OUT and after.state is _CLOSED
    if after.cumulative_msat < (before.acknowledged_msat if is_settled_on_chain else before.cumulative_msat):
        raise InvariantError("a payment was taken back")
    if after.acknowledged_msat < before.acknowledged_msat:
        raise InvariantError("an acknowledgement was forgotten")
    is_same_output = before.number == after.number  # a payee with an old backup has no payment on a later one
    if before.signature is not None and after.signature is None and is_same_output:
        raise InvariantError("a signature was lost")


def check_payment_step(state: ChannelState, before: PaidRecord, after: PaidRecord) -> None:
    """`check_channel_step` of two rows that differ in nothing else. Raises InvariantError."""
    if state is _CLOSED and before != after:
        raise InvariantError("a closed channel changed")
    if after.cumulative_msat < before.cumulative_msat:
        raise InvariantError("a payment was taken back")
    if after.acknowledged_msat < before.acknowledged_msat:
        raise InvariantError("an acknowledgement was forgotten")
    if before.signature is not None and after.signature is None:
        raise InvariantError("a signature was lost")


def _check_output_step(before: ChannelRecord, after: ChannelRecord) -> None:
    """A splice alone replaces the funding output: by its number it follows, and nothing of what was paid is lost."""
    if after.number < before.number or after.base_msat < before.base_msat:
        raise InvariantError("a splice was taken back")
    if _keys(before) != _keys(after):
        raise InvariantError("the keys of a channel changed")
    if after.number > before.number:
        return
    if before.terms != after.terms or before.base_msat != after.base_msat:
        raise InvariantError("a channel became another one")
    if before.funding not in (None, after.funding):
        raise InvariantError("a funding output became another one")
    is_withdrawable = before.direction is Direction.OUT and before.splice is not None and not before.splice.is_signed
    if before.splice is not None and after.splice is None and not is_withdrawable and after.state is not _CLOSED:
        raise InvariantError("a signed splice was forgotten")


def check_ledger_step(before: LedgerRecord, after: LedgerRecord) -> None:
    """Between two rows of one peer. Raises InvariantError."""
    if not all(map(le, _cumulative(before), _cumulative(after))):
        names = [name for name in _CUMULATIVE if getattr(after, name) < getattr(before, name)]
        raise InvariantError(f"{', '.join(names)} went back")


def markdown() -> str:
    """The table, for docs/spec/channel.md, which a test compares with it."""
    lines = ["| end | in | when | becomes |", "|---|---|---|---|"]
    for direction, who in ((Direction.OUT, "payer"), (Direction.IN, "payee")):
        rows = sorted(TABLE[direction].items(), key=lambda row: list(ChannelState).index(row[0][0]))
        lines += [f"| {who} | {old.name} | {cause.value} | {new.name} |" for (old, cause), new in rows]
    return "\n".join(lines) + "\n"


def diagram() -> str:
    """The same as Mermaid state diagrams, one for each end."""
    parts = []
    for direction, who in ((Direction.OUT, "payer"), (Direction.IN, "payee")):
        edges: dict[tuple[ChannelState, ChannelState], list[str]] = {}
        for (old, cause), new in TABLE[direction].items():
            edges.setdefault((old, new), []).append(cause.name.lower().replace("_", " "))
        body = [f"  {old.name} --> {new.name}: {', '.join(causes)}" for (old, new), causes in edges.items()]
        text = ["```mermaid", "stateDiagram-v2", f"  %% {who}", "  [*] --> OPENING", *body, "  CLOSED --> [*]", "```"]
        parts.append("\n".join(text) + "\n")
    return "\n".join(parts)
