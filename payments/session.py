"""The start of a session: hello, then both ends bring what a crash or a lost connection left apart together again.

The payee returns the payer's latest payment of each channel, and the payer checks its own signature: it takes over a
later sum than it remembers, or sends again what the payee has not got. Everything is cumulative, so that nothing can be
counted twice.
"""

from __future__ import annotations

from payments import cooperating, keeping, opening, settlement, splicing
from payments.channel import SYNCED, PeerFaultError
from payments.core import Core, Peer
from payments.events import DropConnection
from payments.life import Cause
from payments.messages import PROTOCOL_VERSION, ChannelSync, CloseChannel, Hello
from payments.records import ChannelState, Direction
from payments.units import msat_to_units


def begin(core: Core, peer: Peer, *, now: float) -> None:
    peer.begin_session()
    peer.book.begin_session(now=now)
    terms = core.config.terms_with(peer.key)
    core.send(peer, Hello(PROTOCOL_VERSION, core.config.chain, terms.settlement, terms.credit_limit_msat))


def handle_hello(core: Core, peer: Peer, message: Hello, *, now: float) -> None:
    if peer.is_ready:
        raise PeerFaultError("a second hello")
    if message.version != PROTOCOL_VERSION:
        core.emit(DropConnection(peer.key, f"protocol version {message.version}, ours is {PROTOCOL_VERSION}"))
        return
    if message.chain != core.config.chain:
        core.emit(DropConnection(peer.key, f"chain {message.chain!r}, ours is {core.config.chain!r}"))
        return
    terms = core.config.terms_with(peer.key)
    if message.settlement != terms.settlement:
        core.emit(DropConnection(peer.key, f"settlement {message.settlement!r}, ours is {terms.settlement!r}"))
        return
    peer.is_ready = True
    peer.credit.limit_msat = min(message.credit_limit, terms.credit_limit_msat)
    keeping.begin_session(core, peer)
    peer.method.begin_session(core, peer)
    for channel in peer.channels_of(Direction.OUT, ChannelState.PENDING, ChannelState.OPEN):
        opening.tell_funding(core, peer, channel)
    for channel in peer.channels_of(Direction.OUT, ChannelState.SPLICING):
        splicing.propose(core, peer, channel)
    for channel in peer.channels_of(Direction.OUT, ChannelState.COOPERATING):
        cooperating.propose(core, peer, channel)
    for channel in peer.channels_of(Direction.IN, *SYNCED):
        cooperating.sync(core, peer, channel)
    for channel in peer.channels_of(Direction.IN, ChannelState.CLOSING, ChannelState.CLAIMING):
        core.send(peer, CloseChannel(channel.channel_id))
    if not peer.ledger.is_empty:
        settlement.state_now(core, peer, now=now)
    core.touch(peer)


def handle_channel_sync(core: Core, peer: Peer, message: ChannelSync) -> None:
    """Payer. A channel that we do not know was lost with our records, and its key's money with them: not a fault."""
    if message.channel_id not in core.channels:
        return
    channel = core.channel_of(peer, message.channel_id, Direction.OUT)
    if channel.state is ChannelState.CLOSED or channel.funding is None:
        return
    if message.number < channel.number:
        # An old backup of the payee's: it does not know the output, and can not take anything through it.
        if channel.state in (ChannelState.PENDING, ChannelState.OPEN):
            core.move(channel, Cause.REJECTED, "it has an earlier output")
        return
    before_msat = channel.cumulative_msat
    stage = next((s for s in channel.stages() if s.number == message.number), None)
    if stage is None or (stage.outpoint.txid, stage.outpoint.index) != (message.txid, message.index):
        stage = splicing.learn(core, channel, message)
    elif message.cumulative_msat > channel.cumulative_msat:
        channel.adopt(stage, message.cumulative_msat, message.signature, core.key_of(channel.channel_id))
        core.channel_changed(channel)
    if stage is None:
        return
    channel.is_synced = True
    if channel.cumulative_msat > before_msat:
        # We signed for it, so our meter had allowed it.
        forgotten_msat = channel.cumulative_msat - before_msat
        peer.ledger.add_metered(earned_units=0, owed_limit_units=msat_to_units(forgotten_msat))
        core.ledger_changed(peer)
        if channel.state is ChannelState.COOPERATING:
            cooperating.propose(core, peer, channel)
        return
    if message.cumulative_msat > channel.acknowledged_msat:
        channel.acknowledged_msat = message.cumulative_msat
        core.channel_changed(channel, hard=False)
    if message.cumulative_msat < channel.cumulative_msat and channel.state is not ChannelState.COOPERATING:
        settlement.send_last_payment(core, peer, channel)
