import json
import logging

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
