"""What a node needs to come back from nothing: its seed, as words, and its channels, sealed.

The seed is the 32 bytes of the node's identity, from which its wallet and the keys of its channels derive, too
(`meshd.identity`). As words it is BIP39 with those bytes as the entropy (24 words); BIP39's own way from words to a
seed is not used, so that the nodes that there were before have words, too.

A bundle of channels holds no key, but tells who owed whom how much. It is sealed with a passphrase, when it holds the
seed, or with a key that derives from the seed. Pure: salts and nonces come from the caller.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
from embit import bip39
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from payments.records import ChannelRecord, LedgerRecord

SEED_BYTES, SALT_BYTES, NONCE_BYTES = 32, 16, 24
MAX_BACKUP_BYTES = 64 * 1024 * 1024
MIN_PASSPHRASE = 8
_MAGIC = b"meshd backup 1\n"
_BY_PASSPHRASE, _BY_SEED = b"P", b"S"
# A second on a Pi; libsodium's "moderate" would want 256 MiB, which not every router has.
_OPSLIMIT, _MEMLIMIT = 6, 64 * 1024 * 1024


class BackupError(Exception):
    """It cannot be opened: no backup, damaged, or another passphrase or seed. The message says which."""


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """`seed`: empty where it is what the backup is sealed with. `created_at`: seconds since 1970."""

    chain: str
    created_at: float
    height: int
    channels: tuple[ChannelRecord, ...] = ()
    ledgers: tuple[LedgerRecord, ...] = ()
    seed: bytes = b""


def words_of(seed: bytes) -> str:
    """24 words."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes")
    words: str = bip39.mnemonic_from_bytes(seed)
    return words


def seed_of(words: str) -> bytes:
    """Raises BackupError unless these are 24 words of BIP39's English list, in an order that their checksum knows."""
    text = " ".join(words.lower().split())
    try:
        seed: bytes = bip39.mnemonic_to_bytes(text)
    except (ValueError, IndexError) as error:
        raise BackupError(f"not a seed phrase: {error}") from error
    if len(seed) != SEED_BYTES:
        raise BackupError("a seed phrase has 24 words")
    return seed


def seal_with_passphrase(backup: Backup, passphrase: str, *, salt: bytes, nonce: bytes) -> bytes:
    """Raises ValueError for a passphrase of fewer than 8 characters."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise ValueError(f"a passphrase has {MIN_PASSPHRASE} characters at least")
    return _seal(backup, _BY_PASSPHRASE, _stretched(passphrase, salt), salt, nonce)


def seal_with_key(backup: Backup, key: bytes, *, nonce: bytes) -> bytes:
    """`key`: 32 bytes that derive from the seed."""
    return _seal(replace_seed(backup, b""), _BY_SEED, key, bytes(SALT_BYTES), nonce)


def replace_seed(backup: Backup, seed: bytes) -> Backup:
    return msgspec.structs.replace(backup, seed=seed)


def is_sealed_with_passphrase(data: bytes) -> bool:
    """Raises BackupError for what is no backup at all."""
    header = len(_MAGIC) + 1 + SALT_BYTES + NONCE_BYTES
    if not header < len(data) <= MAX_BACKUP_BYTES or not data.startswith(_MAGIC):
        raise BackupError("not a backup of meshd")
    return data[len(_MAGIC) : len(_MAGIC) + 1] == _BY_PASSPHRASE


def open_with_passphrase(data: bytes, passphrase: str) -> Backup:
    """Raises BackupError."""
    if not is_sealed_with_passphrase(data):
        raise BackupError("sealed with the node's seed, not with a passphrase: its words open it")
    salt = data[len(_MAGIC) + 1 : len(_MAGIC) + 1 + SALT_BYTES]
    return _open(data, _stretched(passphrase, salt), "another passphrase, or damaged")


def open_with_key(data: bytes, key: bytes) -> Backup:
    """Raises BackupError."""
    if is_sealed_with_passphrase(data):
        raise BackupError("sealed with a passphrase")
    return _open(data, key, "another node's, or damaged")


def slim(channel: ChannelRecord) -> ChannelRecord:
    """Without what the chain has, too."""
    return replace(channel, funding_raw=None, spend_raw=None)


def _stretched(passphrase: str, salt: bytes) -> bytes:
    key: bytes = argon2id.kdf(SecretBox.KEY_SIZE, passphrase.encode(), salt, opslimit=_OPSLIMIT, memlimit=_MEMLIMIT)
    return key


def _seal(backup: Backup, mode: bytes, key: bytes, salt: bytes, nonce: bytes) -> bytes:
    return _MAGIC + mode + salt + bytes(SecretBox(key).encrypt(msgspec.msgpack.encode(backup), nonce))


def _open(data: bytes, key: bytes, reason: str) -> Backup:
    try:
        body = SecretBox(key).decrypt(data[len(_MAGIC) + 1 + SALT_BYTES :])
        return msgspec.msgpack.decode(body, type=Backup)
    except (CryptoError, msgspec.MsgspecError, ValueError) as error:
        raise BackupError(reason) from error
