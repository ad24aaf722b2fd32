"""MACs, packet counters and challenges (RFC 8967, RFC 9467), between two authenticators and whoever stands between."""

from __future__ import annotations

import hashlib
import hmac
import random
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import authentication
from routing.authentication import (
    ANSWERS_PER_SECOND,
    CHALLENGE_INTERVAL,
    CHALLENGE_TIMEOUT,
    COUNTER_MAX,
    FORGET_TIMEOUT,
    WINDOW,
    Authenticator,
    Drop,
    MacAlgorithm,
    MacKey,
    Verdict,
)
from routing.codec import decode, encode_packet, encode_tlv, framed, pack, split_packet
from routing.tlv import Hello, Tlv
from tests.routing.strategies import tlvs

A, B, C = (IPv6Address(f"fe80::{name}") for name in "abc")
GROUP = IPv6Address("ff02::1:6")
PORT = 6696
SHA = MacKey(MacAlgorithm.HMAC_SHA256, bytes(range(32)))
BLAKE = MacKey(MacAlgorithm.BLAKE2S, bytes(range(16)))
OTHER = MacKey(MacAlgorithm.HMAC_SHA256, b"another key")
(HELLO,) = pack([Hello(1, 400)], mtu=1500)


def authenticator(address: IPv6Address, *keys: MacKey, seed: int = 0) -> Authenticator:
    octets = random.Random(f"{address} {seed}").randbytes
    return Authenticator(keys or (SHA,), address=address, port=PORT, octets=octets)


class Pair:
    """a sends and b checks, over a wire without loss. `now` moves by hand."""

    def __init__(self, *keys: MacKey) -> None:
        self.now = 1000.0
        self.a, self.b = authenticator(A, *keys), authenticator(B, *keys)

    def says(self, *, to: IPv6Address = GROUP) -> bytes:
        return self.a.protect(HELLO, destination=to)

    def check(self, packet: bytes, *, source: IPv6Address = A, to: IPv6Address = GROUP) -> Verdict:
        return self.b.check(packet, source=source, destination=to, now=self.now)

    def answer(self, packet: bytes) -> Verdict:
        """What a makes of what b sent to it."""
        return self.a.check(packet, source=B, destination=A, now=self.now)

    def meet(self) -> None:
        """b challenges a, and a answers; long after whatever they asked each other before."""
        self.now += 2 * CHALLENGE_INTERVAL
        (challenge,) = self.check(self.says()).replies
        reply = self.answer(challenge).replies[0]
        assert self.check(reply, to=B).drop is None
        self.now += 2 * CHALLENGE_INTERVAL


def counter(value: int) -> bytes:
    """Under the index of `Pair.a`."""
    return encode_tlv(17, value.to_bytes(4, "big") + random.Random(f"{A} 0").randbytes(8))


def signed(body: bytes) -> bytes:
    """Whatever body, from A to B, with a good MAC."""
    packet, port = encode_packet(body), PORT.to_bytes(2, "big")
    return packet + encode_tlv(16, SHA.mac(A.packed + port + B.packed + port + packet))


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.meet()
    return made


def test_a_stranger_is_challenged_and_then_believed() -> None:
    pair = Pair()
    first = pair.check(pair.says())
    assert first.drop is Drop.CHALLENGED
    (challenge,) = first.replies
    answered = pair.answer(challenge)
    assert answered.drop is Drop.CHALLENGED  # b has yet to prove itself, and is asked to
    reply, counter_challenge = answered.replies
    assert pair.check(reply, to=B) == Verdict(None)
    assert pair.check(pair.says()) == Verdict(None)
    back = pair.check(counter_challenge, to=B)
    assert back.drop is None and pair.answer(back.replies[0]) == Verdict(None)


def test_the_engine_sees_nothing_of_it() -> None:
    packet = authenticator(A).protect(HELLO, destination=GROUP)
    assert decode(packet, source=A) == (Hello(1, 400),)


@settings(max_examples=100, deadline=None)
@given(st.lists(tlvs, min_size=1, max_size=60), st.sampled_from([512, 1280, 1500]))
def test_whatever_is_packed_fits_with_its_macs(sent: list[Tlv], mtu: int) -> None:
    keys = (SHA, BLAKE, SHA, SHA)
    a = authenticator(A, *keys)
    packets = [a.protect(packet, destination=GROUP) for packet in pack(sent, mtu=mtu, reserve=a.overhead)]
    assert all(len(packet) + 48 <= mtu for packet in packets)
    whole = pack(sent, mtu=mtu, reserve=a.overhead)
    assert {len(packet) - len(bare) for packet, bare in zip(packets, whole, strict=True)} == {a.overhead}
    assert [decode(p, source=A) for p in packets] == [decode(p, source=A) for p in whole]


