"""`Noise_XX_25519_ChaChaPoly_BLAKE2b`: handshake and transport, without I/O.

Source: The Noise Protocol Framework, revision 34 (https://noiseprotocol.org/noise.html); sections cited are its own.
Primitives are libsodium's through PyNaCl; HMAC is the standard library's. The cipher is called without PyNaCl's
wrapper, which takes longer to check its arguments than libsodium to seal a payment: they are checked here.

    initiator                                   responder
    write_message(b"")          -> e
                                e, ee, s, es <- write_message(payload)
    write_message(payload)      -> s, se
    transport()                                 transport()

What the other side sent wrong raises `NoiseError`, after which the object is of no more use; what our own caller does
out of turn raises `RuntimeError`.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from nacl import bindings
from nacl._sodium import ffi, lib  # type: ignore[import-not-found]
from nacl.exceptions import CryptoError

PROTOCOL_NAME = b"Noise_XX_25519_ChaChaPoly_BLAKE2b"
KEY_LENGTH = 32  # DHLEN and the cipher's key, both 32 (sections 12.1, 12.3)
TAG_LENGTH = 16
HASH_LENGTH = 64  # section 12.7: BLAKE2b with a 64-byte digest
MAX_MESSAGE_LENGTH = 65535  # section 3
MAX_NONCE = 2**64 - 1  # section 5.1: reserved for rekey, never used
_SHORT_LENGTH = 512  # what each cipher has room for: a payment, and most else

# Section 7.5, pattern XX. Payload encryption follows the tokens of each message.
_XX = (("e",), ("e", "ee", "s", "es"), ("s", "se"))


class NoiseError(Exception):
    """The other side's message is malformed, forged, replayed or too long, or the session's nonces are used up."""


def public_key(private: bytes) -> bytes:
    """The X25519 public key of a 32-byte private key."""
    return bindings.crypto_scalarmult_base(private)


def _dh(private: bytes, public: bytes) -> bytes:
    # libsodium refuses an all-zero result, which is what every low-order point gives (section 12.1 leaves it open).
    try:
        return bindings.crypto_scalarmult(private, public)
    except CryptoError as error:
        raise NoiseError("low-order public key") from error


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data).digest()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.blake2b).digest()


def _hkdf2(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """HKDF with two outputs (section 4.3)."""
    temporary = _hmac(chaining_key, material)
    first = _hmac(temporary, b"\x01")
    return first, _hmac(temporary, first + b"\x02")


def _room(length: int) -> tuple[Any, Any]:
    """For libsodium to write to, and the same to read from as bytes."""
    cells = ffi.new("unsigned char[]", length)
    return cells, ffi.buffer(cells)


class CipherState:
    """A key and its nonce counter (section 5.1). Every message is used once and in order."""

    __slots__ = ("_key", "_nonce", "_short")

    def __init__(self, key: bytes) -> None:
        if not isinstance(key, bytes) or len(key) != KEY_LENGTH:
            raise ValueError("a cipher's key has 32 bytes")
        self._key = key
        self._nonce = 0
        self._short = _room(_SHORT_LENGTH)

    def encrypt(self, plaintext: bytes, associated_data: bytes = b"") -> bytes:
        """Raises NoiseError when the nonces are used up."""
        nonce = self._next_nonce()
        length = len(plaintext) + TAG_LENGTH
        cells, content = self._short if length <= _SHORT_LENGTH else _room(length)
        given = (plaintext, len(plaintext), associated_data, len(associated_data), ffi.NULL, nonce, self._key)
        if lib.crypto_aead_chacha20poly1305_ietf_encrypt(cells, ffi.NULL, *given) != 0:
            raise RuntimeError("libsodium did not encrypt")
        self._nonce += 1
        sealed: bytes = content[:length]
        return sealed

    def decrypt(self, ciphertext: bytes, associated_data: bytes = b"") -> bytes:
        """Raises NoiseError when it was not sealed with this key and nonce; the nonce then stays (section 5.1)."""
        if len(ciphertext) < TAG_LENGTH:
            raise NoiseError("ciphertext shorter than its tag")
        nonce = self._next_nonce()
        length = len(ciphertext) - TAG_LENGTH
        cells, content = self._short if length <= _SHORT_LENGTH else _room(length)
        given = (ciphertext, len(ciphertext), associated_data, len(associated_data), nonce, self._key)
        if lib.crypto_aead_chacha20poly1305_ietf_decrypt(cells, ffi.NULL, ffi.NULL, *given) != 0:
            raise NoiseError("authentication failed")
        self._nonce += 1
        plaintext: bytes = content[:length]
        return plaintext

    def _next_nonce(self) -> bytes:
        if self._nonce >= MAX_NONCE:
            raise NoiseError("nonces used up")
        return (self._nonce << 32).to_bytes(12, "little")  # section 12.3: 32 bits of zeros, then 64 of the counter


class _SymmetricState:
    """Chaining key and transcript hash (section 5.2)."""

    __slots__ = ("chaining_key", "cipher", "hash")

    def __init__(self, prologue: bytes) -> None:
        # The name is shorter than HASHLEN, hence padded and not hashed.
        self.hash = PROTOCOL_NAME.ljust(HASH_LENGTH, b"\0")
        self.chaining_key = self.hash
        self.cipher: CipherState | None = None
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.hash = _hash(self.hash + data)

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, key = _hkdf2(self.chaining_key, material)
        self.cipher = CipherState(key[:KEY_LENGTH])

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = plaintext if self.cipher is None else self.cipher.encrypt(plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = sealed if self.cipher is None else self.cipher.decrypt(sealed, self.hash)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        first, second = _hkdf2(self.chaining_key, b"")
        return CipherState(first[:KEY_LENGTH]), CipherState(second[:KEY_LENGTH])


class Transport:
    """Both directions after the handshake (section 5.3, Split). Messages are at most 65,535 bytes, tag included."""

    __slots__ = ("_receiving", "_sending", "handshake_hash", "remote_static")

    def __init__(
        self, sending: CipherState, receiving: CipherState, *, handshake_hash: bytes, remote_static: bytes
    ) -> None:
        self._sending = sending
        self._receiving = receiving
        self.handshake_hash = handshake_hash  # 64 bytes: names this session (channel binding, section 11.2)
        self.remote_static = remote_static

    def encrypt(self, plaintext: bytes) -> bytes:
        """Raises ValueError above 65,519 bytes."""
        if len(plaintext) > MAX_MESSAGE_LENGTH - TAG_LENGTH:
            raise ValueError(f"{len(plaintext)} bytes do not fit a Noise message")
        return self._sending.encrypt(plaintext)

    def decrypt(self, message: bytes) -> bytes:
        """Raises NoiseError when it is not the peer's next message."""
        if len(message) > MAX_MESSAGE_LENGTH:
            raise NoiseError("message too long")
        return self._receiving.decrypt(message)


