"""`meshctl config`: files made, looked up and changed; and the JSON Schema of them."""

from __future__ import annotations

import grp
import io
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import ValidationError

from meshd import config_edit
from meshd.config import ARRAYS, TABLES, Config, ConfigError, parse
from meshd.config_edit import NoSuchKeyError
from meshd.config_reference import example_config, json_schema, reference
from meshd.ctl.main import main
from tests.meshd.schema import validate
from tests.meshd.test_ctl import Terminal

TEXT = """\
# mine
[[interface]]   # the roof
name = "wlan0"
#cost = 96

[[interface]]
name = "eth0"
security = "none"
mac_keys = [
  { algorithm = "hmac-sha256", key = "00112233445566778899aabbccddeeff" },  # old
]
cost = 10 # cheap

[routing]
announce = ["10.0.0.0/24"]
"""


def set_key(key: str, value: str, text: str = TEXT) -> str:
    return config_edit.changed(config_edit.find(key, text), value, text)


@pytest.mark.parametrize(
    ("key", "value", "before", "after"),
    [
        ("interface.eth0.cost", "256", "cost = 10 # cheap", "cost = 256"),
        ("interface.2.cost", "256", "cost = 10 # cheap", "cost = 256"),
        ("interface.wlan0.cost", "256", "#cost = 96", "cost = 256"),
        ("interface.wlan0.kind", "wireless", "# the roof\n", '# the roof\nkind = "wireless"\n'),
        ("routing.announce", "[]", '["10.0.0.0/24"]', "[]"),
        ("routing.hello_interval", "2.5", "[routing]\n", "[routing]\nhello_interval = 2.5\n"),
        ("node.name", "roof", '"10.0.0.0/24"]\n', '"10.0.0.0/24"]\n\n[node]\nname = "roof"\n'),
        (
            "interface.eth0.mac_keys",
            "[]",
            '[\n  { algorithm = "hmac-sha256", key = "00112233445566778899aabbccddeeff" },  # old\n]',
            "[]",
        ),
    ],
)
def test_one_key_is_changed_and_every_other_line_stays(key: str, value: str, before: str, after: str) -> None:
    assert TEXT.count(before) == 1
    assert set_key(key, value) == TEXT.replace(before, after)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("rooting.port", 'no table rooting; did you mean "routing"?'),
        ("routing.prot", 'no key prot in routing; did you mean "port"?'),
        ("interface.wlan7.cost", "no [[interface]] 'wlan7'; there are: wlan0, eth0"),
        ("interface.cost", "no [[interface]] ''; there are: wlan0, eth0"),
        ("peer.1.cost", "no [[peer]] '1'; there are: none"),
    ],
)
def test_keys_that_are_none(key: str, message: str) -> None:
    with pytest.raises(NoSuchKeyError) as caught:
        config_edit.find(key, TEXT)
    assert str(caught.value) == message


def test_what_would_be_wrong_is_not_written() -> None:
    for key, value in (("routing.port", "0"), ("routing.update_interval", "1"), ("interface.wlan0.name", "eth0")):
        with pytest.raises(ConfigError):
            set_key(key, value)


def test_values_given_and_by_default() -> None:
    def value(key: str) -> tuple[Any, bool]:
        return config_edit.value_of(config_edit.find(key, TEXT), TEXT)

    assert value("interface.eth0.cost") == (10, True)
    assert value("interface.wlan0.cost") == (96, False)
    assert value("routing.mode") == ("router", False)
    assert value("node.record") == (None, False)
    assert value("routing.stub_prefixes") == (["::/0", "0.0.0.0/0"], False)


SCALARS = [key for key in reference() if key.table not in ARRAYS and key.default is not None]


@given(st.data())
def test_any_default_can_be_set_in_any_order_and_is_read_again(data: st.DataObject) -> None:
    text, wanted = TEXT, {}
    for key in data.draw(st.lists(st.sampled_from(SCALARS), max_size=6)):
        assert key.default is not None
        text = set_key(f"{key.table}.{key.name}", key.default, text)
        wanted[key.table, key.name] = tomllib.loads(f"x = {key.default}")["x"]
    document = tomllib.loads(text)
    assert all(document[table][name] == value for (table, name), value in wanted.items())


def test_differences_name_keys_and_tables() -> None:
    new = parse('[routing]\nport = 1\nmode = "leaf"\n[[interface]]\nname = "a"\n')
    assert config_edit.differences(Config(), Config()) == []
    assert config_edit.differences(Config(), new) == ["interface", "routing.port", "routing.mode"]


# --- the JSON Schema


