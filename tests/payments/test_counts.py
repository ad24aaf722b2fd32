"""What a report of counts is, byte by byte, and what is not taken for one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nacl import bindings

from payments.counts import (
    BODY_BYTES,
    MAX_BYTES,
    CountReport,
    CountsError,
    Evidence,
    Signer,
    Traffic,
    signed_bytes,
    verify,
)
from payments.units import MAX_UNITS

PUBLIC, SECRET = bindings.crypto_sign_seed_keypair(b"s" * 32)
PEER, OTHER = b"P" * 32, b"O" * 32
SIGNER = Signer(PUBLIC, lambda data: bindings.crypto_sign(data, SECRET)[:64])
REPORT = CountReport(
    epoch=2**64 - 1,
    number=7,
    echo_epoch=3,
    echo_number=2,
    traffic=Traffic(sent=1, received=9, carried=4, refused=5),
    earned_units=MAX_UNITS,
    owed_units=6,
)


def test_the_body_is_what_the_specification_says() -> None:
    assert REPORT.pack().hex() == (
        "ffffffffffffffff" + "00000007" + "0000000000000003" + "00000002"
        "0000000000000001" + "0000000000000009" + "0000000000000004" + "0000000000000005"
        "7fffffffffffffffffffffffffffffff" + "00000000000000000000000000000006"
    )  # fmt: skip
    assert len(REPORT.pack()) == BODY_BYTES == 88
    assert CountReport.unpack(REPORT.pack()) == REPORT
    assert signed_bytes(PUBLIC, PEER, b"body") == b"meshd counts v1\0" + PUBLIC + PEER + b"body"


def test_a_signature_holds_for_one_maker_one_peer_and_one_report() -> None:
    evidence = SIGNER.evidence(REPORT, PEER)
    assert verify(evidence, maker=PUBLIC, peer=PEER) == REPORT
    other_body = replace(REPORT, owed_units=7).pack()
    for bad, maker, peer in (
        (evidence, PUBLIC, OTHER),  # said to somebody else
        (evidence, OTHER, PEER),  # not a key, or another's
        (Evidence(other_body, evidence.signature), PUBLIC, PEER),
        (Evidence(evidence.body, bytes(64)), PUBLIC, PEER),
        (Evidence(evidence.body, b""), PUBLIC, PEER),
        (evidence, b"short", PEER),
    ):
        with pytest.raises(CountsError):
            verify(bad, maker=maker, peer=peer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(BODY_BYTES),  # number 0
        REPORT.pack() + b"\0",
        replace(REPORT, traffic=Traffic(sent=MAX_BYTES + 1)).pack(),
        replace(REPORT, traffic=Traffic(received=8, carried=4, refused=5)).pack(),
        replace(REPORT, owed_units=MAX_UNITS + 1).pack(),
    ],
)
def test_what_is_out_of_range_is_no_report(body: bytes) -> None:
    with pytest.raises(CountsError):
        CountReport.unpack(body)


def test_a_report_takes_back_nothing() -> None:
    later = replace(REPORT, number=8)
    later.check_follows(REPORT)
    for bad in (
        REPORT,
        replace(later, number=6),
        replace(later, earned_units=MAX_UNITS - 1),
        replace(later, owed_units=5),
        replace(later, traffic=Traffic(sent=0, received=9, carried=4, refused=5)),
        replace(later, traffic=Traffic(sent=1, received=8, carried=4, refused=4)),
    ):
        with pytest.raises(CountsError):
            bad.check_follows(REPORT)


def test_counts_do_not_overflow() -> None:
    assert Traffic(sent=MAX_BYTES) + Traffic(sent=5, received=1) == Traffic(sent=MAX_BYTES, received=1)