class HandshakeState:
    """One side of the XX handshake (section 5.3).

    Private keys are 32 bytes; `ephemeral_private` must be random and used once.
    """

    def __init__(
        self, *, initiator: bool, static_private: bytes, ephemeral_private: bytes, prologue: bytes = b""
    ) -> None:
        if len(static_private) != KEY_LENGTH or len(ephemeral_private) != KEY_LENGTH:
            raise ValueError("private keys are 32 bytes")
        self._initiator = initiator
        self._symmetric = _SymmetricState(prologue)
        self._static = static_private
        self._ephemeral = ephemeral_private
        self._remote_ephemeral = b""
        self._remote_static = b""
        self._step = 0
        self._failed = False

    @property
    def is_finished(self) -> bool:
        return self._step == len(_XX)

    @property
    def remote_static(self) -> bytes | None:
        """The peer's static key, once it was received and authenticated."""
        return self._remote_static or None

    def write_message(self, payload: bytes = b"") -> bytes:
        """Our next handshake message. Raises NoiseError when a key of the peer is of low order."""
        self._require_turn(writing=True)
        self._failed = True  # until it went well
        buffer = b"".join([self._write_token(word) for word in _XX[self._step]])
        buffer += self._symmetric.encrypt_and_hash(payload)
        if len(buffer) > MAX_MESSAGE_LENGTH:
            raise ValueError("payload does not fit a Noise message")
        self._failed = False
        self._step += 1
        return buffer

    def read_message(self, message: bytes) -> bytes:
        """The payload of the peer's next handshake message. Raises NoiseError."""
        self._require_turn(writing=False)
        if len(message) > MAX_MESSAGE_LENGTH:
            raise NoiseError("message too long")
        self._failed = True  # until it went well
        for word in _XX[self._step]:
            message = self._read_token(word, message)
        payload = self._symmetric.decrypt_and_hash(message)
        self._failed = False
        self._step += 1
        return payload

    def transport(self) -> Transport:
        """The session's ciphers, once both sides are done."""
        if not self.is_finished:
            raise RuntimeError("the handshake is not finished")
        first, second = self._symmetric.split()  # the first is the initiator's to send with
        sending, receiving = (first, second) if self._initiator else (second, first)
        return Transport(sending, receiving, handshake_hash=self._symmetric.hash, remote_static=self._remote_static)

    def _require_turn(self, *, writing: bool) -> None:
        if self._failed:
            raise NoiseError("the handshake has failed")
        our_turn = (self._step % 2 == 0) == self._initiator
        if self.is_finished or our_turn != writing:
            raise RuntimeError("out of turn")

    def _write_token(self, word: str) -> bytes:
        if word == "e":
            ephemeral = public_key(self._ephemeral)
            self._symmetric.mix_hash(ephemeral)
            return ephemeral
        if word == "s":
            return self._symmetric.encrypt_and_hash(public_key(self._static))
        self._mix_dh(word)
        return b""

    def _read_token(self, word: str, message: bytes) -> bytes:
        """Takes what the token reads off the front; gives the rest."""
        if word == "e":
            self._remote_ephemeral, rest = _take(message, KEY_LENGTH)
            self._symmetric.mix_hash(self._remote_ephemeral)
            return rest
        if word == "s":
            sealed, rest = _take(message, KEY_LENGTH + TAG_LENGTH)
            self._remote_static = self._symmetric.decrypt_and_hash(sealed)
            return rest
        self._mix_dh(word)
        return message

    def _mix_dh(self, names: str) -> None:
        # The first letter is the initiator's key, the second the responder's.
        ours, theirs = (names[0], names[1]) if self._initiator else (names[1], names[0])
        private = self._ephemeral if ours == "e" else self._static
        public = self._remote_ephemeral if theirs == "e" else self._remote_static
        self._symmetric.mix_key(_dh(private, public))


def _take(message: bytes, length: int) -> tuple[bytes, bytes]:
    if len(message) < length:
        raise NoiseError("message too short")
    return message[:length], message[length:]
