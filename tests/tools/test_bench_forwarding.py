"""The names by which readers find the cases of tools/bench/forwarding."""

from __future__ import annotations

from tools.bench.forwarding_bench import _SPECS


def test_each_case_has_a_name_of_its_own_that_says_what_is_on() -> None:
    names = [spec.name for spec in _SPECS]
    assert len(set(names)) == len(names) == 2 * 8 * 2 + 8 + 5
    assert all(name.startswith(("metered, ", "enforced, ", "wireguard, ", "ends too, ")) for name in names)
    assert "metered, TCP IPv6, full packets, 1 flow, bare veth" in names
    assert "wireguard, TCP IPv4, full packets, 1 flow, against bare WireGuard" in names
    assert "enforced, UDP IPv6, 64 bytes, 1,000 flows, links of 1 Gbit/s" in names
