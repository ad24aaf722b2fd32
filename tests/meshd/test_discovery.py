"""Beacons and the table that they fill, in virtual time."""

from __future__ import annotations

from ipaddress import IPv6Address
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd import beacon as wire
from meshd.beacon import Beacon, BeaconError
from meshd.discovery import (
    CHECKS_PER_SECOND,
    LIFETIME_INTERVALS,
    LIFETIME_MAX,
    NEWCOMERS_PER_SECOND,
    PROOF_TIMEOUT,
    Discovery,
    Output,
    PeerFound,
    PeerLost,
    SendBeacon,
)
from meshd.identity import Identity
from meshd.tunnel import interface_name
from meshd.tunnels import next_incarnation

ALICE, BOB, CAROL, MALLORY = (Identity(bytes([n]) * 32) for n in range(1, 5))
ADDRESS = {ALICE: IPv6Address("fe80::a"), BOB: IPv6Address("fe80::b"), CAROL: IPv6Address("fe80::c")}
NETWORK = wire.network_tag("regtest")
INTERVAL = 5.0


def node(identity: Identity, *, incarnation: int = 1, max_peers: int = 64) -> Discovery:
    return Discovery(identity, network=NETWORK, incarnation=incarnation, interval=INTERVAL, max_peers=max_peers)


def beacons(outputs: list[Output]) -> list[bytes]:
    return [output.data for output in outputs if isinstance(output, SendBeacon)]


def beacon_of(identity: Identity, address: IPv6Address, *, number: int = 1, incarnation: int = 1) -> bytes:
    said = Beacon(identity.public_key, incarnation, number, 3.5 * INTERVAL, address)
    return wire.encode(said, identity, network=NETWORK)


def decode(data: bytes, *, source: IPv6Address, network: bytes) -> Beacon:
    heard = wire.parse(data, source=source, network=network)
    wire.verify(data, heard.public_key)
    return heard


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(1, 65535),
    st.dictionaries(st.binary(min_size=8, max_size=8), st.integers(0, 65535), max_size=wire.MAX_PEERS),
)
def test_what_is_said_is_understood(incarnation: int, number: int, lifetime_cs: int, ports: dict[bytes, int]) -> None:
    said = Beacon(ALICE.public_key, incarnation, number, lifetime_cs / 100, ADDRESS[ALICE], ports)
    data = wire.encode(said, ALICE, network=NETWORK)
    assert decode(data, source=ADDRESS[ALICE], network=NETWORK) == said
    assert len(data) <= wire.MAX_LENGTH <= 1232  # fits the smallest IPv6 MTU


@given(st.data())
def test_whatever_is_changed_on_the_way_is_refused(data: st.DataObject) -> None:
    good = beacon_of(ALICE, ADDRESS[ALICE])
    at = data.draw(st.integers(0, len(good) - 1))
    changed = bytearray(good)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BeaconError):
        decode(bytes(changed), source=ADDRESS[ALICE], network=NETWORK)


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    for start in (b"", b"mesh\x01", beacon_of(ALICE, ADDRESS[ALICE])[:110]):
        with pytest.raises(BeaconError):
            decode(start + data, source=ADDRESS[ALICE], network=NETWORK)


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (b"", "beacon_malformed"),
        (beacon_of(BOB, ADDRESS[ALICE]), "beacon_source"),  # his words from another address
        (
            wire.encode(Beacon(BOB.public_key, 1, 1, 1.0, ADDRESS[BOB]), BOB, network=wire.network_tag("main")),
            "beacon_foreign",
        ),
        (beacon_of(ALICE, ADDRESS[BOB]), "beacon_own"),
        (b"mesh\x02" + beacon_of(BOB, ADDRESS[BOB])[5:], "beacon_version"),
        (beacon_of(BOB, ADDRESS[BOB])[:-1] + b"!", "beacon_forged"),
    ],
)
def test_what_is_refused_is_counted_and_changes_nothing(data: bytes, counter: str) -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    assert alice.receive("wlan0", ADDRESS[BOB], data, now=0.1) == []
    assert alice.counters == {counter: 1}
    assert alice.peers() == {"wlan0": []}