def test_schema_has_every_key_and_takes_the_example() -> None:
    schema = json_schema()
    for key in reference():
        table = schema["properties"][key.table]
        table = table.get("items", table)
        described = table["properties"][key.name]
        assert described["description"] == key.doc
        assert set(described) > {"description"}, f"{key.table}.{key.name} says nothing of its values"
        assert (key.name in table["required"]) is key.is_required
    assert set(schema["properties"]) == set(TABLES)
    everything = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in example_config().splitlines()
    )
    validate(tomllib.loads(everything), schema)
    validate(tomllib.loads(TEXT), schema)


@pytest.mark.parametrize(
    "text",
    [
        "[routing]\nport = 0",
        "[routing]\nprot = 1",
        "[rooting]",
        "[[interface]]\ncost = 1",
        '[node]\nlog_level = "loud"',
        '[node]\nname = "a b"',
        '[routing]\nunpriced = "dear"',
    ],
)
def test_schema_refuses_what_the_loader_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)
    with pytest.raises(ValidationError):
        validate(tomllib.loads(text), json_schema())


# --- the commands


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main([*arguments])
    return code, capsys.readouterr().out.strip()


def test_init_by_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "etc" / "meshd.toml"
    line = "--interface wlan0:wireless --interface eth0:wired:none --name roof --announce 10.1.0.0/24 --fee 5"
    code, shown = run(capsys, "config", "init", *line.split(), "--network", "test", "--output", str(path))
    assert (code, shown) == (0, f"{path}: ok (wlan0, eth0)")
    config = parse(path.read_text())
    assert [(i.name, i.kind.value, i.security) for i in config.interfaces] == [
        ("wlan0", "wireless", "wireguard"), ("eth0", "wired", "none")
    ]  # fmt: skip
    assert (config.node.name, config.price.fee_msat_per_gb, config.chain.network) == ("roof", 5, "test")
    assert stat.S_IMODE(path.stat().st_mode) & 0o037 == 0
    assert "# Time between full announcements of all routes." in path.read_text()
    assert run(capsys, "config", "init", "--interface", "a", "--output", str(path))[0] == 1
    assert run(capsys, "config", "init", "--interface", "a", "--output", str(path), "--force", "--no-payments")[0] == 0
    assert not parse(path.read_text()).payments.enabled
    assert run(capsys, "config", "init", "--interface", "a:b", "--output", str(tmp_path / "x"))[0] == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_new_file_can_be_read_by_the_group_of_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = grp.getgrgid(1)  # there is one everywhere
    monkeypatch.setattr(config_edit, "_GROUP", group.gr_name)
    config_edit.write(tmp_path / "new", TEXT)
    status = (tmp_path / "new").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 1, 0o640)


def test_init_by_asking(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meshd.toml"
    monkeypatch.setattr("sys.stdin", Terminal("wlan0 eth0\nwireless\n\nwired\nyes\nroof\n\n0.25\nsignet\n"))
    assert run(capsys, "config", "init", "--output", str(path))[0] == 0
    config = parse(path.read_text())
    assert [(i.name, i.kind.value, i.security) for i in config.interfaces] == [
        ("wlan0", "wireless", "wireguard"), ("eth0", "wired", "none")
    ]  # fmt: skip
    assert (config.node.name, config.price.fee_msat_per_gb, config.chain.network) == ("roof", 250_000, "signet")
    path.unlink()
    for answers in (io.StringIO("wlan0\n"), Terminal("wlan0\n")):  # nobody there, and one who leaves
        monkeypatch.setattr("sys.stdin", answers)
        assert run(capsys, "config", "init", "--output", str(path))[0] == 2
        assert not path.exists()


def test_check_get_and_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "meshd.toml"
    where = ("--config", str(path))
    assert run(capsys, "config", "check", *where)[0] == 3
    path.write_text(TEXT)
    path.chmod(0o604)
    assert run(capsys, "config", "check", *where) == (0, f"{path}: ok (wlan0, eth0)")
    assert run(capsys, "config", "get", "routing.port", *where) == (0, "6696 (by default)")
    assert run(capsys, "config", "set", "routing.port", "6000", *where) == (0, "6000")
    assert run(capsys, "config", "get", "routing.port", *where) == (0, "6000")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert os.listdir(tmp_path) == ["meshd.toml"]
    assert run(capsys, "config", "set", "routing.port", "0", *where)[0] == 2
    assert run(capsys, "config", "set", "routing.prot", "0", *where)[0] == 3
    assert parse(path.read_text()).routing.port == 6000
    code, shown = run(capsys, "config", "get", "interface.eth0.mac_keys", "--json", *where)
    assert (code, json.loads(shown)["result"]["value"]) == (0, "(not shown)")
    path.write_text("[rooting]")
    assert run(capsys, "config", "check", *where)[0] == 1


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = run(capsys, "config", "schema")
    assert (code, json.loads(shown)) == (0, json_schema())
