"""Sealed copies of what we have been paid, kept by neighbours that agree, and given back when we have forgotten it.

A payee that loses its disk loses its payers' last signatures, and with them the money that only these can claim. So it
leaves them with its neighbours, sealed with a key that derives from its seed: what a neighbour keeps tells it nothing,
and it can withhold it or give an older one, no more. What comes back is taken for what an old backup would say: only
later sums count, and only the chain says whether a channel is still there.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from payments.backup import slim
from payments.channel import WATCHED, Channel, PeerFaultError
from payments.core import Core, Peer
from payments.events import WatchOutput
from payments.messages import MAX_KEPT_BYTES, Keep, Kept
from payments.records import ChannelRecord, ChannelState, Direction, KeptRecord
from payments.units import msat_to_units

MAX_KEEPERS = 64  # neighbours for whom we keep something
NONCE_BYTES = SecretBox.NONCE_SIZE
_SEAL_BYTES = NONCE_BYTES + 16

_Rows = tuple[ChannelRecord, ...]


def keeping_key(seed: bytes) -> bytes:
    return hashlib.blake2b(b"", key=seed, digest_size=32, person=b"meshd keeping").digest()


# --- ours, with others ---


def review(core: Core, peer: Peer, *, now: float) -> None:
    """Leave our latest with a neighbour, no more often than the interval, where anything is new."""
    if not peer.is_ready or not peer.is_keeper or peer.left == core.paid_version:
        return
    if now < peer.keep_at:
        peer.wake(peer.keep_at)
        return
    rows = _rows(core)
    peer.left, peer.keep_at = core.paid_version, now + core.config.keep_interval
    core.send(peer, Keep(_sealed(core, rows)))


def _rows(core: Core) -> _Rows:
    """Of channels through which we were paid; the dearest first, as many as fit."""
    paid = (c for c in core.channels.values() if c.direction is Direction.IN and c.state in WATCHED and c.signature)
    rows: list[ChannelRecord] = []
    room = MAX_KEPT_BYTES - _SEAL_BYTES - 8
    for channel in sorted(paid, key=lambda c: -c.claimable_sat):
        row = slim(channel.record())
        room -= len(msgspec.msgpack.encode(row))
        if room < 0:
            break
        rows.append(row)
    return tuple(rows)


def _sealed(core: Core, rows: _Rows) -> bytes:
    box = SecretBox(keeping_key(core.seed))
    return bytes(box.encrypt(msgspec.msgpack.encode(rows), core.rng.randbytes(NONCE_BYTES)))


def handle_kept(core: Core, peer: Peer, message: Kept) -> None:
    """What a neighbour gives back. Raises PeerFaultError unless we sealed it."""
    peer.is_keeper = message.is_willing
    if not message.body:
        return
    try:
        body = SecretBox(keeping_key(core.seed)).decrypt(message.body)
        rows = msgspec.msgpack.decode(body, type=_Rows)
    except (CryptoError, msgspec.MsgspecError, ValueError) as error:
        raise PeerFaultError("gave back what we never left with it") from error
    for row in rows:
        _take_back(core, row)


def _take_back(core: Core, row: ChannelRecord) -> None:
    channel = core.channels.get(row.channel_id)
    if channel is None:
        _remember(core, row)
    elif (
        channel.direction is Direction.IN
        and channel.state in (ChannelState.PENDING, ChannelState.OPEN, ChannelState.SPLICING)
        and channel.splice is None
        and (channel.number, channel.funding) == (row.number, row.funding)
        and row.splice is None
        and row.signature is not None
        and row.cumulative_msat > channel.cumulative_msat
    ):
        channel.stage.verify(row.cumulative_msat, row.signature)
        channel.cumulative_msat, channel.signature = row.cumulative_msat, row.signature
        core.channel_changed(channel)
        _was_billed(core, channel)


def _remember(core: Core, row: ChannelRecord) -> None:
    """A channel that we have forgotten. As new: the chain says how it stands with it."""
    if row.direction is not Direction.IN or row.funding is None or row.state not in WATCHED:
        return
    state = ChannelState.PENDING if row.splice is None else ChannelState.SPLICING
    channel = Channel.from_elsewhere(replace(row, state=state))
    channel.check()
    core.add_channel(channel)
    core.channel_changed(channel)
    _was_billed(core, channel)
    core.emit(WatchOutput(channel.channel_id, channel.outpoint))


def _was_billed(core: Core, channel: Channel) -> None:
    """Nobody pays more than it was billed; without this, we would owe it back."""
    peer = core.peer(channel.peer)
    peer.ledger.billed_units = max(peer.ledger.billed_units, msat_to_units(peer.ledger.received_msat))
    core.ledger_changed(peer)


# --- others', with us ---


def begin_session(core: Core, peer: Peer) -> None:
    """Give back what it has left with us, and say whether it may leave more."""
    if core.config.keep_for_neighbours or peer.kept:
        core.send(peer, Kept(core.config.keep_for_neighbours, peer.kept))


def handle_keep(core: Core, peer: Peer, message: Keep, *, now: float) -> None:
    """Raises PeerFaultError for one that comes too soon. Where there is no room, or never was any money between us (so
    that nobody fills it with names that cost nothing), nothing happens."""
    if not core.config.keep_for_neighbours:
        raise PeerFaultError("left something with us, who keep nothing")
    if now < peer.keep_again_at:
        raise PeerFaultError("leaves something with us too often")
    peer.keep_again_at = now + core.config.keep_interval / 2
    if not (peer.ledger.sent_msat or peer.ledger.received_msat):  # bills and promises of channels cost nothing
        return
    if not peer.kept and sum(bool(other.kept) for other in core.peers.values()) >= MAX_KEEPERS:
        return
    peer.kept = message.body
    core.kept_changed(KeptRecord(peer.key, message.body))