@pytest.mark.parametrize("key", [SHA, BLAKE])
def test_the_mac_is_over_addresses_ports_and_all_of_the_packet(key: MacKey) -> None:
    """Computed here from RFC 8967 section 4.1."""
    body, trailer = split_packet(authenticator(A, key).protect(HELLO, destination=B))
    ports = (0x1A28).to_bytes(2, "big")
    data = A.packed + ports + B.packed + ports + b"\x2a\x02" + len(body).to_bytes(2, "big") + body
    if key is SHA:
        expected = hmac.new(SHA.secret, data, hashlib.sha256).digest()
    else:
        expected = hashlib.blake2s(data, key=BLAKE.secret, digest_size=16).digest()
    assert framed(trailer) == [(16, expected)]
    assert framed(body)[-1] == (17, (1).to_bytes(4, "big") + random.Random(f"{A} 0").randbytes(8))


def test_a_packet_is_taken_once(pair: Pair) -> None:
    packet = pair.says()
    assert pair.check(packet).drop is None
    assert pair.check(packet) == Verdict(Drop.REPLAYED)


def test_what_was_said_before_the_challenge_is_not_taken_afterwards() -> None:
    """b may have taken it in an earlier life, of which it knows nothing."""
    pair = Pair()
    old = pair.says()
    pair.meet()
    assert pair.check(old).drop is Drop.REPLAYED


def test_packets_may_overtake_each_other_within_the_window(pair: Pair) -> None:
    packets = [pair.says() for _ in range(WINDOW + 1)]
    random.Random(1).shuffle(late := packets[1:-1])
    assert pair.check(packets[-1]).drop is None
    assert [pair.check(packet).drop for packet in late] == [None] * len(late)
    assert [pair.check(packet).drop for packet in packets] == [Drop.REPLAYED] * len(packets)


def test_multicasts_may_be_held_back_for_longer_than_any_window(pair: Pair) -> None:
    """RFC 9467: an access point does that while stations sleep."""
    held_back = pair.says()
    unicasts = [pair.says(to=B) for _ in range(3 * WINDOW)]
    assert all(pair.check(packet, to=B).drop is None for packet in unicasts)
    assert pair.check(held_back).drop is None
    assert pair.check(unicasts[-1], to=B).drop is Drop.REPLAYED


def test_a_leap_of_the_counter_costs_nothing(pair: Pair) -> None:
    pair.a._counter = COUNTER_MAX - 1
    last = pair.says()
    assert pair.check(last).drop is None
    assert pair.b._neighbours[A].multicast.seen == 1


def test_a_counter_that_is_used_up_begins_anew_under_another_index(pair: Pair) -> None:
    pair.a._counter = COUNTER_MAX
    assert pair.check(pair.says()).drop is Drop.CHALLENGED
    pair.meet()
    assert pair.check(pair.says()).drop is None


def test_a_restarted_neighbour_is_challenged_and_what_it_said_before_is_worth_nothing(pair: Pair) -> None:
    old = pair.says()
    pair.a = authenticator(A, seed=1)
    pair.meet()
    assert pair.check(old).drop is Drop.CHALLENGED
    assert pair.check(pair.says()).drop is None  # and does not harm the present one


def test_replays_from_an_earlier_life_cost_nothing_of_the_present_one(pair: Pair) -> None:
    old = pair.says()
    pair.a = authenticator(A, seed=1)
    pair.meet()
    seen, late = pair.says(), pair.says()
    assert pair.check(seen).drop is None
    (challenge,) = pair.check(old).replies
    reply = pair.answer(challenge).replies[0]
    assert pair.check(reply, to=B).drop is None
    assert (pair.check(late).drop, pair.check(seen).drop) == (None, Drop.REPLAYED)
    assert pair.check(reply, to=B).drop is Drop.REPLAYED


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nothing_that_was_changed_is_taken(data: st.DataObject) -> None:
    pair = Pair(SHA)
    pair.meet()
    packet = bytearray(pair.says())
    at = data.draw(st.integers(0, len(packet) - 1))
    packet[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(packet) - 1))
    for forged in (bytes(packet), bytes(packet[:cut])):
        assert pair.check(forged).drop in {Drop.MALFORMED, Drop.NO_MAC, Drop.WRONG_MAC}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100), st.booleans())