def test_two_nodes_find_each_other_with_ports_within_a_moment() -> None:
    alice, bob = node(ALICE), node(BOB)
    (first,) = beacons(alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0))
    bob.interface_up("eth0", ADDRESS[BOB], now=100.0)
    assert bob.receive("eth0", ADDRESS[ALICE], first, now=100.0) == [
        PeerFound("eth0", ALICE.public_key, ADDRESS[ALICE], None)
    ]
    bob.listening("eth0", ALICE.public_key, 4242, now=100.03)
    assert bob.next_deadline() <= 100.2
    (answer,) = beacons(bob.expire(now=bob.next_deadline()))
    assert alice.receive("wlan0", ADDRESS[BOB], answer, now=0.2) == [
        PeerFound("wlan0", BOB.public_key, ADDRESS[BOB], 4242)
    ]


def test_who_is_started_anew_is_answered_at_once() -> None:
    alice, bob = node(ALICE), node(BOB)
    (first,) = beacons(alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0))
    bob.interface_up("eth0", ADDRESS[BOB], now=0.0)
    bob.receive("eth0", ADDRESS[ALICE], first, now=0.0)
    bob.listening("eth0", ALICE.public_key, 4242, now=0.1)
    port_by_tag = {wire.peer_tag(BOB.public_key): 4343}
    said = Beacon(ALICE.public_key, 1, 2, LIFETIME_INTERVALS * INTERVAL, ADDRESS[ALICE], port_by_tag)
    for n in range(1, 31):
        bob.expire(now=n / 10)
    bob.receive("eth0", ADDRESS[ALICE], wire.encode(said, ALICE, network=NETWORK), now=3.0)
    assert bob.next_deadline() > 3.5  # it is content
    (first,) = beacons(node(ALICE, incarnation=2).interface_up("wlan0", ADDRESS[ALICE], now=0.0))
    assert bob.receive("eth0", ADDRESS[ALICE], first, now=4.0) == [
        PeerFound("eth0", ALICE.public_key, ADDRESS[ALICE], None)
    ]
    assert bob.next_deadline() <= 4.1
    (answer,) = beacons(bob.expire(now=4.1))
    assert decode(answer, source=ADDRESS[BOB], network=NETWORK).port_by_tag == {wire.peer_tag(ALICE.public_key): 4242}


def test_beacons_that_are_nearly_due_go_together() -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    alice.interface_up("eth0", ADDRESS[CAROL], now=0.0)
    alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB]), now=1.0)
    alice.receive("eth0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB]), now=1.3)
    sent = [len(beacons(alice.expire(now=n / 10))) for n in range(20, 160)]
    assert sorted(set(sent)) == [0, 2]


def test_a_beacon_is_taken_once_and_an_older_one_never() -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    assert alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB], number=2), now=1.0)
    for number, incarnation in ((2, 1), (1, 1), (900, 0)):
        replay = beacon_of(BOB, ADDRESS[BOB], number=number, incarnation=incarnation)
        assert alice.receive("wlan0", ADDRESS[BOB], replay, now=2.0) == []
    assert alice.counters == {"beacon_stale": 3}
    lost = alice.expire(now=1.0 + LIFETIME_INTERVALS * INTERVAL)
    assert PeerLost("wlan0", BOB.public_key) in lost  # a replay has not kept it alive
    again = beacon_of(BOB, ADDRESS[BOB], number=1, incarnation=2)  # it has restarted
    assert alice.receive("wlan0", ADDRESS[BOB], again, now=30.0)


def test_a_peer_that_moves_is_told_as_found_again() -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB]), now=1.0)
    moved = beacon_of(BOB, ADDRESS[CAROL], number=2)
    assert alice.receive("wlan0", ADDRESS[CAROL], moved, now=2.0) == [
        PeerFound("wlan0", BOB.public_key, ADDRESS[CAROL], None)
    ]


