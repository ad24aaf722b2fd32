"""Backups on the file system: what a node keeps, what meshctl makes of it, and what it refuses to overwrite."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import trio

from meshd import backup as backups
from meshd.backup import CHANNEL_FILE, IDENTITY_FILE, STORE_FILE, ChannelFile
from meshd.ctl.main import main
from meshd.identity import create, load
from payments.adapters.store import Store
from payments.backup import BackupError
from payments.events import OperatorCloseChannels
from payments.records import EngineState
from tests.payments.world import World

PASSPHRASE = "correct horse"  # noqa: S105


def paid() -> EngineState:
    world = World().with_channel()
    world.meter(world.b, world.a, 6_000)
    world.advance(5.0)
    return world.a.engine.records()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A state directory with an identity and its channel file."""
    state_dir = tmp_path / "node"
    state_dir.mkdir()
    create(state_dir / IDENTITY_FILE, b"A" * 32)
    trio.run(channel_file(state_dir, paid()).write_if_changed)
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\n")
    return state_dir


def channel_file(state_dir: Path, state: EngineState) -> ChannelFile:
    identity = load(state_dir / IDENTITY_FILE)
    return ChannelFile(state_dir / CHANNEL_FILE, identity, "regtest", lambda: state)


def ctl(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object]]:
    code = main([*map(str, arguments), "--json"])
    shown = json.loads(capsys.readouterr().out)
    return code, shown.get("result") or shown["error"]


def restored(state_dir: Path) -> EngineState:
    store = Store.open(state_dir / STORE_FILE)
    try:
        return store.load()
    finally:
        store.close()


def test_a_node_comes_back_from_its_exported_file(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other, passphrase = tmp_path / "file", tmp_path / "other", tmp_path / "passphrase"
    code, shown = ctl(capsys, "backup", "export", file, "--state-dir", node, "--passphrase-file", passphrase)
    assert (code, shown["channels"]) == (0, 1)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"A" * 32 not in file.read_bytes()
    restore = ("backup", "restore", file, "--state-dir", other, "--passphrase-file", passphrase)
    assert ctl(capsys, *restore)[0] == 2  # it asks, or wants --yes
    assert not other.exists()
    code, again = ctl(capsys, *restore, "--yes")
    assert (code, again["identity"]) == (0, shown["identity"])
    assert load(other / IDENTITY_FILE) == load(node / IDENTITY_FILE)
    before, after = paid(), restored(other)
    assert [c.signature for c in after.channels] == [c.signature for c in before.channels]
    assert (after.ledgers, after.height) == (before.ledgers, before.height)


def test_a_node_comes_back_from_its_words_and_its_channel_file(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl(capsys, "backup", "words", "--state-dir", node)[0] == 2
    code, shown = ctl(capsys, "backup", "words", "--state-dir", node, "--yes")
    assert code == 0
    words = tmp_path / "words"
    words.write_text(str(shown["words"]))
    alone, whole = tmp_path / "alone", tmp_path / "whole"
    arguments = ("--words-file", words, "--yes", "--state-dir")
    assert ctl(capsys, "backup", "restore", *arguments, alone)[1]["channels"] == 0
    assert ctl(capsys, "backup", "restore", node / CHANNEL_FILE, *arguments, whole)[1]["channels"] == 1
    assert load(alone / IDENTITY_FILE) == load(whole / IDENTITY_FILE) == load(node / IDENTITY_FILE)
    assert len(restored(whole).channels) == 1


@pytest.mark.parametrize("there", [IDENTITY_FILE, STORE_FILE])
def test_what_is_there_is_never_overwritten(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    """A database that is there is newer than any backup, and another identity is another node's money."""
    data, _ = backups.export(node, PASSPHRASE)
    (tmp_path / "file").write_bytes(data)
    other = tmp_path / "other"
    other.mkdir()
    if there == IDENTITY_FILE:
        create(other / there, b"B" * 32)
    else:
        Store.open(other / there).close()
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    arguments = ("--state-dir", other, "--passphrase-file", tmp_path / "passphrase", "--yes")
    code, shown = ctl(capsys, "backup", "restore", tmp_path / "file", *arguments)
    assert (code, shown["code"]) == (1, "error")
    assert "move it away" in str(shown["message"])
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_another_passphrase_and_another_nodes_file_are_refused(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = backups.export(node, PASSPHRASE)
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "passphrase").write_text("incorrect horse")
    arguments = ("--state-dir", tmp_path / "other", "--passphrase-file", tmp_path / "passphrase", "--yes")
    assert ctl(capsys, "backup", "restore", tmp_path / "file", *arguments)[0] == 1
    with pytest.raises(BackupError, match="another node"):
        backups.open_with_seed((node / CHANNEL_FILE).read_bytes(), b"B" * 32)
    assert ctl(capsys, "backup", "export", node / IDENTITY_FILE, "--state-dir", node)[0] == 1
    assert not (tmp_path / "other").exists()


def test_the_channel_file_follows_the_channels_and_not_every_payment(node: Path) -> None:
    world = World().with_channel()

    async def scenario() -> None:
        identity = load(node / IDENTITY_FILE)
        file = ChannelFile(node / CHANNEL_FILE, identity, "regtest", world.a.engine.records)
        await file.write_if_changed()
        first = os.stat(node / CHANNEL_FILE).st_ino
        world.meter(world.b, world.a, 6_000)
        world.advance(5.0)
        await file.write_if_changed()
        assert os.stat(node / CHANNEL_FILE).st_ino == first
        world.b.give(OperatorCloseChannels())
        world.pump()
        await file.write_if_changed()
        assert os.stat(node / CHANNEL_FILE).st_ino != first
        opened = backups.open_with_seed((node / CHANNEL_FILE).read_bytes(), identity.seed)
        assert opened.channels[0].cumulative_msat == 6_001

    trio.run(scenario)