def test_no_octets_raise_anything(octets: bytes, is_framed: bool) -> None:
    packet = encode_packet(octets) if is_framed else octets
    assert authenticator(B).check(packet, source=A, destination=GROUP, now=0.0).drop is not None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(16, 20), st.binary(max_size=250)), max_size=5), st.binary(max_size=3))
def test_the_holder_of_a_key_may_say_anything(said: list[tuple[int, bytes]], rest: bytes) -> None:
    pair = Pair()
    verdict = pair.check(signed(b"".join(encode_tlv(*tlv) for tlv in said) + rest), to=B)
    assert verdict.drop in {Drop.MALFORMED, Drop.NO_COUNTER, Drop.CHALLENGED}
    assert len(verdict.replies) <= 2
    assert all(pair.answer(reply).drop is Drop.CHALLENGED for reply in verdict.replies)


def test_a_packet_is_worth_nothing_elsewhere(pair: Pair) -> None:
    """From another address, to another one, to the group, on another interface or port."""
    to_b, to_all = pair.says(to=B), pair.says()
    assert pair.check(to_b, source=C, to=B).drop is Drop.WRONG_MAC
    assert pair.check(to_b, to=C).drop is Drop.WRONG_MAC
    assert pair.check(to_b).drop is Drop.WRONG_MAC
    assert pair.check(to_all, to=B).drop is Drop.WRONG_MAC
    # Another interface of b has its own keys; with the same keys it has another address, or has not met a.
    other_key = authenticator(B, OTHER)
    assert other_key.check(to_all, source=A, destination=GROUP, now=0.0).drop is Drop.WRONG_MAC
    same_key = authenticator(C)
    assert same_key.check(to_all, source=A, destination=GROUP, now=0.0).drop is Drop.CHALLENGED
    other_port = Authenticator((SHA,), address=B, port=6697, octets=random.Random(3).randbytes)
    assert other_port.check(to_all, source=A, destination=GROUP, now=0.0).drop is Drop.WRONG_MAC
    assert pair.check(to_b, to=B).drop is None  # it was good where it belongs


def test_without_a_mac_or_a_counter_or_with_a_wrong_key(pair: Pair) -> None:
    assert pair.check(HELLO).drop is Drop.NO_MAC
    assert pair.check(authenticator(A, OTHER).protect(HELLO, destination=GROUP)) == Verdict(Drop.WRONG_MAC)
    ports = PORT.to_bytes(2, "big")
    bare = HELLO + encode_tlv(16, SHA.mac(A.packed + ports + GROUP.packed + ports + HELLO))
    assert pair.check(bare) == Verdict(Drop.NO_COUNTER)
    # A MAC in the body is none.
    body, _ = split_packet(pair.says())
    assert pair.check(encode_packet(body + encode_tlv(16, bytes(32)))).drop is Drop.NO_MAC


def test_our_own_words_are_dropped(pair: Pair) -> None:
    assert pair.check(pair.b.protect(HELLO, destination=GROUP), source=B) == Verdict(Drop.REPLAYED)


def test_keys_are_changed_without_losing_anybody() -> None:
    pair = Pair(SHA)
    pair.meet()
    for keys_of_a, keys_of_b in (((SHA, BLAKE), (SHA,)), ((SHA, BLAKE), (SHA, BLAKE)), ((BLAKE,), (SHA, BLAKE))):
        pair.a.set_keys(keys_of_a)
        pair.b.set_keys(keys_of_b)
        assert pair.check(pair.says()).drop is None
    pair.b.set_keys((BLAKE,))
    assert pair.check(pair.says()).drop is None
    pair.a.set_keys((SHA,))
    assert pair.check(pair.says()).drop is Drop.WRONG_MAC


def test_an_answer_counts_once() -> None:
    pair = Pair()
    (challenge,) = pair.check(pair.says()).replies
    reply = pair.answer(challenge).replies[0]
    assert pair.check(reply, to=B).drop is None
    assert pair.check(reply, to=B).drop is Drop.REPLAYED


def test_an_answer_that_is_late_repeated_or_to_somebody_else_proves_nothing() -> None:
    pair = Pair()
    (challenge,) = pair.check(pair.says()).replies
    reply = pair.answer(challenge).replies[0]
    pair.now += CHALLENGE_TIMEOUT
    assert pair.check(reply, to=B).drop is Drop.CHALLENGED
    # That packet got a fresh challenge, which the old answer does not meet either.
    assert pair.check(reply, to=B).drop is Drop.CHALLENGED
    pair.meet()
    assert pair.check(reply, to=B).drop is Drop.REPLAYED


