"""What the engine keeps across restarts: one row per peer, one per channel, and the height."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import msgspec

from payments.channel_tx import ChannelTerms
from payments.ports import Outpoint


class Direction(Enum):
    __hash__ = object.__hash__  # Enum's own is written in Python, and hashes the name

    OUT = "out"  # we pay
    IN = "in"  # we are paid


class ChannelState(Enum):
    """Of a channel, at either end. `payments.life.TABLE` says what may follow what."""

    __hash__ = object.__hash__

    OPENING = "opening"  # agreed on, or being agreed on; nothing is on chain
    PENDING = "pending"  # the funding transaction is known, and waits for its confirmations
    OPEN = "open"
    SPLICING = "splicing"  # a splice is proposed or signed, not confirmed: payments are signed for both outputs
    COOPERATING = "cooperating"  # no further payments; both close it together, the payer pays the fee
    CLOSING = "closing"  # no further payments; the payee is about to claim
    CLAIMING = "claiming"  # the payee's claim is broadcast
    REFUNDING = "refunding"  # expired unclaimed; the payer's refund is broadcast
    CLOSED = "closed"  # the spend is confirmed, or there never was anything on chain


class Reading(NamedTuple):
    """How far the counter of a flow had come when it was last billed, and at which price. `counter`: a number that it
    shares with those that are made and removed together with it."""

    total_bytes: int
    price_msat_per_gb: int
    counter: int = 0


class LedgerRecord(msgspec.Struct, frozen=True):
    """Debts are in units (1 unit = 1 byte at 1 msat/GB), cumulative since the first meeting, and never decrease."""

    peer: bytes
    billed_units: int  # what we say that they owe us
    acknowledged_units: int  # of it, what they said they accept
    their_billed_units: int  # what they say that we owe them: their latest bill
    accepted_units: int  # of it, what we accept
    owed_limit_units: int  # the most we can owe them by our own meter
    lost_meter_units: int  # the most that crashes of ours can have lost of it
    window_msat: int  # how much they may owe us unpaid
    window_progress_msat: int  # paid on time since the window last grew
    is_suspended: bool = False  # they owe, or have owed since it was last half of it, more than the window


@dataclass(frozen=True, slots=True)
class Splice:
    """The funding output that is to take the place of the present one, and the transaction that makes it.

    `base_msat`: of all that was ever paid through the channel, what is paid out by then, in whole sat; payments on the
    new output are for what comes on top.
    """

    number: int  # of the output: how many splices there will have been
    terms: ChannelTerms
    funding: Outpoint
    base_msat: int
    raw: bytes  # payer: complete once `is_signed`; payee: without witnesses. Empty: only its id is known
    signature: bytes  # the payer's payment on the new output, for the same sum as the channel's
    is_signed: bool  # by the payee: it may be on the chain at any time


@dataclass(frozen=True, slots=True)
class ChannelRecord:
    channel_id: bytes
    peer: bytes
    direction: Direction
    state: ChannelState
    terms: ChannelTerms
    opened_height: int
    funding: Outpoint | None  # None: not known yet
    funding_raw: bytes | None  # the payer's, to broadcast again
    is_confirmed: bool  # the funding output was once seen as agreed and deep enough: what it pays counts
    cumulative_msat: int  # paid through it in all
    signature: bytes | None  # the payer's, over floor(cumulative_msat / 1000) sat
    acknowledged_msat: int  # payer: the last sum that the payee confirmed to have stored
    spend_txid: bytes | None  # the claim, the refund, or the transaction that closes it together
    spend_raw: bytes | None  # if it is ours, to broadcast again
    payout_script: bytes = b""  # the payee's, for what splices and a common close pay out; empty: not known
    number: int = 0  # of the present funding output: how many splices there have been
    base_msat: int = 0  # paid out before it, in whole sat
    splice: Splice | None = None


class PaidRecord(msgspec.Struct, frozen=True):
    """What a payment, or its acknowledgement, changes of a written channel; nothing else has changed."""

    channel_id: bytes
    cumulative_msat: int
    signature: bytes | None
    acknowledged_msat: int


@dataclass(frozen=True, slots=True)
class CountsRecord:
    """The peer's last signed counts, as evidence (`payments.counts`), and its standing (`payments.agreement`)."""

    peer: bytes
    body: bytes  # empty: it has never reported
    signature: bytes
    standing: int
    suspicion: int
    suspensions: int


@dataclass(frozen=True, slots=True)
class CreditRecord:
    """What two friends have promised each other (`payments.credit`). Sums are cumulative, and never decrease."""

    peer: bytes
    paid_msat: int  # promised by us
    redeemed_msat: int  # of their promises, what they gave us outside
    acknowledged_paid_msat: int  # of our last note that they have countersigned, with `receipt`
    acknowledged_redeemed_msat: int
    receipt: bytes
    their_paid_msat: int
    their_redeemed_msat: int
    their_signature: bytes


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """What a neighbour has left with us, sealed (`payments.keeping`)."""

    peer: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class HeightRecord:
    """The highest chain tip ever seen; it does not go back in a reorganisation."""

    height: int


@dataclass(frozen=True, slots=True)
class ForgottenChannel:
    """A channel that never reached the chain: delete its row."""

    channel_id: bytes


Change = (
    LedgerRecord
    | ChannelRecord
    | PaidRecord
    | CountsRecord
    | CreditRecord
    | KeptRecord
    | HeightRecord
    | ForgottenChannel
)


@dataclass(frozen=True, slots=True)
class EngineState:
    """All rows, as loaded from the store. The default is a first start."""

    ledgers: tuple[LedgerRecord, ...] = ()
    channels: tuple[ChannelRecord, ...] = ()
    height: int = 0
    counts: tuple[CountsRecord, ...] = ()
    credits: tuple[CreditRecord, ...] = ()
    kept: tuple[KeptRecord, ...] = ()
