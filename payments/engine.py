"""The payment engine: one input in, state changed, outputs out. No I/O, no clock.

Each call changes the state by one handler, then reviews every peer that was touched (`settlement.review`,
`opening.review`), then claims what is ready (`closing.review_claims`), and returns the outputs with `Persist` first.
Whatever a peer sends raises nothing but PeerFaultError inside, which is counted. InvariantError leaves the engine: it
is a fault of ours, and the state on disk is still the good one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from payments import auditing, closing, cooperating, crediting, keeping, opening, session, settlement, splicing
from payments import events as ev
from payments import messages as msg
from payments.agreement import CountsView
from payments.channel import WATCHED, Channel, PeerFaultError
from payments.channel_tx import LOCKTIME_THRESHOLD
from payments.config import PaymentConfig
from payments.core import Core, Peer
from payments.counts import CountsError, Signer
from payments.ledger import Ledger
from payments.life import Cause
from payments.records import ChannelState, Direction, EngineState
from payments.settlement_methods import METHODS
from payments.units import msat_to_units
from payments.window import is_due

METERED_SHARE = 16  # of a window: what we buy of a neighbour meanwhile is looked at before `metered_delay` has passed

__all__ = ["PaymentConfig", "PaymentEngine"]


class PaymentEngine:
    """`seed`: 32 secret bytes, from which channel keys derive. `state` as loaded from the store. `rng`: of channel
    identifiers and epochs. `signer`: signs our counts; None: none are exchanged. Times are seconds of the caller's
    monotonic clock.

    Under load there is a reading of the meter for each neighbour ten times a second, and most change nothing but sums.
    What follows from them may wait up to `metered_delay`; but who owes us half a window is looked at with each reading,
    so that what is at risk has the same bound, and so is a neighbour that waits for what our meter allows."""

    def __init__(
        self,
        config: PaymentConfig,
        *,
        seed: bytes,
        state: EngineState,
        rng: random.Random,
        now: float,
        signer: Signer | None = None,
    ) -> None:
        self._config = config
        self._core = core = Core(config, seed=seed, rng=rng, height=state.height, signer=signer, methods=METHODS)
        self._tick_at = now + config.tick_interval
        self._is_flush_due = False
        self._unreviewed: set[bytes] = set()  # peers that were metered
        self._unreviewed_until = math.inf
        for record in state.ledgers:
            ledger = core.peer(record.peer).ledger = Ledger.from_record(record)
            ledger.allow_for_restart()
        for counts_record in state.counts:
            auditing.restore(core, counts_record)
        for credit_record in state.credits:
            crediting.restore(core, credit_record)
        for kept in state.kept:
            core.peer(kept.peer).kept = kept.body
        for channel_record in state.channels:
            channel = Channel.from_record(channel_record)
            channel.check()
            core.add_channel(channel)
        for peer in core.peers.values():
            core.recount(peer)

    def start(self, *, now: float) -> list[ev.Output]:
        """Once, before anything else: what has to be watched, broadcast and enforced again after a restart."""
        core = self._core
        if self.needs_chain:
            core.emit(ev.NeedScript())
        for channel in core.channels.values():
            if channel.state in WATCHED or (channel.spend_raw is not None and channel.funding is not None):
                core.emit(ev.WatchOutput(channel.channel_id, channel.outpoint))
        closing.broadcast_again(core, now=now)
        if core.claim_at is not None:
            closing.wait_for_payers(core, now=now)
        for peer in core.peers.values():
            core.set_gate(peer)
            core.ledger_changed(peer)  # the allowance for what the crash has lost
        return self._finish(now=now)

    def handle(self, event: ev.Input, *, now: float) -> list[ev.Output]:
        """Raises InvariantError, a fault of ours, and ValueError for a peer that is no key; nothing else."""
        return self.handle_all((event,), now=now)

    def handle_all(self, events: Iterable[ev.Input], *, now: float) -> list[ev.Output]:
        """Several inputs that are due together, with one `Persist` for all of them."""
        for event in events:
            self._dispatch(event, now=now)
        return self._finish(now=now)

    def flush(self, *, now: float) -> list[ev.Output]:
        """At shutdown: what was metered since it was last persisted."""
        self._is_flush_due = True
        return self._finish(now=now)

    def next_deadline(self) -> float:
        """When to give `TimerExpired`."""
        deadlines = [self._tick_at, self._unreviewed_until, *(peer.wake_at for peer in self._core.peers.values())]
        if self._core.claim_at is not None and self._core.fee_rate is not None and self._core.script is not None:
            deadlines.append(self._core.claim_at)
        return min(deadlines)

    @property
    def needs_chain(self) -> bool:
        """Somebody is, or may be, paid through channels, or there is one left to end."""
        is_any_open = any(c.state is not ChannelState.CLOSED for c in self._core.channels.values())
        return is_any_open or self._config.needs_chain

    def is_paid(self, peer: bytes) -> bool:
        """Whether what it owes, and is owed, is written down and paid."""
        return METHODS[self._config.terms_with(peer).settlement].is_paid

    def credits(self) -> list[ev.CreditView]:
        return [_credit_view(peer) for peer in self._core.peers.values() if _is_on_credit(peer)]

    def counts(self) -> list[CountsView]:
        return [peer.book.view(peer.key) for peer in self._core.peers.values()]

    def ledgers(self) -> list[ev.LedgerView]:
        return [_ledger_view(peer) for peer in self._core.peers.values()]

    def channels(self) -> list[ev.ChannelView]:
        """All that were ever funded, and those that are being opened."""
        opening_now = (p.opening.channel for p in self._core.peers.values() if p.opening and p.opening.channel)
        return [_channel_view(channel) for channel in (*self._core.channels.values(), *opening_now)]

    def records(self) -> EngineState:
        """As they would be written now: for backups, and for who wants to see what was signed."""
        peers = [peer for peer in self._core.peers.values() if not peer.ledger.is_empty]
        counts = (peer.book.record(peer.key) for peer in peers)
        return EngineState(
            ledgers=tuple(peer.ledger.record() for peer in peers),
            channels=tuple(channel.record() for channel in self._core.channels.values()),
            height=self._core.height,
            counts=tuple(record for record in counts if record is not None),
            credits=tuple(peer.credit.record() for peer in peers if not peer.credit.is_empty),
        )

    # --- inputs ---

    def _dispatch(self, event: ev.Input, *, now: float) -> None:
        core = self._core
        match event:
            case ev.ReceivedMessage():
                self._handle_message(event, now=now)
            case ev.MeteredTraffic():
                self._handle_metered(event, now=now)
            case ev.LinkLossMeasured():
                core.peer(event.peer).book.link_loss = min(max(event.share, 0.0), 1.0)
            case ev.TimerExpired():
                self._handle_timer(now=now)
            case ev.PeerConnected():
                self._handle_disconnected(core.peer(event.peer), now=now)
                session.begin(core, core.peer(event.peer), now=now)
            case ev.PeerDisconnected():
                self._handle_disconnected(core.peer(event.peer), now=now)
            case ev.OperatorHoldPayments():
                core.is_held = event.hold
                self._touch_all()
            case ev.OperatorCloseChannels():
                self._handle_close(event, now=now)
            case ev.OperatorRedeemCredit():
                crediting.redeem(core, event)
            case ev.OperatorCloseChannel():
                self._handle_close_one(event.channel_id, now=now)
            case ev.OperatorOpenChannel():
                self._handle_open(event)
            case _:
                self._dispatch_chain(event, now=now)

    def _dispatch_chain(self, event: ev.ChainInput, *, now: float) -> None:
        core = self._core
        match event:
            case ev.ChainTipChanged():
                self._handle_tip(event, now=now)
            case ev.ChannelOutputSeen():
                closing.handle_output_seen(core, event, now=now)
            case ev.ChannelFunded():
                opening.handle_funded(core, event, now=now)
            case ev.FundingFailed():
                opening.handle_funding_failed(core, event, now=now)
            case ev.InputsSeen():
                splicing.handle_inputs_seen(core, event)
            case ev.BroadcastDone():
                closing.handle_broadcast_done(core, event, now=now)
            case ev.NewScript():
                core.script = event.script_pubkey
                self._touch_all()

    def _handle_metered(self, event: ev.MeteredTraffic, *, now: float) -> None:
        if event.earned_units < 0 or event.owed_limit_units < 0:
            raise ValueError("metered traffic never goes back")
        peer = self._core.peer(event.peer)
        peer.book.our = peer.book.our + event.traffic
        if event.earned_units or event.owed_limit_units:
            peer.ledger.add_metered(earned_units=event.earned_units, owed_limit_units=event.owed_limit_units)
            peer.unreviewed_units += event.owed_limit_units
            self._core.ledger_metered(peer)
        if not self._config.metered_delay or _is_urgent(peer):
            self._core.touch(peer)
        else:
            self._unreviewed.add(event.peer)
            self._unreviewed_until = min(self._unreviewed_until, self._core.when_others_are(now))

    def _handle_timer(self, *, now: float) -> None:
        for peer in self._core.peers.values():
            is_metered = now >= self._unreviewed_until and peer.key in self._unreviewed
            if is_metered or now >= peer.wake_at:
                self._core.touch(peer)
        if now >= self._tick_at:
            self._tick_at = now + self._config.tick_interval
            self._is_flush_due = True
            for peer in self._core.peers.values():
                peer.is_statement_due = True
            self._touch_all()

    def _handle_tip(self, event: ev.ChainTipChanged, *, now: float) -> None:
        core = self._core
        if event.height >= LOCKTIME_THRESHOLD - self._config.max_expiry_blocks:
            return  # a backend that talks nonsense: what expires then could not be told from a time (BIP65)
        core.is_tip_known, core.tip_height = True, event.height
        if event.fee_rate is not None:
            core.fee_rate = event.fee_rate
        if event.height > core.height:
            core.height_changed(event.height)
            opening.handle_block(core, now=now)
            closing.review_expiries(core, now=now)
        closing.step_fees(core)
        closing.broadcast_again(core, now=now)
        self._touch_all()

    def _handle_disconnected(self, peer: Peer, *, now: float) -> None:
        self._core.drop_messages(peer)
        peer.end_session()
        peer.book.end_session(now=now)
        opening.end_session(self._core, peer, now=now)
        closing.end_session(peer)
        self._core.touch(peer)

    def _handle_close(self, event: ev.OperatorCloseChannels, *, now: float) -> None:
        for channel in list(self._core.channels.values()):
            is_meant = event.peer is None or channel.peer == event.peer
            if is_meant and channel.direction is Direction.IN:
                self._handle_close_one(channel.channel_id, now=now)

    def _handle_close_one(self, channel_id: bytes, *, now: float) -> None:
        channel = self._core.channels.get(channel_id)
        if channel is None:
            return
        if channel.direction is Direction.OUT:
            closing.close_outgoing(self._core, channel)
        elif channel.state in (ChannelState.OPEN, ChannelState.SPLICING, ChannelState.COOPERATING):
            closing.begin_close(self._core, channel, Cause.OPERATOR_CLOSES, now=now)

    def _handle_open(self, event: ev.OperatorOpenChannel) -> None:
        capacity_sat = event.capacity_sat or self._config.capacity_sat
        if not self._config.min_capacity_sat <= capacity_sat <= self._config.max_capacity_sat:
            raise ValueError(f"a channel of {capacity_sat} sat")
        peer = self._core.peer(event.peer)
        peer.wanted_capacity_sat = capacity_sat
        self._core.touch(peer)

    def _touch_all(self) -> None:
        for peer in self._core.peers.values():
            self._core.touch(peer)

    # --- messages ---

    def _handle_message(self, event: ev.ReceivedMessage, *, now: float) -> None:
        peer = self._core.peer(event.peer)
        if not peer.is_connected:
            return
        try:
            message = msg.decode(event.data)
            if not peer.is_ready and not isinstance(message, msg.Hello):
                raise PeerFaultError("the first message is not a hello")
            self._handle_decoded(peer, message, now=now)
        except (msg.MessageError, PeerFaultError, CountsError) as error:
            self._count_fault(peer, str(error))
        self._core.touch(peer)

    def _handle_decoded(self, peer: Peer, message: msg.Message, *, now: float) -> None:
        core = self._core
        match message:
            case msg.Payment():
                settlement.handle_payment(core, peer, message)
            case msg.PaymentAck():
                settlement.handle_payment_ack(core, peer, message)
            case msg.Statement():
                settlement.handle_statement(core, peer, message)
            case msg.Counts():
                auditing.handle_counts(core, peer, message, now=now)
            case msg.Hello():
                session.handle_hello(core, peer, message, now=now)
            case msg.ChannelSync():
                session.handle_channel_sync(core, peer, message)
            case msg.OpenChannel():
                opening.handle_open(core, peer, message)
            case msg.AcceptChannel():
                opening.handle_accept(core, peer, message, now=now)
            case msg.RejectChannel():
                opening.handle_reject(core, peer, message, now=now)
            case msg.FundingCreated():
                opening.handle_funding_created(core, peer, message)
            case _:
                self._handle_mutual(peer, message, now=now)

    def _handle_mutual(self, peer: Peer, message: msg.Message, *, now: float) -> None:
        """Splices, and the end of a channel."""
        core = self._core
        match message:
            case msg.CloseChannel():
                closing.handle_close_channel(core, peer, message, now=now)
            case msg.CloseReady():
                closing.handle_close_ready(core, peer, message, now=now)
            case msg.SpliceChannel():
                splicing.handle_splice(core, peer, message)
            case msg.SpliceSigned():
                splicing.handle_splice_signed(core, peer, message)
            case msg.RejectSplice():
                splicing.handle_reject(core, peer, message, now=now)
            case msg.ProposeClose():
                cooperating.handle_propose_close(core, peer, message)
            case msg.CloseSigned():
                cooperating.handle_close_signed(core, peer, message)
            case msg.Keep():
                keeping.handle_keep(core, peer, message, now=now)
            case msg.Kept():
                keeping.handle_kept(core, peer, message)
            case msg.CreditNote() | msg.CreditReceipt() | msg.CreditSync():
                crediting.handle(core, peer, message)

    def _count_fault(self, peer: Peer, reason: str) -> None:
        peer.faults += 1
        self._core.emit(ev.PeerFaultSeen(peer.key, reason))
        if peer.faults == self._config.max_faults:
            self._core.emit(ev.DropConnection(peer.key, "too many faults"))

    def _forget(self, peer: Peer) -> None:
        """There never was any money between us. What was said of it is taken back: nobody would do it later."""
        if peer.is_gate_shut:
            self._core.emit(ev.Resume(peer.key))
        if peer.is_distrusted:
            self._core.emit(ev.Trust(peer.key))
        del self._core.peers[peer.key]

    # --- the end of every call ---

    def _finish(self, *, now: float) -> list[ev.Output]:
        core = self._core
        closing.review_claims(core, now=now)
        for peer in core.take_touched():
            peer.wake_at, peer.unreviewed_units = math.inf, 0
            self._unreviewed.discard(peer.key)
            settlement.review(core, peer, now=now)
            peer.method.review(core, peer, now=now)
            auditing.review(core, peer, now=now)
            keeping.review(core, peer, now=now)
            if not peer.is_connected and not peer.opening and not peer.wanted_capacity_sat and _is_stranger(peer):
                self._forget(peer)
        core.take_touched()
        if not self._unreviewed:
            self._unreviewed_until = math.inf
        is_flush_due, self._is_flush_due = self._is_flush_due, False
        return core.drain(flush=is_flush_due)


def _is_urgent(peer: Peer) -> bool:
    """What was metered may have to be acted on at once."""
    ledger, window_msat = peer.ledger, peer.ledger.window.size_msat
    if peer.unreviewed_units * METERED_SHARE >= msat_to_units(window_msat):
        return True
    is_owing = peer.method.is_paid and is_due(window_msat, ledger.unpaid_msat)
    return is_owing or peer.is_settlement_wanted or ledger.is_disputed


def _ledger_view(peer: Peer) -> ev.LedgerView:
    ledger = peer.ledger
    return ev.LedgerView(
        peer=ledger.peer,
        is_connected=peer.is_ready,
        billed_units=ledger.billed_units,
        acknowledged_units=ledger.acknowledged_units,
        their_billed_units=ledger.their_billed_units,
        accepted_units=ledger.accepted_units,
        owed_limit_units=ledger.owed_limit_units,
        sent_msat=ledger.sent_msat,
        received_msat=ledger.received_msat,
        net_owed_msat=ledger.expected_debt_msat,
        unpaid_msat=ledger.unpaid_msat,
        window_msat=ledger.window.size_msat,
        is_suspended=ledger.is_suspended,
        faults=peer.faults,
        settlement=peer.method.name,
    )


def _is_stranger(peer: Peer) -> bool:
    """There never was any money between us."""
    return peer.ledger.is_empty and not peer.channels and peer.credit.is_empty


def _is_on_credit(peer: Peer) -> bool:
    return peer.method.name == "credit" or not peer.credit.is_empty


def _credit_view(peer: Peer) -> ev.CreditView:
    line = peer.credit
    return ev.CreditView(
        peer=peer.key,
        limit_msat=line.limit_msat if peer.is_ready else None,
        owed_msat=line.owed_msat,
        paid_msat=line.paid_msat,
        acknowledged_msat=line.acknowledged_paid_msat,
        redeemed_msat=line.redeemed_msat,
        their_paid_msat=line.their_paid_msat,
        their_redeemed_msat=line.their_redeemed_msat,
    )


def _channel_view(channel: Channel) -> ev.ChannelView:
    return ev.ChannelView(
        channel_id=channel.channel_id,
        peer=channel.peer,
        direction=channel.direction,
        state=channel.state,
        capacity_sat=channel.terms.capacity_sat,
        cumulative_msat=channel.cumulative_msat,
        acknowledged_msat=channel.acknowledged_msat,
        funding=channel.funding,
        expiry_height=channel.terms.expiry_height,
        spend_txid=channel.spend_txid,
        splice=None if channel.splice is None else channel.splice.funding,
        splice_count=channel.number,
    )
