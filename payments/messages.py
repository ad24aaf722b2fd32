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

PROTOCOL_VERSION = 5
MAX_MESSAGE = 16 * 1024
CHANNEL_ID_BYTES = 16
MAX_KEPT_BYTES = 8 * 1024
UNITS_BYTES = 16  # msgpack's integers end at 2^64

MAX_SPLICE_BYTES = 2_000  # without witnesses: 40 inputs. A larger one would cost the payee too much to outbid

# Codes of RejectChannel and RejectSplice.
REJECT_POLICY = 1  # capacity or expiry out of our bounds
REJECT_TOO_MANY = 2
REJECT_UNKNOWN = 3  # of FundingCreated: we have no such channel
REJECT_NOT_READY = 4  # no chain yet
REJECT_TERMS = 5  # keys or scripts that make no channel
REJECT_FEES = 6  # at the present fees a claim would cost too much of the capacity
REJECT_STALE = 7  # of a splice: it is not of the state that we know

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
SpliceNumber = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
SpliceRaw = Annotated[bytes, msgspec.Meta(min_length=10, max_length=MAX_SPLICE_BYTES)]
Version = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Code = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
SettlementName = Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
NoteSignature = Annotated[bytes, msgspec.Meta(max_length=SIGNATURE_BYTES)]  # empty: there is no note yet
KeptBody = Annotated[bytes, msgspec.Meta(max_length=MAX_KEPT_BYTES)]
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
    """`payout_script`: the payee's, for what splices and a common close pay out."""

    channel_id: ChannelId
    payee_pubkey: PublicKey
    payout_script: ChangeScript


class RejectChannel(_Message, frozen=True, tag=5):
    channel_id: ChannelId
    code: Code


class FundingCreated(_Message, frozen=True, tag=6):
    channel_id: ChannelId
    txid: TxId
    index: OutputIndex


class Payment(_Message, frozen=True, tag=7):
    """`signature` is on the funding output of that number, `splice_signature` (else empty) on that of the splice that
    is to replace it; each is over floor((cumulative_msat - base_msat) / 1000) sat of its output."""

    channel_id: ChannelId
    number: SpliceNumber
    cumulative_msat: Msat
    signature: Signature
    splice_signature: Signature
    accounts: Accounts


class PaymentAck(_Message, frozen=True, tag=8):
    """The payee has stored, and credited, this much in all. `is_statement`: and asks for more, as a Statement does."""

    channel_id: ChannelId
    cumulative_msat: Msat
    accounts: Accounts
    is_statement: bool = False


class CloseChannel(_Message, frozen=True, tag=9):
    """The payee is about to claim."""

    channel_id: ChannelId


class CloseReady(_Message, frozen=True, tag=10):
    """The payer will not pay through it any more: all its payments came before this."""

    channel_id: ChannelId


class ChannelSync(_Message, frozen=True, tag=11):
    """At the start of a session, the payee returns the payer's latest payment that it has stored, on the last funding
    output that it knows: so that an old backup of the payer learns of splices, too."""

    channel_id: ChannelId
    cumulative_msat: Msat
    signature: Signature
    number: SpliceNumber
    txid: TxId
    index: OutputIndex
    capacity_sat: Sat
    expiry_height: Height
    base_msat: Msat


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


class SpliceChannel(_Message, frozen=True, tag=13):
    """The payer proposes that the transaction `raw` (without witnesses) replaces the funding output, and is the one to
    complete and broadcast it. Carries its last payment, for both outputs."""

    channel_id: ChannelId
    number: SpliceNumber  # of the new output
    capacity_sat: Sat
    expiry_height: Height
    base_msat: Msat
    raw: SpliceRaw
    cumulative_msat: Msat
    signature: Signature
    splice_signature: Signature


class SpliceSigned(_Message, frozen=True, tag=14):
    """The payee's signature (SIGHASH_ALL) of the splice. From now on it takes only payments for both outputs."""

    channel_id: ChannelId
    txid: TxId
    signature: Signature


class RejectSplice(_Message, frozen=True, tag=15):
    channel_id: ChannelId
    txid: TxId
    code: Code


class ProposeClose(_Message, frozen=True, tag=16):
    """The payer would end the channel now: the payee gets what is paid, it gets the rest less the fee. Carries its last
    payment. Again, with a higher fee, when it takes too long."""

    channel_id: ChannelId
    number: SpliceNumber
    fee_sat: Sat
    cumulative_msat: Msat
    signature: Signature


class CloseSigned(_Message, frozen=True, tag=17):
    """The payee's signature (SIGHASH_ALL) of the transaction that follows from the proposal with that fee."""

    channel_id: ChannelId
    fee_sat: Sat
    signature: Signature


class Keep(_Message, frozen=True, tag=18):
    """Please keep this for me: sealed, and mine to ask back (`payments.keeping`)."""

    body: KeptBody


class Kept(_Message, frozen=True, tag=19):
    """At the start of a session: what the receiver has left with the sender (empty: nothing), and whether it may."""

    is_willing: bool
    body: KeptBody


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
    | SpliceChannel
    | SpliceSigned
    | RejectSplice
    | ProposeClose
    | CloseSigned
    | Keep
    | Kept
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
