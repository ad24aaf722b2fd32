from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError, replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from meshd.config import NOT_FOR_SALE, Config, ConfigError, load, parse
from meshd.config_reference import example_config, reference
from routing.authentication import MacAlgorithm, MacKey
from routing.events import LinkKind

AUTO = '[price]\nprice = "auto"\ncapacity_mbit = 10\n'
FILTER = '[[filter]]\ndirection = "import"\n'


def test_empty_file_is_the_defaults() -> None:
    assert parse("") == Config()


def test_full_file() -> None:
    config = parse(
        """
        [node]
        name = "n1"
        state_dir = "/tmp/n1"
        log_format = "json"
        [[interface]]
        name = "wlan0"
        kind = "wireless"
        cost = 256
        [[interface]]
        name = "eth0"
        security = "none"
        [routing]
        announce = ["10.1.0.0/24", "fd00:1::/64"]
        announce_from = ["0.0.0.0/0 from 10.1.0.0/24"]
        hello_interval = 1
        [price]
        fee_msat_per_gb = "not for sale"
        [payments]
        enabled = false
        [chain]
        backend = "kernel"
        """
    )
    assert config.node.name == "n1"
    assert config.node.state_dir == Path("/tmp/n1")  # noqa: S108
    assert [(item.name, item.kind, item.cost, item.security) for item in config.interfaces] == [
        ("wlan0", LinkKind.WIRELESS, 256, "wireguard"),
        ("eth0", LinkKind.WIRED, 96, "none"),
    ]
    assert config.routing.announce == (ip_network("10.1.0.0/24"), ip_network("fd00:1::/64"))
    assert config.routing.announce_from == ((ip_network("0.0.0.0/0"), ip_network("10.1.0.0/24")),)
    assert config.routing.hello_interval == 1.0 and isinstance(config.routing.hello_interval, float)
    assert config.price.fee_msat_per_gb == NOT_FOR_SALE
    assert not config.payments.enabled


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        parse("").node.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rooting]", 'unknown table [rooting]; did you mean "routing"?'),
        (
            "name = 1",
            "unknown table [name]; known are node, interface, discovery, peer, routing, filter, redistribute, price, "
            "budget, payments, neighbour, chain, backend",
        ),
        ("[routing]\nhelo_interval = 1", '[routing]: unknown key helo_interval; did you mean "hello_interval"?'),
        (
            "[chain]\nzzz = 1",
            "[chain]: unknown key zzz; known are backend, socket, rpc_host",
        ),
        ('[[interface]]\nname="a"\ncots = 1', '[[interface]] number 1: unknown key cots; did you mean "cost"?'),
        ("[[interface]]\n", "[[interface]] number 1: name is missing (an interface name of 1 to 15 characters)"),
        ("[interface]\n", "interfaces are written as [[interface]], with two brackets, one for each"),
        ("node = 3", "[node] must be a table"),
        ("[routing]\nport = 70000", "[routing]: port = 70000: expected an integer from 1 to 65535"),
        ("[routing]\nport = true", "[routing]: port = True: expected an integer from 1 to 65535"),
        ('[routing]\nport = "6696"', '[routing]: port = "6696": expected an integer from 1 to 65535'),
        ("[routing]\nhello_interval = nan", "[routing]: hello_interval = nan: expected seconds from 0.05 to 600"),
        ("[payments]\ntick = 0", "[payments]: tick = 0: expected seconds from 0.1 to 60"),
        ("[payments]\nenabled = 1", "[payments]: enabled = 1: expected true or false"),
        ('[node]\nstate_dir = "var"', '[node]: state_dir = "var": expected an absolute path'),
        ('[node]\nrecord = "here"', '[node]: record = "here": expected an absolute path, or "" for none'),
        ('[node]\nlog_level = "loud"', 'expected "debug" or "info" or "warning" or "error"'),
        ('[node]\nname = "a b"', "expected 1 to 63 letters, digits, dots, hyphens or underscores"),
        ('[[interface]]\nname = "a/b"', "expected an interface name of 1 to 15 characters"),
        ('[[interface]]\nname = "a"\nsecurity = "wep"', 'expected "wireguard" or "none"'),
        ('[chain]\nbackend = "bank"', 'backend = "bank": expected "kernel" or "bitcoind"'),
        ("[chain]\nbackend = []", 'backend = []: expected "kernel" or "bitcoind"'),
        ('[routing]\nannounce = ["10.0.0.1/24"]', "a list of prefixes: 10.0.0.1/24 has host bits set"),
        ('[routing]\nannounce = "10.0.0.0/24"', "expected a list of prefixes, such as"),
        ('[routing]\nannounce_from = ["::/0"]', 'expected a list such as ["::/0 from 2001:db8:1::/48"]'),
        ('[routing]\nannounce_from = ["::/0 from 10.0.0.0/8"]', "both of one family, and not from everywhere"),
        ('[routing]\nannounce_from = ["::/0 from ::/0"]', "both of one family, and not from everywhere"),
        ('[routing]\nannounce_from = "::/0 from 2001:db8::/32"', "expected a list such as"),
        ('[price]\nfee_msat_per_gb = "free"', 'fee_msat_per_gb = "free": expected an integer from 0 to 4294967294, or'),
        ('[price]\nprice = "auto"', 'capacity_mbit = 0: expected what the node can carry, for price = "auto"'),
        (AUTO + "floor_msat_per_gb = 9\nceiling_msat_per_gb = 8", "floor_msat_per_gb = 9: expected at most ceiling"),
        (AUTO + "fee_msat_per_gb = 5", "fee_msat_per_gb = 5: expected from floor_msat_per_gb (1000) to"),
        ("[price]\nfee_msat_per_gb = 4294967295", "fee_msat_per_gb = 4294967295: expected an integer from 0"),
        ('[[interface]]\nname="a"\n[[interface]]\nname="a"', '[[interface]]: name = "a" is there 2 times'),
        ("[payments]\nwindow_msat = 2000000", "window_msat = 2000000: expected at most max_window_msat (1000000)"),
        ("[payments]\nmax_window_msat = 200000000", "max_window_msat = 200000000: expected at most what a channel"),
        ("[payments]\nexpiry_margin_blocks = 1500", "expiry_margin_blocks = 1500: expected less than a third of"),
        ("[routing]\nupdate_interval = 1", "update_interval = 1: expected at least hello_interval (4)"),
        ("[node\n", "at line 1"),
        ("[filter]\n", "filters are written as [[filter]], with two brackets, one for each"),
        ("[[filter]]\n", "[[filter]] number 1: direction is missing"),
        ('[[filter]]\ndirection = "import"\nprefx = "::/0"', 'unknown key prefx; did you mean "prefix"?'),
        ('[[filter]]\ndirection = "in"', 'direction = "in": expected "import" or "export"'),
        (FILTER + 'prefix = "10.0.0.1/8"', 'prefix = "10.0.0.1/8": expected a prefix: 10.0.0.1/8 has host bits set'),
        (FILTER + "prefix = 10", "prefix = 10: expected a prefix, such as"),
        (FILTER + 'neighbour = "fd00::1"', 'neighbour = "fd00::1": expected a link-local address'),
        ('[[filter]]\ndirection = "export"\nneighbour = "fe80::1"', "neighbour is for import only"),
        (FILTER + 'router_id = "02:00"', 'router_id = "02:00": expected a router-id, such as'),
        (
            FILTER + 'interface = "eht0"\n[[interface]]\nname = "eth0"',
            'interface = "eht0": there is no such [[interface]]; did you mean "eth0"?',
        ),
        (FILTER + 'action = "refuse"\nadd_metric = 5', "add_metric = 5: a route that is refused has no metric"),
        (FILTER + "add_metric = -1", "add_metric = -1: expected an integer from 0 to 65534"),
        (FILTER + "min_length = 5\nmax_length = 4", "max_length = 4: expected at least 5"),
        (FILTER + 'prefix = "10.0.0.0/8"\nmax_length = 33', 'expected lengths up to 32 for prefix = "10.0.0.0/8"'),
        (FILTER + 'prefix = "10.0.0.0/8"\nmax_length = 7', "max_length = 7: expected at least 8"),
        ('[[redistribute]]\nprotocol = "dchp"', 'protocol = "dchp": expected a number from 1 to 255, or kernel, boot'),
        ("[[redistribute]]\nprotocol = 66", "expected another than our own (66)"),
        ('[routing]\nunpriced = "dear"', 'unpriced = "dear": expected "free", "refuse", or an integer'),
        ('[routing]\nmode = "root"', 'mode = "root": expected "router" or "leaf" or "stub"'),
    ],
)
def test_errors_say_what_is_wrong_where_and_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_nothing_is_recorded_unless_a_file_is_given() -> None:
    assert parse('[node]\nrecord = ""').node.record is None
    assert parse('[node]\nrecord = "/var/tmp/r"').node.record == Path("/var/tmp/r")  # noqa: S108


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "meshd.toml"
    with pytest.raises(ConfigError, match=r"meshd\.toml: No such file"):
        load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"meshd\.toml: not UTF-8"):
        load(path)
    path.write_text("[rooting]")
    with pytest.raises(ConfigError, match=r"meshd\.toml: unknown table"):
        load(path)
    path.write_text("[routing]\nport = 1234")
    assert load(path).routing.port == 1234


