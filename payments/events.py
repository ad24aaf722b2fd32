"""What goes into the payment engine and what comes out of it.

The engine is a sans-IO state machine: *input + now -> new state + ordered outputs*. Inputs are named by where they come
from, outputs are imperatives, notices tell what happened. All are frozen. What comes with every reading of the
meter and every payment is a msgspec.Struct: it is made in a sixth of the time.

A peer is its 32-byte Ed25519 public key. Money is msat, sat only at the chain; debts are units (1 byte at 1 msat/GB).
Times are seconds (float) of one monotonic clock that only the caller reads.

The caller's duties: `Persist` is always the first output; run nothing after it until the store has confirmed. Run the
outputs of one call in their order. A message for a peer that is gone is dropped without harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from payments.agreement import Finding, Standing
from payments.counts import NO_TRAFFIC, Traffic
from payments.ports import BroadcastResult, ForeignInput, Outpoint, OutputStatus, SignedTransaction
from payments.records import Change, ChannelState, Direction

# --- Inputs ---


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A session with an authenticated neighbour is up, in place of any earlier one with the same peer."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    peer: bytes


class ReceivedMessage(msgspec.Struct, frozen=True):
    """Messages of one session come in the order in which they were sent; none of an earlier session comes after
    `PeerConnected`."""

    peer: bytes
    data: bytes


class MeteredTraffic(msgspec.Struct, frozen=True):
    """Since the last such input: what the peer came to owe us for what it handed us, and the most that we can have
    come to owe it for what we handed to it. Units, both >= 0. `traffic`: the bytes, free ones included, that this run
    of the daemon has counted; not those that it found counted by an earlier run."""

    peer: bytes
    earned_units: int
    owed_limit_units: int
    traffic: Traffic = NO_TRAFFIC


@dataclass(frozen=True, slots=True)
class LinkLossMeasured:
    """The share of packets from the peer that the routing finds lost, 0 to 1."""

    peer: bytes
    share: float


@dataclass(frozen=True, slots=True)
class ChainTipChanged:
    """fee_rate: sat per vB that should confirm within a few blocks; None: as before."""

    height: int
    fee_rate: float | None = None


@dataclass(frozen=True, slots=True)
class ChannelFunded:
    """The wallet's answer to `FundChannel` and `FundSplice`: signed, not broadcast."""

    channel_id: bytes
    transaction: SignedTransaction


@dataclass(frozen=True, slots=True)
class FundingFailed:
    channel_id: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelOutputSeen:
    """What the chain says of a watched output; give it at `WatchOutput` and at each new tip. None: it does not know it.

    spending_raw: the transaction `status.spent_by`, if there is one and the backend has it. The payer needs it to
    learn which of its payments was claimed; without it the last one counts.
    """

    channel_id: bytes
    outpoint: Outpoint  # as it was watched
    status: OutputStatus | None
    spending_raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class InputsSeen:
    """The answer to `InspectInputs`: the output scripts, in its order; None: the chain does not know the output."""

    channel_id: bytes
    txid: bytes
    script_pubkeys: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class BroadcastDone:
    txid: bytes
    result: BroadcastResult


@dataclass(frozen=True, slots=True)
class NewScript:
    """A fresh output script of our wallet (P2WPKH), the answer to `NeedScript`."""

    script_pubkey: bytes


@dataclass(frozen=True, slots=True)
class OperatorHoldPayments:
    """While held, we pay nobody and open no channel; all else goes on."""

    hold: bool


@dataclass(frozen=True, slots=True)
class OperatorCloseChannels:
    """Claim what was paid to us by that peer, or by all, in one transaction. Channels through which we pay are left as
    they are: to end them, too, give `OperatorCloseChannel` for each."""

    peer: bytes | None = None


@dataclass(frozen=True, slots=True)
class OperatorRedeemCredit:
    """The peer gave us so much outside for what it has promised us: cash, a favour. At most what it owes counts."""

    peer: bytes
    amount_msat: int


