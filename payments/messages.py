"""The messages between two payment engines: msgpack arrays, tagged, bounded and range-checked (docs/spec/channel.md).

They travel in an authenticated session, in order. `decode` is the only way in; whatever it returns is within the ranges
that are written here, and nothing else has been checked about it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from payments.channel_tx import LOCKTIME_THRESHOLD, MAX_MONEY_SAT
from payments.counts import BODY_BYTES, SIGNATURE_BYTES
from payments.units import MAX_MSAT, MAX_UNITS

PROTOCOL_VERSION = 3
MAX_MESSAGE = 16 * 1024
CHANNEL_ID_BYTES = 16
UNITS_BYTES = 16  # msgpack's integers end at 2^64

# Codes of RejectChannel.
REJECT_POLICY = 1  # capacity or expiry out of our bounds
REJECT_TOO_MANY = 2
REJECT_UNKNOWN = 3  # of FundingCreated: we have no such channel
REJECT_NOT_READY = 4  # no chain yet
REJECT_TERMS = 5  # keys or scripts that make no channel

ChannelId = Annotated[bytes, msgspec.Meta(min_length=CHANNEL_ID_BYTES, max_length=CHANNEL_ID_BYTES)]
UnitsBytes = Annotated[bytes, msgspec.Meta(min_length=UNITS_BYTES, max_length=UNITS_BYTES)]
PublicKey = Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]
TxId = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
ChangeScript = Annotated[bytes, msgspec.Meta(min_length=22, max_length=34)]  # P2WPKH or P2WSH
Signature = Annotated[bytes, msgspec.Meta(max_length=73)]  # DER and the sighash byte; empty: nothing was paid yet
CountsBody = Annotated[bytes, msgspec.Meta(min_length=BODY_BYTES, max_length=BODY_BYTES)]
NodeSignature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Msat = Annotated[int, msgspec.Meta(ge=0, le=MAX_MSAT)]
Sat = Annotated[int, msgspec.Meta(ge=0, le=MAX_MONEY_SAT)]
Height = Annotated[int, msgspec.Meta(ge=0, lt=LOCKTIME_THRESHOLD)]
OutputIndex = Annotated[int, msgspec.Meta(ge=0, lt=0xFFFFFFFF)]
Version = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Code = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
SettlementName = Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
NoteSignature = Annotated[bytes, msgspec.Meta(max_length=SIGNATURE_BYTES)]  # empty: there is no note yet
ChainName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class MessageError(Exception):
    """Not a message of this protocol, or one with a field out of range. A fault of the peer."""


class Accounts(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The sender's view of both debts, cumulative. Units as 16 bytes, big-endian, below 2^127."""

    billed: UnitsBytes  # the receiver owes the sender
    accepted: UnitsBytes  # the sender agrees to owe the receiver
    seen: UnitsBytes  # the receiver's latest bill that `accepted` was computed from

    @classmethod
    def of(cls, *, billed_units: int, accepted_units: int, seen_units: int) -> Accounts:
        return cls(_pack_units(billed_units), _pack_units(accepted_units), _pack_units(seen_units))

    @property
    def billed_units(self) -> int:
        return int.from_bytes(self.billed, "big")

    @property
    def accepted_units(self) -> int:
        return int.from_bytes(self.accepted, "big")

    @property
    def seen_units(self) -> int:
        return int.from_bytes(self.seen, "big")


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Common settings: msgspec takes them over to subclasses."""


class Hello(_Message, frozen=True, tag=1):
    """The first message in either direction."""

    version: Version
    chain: ChainName
    settlement: SettlementName = "cltv"
    credit_limit: Msat = 0


class Statement(_Message, frozen=True, tag=2):
    """The creditor asks for settlement, or a debtor tells what it counts against it."""

    accounts: Accounts


class OpenChannel(_Message, frozen=True, tag=3):
    channel_id: ChannelId
    payer_pubkey: PublicKey
    change_script: ChangeScript
    capacity_sat: Sat
    expiry_height: Height


class AcceptChannel(_Message, frozen=True, tag=4):
    channel_id: ChannelId
    payee_pubkey: PublicKey


class RejectChannel(_Message, frozen=True, tag=5):
    channel_id: ChannelId
    code: Code


class FundingCreated(_Message, frozen=True, tag=6):
    channel_id: ChannelId
    txid: TxId
    index: OutputIndex


class Payment(_Message, frozen=True, tag=7):
    """The signature is over floor(cumulative_msat / 1000) sat."""

    channel_id: ChannelId
    cumulative_msat: Msat
    signature: Signature
    accounts: Accounts


class PaymentAck(_Message, frozen=True, tag=8):
    """The payee has stored, and credited, this much in all."""

    channel_id: ChannelId
    cumulative_msat: Msat
    accounts: Accounts


class CloseChannel(_Message, frozen=True, tag=9):
    """The payee is about to claim."""

    channel_id: ChannelId


class CloseReady(_Message, frozen=True, tag=10):
    """The payer will not pay through it any more: all its payments came before this."""

    channel_id: ChannelId


class ChannelSync(_Message, frozen=True, tag=11):
    """At the start of a session, the payee returns the payer's latest payment that it has stored."""

    channel_id: ChannelId
    cumulative_msat: Msat
    signature: Signature


class Counts(_Message, frozen=True, tag=12):
    """What the sender has counted on this link, signed with its node identity (`payments.counts`)."""

    body: CountsBody
    signature: NodeSignature


class CreditNote(_Message, frozen=True, tag=20):
    """What the sender has promised the receiver in all, and has been given outside for the receiver's promises."""

    paid_msat: Msat
    redeemed_msat: Msat
    signature: NodeSignature
    accounts: Accounts


class CreditReceipt(_Message, frozen=True, tag=21):
    """The receiver's note that the sender has stored, with the sender's countersignature."""

    paid_msat: Msat
    redeemed_msat: Msat
    signature: NodeSignature
    accounts: Accounts


class CreditSync(_Message, frozen=True, tag=22):
    """At the start of a session: the receiver's last note that the sender has stored."""

    paid_msat: Msat
    redeemed_msat: Msat
    signature: NoteSignature


CreditMessage = CreditNote | CreditReceipt | CreditSync
Message = (
    Hello
    | Statement
    | OpenChannel
    | AcceptChannel
    | RejectChannel
    | FundingCreated
    | Payment
    | PaymentAck
    | CloseChannel
    | CloseReady
    | ChannelSync
    | Counts
    | CreditMessage
)

_MAX_UNITS = MAX_UNITS.to_bytes(UNITS_BYTES, "big")  # compared as bytes: in the order of the numbers
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """Raises MessageError, and nothing else."""
    if len(data) > MAX_MESSAGE:
        raise MessageError(f"a message of {len(data)} bytes")
    try:
        message = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MessageError(str(error)) from error
    accounts = getattr(message, "accounts", None)
    if accounts is not None and max(accounts.billed, accounts.accepted, accounts.seen) > _MAX_UNITS:
        raise MessageError("a debt of 2^127 units or more")
    return message


def _pack_units(units: int) -> bytes:
    return units.to_bytes(UNITS_BYTES, "big")
