"""Whatever bytes come in: a message within the ranges of the specification, or MessageError."""

from __future__ import annotations

import msgspec
import pytest

from payments import messages as msg
from payments.units import MAX_MSAT, MAX_UNITS

ID = b"i" * 16
ACCOUNTS = msg.Accounts.of(billed_units=MAX_UNITS, accepted_units=2**64 + 1, seen_units=0)
EXAMPLES: list[msg.Message] = [
    msg.Hello(1, "regtest"),
    msg.Hello(2, "regtest", "credit", MAX_MSAT),
    msg.Statement(ACCOUNTS),
    msg.OpenChannel(ID, b"\x02" * 33, b"\x00\x14" + bytes(20), 100_000, 2116),
    msg.AcceptChannel(ID, b"\x03" * 33, b"\x00\x14" + bytes(20)),
    msg.RejectChannel(ID, msg.REJECT_POLICY),
    msg.FundingCreated(ID, b"t" * 32, 1),
    msg.Payment(ID, 0, MAX_MSAT, b"s" * 72, b"t" * 72, ACCOUNTS),
    msg.PaymentAck(ID, 0, ACCOUNTS),
    msg.CloseChannel(ID),
    msg.CloseReady(ID),
    msg.CreditNote(MAX_MSAT, 0, b"s" * 64, ACCOUNTS),
    msg.CreditReceipt(1, MAX_MSAT, b"s" * 64, ACCOUNTS),
    msg.CreditSync(0, 0, b""),
    msg.ChannelSync(ID, 0, b"", 0, b"t" * 32, 1, 100_000, 2116, 0),
    msg.SpliceChannel(ID, 1, 100_000, 4132, 80_000_000, b"r" * 120, 80_000_999, b"s" * 72, b"t" * 72),
    msg.SpliceSigned(ID, b"t" * 32, b"s" * 72),
    msg.RejectSplice(ID, b"t" * 32, msg.REJECT_STALE),
    msg.ProposeClose(ID, 0, 171, 80_000_999, b"s" * 72),
    msg.CloseSigned(ID, 171, b"s" * 72),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_round_trip(message: msg.Message) -> None:
    data = msg.encode(message)
    assert msg.decode(data) == message
    assert len(data) < 400


def test_units_above_64_bits_survive() -> None:
    decoded = msg.decode(msg.encode(msg.Statement(ACCOUNTS)))
    assert isinstance(decoded, msg.Statement)
    assert (decoded.accounts.billed_units, decoded.accounts.accepted_units, decoded.accounts.seen_units) == (
        MAX_UNITS,
        2**64 + 1,
        0,
    )


def accounts_row(units: bytes) -> list[bytes]:
    return [units, bytes(16), bytes(16)]


BAD_ROWS = {
    "unknown tag": [99],
    "no tag": [],
    "not an array": {"a": 1},
    "a field too many": [9, ID, 0],
    "a field too few": [9],
    "short id": [9, ID[:-1]],
    "long id": [9, ID + b"x"],
    "id as text": [9, "i" * 16],
    "negative sum": [8, ID, -1, [bytes(16)] * 3],
    "sum above all money": [8, ID, MAX_MSAT + 1, [bytes(16)] * 3],
    "sum as float": [8, ID, 1.5, [bytes(16)] * 3],
    "sum as boolean": [8, ID, True, [bytes(16)] * 3],
    "long signature": [17, ID, 1, b"s" * 74],
    "large splice": [13, ID, 1, 1, 1, 0, bytes(2_001), 0, b"", b""],
    "debt of 2^127": [2, accounts_row(b"\x80" + bytes(15))],
    "short debt": [2, accounts_row(bytes(15))],
    "height of a time lock": [3, ID, b"\x02" * 33, b"\x00\x14" + bytes(20), 100_000, 500_000_000],
    "no chain name": [1, 1, ""],
    "long chain name": [1, 1, "x" * 65],
    "version above u16": [1, 65_536, "regtest"],
    "output index of a coinbase": [6, ID, b"t" * 32, 0xFFFFFFFF],
    "short key": [4, ID, b"\x02" * 32, b"\x00\x14" + bytes(20)],
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_out_of_range_is_refused(row: object) -> None:
    with pytest.raises(msg.MessageError):
        msg.decode(msgspec.msgpack.encode(row))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x92\x09\xc6\xff\xff\xff\xff",
        b"\x91" * 10_000,
        b"\x92\x01\xd9\x01\xff",
        msg.encode(EXAMPLES[0]) + b"\x00",
        msg.encode(EXAMPLES[6])[:-1],
        b"\x00" * (msg.MAX_MESSAGE + 1),
    ],
    ids=["empty", "reserved byte", "huge array", "huge bytes", "deep", "not UTF-8", "trailing", "cut", "oversized"],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(msg.MessageError):
        msg.decode(data)