def test_example_is_the_defaults_and_one_interface() -> None:
    config = parse(example_config())
    assert [interface.name for interface in config.interfaces] == ["wlan0"]
    assert parse(example_config().replace("[[interface]]\n", "").replace('name = "wlan0"', "")) == Config()


def test_every_key_is_in_the_example_and_its_shown_default_is_taken() -> None:
    uncommented = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in example_config().splitlines()
    )
    document = tomllib.loads(uncommented)
    for key in reference():
        table = document[key.table]
        table = table[0] if isinstance(table, list) else table
        assert key.name in table
        assert key.doc.endswith(".") and key.expected
        if key.default is not None:
            assert tomllib.loads(f"value = {key.default}")["value"] == table[key.name]
        else:
            assert key.is_required or key.table in (
                "filter",
                "redistribute",
                "node",
                "peer",
                "neighbour",
                "chain",
                "backend",
            )
    full = parse(uncommented)
    assert (
        len(full.filters)
        == len(full.redistributions)
        == len(full.peers)
        == len(full.neighbours)
        == len(full.backends)
        == 1
    )
    assert replace(full, filters=(), redistributions=(), peers=(), neighbours=(), backends=()) == parse(
        example_config()
    )


@pytest.mark.parametrize(
    ("keys", "lengths"),
    [
        ("", (0, 128)),
        ("max_length = 24", (0, 24)),
        ('prefix = "10.0.0.0/8"', (8, 8)),
        ('prefix = "10.0.0.0/8"\nor_longer = true', (8, 128)),
        ('prefix = "10.0.0.0/8"\nor_longer = true\nmax_length = 24', (8, 24)),
        ('prefix = "10.0.0.0/8"\nmin_length = 16', (16, 128)),
        ('prefix = "10.0.0.0/8"\nmax_length = 16', (8, 16)),
        ('prefix = "10.0.0.0/8"\nmin_length = 16\nmax_length = 24', (16, 24)),
    ],
)
def test_lengths_of_a_prefix_that_match(keys: str, lengths: tuple[int, int]) -> None:
    assert parse(FILTER + keys).filters[0].lengths == lengths


