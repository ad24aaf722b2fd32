"""Settlement without a chain, for friends and labs: each end signs what it has promised the other in all.

A note says two cumulative sums of its maker: what it has promised to pay, and how much of the holder's promises was
given to it outside (cash, a favour). The holder verifies, stores and countersigns it; so each end has the other's
signature under every balance. What one end may owe is bounded by the lower of the two limits that the session's hellos
name. Nothing enforces a promise: the limit is what a friend can take away.

Crash order as with channels: the maker stores, then sends; the holder verifies, stores, acknowledges, credits. At the
start of a session each end returns the other's last note: an old backup takes over what it has signed, and what got
lost on the way is sent again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields

from nacl import bindings
from nacl.exceptions import CryptoError

from payments.channel import PeerFaultError
from payments.counts import Signer
from payments.life import InvariantError
from payments.records import CreditRecord
from payments.units import MAX_MSAT

NOTE_DOMAIN = b"meshd credit note v1\0"
RECEIPT_DOMAIN = b"meshd credit receipt v1\0"
_SUMS = struct.Struct(">QQ")


def signed_bytes(domain: bytes, maker: bytes, holder: bytes, sums: tuple[int, int], chain: str) -> bytes:
    """What a signature is over. Both keys and the currency are in it: a note is of use nowhere else."""
    return domain + maker + holder + _SUMS.pack(*sums) + chain.encode()


@dataclass(slots=True)
class CreditLine:
    """What we have promised a peer, and it us. Sums are msat, cumulative, and never decrease."""

    peer: bytes
    paid_msat: int = 0  # promised by us
    redeemed_msat: int = 0  # of their promises, what they gave us outside
    acknowledged_paid_msat: int = 0  # of our last note that they have countersigned
    acknowledged_redeemed_msat: int = 0
    receipt: bytes = b""
    their_paid_msat: int = 0
    their_redeemed_msat: int = 0
    their_signature: bytes = b""  # under their two sums
    limit_msat: int = 0  # agreed on in this session
    is_synced: bool = False  # the peer has shown in this session which of our notes it holds
    written: CreditRecord | None = None

    @classmethod
    def from_record(cls, record: CreditRecord) -> CreditLine:
        return cls(**{each.name: getattr(record, each.name) for each in fields(record)}, written=record)

    def record(self) -> CreditRecord:
        return CreditRecord(**{each.name: getattr(self, each.name) for each in fields(CreditRecord)})

    def write(self) -> CreditRecord:
        """The row to be written. Raises InvariantError unless it may follow the one before."""
        self.check()
        record = self.record()
        if self.written is not None and any(
            getattr(record, each.name) < getattr(self.written, each.name)
            for each in fields(record)
            if each.name.endswith("_msat")
        ):
            raise InvariantError("a promise was taken back")
        self.written = record
        return record

    @property
    def sums(self) -> tuple[int, int]:
        return self.paid_msat, self.redeemed_msat

    @property
    def their_sums(self) -> tuple[int, int]:
        return self.their_paid_msat, self.their_redeemed_msat

    @property
    def acknowledged_sums(self) -> tuple[int, int]:
        return self.acknowledged_paid_msat, self.acknowledged_redeemed_msat

    @property
    def owed_msat(self) -> int:
        """By us, net, as far as promises go; negative: by them."""
        return (self.paid_msat - self.their_redeemed_msat) - (self.their_paid_msat - self.redeemed_msat)

    @property
    def is_in_flight(self) -> bool:
        """At most one note is ever uncertain."""
        return self.acknowledged_sums != self.sums

    @property
    def is_empty(self) -> bool:
        return not (self.paid_msat or self.their_paid_msat)

    def promise(self, amount_msat: int) -> None:
        self.paid_msat += amount_msat
        self.check()

    def redeem(self, amount_msat: int) -> None:
        """Raises ValueError for more than they owe."""
        if not 0 < amount_msat <= -self.owed_msat:
            raise ValueError(f"{amount_msat} msat, where {max(0, -self.owed_msat)} are owed to us")
        self.redeemed_msat += amount_msat
        self.check()

    def hear_note(self, sums: tuple[int, int], signature: bytes) -> int:
        """A note of theirs whose signature holds; by how much it raises what they promised. Raises PeerFaultError."""
        paid_msat, redeemed_msat = sums
        if paid_msat < self.their_paid_msat or redeemed_msat < self.their_redeemed_msat:
            raise PeerFaultError("a credit note that takes back")
        if redeemed_msat > self.paid_msat:
            raise PeerFaultError("more redeemed than we have promised")
        amount_msat = paid_msat - self.their_paid_msat
        owed_msat = (paid_msat - self.redeemed_msat) - (self.paid_msat - redeemed_msat)
        if amount_msat and owed_msat > self.limit_msat:
            raise PeerFaultError("a credit note above the limit")
        self.their_paid_msat, self.their_redeemed_msat, self.their_signature = *sums, signature
        self.check()
        return amount_msat

    def hear_receipt(self, sums: tuple[int, int], receipt: bytes) -> None:
        """Raises PeerFaultError for what we have not promised."""
        if sums[0] > self.paid_msat or sums[1] > self.redeemed_msat:
            raise PeerFaultError("a receipt for more than we have promised")
        if sums[0] >= self.acknowledged_paid_msat and sums[1] >= self.acknowledged_redeemed_msat:
            self.acknowledged_paid_msat, self.acknowledged_redeemed_msat, self.receipt = *sums, receipt

    def adopt(self, sums: tuple[int, int]) -> int:
        """A later note of ours than we remember: an old backup. By how much it raises our promises. Raises
        PeerFaultError if it does not follow what we know."""
        if sums[0] < self.paid_msat or sums[1] < self.redeemed_msat:
            raise PeerFaultError("a note of ours that does not follow our last")
        forgotten_msat = sums[0] - self.paid_msat
        self.paid_msat, self.redeemed_msat = sums
        return forgotten_msat

    def check(self) -> None:
        """Raises InvariantError."""
        if not max(self.paid_msat, self.redeemed_msat, self.their_paid_msat, self.their_redeemed_msat) <= MAX_MSAT:
            raise InvariantError("a promise of more money than there is")
        if self.acknowledged_paid_msat > self.paid_msat or self.acknowledged_redeemed_msat > self.redeemed_msat:
            raise InvariantError("acknowledged more than promised")
        if self.their_paid_msat and not self.their_signature:
            raise InvariantError("a promise without a signature")


@dataclass(frozen=True, slots=True)
class Notary:
    """Signs and verifies for one pair of keys."""

    signer: Signer
    peer: bytes
    chain: str

    def sign_note(self, sums: tuple[int, int]) -> bytes:
        return self.signer.sign(signed_bytes(NOTE_DOMAIN, self.signer.key, self.peer, sums, self.chain))

    def sign_receipt(self, sums: tuple[int, int]) -> bytes:
        """Of a note of theirs."""
        return self.signer.sign(signed_bytes(RECEIPT_DOMAIN, self.peer, self.signer.key, sums, self.chain))

    def verify_note(self, sums: tuple[int, int], signature: bytes) -> None:
        """Of theirs to us. Raises PeerFaultError."""
        _verify(self.peer, signature, signed_bytes(NOTE_DOMAIN, self.peer, self.signer.key, sums, self.chain))

    def verify_own_note(self, sums: tuple[int, int], signature: bytes) -> None:
        _verify(self.signer.key, signature, signed_bytes(NOTE_DOMAIN, self.signer.key, self.peer, sums, self.chain))

    def verify_receipt(self, sums: tuple[int, int], receipt: bytes) -> None:
        """Of a note of ours. Raises PeerFaultError."""
        _verify(self.peer, receipt, signed_bytes(RECEIPT_DOMAIN, self.signer.key, self.peer, sums, self.chain))


def _verify(maker: bytes, signature: bytes, signed: bytes) -> None:
    try:
        bindings.crypto_sign_open(signature + signed, maker)
    except (CryptoError, ValueError) as error:
        raise PeerFaultError("a credit signature that is not the peer's") from error