def test_strangers_drive_out_strangers_but_nobody_who_has_proven_itself() -> None:
    alice = node(ALICE, max_peers=2)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB]), now=1.0)
    alice.heard("wlan0", BOB.public_key, now=1.5)
    alice.receive("wlan0", ADDRESS[CAROL], beacon_of(CAROL, ADDRESS[CAROL]), now=2.0)
    outputs = alice.receive("wlan0", ADDRESS[CAROL], beacon_of(MALLORY, ADDRESS[CAROL]), now=3.0)
    assert outputs[0] == PeerLost("wlan0", CAROL.public_key)
    alice.heard("wlan0", MALLORY.public_key, now=3.5)
    assert alice.receive("wlan0", ADDRESS[CAROL], beacon_of(CAROL, ADDRESS[CAROL], number=2), now=4.0) == []
    assert alice.counters == {"beacon_limit": 1}
    assert {peer.peer for peer in alice.peers()["wlan0"]} == {BOB.public_key, MALLORY.public_key}


def test_a_flood_of_beacons_costs_a_bounded_number_of_signature_checks() -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    forged = beacon_of(BOB, ADDRESS[BOB])[:-1] + b"!"
    for n in range(10 * CHECKS_PER_SECOND):
        alice.receive("wlan0", ADDRESS[BOB], forged, now=n / 10_000)
    assert alice.counters["beacon_forged"] <= 1.3 * CHECKS_PER_SECOND
    assert sum(alice.counters.values()) == 10 * CHECKS_PER_SECOND


def test_what_strangers_send_does_not_keep_us_from_hearing_those_who_are_there() -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB]), now=0.0)
    forged = beacon_of(MALLORY, ADDRESS[CAROL], number=5)[:-1] + b"!"
    for _ in range(20 * CHECKS_PER_SECOND):
        alice.receive("wlan0", ADDRESS[CAROL], forged, now=5.0)
        alice.receive("wlan0", ADDRESS[CAROL], b"junk", now=5.0)
    assert alice.counters["beacon_rate"] > 0
    moved = beacon_of(BOB, ADDRESS[CAROL], number=2)
    assert alice.receive("wlan0", ADDRESS[CAROL], moved, now=5.0) == [
        PeerFound("wlan0", BOB.public_key, ADDRESS[CAROL], None)
    ]


def test_the_newest_beacon_of_a_peer_is_not_forgotten_over_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.discovery.MAX_REMEMBERED", 2)
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB], number=2), now=0.0)
    for n in range(10, 20):
        alice.receive("wlan0", ADDRESS[BOB], beacon_of(Identity(bytes([n]) * 32), ADDRESS[BOB]), now=1.0)
    old = beacon_of(BOB, ADDRESS[CAROL], number=1)
    assert alice.receive("wlan0", ADDRESS[CAROL], old, now=2.0) == []
    assert alice.counters == {"beacon_stale": 1}


def test_strangers_without_end_cost_a_bounded_number_of_tunnels_and_each_has_time_to_prove_itself() -> None:
    alice = node(ALICE, max_peers=8)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    found_at: dict[bytes, float] = {}
    stayed = []
    for n in range(1, 1000):
        stranger = Identity(n.to_bytes(32, "big"))
        for output in alice.receive("wlan0", ADDRESS[BOB], beacon_of(stranger, ADDRESS[BOB]), now=n / 100):
            if isinstance(output, PeerFound):
                found_at[output.peer] = n / 100
            elif isinstance(output, PeerLost):
                stayed.append(n / 100 - found_at[output.peer])
    assert 8 < len(found_at) <= 8 + 10 * NEWCOMERS_PER_SECOND
    assert min(stayed[8:]) >= 1.9  # a handshake takes less
    assert alice.counters["beacon_limit"] == 999 - len(found_at)


def test_beacons_go_on_and_news_does_not_make_them_a_storm() -> None:
    alice = node(ALICE)
    now, sent = 0.0, len(beacons(alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)))
    for n in range(1, 200):
        now = n * 0.01
        other = Identity(n.to_bytes(32, "big"))
        alice.receive("wlan0", ADDRESS[BOB], beacon_of(other, ADDRESS[BOB]), now=now)
        sent += len(beacons(alice.expire(now=now)))
    assert 10 <= sent <= 24  # one in a tenth of a second, whatever happens
    quiet = []
    (first, *_) = alice.peers()["wlan0"]
    for n in range(1, 61):
        alice.heard("wlan0", first.peer, now=now + n)
        quiet += alice.expire(now=now + n)
    assert 10 <= len(beacons(quiet)) <= 14


