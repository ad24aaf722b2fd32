import json
import logging
import os
import sys

import pytest

from meshd import logs


@pytest.fixture(autouse=True)
def _restore_logging():  # type: ignore[no-untyped-def]
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_appends_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "text")
    logs.Logger("meshd.test").info("route installed", prefix="fd00::/8", txid=b"\x01\xff", metric=96)
    line = capsys.readouterr().err
    assert "meshd.test: route installed prefix=fd00::/8 txid=01ff metric=96" in line


def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("debug", "json")
    logs.Logger("meshd.test").debug("payment sent", msat=12, peer=b"\xab")
    entry = json.loads(capsys.readouterr().err)
    assert entry.pop("time") > 0
    assert entry == {"level": "debug", "logger": "meshd.test", "event": "payment sent", "msat": 12, "peer": "ab"}


def test_below_the_level_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("warning", "text")
    logs.Logger("meshd.test").info("quiet")
    assert capsys.readouterr().err == ""


def test_what_a_peer_said_cannot_look_like_a_line_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "text")
    logs.Logger("meshd.test").info("channel", reason="no\n12:00:00 ERROR all is lost\x1b[2J")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "\x1b" not in said


def test_the_journal_gets_the_level_of_each_line_and_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    status = os.fstat(writer)
    monkeypatch.setattr(logs, "_STDERR", writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        logs.set_up("debug", "text")
        logs.Logger("meshd.x").warning("first\nsecond", peer=b"\x01")
        logs.Logger("meshd.x").debug("third")
    with open(reader, encoding="utf-8") as lines:
        assert lines.read().splitlines() == ["<4>meshd.x: first", "<4>second peer=01", "<7>meshd.x: third"]


def test_another_stream_than_the_journals_is_written_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    logs.set_up("info", "text")
    logs.Logger("meshd").info("up")
    assert capsys.readouterr().err.endswith("INFO    meshd: up\n")
