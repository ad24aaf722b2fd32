"""What the parts of the engine share: peers, channels, the outputs of the current call, and what must be written first.

State changes are of two kinds. *Hard* ones are written before any output of the same call runs. *Soft* ones (metering,
what a peer said) are written with the next hard one of the same peer, at the tick, or when they reach a quarter of the
window: losing them is allowed for (`payments.ledger`). Nothing that we tell a peer about its debt is ever ahead of the
disk: `accounts_to_send` makes the ledger hard.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from payments.agreement import CountBook, Standing
from payments.channel import Channel, PeerFaultError, channel_key
from payments.channel_tx import ChannelTerms
from payments.config import PaymentConfig
from payments.counts import Signer
from payments.credit import CreditLine
from payments.events import (
    BroadcastTransaction,
    ChannelStateChanged,
    NeedScript,
    Output,
    Persist,
    Resume,
    SendMessage,
    Suspend,
)
from payments.ledger import Balance, Ledger
from payments.life import Cause, InvariantError
from payments.messages import Accounts, Message, encode
from payments.ports import Outpoint
from payments.records import Change, ChannelState, Direction, ForgottenChannel, HeightRecord, KeptRecord
from payments.settlement_port import SettlementMethod
from payments.spend_check import InvalidSpendError, Moment, check_spend
from payments.window import Window

_OUT = Direction.OUT  # to look it up in its class takes longer than to compare


@dataclass(slots=True)
class Opening:
    """A channel that we asked for and have not funded yet. Never written: until the funding is, it may be forgotten."""

    channel_id: bytes
    change_script: bytes
    capacity_sat: int
    expiry_height: int
    deadline_at: float  # for the payee's answer
    channel: Channel | None = None  # once the payee has agreed: its terms, waiting for the wallet


@dataclass(frozen=True, slots=True)
class SplicePlan:
    """A splice that the wallet is adding money to. Never written: it may be forgotten."""

    channel_id: bytes
    terms: ChannelTerms
    base_msat: int


@dataclass(slots=True)
class Peer:
    """A neighbour: its ledger, its channels, and what lasts only as long as the session or the process."""

    ledger: Ledger
    book: CountBook
    method: SettlementMethod
    credit: CreditLine
    channels: list[Channel] = field(default_factory=list)
    hold_interval: float = 0.0  # the least time that its last suspension lasts
    resume_at: float = -math.inf  # when that is over
    resumed_at: float = -math.inf
    is_gate_shut: bool = False  # as we last said
    is_distrusted: bool = False  # as we last said
    standing: Standing | None = None  # as of the last review; None: none yet
    counts_at: float = -math.inf  # our last report
    exceeded_at: float | None = None  # since when more than the window is unpaid
    is_defaulted: bool = False
    is_dispute_noted: bool = False
    is_statement_due: bool = False  # the tick asks for one
    opening: Opening | None = None
    splicing: SplicePlan | None = None
    wanted_capacity_sat: int | None = None  # of a channel that the operator wants
    is_dear_noted: bool = False  # that a channel would cost too much
    open_retry_at: float = -math.inf
    is_funding_short: bool = False  # the wallet could not fund the last one
    kept: bytes = b""  # what it has left with us, sealed
    keep_again_at: float = -math.inf  # before that, it may not leave anything else
    keep_at: float = -math.inf  # when we may leave something with it again
    left: int = -1  # as of which `Core.paid_version` we have
    wake_at: float = math.inf
    unreviewed_units: int = 0  # that we may have come to owe it since its last review
    # Of the session.
    is_connected: bool = False
    is_ready: bool = False  # it said hello, and speaks our protocol on our chain
    is_keeper: bool = False  # it keeps what we leave with it
    faults: int = 0
    stated: Balance | None = None  # as of our last statement
    statement_at: float = -math.inf
    payment_at: float = -math.inf
    is_settlement_wanted: bool = False  # it asked for payment
    is_reply_due: bool = False  # it asked, and does not know our side yet
    acks: dict[bytes, Channel] = field(default_factory=dict)  # to be sent before this call ends
    is_asking: bool = False  # the first of them is a statement, too
    key: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.ledger.peer

    def wake(self, at: float) -> None:
        self.wake_at = min(self.wake_at, at)

    def begin_session(self) -> None:
        self.end_session()
        self.is_connected = True
        self.faults = 0

    def end_session(self) -> None:
        self.is_connected = self.is_ready = self.is_keeper = False
        self.left = -1
        self.stated = None
        self.statement_at = self.payment_at = -math.inf
        self.is_settlement_wanted = self.is_reply_due = self.is_asking = False
        self.acks.clear()
        self.credit.is_synced, self.credit.limit_msat = False, 0

    def channels_of(self, direction: Direction, *states: ChannelState) -> Iterator[Channel]:
        return (c for c in self.channels if c.direction is direction and c.state in states)


class Core:
    """`seed`: 32 secret bytes. Heights never go back here, whatever the chain does (design section 8)."""

    def __init__(
        self,
        config: PaymentConfig,
        *,
        seed: bytes,
        rng: random.Random,
        height: int,
        signer: Signer | None,
        methods: Mapping[str, SettlementMethod],
    ) -> None:
        if len(seed) != 32:
            raise ValueError("the seed has 32 bytes")
        self.config = config
        self.rng = rng
        self.signer = signer
        self.height = height
        self.tip_height = height  # as last told: it goes back, and confirmations are counted from it
        self.is_tip_known = False  # by this process
        self.fee_rate: float | None = None
        self.script: bytes | None = None
        self.is_held = False
        self.claim_at: float | None = None  # when to stop waiting for payers before a claim; None: nothing to claim
        self.peers: dict[bytes, Peer] = {}
        self.channels: dict[bytes, Channel] = {}
        self.seed = seed
        self.paid_version = 0  # counts what we have been paid, and the changes of the channels for it
        self._methods = methods
        self._outputs: list[Output] = []
        self._touched: dict[bytes, None] = {}
        # Not written yet: the keys of rows, and of their peers.
        self._dirty_ledgers: dict[bytes, bytes] = {}
        self._dirty_channels: dict[bytes, bytes] = {}
        self._dirty_counts: dict[bytes, bytes] = {}
        self._dirty_credits: dict[bytes, bytes] = {}
        self._other_changes: list[Change] = []
        self._hard: set[bytes] = set()  # peers of which something must be written in this call
        self._is_hard = False  # other changes must be

    def peer(self, key: bytes) -> Peer:
        """Made on first sight, without a row until something is owed."""
        peer = self.peers.get(key)
        if peer is None:
            if len(key) != 32:
                raise ValueError("a peer is a public key of 32 bytes")
            ledger = Ledger(key, Window(self.config.start_window_msat, 0))
            method = self._methods[self.config.terms_with(key).settlement]
            peer = self.peers[key] = Peer(ledger, CountBook(self.rng.getrandbits(64)), method, CreditLine(key))
        return peer

    def add_channel(self, channel: Channel) -> None:
        self.channels[channel.channel_id] = channel
        self.peer(channel.peer).channels.append(channel)

    def channel_of(self, peer: Peer, channel_id: bytes, direction: Direction) -> Channel:
        """Raises PeerFaultError unless it is a channel between us in that direction."""
        channel = self.channels.get(channel_id)
        if channel is None or channel.peer != peer.key or channel.direction is not direction:
            raise PeerFaultError("a message about a channel that is not between us")
        return channel

    def key_of(self, channel_id: bytes) -> bytes:
        return channel_key(self.seed, channel_id)

    def use_script(self) -> bytes | None:
        """A wallet script; each is used once, as far as the wallet keeps up."""
        if self.script is not None:
            self.emit(NeedScript())
        return self.script

    def broadcast(self, transaction: BroadcastTransaction, spent: Iterable[tuple[ChannelTerms, Outpoint]]) -> None:
        """Of ours, completely signed, that spends these channels. Raises InvariantError if no block could have it: what
        we know to be wrong is not tried."""
        moment = Moment(self.height + 1, median_time=0, coin_height=0, coin_median_time=0)
        for terms, outpoint in spent:
            try:
                check_spend(transaction.raw, terms, outpoint, moment)
            except InvalidSpendError as error:
                raise InvariantError(f"our {transaction.kind.value} cannot confirm: {error}") from error
        self.emit(transaction)

    # --- outputs of the current call ---

    def emit(self, output: Output) -> None:
        self._outputs.append(output)

    def send(self, peer: Peer, message: Message) -> None:
        if peer.is_connected:
            self.emit(SendMessage(peer.key, encode(message)))

    def accounts_to_send(self, peer: Peer) -> Accounts:
        """For a message of this call: what it says is written first."""
        if peer.key in self._dirty_ledgers:
            self._hard.add(peer.key)
        return peer.ledger.accounts()

    def set_gate(self, peer: Peer) -> None:
        """Shut for a debtor, and for one whose counts contradict ours."""
        is_shut = (peer.ledger.is_suspended and peer.method.is_paid) or peer.book.is_suspended
        if is_shut != peer.is_gate_shut:
            peer.is_gate_shut = is_shut
            self.emit(Suspend(peer.key) if is_shut else Resume(peer.key))

    def drop_messages(self, peer: Peer) -> None:
        """Of a session that has ended: they must not be sent in the next one."""
        self._outputs = [o for o in self._outputs if not (isinstance(o, SendMessage) and o.peer == peer.key)]

    def touch(self, peer: Peer) -> None:
        """Have its debts and timers looked at before this call ends."""
        self._touched[peer.key] = None

    def when_others_are(self, at: float) -> float:
        """That time or, where `metered_delay` allows, the next one at which all is done that can wait."""
        delay = self.config.metered_delay
        return math.ceil(at / delay) * delay if delay and math.isfinite(at) else at

    def take_touched(self) -> list[Peer]:
        touched = [self.peers[key] for key in self._touched if key in self.peers]
        self._touched.clear()
        return touched

    # --- what must be written ---

    def _dirty(self, rows: dict[bytes, bytes], key: bytes, peer: bytes, hard: bool) -> None:
        rows[key] = peer
        if hard:
            self._hard.add(peer)

    def ledger_changed(self, peer: Peer, *, hard: bool = False) -> None:
        key = peer.key
        self._dirty_ledgers[key] = key
        self._touched[key] = None
        if hard:
            self._hard.add(key)

    def ledger_metered(self, peer: Peer) -> None:
        """It has changed, and nothing need follow from that in this call."""
        self._dirty(self._dirty_ledgers, peer.key, peer.key, peer.ledger.must_be_written)

    def counts_changed(self, peer: Peer, *, hard: bool = False) -> None:
        self._dirty(self._dirty_counts, peer.key, peer.key, hard)

    def credit_changed(self, peer: Peer, *, hard: bool = True) -> None:
        """Recounts, as `channel_changed` does."""
        self._dirty(self._dirty_credits, peer.key, peer.key, hard)
        self.recount(peer)
        self.touch(peer)

    def channel_changed(self, channel: Channel, *, hard: bool = True) -> None:
        """Recounts what the ledger takes from the channels: sums are never counted anywhere else. Soft: it has changed
        in nothing that counts there."""
        self._dirty(self._dirty_channels, channel.channel_id, channel.peer, hard)
        self.paid_version += channel.direction is Direction.IN
        peer = self.peer(channel.peer)
        if hard:
            self.recount(peer)
        self.touch(peer)

    def recount(self, peer: Peer) -> None:
        peer.ledger.sent_msat, peer.ledger.received_msat = self._paid_sums(peer)

    @staticmethod
    def _paid_sums(peer: Peer) -> tuple[int, int]:
        """What we have paid the peer, and it us: through all channels, and on credit."""
        sent, received = peer.credit.paid_msat, peer.credit.their_paid_msat
        for channel in peer.channels:
            if channel.direction is _OUT:
                sent += channel.cumulative_msat
            elif channel.is_confirmed:
                received += channel.cumulative_msat
        return sent, received

    def height_changed(self, height: int) -> None:
        self.height = height
        self._other_changes.append(HeightRecord(height))
        self._is_hard = True

    def kept_changed(self, record: KeptRecord) -> None:
        """Written with the next change that is hard, or at the tick."""
        self._other_changes.append(record)

    def move(self, channel: Channel, cause: Cause, detail: str = "") -> None:
        channel.move(cause)
        self.channel_changed(channel)
        reason = cause.value + (f": {detail}" if detail else "")
        self.emit(ChannelStateChanged(channel.peer, channel.channel_id, channel.direction, channel.state, reason))

    def forget(self, channel: Channel) -> None:
        """Of a channel that never reached the chain."""
        del self.channels[channel.channel_id]
        self.peer(channel.peer).channels.remove(channel)
        self._dirty_channels.pop(channel.channel_id, None)
        self._other_changes.append(ForgottenChannel(channel.channel_id))
        self._hard.add(channel.peer)

    def drain(self, *, flush: bool = False) -> list[Output]:
        """The outputs of this call, `Persist` first if there is something to write."""
        outputs, self._outputs = self._outputs, []
        if self._is_hard or self._hard or flush:
            changes = self._take_changes(flush=flush)
            if changes:
                outputs.insert(0, Persist(changes))
        return outputs

    def _check_conservation(self, peer: Peer) -> None:
        """What the ledger says was paid is what channels and credit have paid. Raises InvariantError."""
        if self._paid_sums(peer) != (peer.ledger.sent_msat, peer.ledger.received_msat):
            raise InvariantError("the ledger and the channels disagree on what was paid")

    def _take(self, rows: dict[bytes, bytes], *, flush: bool) -> list[bytes]:
        """The keys of those that are to be written now: of all peers, or of those with a hard change."""
        taken = [key for key, peer in rows.items() if flush or peer in self._hard]
        for key in taken:
            del rows[key]
        return taken

    def _take_changes(self, *, flush: bool) -> tuple[Change, ...]:
        changes, self._other_changes = self._other_changes, []
        for key in self._take(self._dirty_ledgers, flush=flush):
            peer = self.peers.get(key)
            if peer is not None:
                self._check_conservation(peer)
                peer.ledger.unwritten_units = 0
                if peer.method.is_paid:
                    changes.append(peer.ledger.write())
        for key in self._take(self._dirty_counts, flush=flush):
            counts = self.peers[key].book.record(key) if key in self.peers else None
            if counts is not None and not self.peers[key].ledger.is_empty:
                changes.append(counts)
        credits_ = self._take(self._dirty_credits, flush=flush)
        changes += [self.peers[key].credit.write() for key in credits_ if key in self.peers]
        changes += [self.channels[key].write() for key in self._take(self._dirty_channels, flush=flush)]
        self._hard.clear()
        self._is_hard = False
        return tuple(changes)