def test_who_has_nobody_there_says_so_more_often() -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    times = [n / 10 for n in range(1, 201) if beacons(alice.expire(now=n / 10))]
    assert max(later - earlier for earlier, later in pairwise(times)) <= 0.7 and len(times) <= 45
    alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB]), now=20.0)
    times = [20 + n / 10 for n in range(1, 175) if beacons(alice.expire(now=20 + n / 10))]
    assert len(times) <= 5
    assert PeerLost("wlan0", BOB.public_key) in alice.expire(now=37.5)
    assert beacons(alice.expire(now=38.4))  # alone again


def test_an_interface_that_goes_takes_its_peers_along() -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB]), now=1.0)
    assert alice.interface_down("wlan0") == [PeerLost("wlan0", BOB.public_key)]
    assert alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB], number=2), now=2.0) == []
    assert alice.next_deadline() == float("inf")


def test_an_incarnation_grows_even_if_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "incarnation"
    monkeypatch.setattr("time.time_ns", lambda: 5_000_000_000)
    assert [next_incarnation(path) for _ in range(3)] == [5000, 5001, 5002]
    monkeypatch.setattr("time.time_ns", lambda: 9_000_000_000)
    assert next_incarnation(path) == 9000
    monkeypatch.setattr("time.time_ns", lambda: 0)
    assert next_incarnation(path) == 9001
    monkeypatch.setattr("time.time_ns", lambda: 9_500_000_000)
    for n, damaged in enumerate(("damaged", "9" * 30, str(2**63), "-7", "9" * 5000)):
        path.write_text(damaged)
        assert next_incarnation(path) == 9500 and next_incarnation(path) == 9501, n
    path.write_bytes(b"\xff\xfe")
    assert next_incarnation(path) == 9500
    path.write_text(str(2**63 - 1))
    wire.encode(Beacon(ALICE.public_key, next_incarnation(path), 1, 1.0, ADDRESS[ALICE]), ALICE, network=NETWORK)


def test_a_tunnel_has_one_name_for_each_pair_and_interface() -> None:
    names = {
        interface_name(ours.public_key, theirs.public_key, under)
        for ours in (ALICE, BOB)
        for theirs in (CAROL, MALLORY)
        for under in ("wlan0", "eth0")
    }
    assert len(names) == 8
    assert all(len(name) <= 15 for name in names)


def sybil(n: int) -> Identity:
    return Identity((1000 + n).to_bytes(32, "big"))


@given(st.data())
def test_whoever_makes_up_identities_drives_out_nobody_whose_tunnel_works(data: st.DataObject) -> None:
    """Whatever the others say and do, and however many they are: money that has not moved they cannot have."""
    alice = node(ALICE, max_peers=4)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    good = [Identity(bytes([n]) * 32) for n in range(100, 100 + data.draw(st.integers(1, 4), "good"))]
    for peer in good:
        alice.receive("wlan0", ADDRESS[BOB], beacon_of(peer, ADDRESS[BOB]), now=0.0)
        alice.heard("wlan0", peer.public_key, now=0.1)
    payers = good[: data.draw(st.integers(0, len(good)), "of them have paid")]
    alice.set_worth({peer.public_key: n + 1 for n, peer in enumerate(payers)})
    now, lost = 1.0, []
    for number in range(2, 14):
        now += data.draw(st.sampled_from([0.001, 0.3, 7.0]))
        others = data.draw(st.lists(st.integers(0, 20), max_size=4))
        for n in others:
            lost += alice.receive("wlan0", ADDRESS[CAROL], beacon_of(sybil(n), ADDRESS[CAROL], number=number), now=now)
        for n in others[: data.draw(st.integers(0, 4))]:
            alice.heard("wlan0", sybil(n).public_key, now=now)
        for peer in good:  # by beacons or by what the tunnel brings
            if data.draw(st.booleans()):
                lost += alice.receive("wlan0", ADDRESS[BOB], beacon_of(peer, ADDRESS[BOB], number=number), now=now)
            else:
                alice.heard("wlan0", peer.public_key, now=now)
        lost += alice.expire(now=now)
        assert len(alice.peers()["wlan0"]) <= 4
    assert not {output.peer for output in lost if isinstance(output, PeerLost)} & {peer.public_key for peer in good}