def test_a_request_to_the_group_is_not_answered(pair: Pair) -> None:
    packet = pair.a.protect(encode_packet(encode_tlv(18, b"nonce")), destination=GROUP)
    assert pair.check(packet) == Verdict(None)


def test_a_request_that_is_replayed_is_not_answered_again(pair: Pair) -> None:
    packet = pair.a.protect(encode_packet(encode_tlv(18, b"nonce")), destination=B)
    assert len(pair.check(packet, to=B).replies) == 1
    pair.now += 2 * CHALLENGE_INTERVAL
    assert pair.check(packet, to=B) == Verdict(Drop.REPLAYED)


@pytest.mark.parametrize("length", [0, 192])
def test_a_nonce_is_given_back_as_it_is(length: int, pair: Pair) -> None:
    nonce = bytes(range(length))
    (reply,) = pair.check(signed(encode_tlv(18, nonce) + counter(2**31)), to=B).replies
    assert framed(split_packet(reply)[0])[0] == (19, nonce)


def test_what_is_longer_or_shorter_than_the_specification_says_is_ignored(pair: Pair) -> None:
    assert pair.check(signed(encode_tlv(18, bytes(193)) + counter(2**31)), to=B) == Verdict(None)
    assert pair.check(signed(encode_tlv(17, bytes(3))), to=B).drop is Drop.NO_COUNTER
    assert pair.check(signed(encode_tlv(17, bytes(37))), to=B).drop is Drop.NO_COUNTER


def test_the_first_of_several_counters_counts(pair: Pair) -> None:
    assert pair.check(signed(counter(1) + counter(2**31)), to=B).drop is Drop.REPLAYED


def test_challenges_and_replies_to_one_neighbour_are_spaced(pair: Pair) -> None:
    pair.a = authenticator(A, seed=1)
    asked = [len(pair.check(pair.says()).replies) for _ in range(5)]
    assert asked == [1, 0, 0, 0, 0]
    pair.now += 2 * CHALLENGE_INTERVAL
    assert len(pair.check(pair.says()).replies) == 1
    pair.meet()
    requests = [pair.a.protect(encode_packet(encode_tlv(18, bytes([n]))), destination=B) for n in range(5)]
    assert [len(pair.check(request, to=B).replies) for request in requests] == [1, 0, 0, 0, 0]


def test_replays_of_many_neighbours_make_us_say_little() -> None:
    """Whoever recorded a busy link for long may play that back to a node that has just started."""
    senders = [IPv6Address(f"fe80::1:{number:x}") for number in range(300)]
    recorded = [(sender, authenticator(sender).protect(HELLO, destination=GROUP)) for sender in senders]
    b = authenticator(B)
    said = 0
    for tenth in range(10):
        for sender, packet in recorded:
            said += len(b.check(packet, source=sender, destination=GROUP, now=tenth / 10).replies)
    assert ANSWERS_PER_SECOND <= said <= 2 * ANSWERS_PER_SECOND
    assert len(b._neighbours) == authentication.MAX_NEIGHBOURS


def test_who_is_proved_is_not_forgotten_for_replays_of_others(pair: Pair) -> None:
    for number in range(1000):
        sender = IPv6Address(f"fe80::1:{number:x}")
        packet = authenticator(sender).protect(HELLO, destination=GROUP)
        pair.check(packet, source=sender)
    assert pair.check(pair.says()).drop is None


def test_a_neighbour_is_forgotten_some_time_after_its_last_packet(pair: Pair) -> None:
    pair.now += FORGET_TIMEOUT - 1
    assert pair.check(pair.says()).drop is None
    pair.now += FORGET_TIMEOUT
    assert pair.check(pair.says()).drop is Drop.CHALLENGED


@pytest.mark.parametrize(
    ("algorithm", "length"), [(MacAlgorithm.HMAC_SHA256, 65), (MacAlgorithm.BLAKE2S, 33), (MacAlgorithm.BLAKE2S, 0)]
)
def test_keys_have_lengths(algorithm: MacAlgorithm, length: int) -> None:
    with pytest.raises(ValueError, match="octets"):
        MacKey(algorithm, bytes(length))


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(MacKey(MacAlgorithm.BLAKE2S, b"secret octets"))