@dataclass(frozen=True, slots=True)
class OperatorCloseChannel:
    """End that channel: one through which we are paid by a claim, one through which we pay together with the payee, or
    if it does not answer by a refund after the expiry. Nothing happens to a channel that is not known or not open."""

    channel_id: bytes


@dataclass(frozen=True, slots=True)
class OperatorOpenChannel:
    """Open a channel to that peer, though nothing is owed yet. Without a session, or while another is being opened, it
    is done as soon as that is over; forgotten at a restart. `capacity_sat` None: as configured."""

    peer: bytes
    capacity_sat: int | None = None


@dataclass(frozen=True, slots=True)
class TimerExpired:
    """Time has reached `PaymentEngine.next_deadline()`."""


ChainInput = (
    ChainTipChanged | ChannelFunded | FundingFailed | ChannelOutputSeen | InputsSeen | BroadcastDone | NewScript
)
Input = (
    PeerConnected
    | PeerDisconnected
    | ReceivedMessage
    | MeteredTraffic
    | LinkLossMeasured
    | ChainInput
    | OperatorHoldPayments
    | OperatorCloseChannels
    | OperatorRedeemCredit
    | OperatorCloseChannel
    | OperatorOpenChannel
    | TimerExpired
)

# --- Outputs: imperatives ---


@dataclass(frozen=True, slots=True)
class Persist:
    """Write all changes in one transaction, in this order; a later row replaces an earlier one of the same key."""

    changes: tuple[Change, ...]


class SendMessage(msgspec.Struct, frozen=True):
    peer: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class DropConnection:
    """End the session with the peer: it does not speak our protocol, is on another chain, or sent too much nonsense."""

    peer: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class FundChannel:
    """Have the wallet sign a transaction that pays; answer with `ChannelFunded` or `FundingFailed`. An answer that
    comes too late is met with `ReleaseFunding`."""

    channel_id: bytes
    script_pubkey: bytes
    amount_sat: int


@dataclass(frozen=True, slots=True)
class FundSplice:
    """Have the wallet add inputs and change to a transaction that spends `foreign` to `outputs`
    (`WalletPort.fund_splice`); answer as for `FundChannel`."""

    channel_id: bytes
    foreign: ForeignInput
    outputs: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class ReleaseFunding:
    """The transaction of that id will never be broadcast: the wallet may use its inputs again."""

    txid: bytes


class TransactionKind(Enum):
    FUNDING = "funding"
    CLAIM = "claim"
    REFUND = "refund"
    SPLICE = "splice"
    CLOSE = "close"  # together


@dataclass(frozen=True, slots=True)
class BroadcastTransaction:
    """Answer with `BroadcastDone`. The same transaction is sent again at later tips until it is confirmed."""

    raw: bytes
    txid: bytes
    kind: TransactionKind
    fee_sat: int | None = None  # None: when it is sent again after a restart


@dataclass(frozen=True, slots=True)
class WatchOutput:
    """Report this output with `ChannelOutputSeen` now and at each new tip, until `UnwatchOutput`, or until the channel
    has another one. Idempotent."""

    channel_id: bytes
    outpoint: Outpoint


@dataclass(frozen=True, slots=True)
class UnwatchOutput:
    channel_id: bytes


@dataclass(frozen=True, slots=True)
class InspectInputs:
    """Say with `InputsSeen` which scripts these outputs have, in the chain or in the pool. `txid` is handed back."""

    channel_id: bytes
    txid: bytes
    outpoints: tuple[Outpoint, ...]


@dataclass(frozen=True, slots=True)
class NeedScript:
    """Give a `NewScript`: the last one has been used, or there was none yet."""


@dataclass(frozen=True, slots=True)
class Suspend:
    """Stop carrying this debtor's own traffic. Idempotent."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Resume:
    peer: bytes


@dataclass(frozen=True, slots=True)
class Distrust:
    """Take no routes from this peer: its counts contradict ours too often. Idempotent."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Trust:
    """Take its routes again."""

    peer: bytes


# --- Outputs: notices, for logs and operators ---


