"""Words and sealed bundles: what comes out is what went in, or nothing does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from payments.backup import (
    Backup,
    BackupError,
    open_with_key,
    open_with_passphrase,
    seal_with_key,
    seal_with_passphrase,
    seed_of,
    words_of,
)
from tests.payments.world import World

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "bip39.json").read_text())["vectors"]
SALT, NONCE, KEY = b"s" * 16, b"n" * 24, b"k" * 32


@pytest.fixture(scope="module")
def backup() -> Backup:
    world = World().with_channel()
    world.meter(world.b, world.a, 6_000)
    world.advance(5.0)
    state = world.a.store.load()
    return Backup(
        chain="regtest",
        created_at=1.5,
        height=state.height,
        channels=state.channels,
        ledgers=state.ledgers,
        seed=b"A" * 32,
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["entropy"][:8])
def test_words_are_those_of_the_published_vectors(vector: dict[str, str]) -> None:
    assert words_of(bytes.fromhex(vector["entropy"])) == vector["mnemonic"]
    assert seed_of(f"  {vector['mnemonic'].upper()}\n") == bytes.fromhex(vector["entropy"])


@pytest.mark.parametrize(
    "words",
    ["", "abandon", "abandon " * 24, "zoo " * 23 + "vote zoo", "abandon " * 11 + "about", "nonsense " * 23 + "art"],
)
def test_words_that_are_no_seed_are_refused(words: str) -> None:
    with pytest.raises(BackupError):
        seed_of(words)


def test_a_passphrase_opens_what_it_sealed(backup: Backup) -> None:
    sealed = seal_with_passphrase(backup, "correct horse", salt=SALT, nonce=NONCE)
    assert open_with_passphrase(sealed, "correct horse") == backup
    assert b"A" * 32 not in sealed
    with pytest.raises(BackupError, match="another passphrase"):
        open_with_passphrase(sealed, "correct house")
    with pytest.raises(BackupError, match="passphrase"):
        open_with_key(sealed, KEY)
    with pytest.raises(ValueError, match="8 characters"):
        seal_with_passphrase(backup, "horse", salt=SALT, nonce=NONCE)


def test_a_key_opens_what_it_sealed_and_the_seed_is_not_in_it(backup: Backup) -> None:
    sealed = seal_with_key(backup, KEY, nonce=NONCE)
    opened = open_with_key(sealed, KEY)
    assert (opened.channels, opened.ledgers, opened.seed) == (backup.channels, backup.ledgers, b"")
    with pytest.raises(BackupError, match="another node"):
        open_with_key(sealed, b"x" * 32)
    with pytest.raises(BackupError, match="words open it"):
        open_with_passphrase(sealed, "correct horse")


def test_any_changed_byte_is_noticed(backup: Backup) -> None:
    sealed = seal_with_key(backup, KEY, nonce=NONCE)
    for place in range(0, len(sealed), 7):
        if 16 <= place < 32:  # the salt, which a key does not need
            continue
        forged = bytearray(sealed)
        forged[place] ^= 1
        with pytest.raises(BackupError):
            open_with_key(bytes(forged), KEY)
    for length in (0, 10, 56, len(sealed) - 1):
        with pytest.raises(BackupError):
            open_with_key(sealed[:length], KEY)
