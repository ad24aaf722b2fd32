"""Signed cumulative counts: what one end of a link says that it has sent to and received from the other.

Each end signs them with its node identity, for that peer alone, cumulative since its epoch (a run of its daemon) began.
A report also names the last one of the other end that its maker had seen: so it was made, by our own clock, between our
making that one and now. `payments.agreement` compares. The wire format is in docs/spec/channel.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError

from payments.units import MAX_UNITS

DOMAIN = b"meshd counts v1\0"
MAX_BYTES = 2**63 - 1
SIGNATURE_BYTES = 64
_BODY = struct.Struct(">QLQL4Q16s16s")
BODY_BYTES = _BODY.size
_UNITS_BYTES = 16


class CountsError(Exception):
    """A report that no honest end makes: malformed, not signed by the peer, or taking back what it said."""


class Traffic(msgspec.Struct, frozen=True):
    """Layer-3 bytes: handed to the peer; taken from it; of these carried on for it, and dropped as it was suspended."""

    sent: int = 0
    received: int = 0
    carried: int = 0
    refused: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        sent, received = self.sent + other.sent, self.received + other.received
        carried, refused = self.carried + other.carried, self.refused + other.refused
        if sent > MAX_BYTES or received > MAX_BYTES or carried > MAX_BYTES or refused > MAX_BYTES:
            most = MAX_BYTES
            return Traffic(min(sent, most), min(received, most), min(carried, most), min(refused, most))
        return Traffic(sent, received, carried, refused)

    def is_at_least(self, other: Traffic) -> bool:
        return (
            self.sent >= other.sent
            and self.received >= other.received
            and self.carried >= other.carried
            and self.refused >= other.refused
        )


NO_TRAFFIC = Traffic()


@dataclass(frozen=True, slots=True)
class CountReport:
    """`traffic` since the epoch began; the two debts since the first meeting, in units, by the maker's own meter: what
    the other owes it, and the most that it owes the other.

    `number` counts the reports of an epoch from 1. `echo_epoch`, `echo_number`: the other's last report that the maker
    had seen; 0, 0: none.
    """

    epoch: int
    number: int
    echo_epoch: int
    echo_number: int
    traffic: Traffic
    earned_units: int
    owed_units: int

    def pack(self) -> bytes:
        t = self.traffic
        units = (self.earned_units.to_bytes(_UNITS_BYTES, "big"), self.owed_units.to_bytes(_UNITS_BYTES, "big"))
        head = (self.epoch, self.number, self.echo_epoch, self.echo_number)
        return _BODY.pack(*head, t.sent, t.received, t.carried, t.refused, *units)

    @classmethod
    def unpack(cls, body: bytes) -> CountReport:
        """Raises CountsError, and nothing else."""
        if len(body) != BODY_BYTES:
            raise CountsError(f"counts of {len(body)} bytes")
        epoch, number, echo_epoch, echo_number, sent, received, carried, refused, earned, owed = _BODY.unpack(body)
        earned_units, owed_units = int.from_bytes(earned, "big"), int.from_bytes(owed, "big")
        if max(sent, received, carried, refused) > MAX_BYTES or max(earned_units, owed_units) > MAX_UNITS:
            raise CountsError("counts out of range")
        if carried + refused > received:
            raise CountsError("more carried and refused than received")
        if number == 0:
            raise CountsError("reports are numbered from 1")
        traffic = Traffic(sent, received, carried, refused)
        return cls(epoch, number, echo_epoch, echo_number, traffic, earned_units, owed_units)

    def check_follows(self, earlier: CountReport) -> None:
        """Raises CountsError if it takes back what the earlier report of the same epoch said."""
        if self.number <= earlier.number:
            raise CountsError("an earlier report again")
        is_growing = self.earned_units >= earlier.earned_units and self.owed_units >= earlier.owed_units
        if not is_growing or not self.traffic.is_at_least(earlier.traffic):
            raise CountsError("counts that go back")


@dataclass(frozen=True, slots=True)
class Evidence:
    """A report as the peer signed it: whoever knows both keys can check it."""

    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Signer:
    """Our node identity: its Ed25519 public key, and what signs with it (64 bytes)."""

    key: bytes
    sign: Callable[[bytes], bytes]

    def evidence(self, report: CountReport, peer: bytes) -> Evidence:
        body = report.pack()
        return Evidence(body, self.sign(signed_bytes(self.key, peer, body)))


def signed_bytes(maker: bytes, peer: bytes, body: bytes) -> bytes:
    """What the signature is over. Both keys are in it: a report says nothing about anybody else."""
    return DOMAIN + maker + peer + body


def verify(evidence: Evidence, *, maker: bytes, peer: bytes) -> CountReport:
    """Raises CountsError unless it is a report that `maker` signed for `peer`."""
    try:
        bindings.crypto_sign_open(evidence.signature + signed_bytes(maker, peer, evidence.body), maker)
    except (CryptoError, ValueError) as error:
        raise CountsError("counts that the peer has not signed") from error
    return CountReport.unpack(evidence.body)
