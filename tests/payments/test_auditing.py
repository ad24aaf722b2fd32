"""Signed counts between two engines: what honest ones exchange, and what becomes of a cheat."""

from __future__ import annotations

from payments import events as ev
from payments import messages as msg
from payments.agreement import SUSPICIOUS, Finding, Standing
from payments.counts import CountReport, Evidence, Signer, Traffic, verify
from payments.life import InvariantError
from tests.payments.world import PRICE_MSAT_PER_GB, Node, World, priced, secret_of

W = 10_000
MEGABYTE = 1_000_000


def trade(world: World, rounds: int, *, size: int = 3 * MEGABYTE, claimed: float = 1.0) -> None:
    """`b` sells to `a`, and says that it carried so much for each byte that it got."""
    for _ in range(rounds):
        units = size * PRICE_MSAT_PER_GB
        world.a.give(priced(world.b, world.a, units)[0])
        if claimed > 1 or world.a.key not in world.b.suspended:
            world.b.give(priced(world.b, world.a, int(units * claimed))[1])
        world.pump()
        world.advance(5.0)


def test_both_ends_hold_what_the_other_has_signed_and_keep_it_across_restarts() -> None:
    world = World().with_channel()
    trade(world, 10)
    world.advance(10.0)
    for node in world.nodes:
        other = world.other(node)
        record = node.store.counts[other.key]
        report = verify(Evidence(record.body, record.signature), maker=other.key, peer=node.key)
        size = 30 * MEGABYTE + 1000  # the channel was opened for the thousand
        sold, bought = Traffic(received=size, carried=size), Traffic(sent=size)
        assert report.traffic == (bought if other is world.a else sold)
        counts = next(v for v in node.engine.counts() if v.peer == other.key)
        assert (counts.standing, counts.finding) == (Standing.TRUSTED, Finding.AGREED)
        node.boot()
        assert next(v for v in node.engine.counts() if v.peer == other.key).their == report.traffic
    assert world.a.ledger(world.b).owed_limit_units == world.b.ledger(world.a).billed_units


def test_a_relay_that_counts_what_was_not_sent_is_warned_limited_and_left() -> None:
    world = World().with_channel()
    trade(world, 15)
    sent_msat = world.a.ledger(world.b).sent_msat
    trade(world, 60, claimed=1.5)
    assert [n.standing for n in world.a.notices(ev.StandingChanged)] == [
        Standing.WARNED,
        Standing.LIMITED,
        Standing.SUSPENDED,
    ]
    assert world.b.key in world.a.distrusted and world.b.key in world.a.suspended
    ledger = world.a.ledger(world.b)
    # Never more than what was sent, at the price, and the tolerance of one window that an honest relay has too.
    assert ledger.sent_msat - sent_msat <= 60 * 3000 + ledger.window_msat * 8
    assert ledger.window_msat == W


