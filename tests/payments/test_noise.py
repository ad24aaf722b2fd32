"""The handshake against known answers, and against everything that a hostile peer may send.

`tests/vectors/noise_xx_25519_chachapoly_blake2b.json` is ours (see its "provenance"). To check against a public file as
well, such as `vectors/cacophony.txt` of haskell-cryptography/cacophony, name it in MESHD_NOISE_VECTORS.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from payments.noise import MAX_NONCE, PROTOCOL_NAME, CipherState, HandshakeState, NoiseError, Transport, public_key

OURS = Path(__file__).parents[1] / "vectors" / "noise_xx_25519_chachapoly_blake2b.json"
PUBLIC = os.environ.get("MESHD_NOISE_VECTORS")
FILES = [OURS, *([Path(PUBLIC)] if PUBLIC else [])]

# RFC 7748 section 6.1 and https://cr.yp.to/ecdh.html#validate: every one gives an all-zero shared secret.
LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def pair(prologue: bytes = b"", other_prologue: bytes | None = None) -> tuple[HandshakeState, HandshakeState]:
    return (
        HandshakeState(initiator=True, static_private=b"a" * 32, ephemeral_private=b"b" * 32, prologue=prologue),
        HandshakeState(
            initiator=False,
            static_private=b"c" * 32,
            ephemeral_private=b"d" * 32,
            prologue=prologue if other_prologue is None else other_prologue,
        ),
    )


def messages() -> list[bytes]:
    """The three messages of one handshake of `pair()`."""
    initiator, responder = pair()
    first = initiator.write_message(b"1")
    responder.read_message(first)
    second = responder.write_message(b"2")
    initiator.read_message(second)
    return [first, second, initiator.write_message(b"3")]


def transports() -> tuple[Transport, Transport]:
    initiator, responder = pair()
    responder.read_message(initiator.write_message())
    initiator.read_message(responder.write_message())
    responder.read_message(initiator.write_message())
    return initiator.transport(), responder.transport()


def rows(file: Path) -> list[dict[str, Any]]:
    name = PROTOCOL_NAME.decode()
    return [row for row in json.loads(file.read_text())["vectors"] if row["protocol_name"] == name]


def side(row: dict[str, Any], who: str) -> HandshakeState:
    return HandshakeState(
        initiator=who == "init",
        static_private=bytes.fromhex(row[f"{who}_static"]),
        ephemeral_private=bytes.fromhex(row[f"{who}_ephemeral"]),
        prologue=bytes.fromhex(row[f"{who}_prologue"]),
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_known_answers(file: Path) -> None:
    assert rows(file)
    for row in rows(file):
        initiator, responder = side(row, "init"), side(row, "resp")
        exchanged = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in row["messages"]]
        writer, reader = initiator, responder
        for payload, ciphertext in exchanged[:3]:
            assert writer.write_message(payload) == ciphertext
            assert reader.read_message(ciphertext) == payload
            writer, reader = reader, writer
        sender, receiver = responder.transport(), initiator.transport()
        assert sender.handshake_hash == receiver.handshake_hash == bytes.fromhex(row["handshake_hash"])
        for payload, ciphertext in exchanged[3:]:
            assert sender.encrypt(payload) == ciphertext
            assert receiver.decrypt(ciphertext) == payload
            sender, receiver = receiver, sender


def test_each_side_learns_the_others_static_key() -> None:
    initiator, responder = pair()
    responder.read_message(initiator.write_message())
    assert initiator.remote_static is None
    initiator.read_message(responder.write_message())
    assert initiator.remote_static == public_key(b"c" * 32)
    assert not initiator.is_finished
    responder.read_message(initiator.write_message())
    assert responder.remote_static == public_key(b"a" * 32)
    assert initiator.is_finished and responder.is_finished


@pytest.mark.parametrize("step", [1, 2])
@given(data=st.data())
def test_one_flipped_bit_is_noticed(step: int, data: st.DataObject) -> None:
    initiator, responder = pair()
    sent = messages()
    bit = data.draw(st.integers(0, len(sent[step]) * 8 - 1))
    forged = bytearray(sent[step])
    forged[bit // 8] ^= 1 << bit % 8
    initiator.write_message(b"1")
    reader = initiator
    if step == 2:
        responder.read_message(sent[0])
        responder.write_message(b"2")
        reader = responder
    with pytest.raises(NoiseError):
        reader.read_message(bytes(forged))
    with pytest.raises(NoiseError, match="failed"):
        reader.read_message(sent[step])


def test_masked_bit_of_an_ephemeral_key_is_noticed_through_the_transcript() -> None:
    # X25519 ignores the top bit of a key (RFC 7748 section 5), so that only the transcript hash tells.
    initiator, _ = pair()
    forged = bytearray(messages()[1])
    forged[31] ^= 0x80
    initiator.write_message(b"1")
    with pytest.raises(NoiseError, match="authentication"):
        initiator.read_message(bytes(forged))


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_any_bytes_raise_only_noise_error(received: list[bytes]) -> None:
    _, responder = pair()
    for message in received:
        try:
            responder.read_message(message)
            responder.write_message()
        except NoiseError:
            return


@pytest.mark.parametrize("step", [0, 1, 2])
def test_short_and_long_messages_are_refused(step: int) -> None:
    sent = messages()
    for bad in (b"", sent[step][:31], sent[step] + bytes(65536)):
        initiator, responder = pair()
        if step == 1:
            initiator.write_message(b"1")
        if step == 2:
            responder.read_message(sent[0])
            responder.write_message(b"2")
        with pytest.raises(NoiseError):
            (initiator if step == 1 else responder).read_message(bad)


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_low_order_ephemeral_keys_are_refused(point: bytes) -> None:
    initiator, responder = pair()
    responder.read_message(point)
    with pytest.raises(NoiseError, match="low-order"):
        responder.write_message()
    initiator.write_message()
    with pytest.raises(NoiseError, match="low-order"):
        initiator.read_message(point + bytes(64))


def test_another_prologue_is_noticed() -> None:
    initiator, responder = pair(b"one", b"two")
    responder.read_message(initiator.write_message())
    with pytest.raises(NoiseError):
        initiator.read_message(responder.write_message())


def test_calls_out_of_turn_are_our_own_fault() -> None:
    initiator, responder = pair()
    with pytest.raises(RuntimeError, match="turn"):
        initiator.read_message(b"")
    with pytest.raises(RuntimeError, match="turn"):
        responder.write_message()
    with pytest.raises(RuntimeError, match="not finished"):
        initiator.transport()
    with pytest.raises(ValueError, match="32 bytes"):
        HandshakeState(initiator=True, static_private=b"", ephemeral_private=b"b" * 32)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=10))
def test_transport_carries_both_ways(traffic: list[tuple[bool, bytes]]) -> None:
    ours, theirs = transports()
    for forth, data in traffic:
        sender, receiver = (ours, theirs) if forth else (theirs, ours)
        assert receiver.decrypt(sender.encrypt(data)) == data


def test_replayed_swapped_and_reflected_messages_are_refused() -> None:
    ours, theirs = transports()
    first, second = ours.encrypt(b"first"), ours.encrypt(b"second")
    for bad in (second, theirs.encrypt(b"reflected"), b"", bytes(15), bytes(70000)):
        with pytest.raises(NoiseError):
            theirs.decrypt(bad)
    assert theirs.decrypt(first) == b"first"
    with pytest.raises(NoiseError):
        theirs.decrypt(first)
    assert theirs.decrypt(second) == b"second"


def test_longest_message() -> None:
    ours, theirs = transports()
    sealed = ours.encrypt(bytes(65519))
    assert len(sealed) == 65535
    assert theirs.decrypt(sealed) == bytes(65519)
    with pytest.raises(ValueError, match="65520"):
        ours.encrypt(bytes(65520))


def test_last_nonce_is_never_used() -> None:
    cipher, other = CipherState(bytes(32)), CipherState(bytes(32))
    cipher._nonce = other._nonce = MAX_NONCE - 1
    assert other.decrypt(cipher.encrypt(b"last")) == b"last"
    with pytest.raises(NoiseError, match="used up"):
        cipher.encrypt(b"")
    with pytest.raises(NoiseError, match="used up"):
        other.decrypt(bytes(16))


# --- against another implementation: the package noiseprotocol, on other primitives (OpenSSL and hashlib) ---


class Theirs:
    """noiseprotocol with the interface of ours, as far as the tests go."""

    def __init__(self, *, initiator: bool, static_private: bytes, prologue: bytes) -> None:
        self._noise = NoiseConnection.from_name(PROTOCOL_NAME)
        (self._noise.set_as_initiator if initiator else self._noise.set_as_responder)()
        self._noise.set_prologue(prologue)
        self._noise.set_keypair_from_private_bytes(Keypair.STATIC, static_private)
        self._noise.start_handshake()

    def write_message(self, payload: bytes) -> bytes:
        return bytes(self._noise.write_message(payload))

    def read_message(self, message: bytes) -> bytes:
        return bytes(self._noise.read_message(message))

    @property
    def handshake_hash(self) -> bytes:
        return bytes(self._noise.get_handshake_hash())

    def encrypt(self, data: bytes) -> bytes:
        return bytes(self._noise.encrypt(data))

    def decrypt(self, data: bytes) -> bytes:
        return bytes(self._noise.decrypt(data))


keys = st.binary(min_size=32, max_size=32)
payloads = st.lists(st.binary(max_size=200), min_size=3, max_size=3)
traffic = st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=8)


@pytest.mark.parametrize("we_begin", [True, False], ids=["ours initiates", "theirs initiates"])
@given(secrets=st.tuples(keys, keys, keys), prologue=st.binary(max_size=50), payloads=payloads, traffic=traffic)
def test_speaks_with_another_implementation(
    we_begin: bool,
    secrets: tuple[bytes, bytes, bytes],
    prologue: bytes,
    payloads: list[bytes],
    traffic: list[tuple[bool, bytes]],
) -> None:
    ours, theirs, ephemeral = secrets
    us = HandshakeState(initiator=we_begin, static_private=ours, ephemeral_private=ephemeral, prologue=prologue)
    them = Theirs(initiator=not we_begin, static_private=theirs, prologue=prologue)
    writer: HandshakeState | Theirs
    reader: HandshakeState | Theirs
    writer, reader = (us, them) if we_begin else (them, us)
    for payload in payloads:
        assert reader.read_message(writer.write_message(payload)) == payload
        writer, reader = reader, writer
    transport = us.transport()
    assert us.remote_static == public_key(theirs)
    assert transport.handshake_hash == them.handshake_hash
    for forth, data in traffic:
        if forth:
            assert them.decrypt(transport.encrypt(data)) == data
        else:
            assert transport.decrypt(them.encrypt(data)) == data


def test_the_other_implementation_does_not_accept_another_prologue() -> None:
    us = HandshakeState(initiator=True, static_private=b"a" * 32, ephemeral_private=b"b" * 32, prologue=b"one")
    them = Theirs(initiator=False, static_private=b"c" * 32, prologue=b"two")
    them.read_message(us.write_message(b""))
    with pytest.raises(NoiseError):
        us.read_message(them.write_message(b""))