SECRET = "c0ffee33445566778899aabbccddeeff"  # noqa: S105
SHA_KEY = f'{{ algorithm = "hmac-sha256", key = "{SECRET}" }}'


def mac_keys(text: str) -> tuple[MacKey, ...]:
    return parse(f'[[interface]]\nname = "eth0"\nsecurity = "none"\nmac_keys = [{text}]\n').interfaces[0].mac_keys


def test_mac_keys_stand_in_the_file_or_in_one_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    keys = mac_keys(f'{SHA_KEY}, {{ algorithm = "blake2s128", file = "{tmp_path}/key" }}')
    octets = bytes.fromhex(SECRET)
    assert keys == (MacKey(MacAlgorithm.HMAC_SHA256, octets), MacKey(MacAlgorithm.BLAKE2S, octets))
    assert SECRET not in repr(keys) and repr(octets) not in repr(keys)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (f'"{SECRET}"', "each key to be"),
        (f'{{ algorithm = "md5", key = "{SECRET}" }}', '"hmac-sha256" or "blake2s128"'),
        (f'{{ algorithm = "blake2s128", key = "{SECRET * 3}" }}', "1 to 32 octets"),
        (f'{{ algorithm = "blake2s128", key = "{SECRET}x" }}', "1 to 32 octets"),
        ('{ algorithm = "blake2s128", key = 12 }', "1 to 32 octets"),
        ('{ algorithm = "hmac-sha256", file = "/nonexistent" }', "/nonexistent to hold a key: No such file"),
        (", ".join([SHA_KEY] * 5), "up to 4 keys"),
    ],
)
def test_wrong_mac_keys_are_not_shown(keys: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mac_keys(keys)
    message = str(caught.value)
    assert "mac_keys = (not shown)" in message and expected in message
    assert SECRET not in message


@pytest.mark.parametrize("security", ['security = "wireguard"', ""])
def test_mac_keys_are_for_links_without_wireguard(security: str) -> None:
    text = f'[[interface]]\nname = "eth0"\n{security}\nmac_keys = [{SHA_KEY}]'
    with pytest.raises(ConfigError, match='expected security = "none"; WireGuard authenticates by itself'):
        parse(text)


KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
OTHER_KEY = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"


def peer(keys: str, name: str = "gw", identity: str = KEY) -> str:
    return f'[[peer]]\nname = "{name}"\nidentity = "{identity}"\n{keys}\n'


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("gw.example.org:51820", ("gw.example.org", 51820)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_peers_across_the_internet(text: str, endpoint: tuple[str, int]) -> None:
    config = parse(peer(f'endpoint = "{text}"') + peer("listen_port = 51820\nkeepalive = 0", "pi", OTHER_KEY))
    assert [(p.name, p.identity.hex(), p.endpoint, p.listen_port, p.keepalive, p.cost) for p in config.peers] == [
        ("gw", KEY, endpoint, 0, 25, 96),
        ("pi", OTHER_KEY, None, 51820, 0, 96),
    ]
    filters = parse(peer("listen_port = 1") + FILTER + 'interface = "gw"').filters
    assert filters[0].interface == "gw"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (peer(""), '[[peer]] "gw": expected an endpoint, where it waits, or a listen_port, where we wait for it'),
        (peer("listen_port = 1", identity="00" * 32), "expected an identity: "),
        (peer("listen_port = 1", identity="ab"), "expected an identity: 64 hexadecimal digits"),
        (peer("listen_port = 1", "a") * 2, '[[peer]] "a": name = a: taken by [[peer]] number 1'),
        (peer("listen_port = 1") + peer("listen_port = 2", "b"), f"identity = {KEY}: taken by [[peer]] number 1"),
        (
            peer("listen_port = 7") + peer("listen_port = 7", "b", OTHER_KEY),
            '[[peer]] "b": listen_port = 7: taken by [[peer]] number 1',
        ),
        (peer("listen_port = 6698"), "listen_port = 6698: taken by port = 6698 in [discovery]"),
        (peer("listen_port = 1") + '[[interface]]\nname = "gw"', 'name = gw: taken by [[interface]] "gw"'),
        *(
            (peer(f'endpoint = "{text}"'), "expected a name or an address with a port, such as")
            for text in ("gw", "gw:0", "gw:65536", "2001:db8::1:5", "300.1.1.1:5", "[gw]:5", "a b:5")
        ),
        (peer('endpoint = "[fe80::1]:5"'), "expected an address that can be reached from afar"),
    ],
)
def test_what_is_wrong_with_a_peer(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_debts_with_one_neighbour_can_be_settled_otherwise() -> None:
    key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    table = f'[[neighbour]]\nidentity = "{key}"\n'
    config = parse(f'[payments]\nsettlement = "null"\n{table}settlement = "credit"\ncredit_limit_msat = 7\n')
    (neighbour,) = config.neighbours
    assert config.payments.settlement == "null"
    assert (neighbour.identity.hex(), neighbour.settlement, neighbour.credit_limit_msat) == (key, "credit", 7)
    with pytest.raises(ConfigError, match=r"number 2: identity = d75a.*: taken by an earlier one"):
        parse(table + table)
    with pytest.raises(ConfigError, match='expected "cltv" or "credit" or "null"'):
        parse('[payments]\nsettlement = "lightning"\n')
