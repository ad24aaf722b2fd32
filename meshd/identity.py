"""The node's identity: one Ed25519 key, and everything that is derived from it.

The overlay address is `fd` followed by the first 120 bits of BLAKE2b-512 of the public key (no key, salt or person), so
that anybody can check it with `b2sum`, and nobody can claim another's without finding a 120-bit second preimage.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv6Address
from pathlib import Path

from nacl import bindings
from nacl.exceptions import CryptoError

SEED_LENGTH = 32
PUBLIC_KEY_LENGTH = 32
ROUTER_ID_LENGTH = 8
_SIGNATURE_LENGTH = 64
_MAX_PURPOSE_LENGTH = hashlib.blake2b.PERSON_SIZE  # 16


class IdentityError(Exception):
    """The key file cannot be made, read or trusted; the message says which file and what to do."""


def overlay_address(public_key: bytes) -> IPv6Address:
    """The only overlay address that the holder of this Ed25519 key (32 bytes) may use."""
    _require_public_key(public_key)
    return IPv6Address(b"\xfd" + hashlib.blake2b(public_key).digest()[:15])


def router_id(public_key: bytes) -> bytes:
    """8 bytes for Babel. RFC 8966 section 4.1.3 forbids all zeroes and all ones: 2 in 2^64, its owner's loss."""
    _require_public_key(public_key)
    return hashlib.blake2b(public_key, digest_size=ROUTER_ID_LENGTH, person=b"meshd router-id").digest()


def tunnel_address(public_key: bytes) -> IPv6Address:
    """The link-local address that the holder of this key has inside all of its tunnels."""
    _require_public_key(public_key)
    return IPv6Address(
        b"\xfe\x80" + bytes(6) + hashlib.blake2b(public_key, digest_size=8, person=b"meshd tunnel").digest()
    )


def x25519_public_key(public_key: bytes) -> bytes:
    """The X25519 key (Noise static key, WireGuard) of an Ed25519 public key.

    Raises ValueError when it is no key: not 32 bytes, not on the curve, or not of the prime-order group.
    A key and its negative convert to the same X25519 key; whoever holds one holds the other.
    """
    _require_public_key(public_key)
    try:
        return bindings.crypto_sign_ed25519_pk_to_curve25519(public_key)
    except CryptoError as error:
        raise ValueError("not an Ed25519 public key") from error


def _require_public_key(public_key: bytes) -> None:
    if len(public_key) != PUBLIC_KEY_LENGTH:
        raise ValueError(f"an Ed25519 public key is {PUBLIC_KEY_LENGTH} bytes, not {len(public_key)}")


@dataclass(frozen=True)
class Identity:
    """A node's key. `seed` is the secret: never logged, never in repr."""

    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_LENGTH:
            raise ValueError(f"an Ed25519 seed is {SEED_LENGTH} bytes, not {len(self.seed)}")

    @cached_property
    def _key_pair(self) -> tuple[bytes, bytes]:
        return bindings.crypto_sign_seed_keypair(self.seed)

    @property
    def public_key(self) -> bytes:
        """Ed25519, 32 bytes: the node's name towards its neighbours."""
        return self._key_pair[0]

    @cached_property
    def x25519_private(self) -> bytes:
        return bindings.crypto_sign_ed25519_sk_to_curve25519(self._key_pair[1])

    @cached_property
    def x25519_public(self) -> bytes:
        return x25519_public_key(self.public_key)

    @cached_property
    def address(self) -> IPv6Address:
        return overlay_address(self.public_key)

    @cached_property
    def router_id(self) -> bytes:
        return router_id(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature, 64 bytes."""
        return bindings.crypto_sign(message, self._key_pair[1])[:_SIGNATURE_LENGTH]

    def derive_secret(self, purpose: str, *, context: bytes = b"", size: int = 32) -> bytes:
        """A secret of its own for each purpose (1 to 16 ASCII bytes: "wallet seed") and context (a channel's id).

        Keyed BLAKE2b with the purpose as person: one derived secret tells nothing of the seed or of another.
        """
        person = purpose.encode("ascii")
        if not 1 <= len(person) <= _MAX_PURPOSE_LENGTH:
            raise ValueError(f"purpose {purpose!r} is not 1 to {_MAX_PURPOSE_LENGTH} bytes")
        return hashlib.blake2b(context, digest_size=size, key=self.seed, person=person).digest()


def load_or_create(path: Path) -> Identity:
    """The identity in the file; made, with mode 0600, at the first start. Raises IdentityError."""
    try:
        return load(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}") from error
    try:
        create(path, secrets.token_bytes(SEED_LENGTH))
        return load(path)
    except OSError as error:
        raise IdentityError(f"cannot make {path}: {error.strerror}") from error


def load(path: Path) -> Identity:
    """Raises FileNotFoundError, other OSErrors, and IdentityError for a file that must not be used."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        _require_private(path, os.fstat(descriptor))
        text = file.read(2 * SEED_LENGTH + 2)
    try:
        seed = bytes.fromhex(text.decode("ascii").strip())
        return Identity(seed)
    except ValueError as error:
        raise IdentityError(
            f"{path} does not hold a key ({2 * SEED_LENGTH} hex digits). Restore it from a backup; "
            "deleting it gives this node a new identity and gives up its channels"
        ) from error


def _require_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IdentityError(f"{path} is not a regular file")
    if status.st_mode & 0o077:
        raise IdentityError(f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise IdentityError(f"{path} belongs to another user (uid {status.st_uid})")


def create(path: Path, seed: bytes) -> None:
    """Writes aside, then links: a crash leaves the whole key or none, and two starts at once end with one key. What is
    there already stays. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(seed.hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
