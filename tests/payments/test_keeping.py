"""What neighbours keep for each other: sealed, bounded, and given back to who has lost all it had."""

from __future__ import annotations

import pytest

from payments import events as ev
from payments import messages as msg
from payments.keeping import MAX_KEEPERS
from payments.records import ChannelState, KeptRecord
from tests.payments.world import MemoryStore, Node, World

INTERVAL = 60.0


@pytest.fixture
def world() -> World:
    """`a` has paid 6,001 msat to `b`, which has left that with `a`."""
    world = World(keep_for_neighbours=True, start_window_msat=1_000_000).with_channel()
    world.meter(world.b, world.a, 600_000)
    world.advance(INTERVAL + 10)
    assert world.b.ledger(world.a).received_msat == 600_001
    return world


def sent(node: Node, kind: type) -> list[msg.Message]:
    found = [msg.decode(output.data) for output in node.log if isinstance(output, ev.SendMessage)]
    return [message for message in found if isinstance(message, kind)]


def faults(node: Node) -> int:
    return len(node.notices(ev.PeerFaultSeen))


def lose_everything(world: World, node: Node) -> None:
    """Only the seed is left."""
    node.store = MemoryStore()
    world.crash(node)


def test_who_has_lost_everything_gets_back_what_it_was_paid_and_can_claim_it(world: World) -> None:
    lose_everything(world, world.b)
    assert world.b.channels() == []
    world.connect()
    world.pump()
    world.mine()
    (channel,) = world.b.channels()
    assert (channel.cumulative_msat, channel.state) == (600_001, ChannelState.OPEN)
    assert world.b.ledger(world.a).received_msat == 600_001
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    world.mine()
    assert world.b.channels()[0].state is ChannelState.CLOSED
    assert world.chain.received_sat(world.b.scripts) > 0


def test_what_was_paid_since_the_last_time_is_the_most_that_is_lost(world: World) -> None:
    """At most what is paid within one `keep_interval`; nothing where the payer is honest, and sends it again."""
    world.meter(world.b, world.a, 400_000)
    world.advance(6.0)
    assert world.b.ledger(world.a).received_msat == 1_000_001
    kept = world.a.store.kept[world.b.key].body
    lose_everything(world, world.b)
    world.b.give(ev.PeerConnected(world.a.key))
    for message in (world_hello(world), msg.Kept(True, kept)):
        world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(message)))
    (channel,) = world.b.channels()
    assert 1_000_001 - channel.cumulative_msat <= 400_000


def world_hello(world: World) -> msg.Hello:
    (hello,) = [m for m in sent(world.a, msg.Hello) if isinstance(m, msg.Hello)][-1:]
    return hello


def test_it_is_left_no_more_often_than_the_interval_and_only_when_there_is_news(world: World) -> None:
    before = len(sent(world.b, msg.Keep))
    world.advance(5 * INTERVAL)
    assert len(sent(world.b, msg.Keep)) <= before + 1
    before = len(sent(world.b, msg.Keep))
    for _ in range(12):
        world.meter(world.b, world.a, 600_000)
        world.advance(INTERVAL / 6)
    assert before < len(sent(world.b, msg.Keep)) <= before + 3


def test_it_tells_the_keeper_nothing_and_survives_its_restart(world: World) -> None:
    kept = world.a.store.kept[world.b.key].body
    assert world.b.channels()[0].channel_id not in kept
    assert len(kept) <= msg.MAX_KEPT_BYTES
    world.crash(world.a)
    world.connect()
    world.pump()
    (given_back,) = [m for m in sent(world.a, msg.Kept) if isinstance(m, msg.Kept)][-1:]
    assert given_back.body == kept
    assert faults(world.a) == faults(world.b) == 0


def test_an_older_copy_takes_nothing_back(world: World) -> None:
    old = world.a.store.kept[world.b.key].body
    world.meter(world.b, world.a, 600_000)
    world.advance(6.0)
    before = world.b.channels()
    world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(msg.Kept(True, old))))
    assert world.b.channels() == before
    assert faults(world.b) == 0


@pytest.mark.parametrize("body", [b"x", bytes(100), bytes(msg.MAX_KEPT_BYTES)])
def test_what_was_never_left_is_a_fault_and_changes_nothing(world: World, body: bytes) -> None:
    """Nothing is lost."""
    before = world.b.channels(), world.b.ledger(world.a).received_msat
    world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(msg.Kept(True, body))))
    assert faults(world.b) == 1
    assert (world.b.channels(), world.b.ledger(world.a).received_msat) == before


def test_who_leaves_too_much_or_too_often_is_refused(world: World) -> None:
    """A keeper holds 8 KiB for each of 64, and takes them twice in an interval at most."""
    with pytest.raises(msg.MessageError):
        msg.decode(msg.encode(msg.Keep(bytes(msg.MAX_KEPT_BYTES + 1))))
    world.advance(INTERVAL)
    for body in (b"one", b"two"):
        world.a.give(ev.ReceivedMessage(world.b.key, msg.encode(msg.Keep(body))))
    assert faults(world.a) == 1
    world.advance(10.0)
    assert world.a.store.kept[world.b.key] == KeptRecord(world.b.key, b"one")


def test_strangers_fill_no_room() -> None:
    """Who never paid or was paid anything leaves nothing: names cost nothing, nor do bills."""
    bill = msg.Statement(msg.Accounts.of(billed_units=1, accepted_units=0, seen_units=0))
    world = World(keep_for_neighbours=True)
    for number in range(MAX_KEEPERS + 10):
        stranger = number.to_bytes(32, "big")
        world.a.give(ev.PeerConnected(stranger))
        world.a.give(ev.ReceivedMessage(stranger, msg.encode(hello_of(world))))
        for message in (bill, msg.Keep(b"mine")):
            world.a.give(ev.ReceivedMessage(stranger, msg.encode(message)))
        world.a.give(ev.PeerDisconnected(stranger))
    world.advance(10.0)
    assert world.a.store.kept == {}


def hello_of(world: World) -> msg.Hello:
    world.b.give(ev.PeerConnected(world.a.key))
    (hello,) = [m for m in sent(world.b, msg.Hello) if isinstance(m, msg.Hello)][-1:]
    return hello


def test_who_does_not_agree_is_left_nothing() -> None:
    world = World(keep_for_neighbours=False).with_channel()
    world.meter(world.b, world.a, 600_000)
    world.advance(2 * INTERVAL)
    assert sent(world.b, msg.Keep) == []
    world.a.give(ev.ReceivedMessage(world.b.key, msg.encode(msg.Keep(b"unasked"))))
    assert faults(world.a) == 1
    assert world.a.store.kept == {}
