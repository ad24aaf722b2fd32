from __future__ import annotations

import hashlib
import os
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import pytest
from nacl import bindings

from meshd.identity import (
    Identity,
    IdentityError,
    load,
    load_or_create,
    overlay_address,
    router_id,
    x25519_public_key,
)

ALICE = Identity(bytes(range(32)))


def test_address_is_fd_and_the_first_120_bits_of_blake2b() -> None:
    digest = hashlib.blake2b(ALICE.public_key).hexdigest()
    assert overlay_address(ALICE.public_key) == IPv6Address(int("fd" + digest[:30], 16))
    assert ALICE.address in IPv6Network("fd00::/8")


def test_derived_values_never_change() -> None:
    # Another value here would give every existing node another address, another seed and other channel keys.
    assert ALICE.public_key.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert ALICE.address == IPv6Address("fd8c:1c17:48ad:451a:4f3d:b0e:467:dfa3")
    assert ALICE.router_id.hex() == "b27777f9e6ef73b0"
    assert (
        ALICE.derive_secret("wallet seed").hex() == "53ed9aa277efb6661ac2f2ce13db66ca80abdf5a2b4727226c5cbf2f3509b190"
    )


def test_x25519_keys_belong_together() -> None:
    assert bindings.crypto_scalarmult_base(ALICE.x25519_private) == ALICE.x25519_public
    assert x25519_public_key(ALICE.public_key) == ALICE.x25519_public


@pytest.mark.parametrize(
    "key", [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31), b"\x02" + bytes(31), b"\xff" * 32]
)
def test_what_is_no_ed25519_key_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="Ed25519"):
        x25519_public_key(key)


def test_router_id_is_eight_bytes_and_differs_by_key() -> None:
    assert len(ALICE.router_id) == 8
    assert router_id(Identity(bytes(32)).public_key) != ALICE.router_id


def test_derived_secrets_are_separate() -> None:
    secrets = [
        ALICE.seed,
        ALICE.derive_secret("wallet seed"),
        ALICE.derive_secret("channel key"),
        ALICE.derive_secret("channel key", context=b"1"),
        Identity(bytes(32)).derive_secret("wallet seed"),
    ]
    assert len(set(secrets)) == len(secrets)
    assert len(ALICE.derive_secret("wallet seed", size=64)) == 64
    with pytest.raises(ValueError, match="purpose"):
        ALICE.derive_secret("seventeen letters")


def test_seed_is_not_shown() -> None:
    assert ALICE.seed.hex() not in repr(ALICE)
    assert repr(ALICE.seed) not in repr(ALICE)


def test_first_start_makes_a_private_file_and_later_ones_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "identity.key"
    made = load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create(path) == made
    assert os.listdir(path.parent) == ["identity.key"]


def test_two_nodes_differ(tmp_path: Path) -> None:
    assert load_or_create(tmp_path / "a") != load_or_create(tmp_path / "b")


def test_mode_0600_even_under_a_loose_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create(tmp_path / "key")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_or_create(path)


@pytest.mark.parametrize("content", [b"", b"xyz", b"00" * 31, b"00" * 33, b"\xff" * 64])
def test_damaged_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="does not hold a key"):
        load_or_create(path)
    assert path.read_bytes() == content


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", mode=0o600)
    (tmp_path / "directory").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="not a regular file"):
        load_or_create(tmp_path / "pipe")
    with pytest.raises(IdentityError, match="cannot read"):
        load_or_create(tmp_path / "directory")
    with pytest.raises(IdentityError, match="cannot read"):
        load_or_create(tmp_path / "link")
    with pytest.raises(IdentityError, match="cannot read"):
        load_or_create(tmp_path / "file" / "key")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
