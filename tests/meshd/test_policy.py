"""From the configuration to the speaker's policy; the examples of docs/routing-policy.md are configurations."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv6Address, ip_network
from pathlib import Path

import pytest

from meshd.config import Config, parse
from meshd.config_reference import reference
from meshd.policy import policy_of
from routing.config import Mode
from routing.filters import REFUSED, Policy, Rule

PAGE = Path(__file__).resolve().parents[2] / "docs" / "routing-policy.md"


def examples(key_file: Path) -> list[Config]:
    page = PAGE.read_text().replace("/etc/meshd/mesh.key", str(key_file))
    return [parse(text) for text in re.findall(r"^```toml\n(.*?)^```", page, flags=re.M | re.S)]


DEFAULT = Policy(price_max_msat_per_gb=Config().routing.max_price_msat_per_gb)


def test_nothing_is_refused_by_default() -> None:
    assert policy_of(Config()) == DEFAULT and DEFAULT.is_import_open


def test_every_key_of_a_filter_gets_into_its_rule() -> None:
    config = parse(
        """
        [[interface]]
        name = "eth0"
        [[filter]]
        direction = "export"
        action = "refuse"
        prefix = "10.0.0.0/8"
        [[filter]]
        direction = "import"
        add_metric = 7
        prefix = "fd00::/8"
        min_length = 48
        max_length = 64
        source_prefix = "fd01::/16"
        interface = "eth0"
        neighbour = "fe80::1"
        router_id = "02:00:5e:00:53:00:00:01"
        price_above_msat_per_gb = 9
        """
    )
    router_id = bytes.fromhex("02005e0053000001")
    prefix, source_prefix = ip_network("fd00::/8"), ip_network("fd01::/16")
    imported = Rule(7, prefix, 48, 64, "eth0", IPv6Address("fe80::1"), router_id, 9, source_prefix)
    exported = Rule(REFUSED, ip_network("10.0.0.0/8"), 8, 8)
    assert policy_of(config) == replace(DEFAULT, imports=(imported,), exports=(exported,))


def test_what_is_said_of_an_interface_holds_for_the_tunnels_over_it() -> None:
    config = parse(
        """
        [[interface]]
        name = "eth0"
        security = "wireguard"
        [[interface]]
        name = "eth1"
        [[filter]]
        direction = "import"
        interface = "eth0"
        add_metric = 1
        [[filter]]
        direction = "import"
        interface = "eth1"
        add_metric = 2
        [[filter]]
        direction = "export"
        add_metric = 3
        """
    )
    policy = policy_of(config, {"eth0": ["mw1", "mw2"]})
    assert [(rule.interface, rule.add_metric) for rule in policy.imports] == [("mw1", 1), ("mw2", 1), ("eth1", 2)]
    assert [(rule.interface, rule.add_metric) for rule in policy.exports] == [(None, 3)]
    assert [rule.interface for rule in policy_of(config, {"eth0": []}).imports] == ["eth1"]


@pytest.mark.parametrize(("word", "price"), [('"free"', 0), ('"refuse"', None), ("500", 500)])
def test_unpriced(word: str, price: int | None) -> None:
    assert policy_of(parse(f"[routing]\nunpriced = {word}")) == replace(DEFAULT, unpriced_msat_per_gb=price)


def test_the_examples_of_the_page_say_what_the_page_says(tmp_path: Path) -> None:
    key_file = tmp_path / "mesh.key"
    key_file.write_text("ab" * 32 + "\n")
    filters, gateway, leaf, unpriced, authenticated = examples(key_file)
    policy = policy_of(filters)
    assert [rule.add_metric for rule in policy.imports] == [REFUSED, 1000, 0, REFUSED]
    assert policy.exports == (Rule(REFUSED, ip_network("10.0.0.0/8"), 25, 128, "wlan0"),)
    assert [(rule.protocol, rule.lengths, rule.metric) for rule in gateway.redistributions] == [
        (16, (0, 0), 0),
        (9, (0, 0), 256),
    ]
    assert leaf.routing.mode is Mode.LEAF
    assert policy_of(unpriced).unpriced_msat_per_gb == 500_000
    assert [key.secret for key in authenticated.interfaces[0].mac_keys] == [b"\xab" * 32]


def test_the_page_has_every_key() -> None:
    page = PAGE.read_text()
    for kind in ("filter", "redistribute"):
        from_reference = {key.name for key in reference() if key.table == kind}
        assert from_reference and {name for name in from_reference if name not in page} == set()
