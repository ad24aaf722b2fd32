"""What the engine does at once, and what waits for others (docs/adr/0024)."""

from __future__ import annotations

import pytest

from payments import events as ev
from payments import messages as msg
from tests.payments.test_engine import W, assert_settled
from tests.payments.world import World


def test_what_cannot_wait_writes_no_rows_of_others() -> None:
    world = World().with_channel()
    world.b.give(ev.MeteredTraffic(b"C" * 32, 10**9, 0))
    world.meter(world.b, world.a, W / 2)
    world.pump()
    assert_settled(world, W // 2 + 1)
    assert world.b.store.ledgers[world.a.key].billed_units == (W // 2 + 1) * 10**9
    assert b"C" * 32 not in world.b.store.ledgers
    world.advance(5.0)
    assert world.b.store.ledgers[b"C" * 32].billed_units == 10**9


def test_a_reading_from_which_nothing_follows_waits_for_others() -> None:
    world = World(metered_delay=1.0)
    world.connect()
    world.meter(world.b, world.a, W / 16)
    world.pump()
    world.mine()
    world.advance(5.0)
    assert_settled(world, W // 16)
    begun = world.time
    sums = ev.MeteredTraffic(world.a.key, 10**9, 0)
    assert world.b.engine.handle(sums, now=begun) == []
    assert world.b.engine.next_deadline() <= begun + 1.0
    world.meter(world.b, world.a, W / 2)  # half the window: not a moment later
    world.pump()
    assert world.time == begun
    assert world.b.ledger(world.a).received_msat > W // 2


def test_a_reading_waits_no_longer_for_having_come_with_one_that_does_not_wait() -> None:
    world = World(metered_delay=1.0)
    world.b.give(ev.MeteredTraffic(world.a.key, 10**9, 0))
    world.advance(5.0)
    begun = world.time
    both = [ev.MeteredTraffic(b"C" * 32, W // 2 * 10**9, 0), ev.MeteredTraffic(world.a.key, 10**9, 0)]
    world.b.engine.handle_all(both, now=begun)
    assert world.b.engine.next_deadline() <= begun + 1.0


def test_who_owes_more_than_the_window_is_suspended_with_the_reading() -> None:
    world = World(metered_delay=1.0)
    world.b.give(ev.MeteredTraffic(world.a.key, W * 10**9, 0))
    assert not world.b.suspended
    world.b.give(ev.MeteredTraffic(world.a.key, 10**9, 0))
    assert world.b.suspended == {world.a.key}


@pytest.mark.parametrize(("msat", "is_urgent"), [(W // 16 - 1, False), (W // 16, True)])
def test_a_buyer_looks_at_what_it_buys_after_a_sixteenth_of_the_window_or_a_second(msat: int, is_urgent: bool) -> None:
    world = World(metered_delay=1.0)
    world.connect()
    world.advance(0.1)
    world.meter(world.b, world.a, msat)
    world.pump()
    assert bool(world.a.channels()) is is_urgent  # one is being opened
    world.advance(1.0)
    assert world.a.channels()


def test_counts_of_several_are_reported_together() -> None:
    world = World(metered_delay=1.0)
    world.connect()
    world.advance(0.3)
    sent_at: list[float] = []
    for _ in range(90):
        world.meter(world.b, world.a, 1.0)
        world.b.log.clear()
        world.advance(0.2)
        sent = [msg.decode(o.data) for o in world.b.log if isinstance(o, ev.SendMessage)]
        sent_at += [world.time for message in sent if isinstance(message, msg.Counts)]
    assert len(sent_at) >= 3
    assert all(time % 1.0 < 0.2 for time in sent_at[1:])  # within the step that crossed a whole second


def test_the_silence_of_several_is_looked_at_together() -> None:
    world = World(metered_delay=1.0, tick_interval=10_000.0)
    engine = world.b.engine
    for number, peer in enumerate((b"C" * 32, b"D" * 32, b"E" * 32)):
        engine.handle(ev.PeerConnected(peer), now=world.time + 0.3 * number)
    looked_at: list[float] = []
    while (deadline := engine.next_deadline()) < world.time + 100.0:
        engine.handle(ev.TimerExpired(), now=deadline)
        looked_at.append(deadline - world.time)
    assert looked_at[0] == 60.0
    assert len(looked_at) >= 8
    assert all(time.is_integer() for time in looked_at)