def test_a_buyer_that_denies_what_it_sent_is_carried_no_longer() -> None:
    world = World().with_channel()
    trade(world, 15)
    for _ in range(60):
        units = 3 * MEGABYTE * PRICE_MSAT_PER_GB
        world.a.give(priced(world.b, world.a, units // 2)[0])
        world.b.give(priced(world.b, world.a, units)[1])
        world.pump()
        world.advance(5.0)
    assert world.b.notices(ev.StandingChanged)[-1].finding is Finding.DENIED  # type: ignore[attr-defined]
    assert world.a.key in world.b.suspended and world.a.key in world.b.distrusted


def test_a_suspension_for_counts_is_in_force_again_after_a_restart_and_ends_in_time() -> None:
    world = World().with_channel()
    trade(world, 15)
    trade(world, 60, claimed=1.5)
    world.crash(world.a)
    assert world.b.key in world.a.distrusted and world.b.key in world.a.suspended
    world.connect()
    world.advance(700.0)
    assert world.b.key not in world.a.distrusted and world.b.key not in world.a.suspended
    assert world.a.ledger(world.b).window_msat == W


def test_honest_ends_that_rest_accuse_nobody() -> None:
    """The last bill comes after the last report of its traffic, and then nothing more."""
    world = World().with_channel()
    for rest in (70.0, 600.0):
        trade(world, 4)
        world.b.give(ev.MeteredTraffic(world.a.key, 3_000 * 10**9, 0, Traffic()))  # its price was not known before
        world.pump()
        world.advance(rest)
    for node in world.nodes:
        assert not node.notices(ev.StandingChanged)
        assert not {view.finding for view in node.engine.counts()} & SUSPICIOUS


def test_crashes_of_honest_ends_accuse_nobody() -> None:
    world = World().with_channel()
    for index in range(40):
        trade(world, 6, size=MEGABYTE)
        world.crash(world.nodes[index % 2])
        world.connect()
    for node in world.nodes:
        assert not {n.finding for n in node.notices(ev.StandingChanged)} & {Finding.OVERSTATED, Finding.DENIED}  # type: ignore[attr-defined]
        assert not node.distrusted and not node.suspended and not node.notices(ev.PeerFaultSeen)


def counts(world: World, report: CountReport, *, maker: bytes | None = None) -> msg.Counts:
    secret = maker or world.b.secret
    signer = Signer(secret[32:], lambda data: Node.sign(world.b, data))
    evidence = signer.evidence(report, world.a.key)
    return msg.Counts(evidence.body, evidence.signature)


def say(world: World, message: msg.Counts) -> list[ev.Output]:
    before = len(world.a.log)
    world.a.give(ev.ReceivedMessage(world.b.key, msg.encode(message)))
    return world.a.log[before:]


def test_reports_that_are_forged_replayed_or_taken_back_are_faults_and_change_nothing() -> None:
    world = World()
    world.connect()
    world.pump()
    held = world.a.engine.counts()
    (mine,) = held
    assert mine.their == Traffic()
    own = [o.data for o in world.b.log if isinstance(o, ev.SendMessage)]
    replay = next(m for m in map(msg.decode, own) if isinstance(m, msg.Counts))
    epoch = CountReport.unpack(replay.body).epoch
    fine = CountReport(epoch, 2, 0, 0, Traffic(5, 6, 1, 1), 7, 8)
    foreign = World()
    foreign.b.secret = secret_of(b"C")
    bad = [
        replay,
        counts(world, CountReport(epoch + 1, 1, 0, 0, Traffic(), 0, 0)),  # a new epoch within a session
        counts(foreign, fine),  # another's signature
        msg.Counts(counts(world, fine).body, bytes(64)),
        msg.Counts(bytes(88), counts(world, fine).signature),
    ]
    for message in bad:
        outputs = say(world, message)
        assert [o.reason for o in outputs if isinstance(o, ev.PeerFaultSeen)], message
        assert world.a.engine.counts() == held
    say(world, counts(world, fine))
    (mine,) = world.a.engine.counts()
    assert mine.their == Traffic(5, 6, 1, 1) and (mine.their_earned_units, mine.their_owed_units) == (7, 8)


def test_any_numbers_that_a_peer_signs_raise_nothing() -> None:
    world = World().with_channel()
    trade(world, 8)
    (before,) = world.a.engine.counts()
    assert before.their is not None
    top = 2**63 - 1
    epoch = CountReport.unpack(world.a.store.counts[world.b.key].body).epoch
    for number, traffic in enumerate([Traffic(top, top, top, 0), Traffic(top, top, top, 0), Traffic(top, top, 0, top)]):
        for echo in (0, 1, 2**32 - 1):
            report = CountReport(epoch, 1000 + 10 * number + echo % 7, echo, echo, traffic, 2**127 - 1, 2**127 - 1)
            try:
                say(world, counts(world, report))
            except InvariantError as error:
                raise AssertionError("a peer broke an invariant") from error
    assert world.a.ledger(world.b).accepted_units <= world.a.ledger(world.b).their_billed_units