class PaymentSent(msgspec.Struct, frozen=True):
    """channel_id: empty where it is paid on credit."""

    peer: bytes
    channel_id: bytes
    amount_msat: int
    cumulative_msat: int


class PaymentReceived(msgspec.Struct, frozen=True):
    peer: bytes
    channel_id: bytes
    amount_msat: int
    cumulative_msat: int


@dataclass(frozen=True, slots=True)
class CreditRedeemed:
    """amount_msat > 0: what they had promised us was given to us outside; < 0: ours to them."""

    peer: bytes
    amount_msat: int
    cumulative_msat: int


@dataclass(frozen=True, slots=True)
class ChannelStateChanged:
    peer: bytes
    channel_id: bytes
    direction: Direction
    state: ChannelState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Disputed:
    """The peer bills more than our own meter allows; we pay the part that we accept."""

    peer: bytes
    their_billed_units: int
    accepted_units: int


@dataclass(frozen=True, slots=True)
class Defaulted:
    """The peer left more than its window unpaid for longer than a tick: its window falls back to the start."""

    peer: bytes
    unpaid_msat: int
    window_msat: int


@dataclass(frozen=True, slots=True)
class StandingChanged:
    """What the comparison of both ends' counts has come to (`payments.agreement`). Excesses are bytes since the start:
    what the peer counted from us beyond what we sent, and what we received beyond what it says that it sent."""

    peer: bytes
    standing: Standing
    finding: Finding
    overstated_bytes: int
    denied_bytes: int


@dataclass(frozen=True, slots=True)
class ChannelTooDear:
    """We owe, and open no channel: at the present fees its claim would cost too much of the capacity."""

    peer: bytes
    capacity_sat: int
    claim_fee_sat: int


@dataclass(frozen=True, slots=True)
class PeerFaultSeen:
    """The peer sent something that the protocol does not allow; it was dropped."""

    peer: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class BroadcastRefused:
    txid: bytes
    kind: TransactionKind
    code: str


Notice = (
    PaymentSent
    | PaymentReceived
    | CreditRedeemed
    | ChannelStateChanged
    | Disputed
    | Defaulted
    | StandingChanged
    | ChannelTooDear
    | PeerFaultSeen
    | BroadcastRefused
)
Action = (
    Persist
    | DropConnection
    | FundChannel
    | FundSplice
    | ReleaseFunding
    | BroadcastTransaction
    | WatchOutput
    | UnwatchOutput
    | InspectInputs
    | NeedScript
    | Suspend
    | Resume
    | Distrust
    | Trust
)
Output = SendMessage | Action | Notice

# --- Views: for operators, read-only; and `CountsView` ---


@dataclass(frozen=True, slots=True)
class LedgerView:
    """One peer. net_owed_msat > 0: we owe them, by our own meter; unpaid_msat: what they owe us, our exposure."""

    peer: bytes
    is_connected: bool
    billed_units: int
    acknowledged_units: int
    their_billed_units: int
    accepted_units: int
    owed_limit_units: int
    sent_msat: int
    received_msat: int
    net_owed_msat: int
    unpaid_msat: int
    window_msat: int
    is_suspended: bool
    faults: int
    settlement: str


@dataclass(frozen=True, slots=True)
class CreditView:
    """One peer with whom we have settled, or settle, on credit. owed_msat > 0: by us; < 0: by them. limit_msat: of this
    session; None: there is none."""

    peer: bytes
    limit_msat: int | None
    owed_msat: int
    paid_msat: int
    acknowledged_msat: int
    redeemed_msat: int
    their_paid_msat: int
    their_redeemed_msat: int


@dataclass(frozen=True, slots=True)
class ChannelView:
    channel_id: bytes
    peer: bytes
    direction: Direction
    state: ChannelState
    capacity_sat: int
    cumulative_msat: int
    acknowledged_msat: int
    funding: Outpoint | None
    expiry_height: int
    spend_txid: bytes | None  # the claim, the refund, or the common close
    splice: Outpoint | None = None  # what is to replace `funding`
    splice_count: int = 0