def test_who_has_paid_takes_the_place_of_who_has_not_and_the_longest_known_stays() -> None:
    alice = node(ALICE, max_peers=3)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    for n in range(3):
        alice.receive("wlan0", ADDRESS[CAROL], beacon_of(sybil(n), ADDRESS[CAROL]), now=1.0 + n)
        alice.heard("wlan0", sybil(n).public_key, now=5.0)
    assert alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB]), now=6.0) == []
    alice.set_worth({BOB.public_key: 5, CAROL.public_key: 7, MALLORY.public_key: 4, sybil(0).public_key: 4})
    first = alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB], number=2), now=7.0)
    assert first[0] == PeerLost("wlan0", sybil(2).public_key)
    alice.heard("wlan0", BOB.public_key, now=7.5)
    second = alice.receive("wlan0", ADDRESS[CAROL], beacon_of(CAROL, ADDRESS[CAROL]), now=8.0)
    assert second[0] == PeerLost("wlan0", sybil(1).public_key)
    # sybil(0) has paid as much as Mallory, and is there; Carol has not proved herself, and that is soon against her.
    assert alice.receive("wlan0", ADDRESS[CAROL], beacon_of(MALLORY, ADDRESS[CAROL]), now=9.0) == []
    third = alice.receive(
        "wlan0", ADDRESS[CAROL], beacon_of(MALLORY, ADDRESS[CAROL], number=2), now=8.0 + PROOF_TIMEOUT
    )
    assert third[0] == PeerLost("wlan0", CAROL.public_key)


def test_who_has_paid_is_not_kept_waiting_by_strangers_without_end() -> None:
    alice = node(ALICE, max_peers=8)
    alice.set_worth({BOB.public_key: 1})
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    for n in range(2 * CHECKS_PER_SECOND):
        alice.receive("wlan0", ADDRESS[CAROL], beacon_of(sybil(n), ADDRESS[CAROL]), now=1.0)
    assert alice.counters["beacon_rate"] and alice.counters["beacon_limit"]
    outputs = alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB]), now=1.1)
    assert any(isinstance(output, PeerFound) and output.peer == BOB.public_key for output in outputs)


def test_what_a_tunnel_brings_is_as_good_as_a_beacon_and_forged_ones_cost_only_whom_they_are_of() -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    for peer, address in ((BOB, ADDRESS[BOB]), (CAROL, ADDRESS[CAROL])):
        alice.receive("wlan0", address, beacon_of(peer, address), now=0.0)
    forged = beacon_of(BOB, ADDRESS[BOB], number=9)[:-1] + b"!"
    lost: list[Output] = []
    for n in range(1, 400):
        now = n / 10
        for _ in range(20):
            lost += alice.receive("wlan0", ADDRESS[BOB], forged, now=now)
        if n % 50 == 0:
            assert alice.receive("wlan0", ADDRESS[BOB], beacon_of(BOB, ADDRESS[BOB], number=n), now=now) == []
            lost += alice.receive("wlan0", ADDRESS[CAROL], beacon_of(CAROL, ADDRESS[CAROL], number=n), now=now)
        alice.heard("wlan0", BOB.public_key, now=now)
        lost += alice.expire(now=now)
    assert alice.counters["beacon_forged"] <= 8 + 40 * 4 and alice.counters["beacon_rate"] > 7000
    assert not any(isinstance(output, PeerLost) for output in lost)
    gone = alice.expire(now=39.9 + LIFETIME_INTERVALS * INTERVAL)  # and it is gone by its deadline
    assert PeerLost("wlan0", BOB.public_key) in gone


def test_nobody_stays_longer_than_the_longest_interval_allows() -> None:
    alice = node(ALICE)
    alice.interface_up("wlan0", ADDRESS[ALICE], now=0.0)
    said = Beacon(BOB.public_key, 1, 1, 655.0, ADDRESS[BOB])
    alice.receive("wlan0", ADDRESS[BOB], wire.encode(said, BOB, network=NETWORK), now=0.0)
    assert PeerLost("wlan0", BOB.public_key) in alice.expire(now=LIFETIME_MAX)
