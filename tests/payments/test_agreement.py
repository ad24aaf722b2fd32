"""Two ends that count the same traffic, honestly or not: what each finds, and what comes of it."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from payments import agreement
from payments.agreement import CALIBRATION, GOOD_RUN, CountBook, Finding, Standing
from payments.counts import CountReport, CountsError, Evidence, Traffic

NO_EVIDENCE = Evidence(b"", b"")
MEGABYTE = 1_000_000
STEP = 5.0
OVERTAKEN = agreement.SLACK_BYTES


@dataclass
class End:
    """One end. `boast`: how many bytes it counts from the other for each byte that came; `admit`: how many it says
    that it has sent, for each byte sent."""

    book: CountBook
    boast: float = 1.0
    admit: float = 1.0
    is_dumb: bool = False
    findings: list[Finding] = field(default_factory=list)
    packets: int = 0  # that it has sent
    outbox: deque[tuple[int, CountReport]] = field(default_factory=deque)  # each behind so many packets

    def report(self) -> None:
        honest = self.book.make_report(earned_units=0, owed_units=0)
        traffic = structs.replace(
            honest.traffic,
            sent=int(honest.traffic.sent * self.admit),
            received=int(honest.traffic.received * self.boast),
        )
        if not self.is_dumb:
            self.outbox.append((self.packets, replace(honest, traffic=traffic)))

    def hear(self, report: CountReport, *, now: float) -> None:
        self.book.hear(report, NO_EVIDENCE, now=now)
        self.findings.append(self.book.finding)


class Link:
    """Packets and reports between `a` and `b`, each with its own delay; but a report overtakes no more than OVERTAKEN
    bytes of what it counts. What comes later than that cannot be told from a claim to what was lost."""

    def __init__(self, *, seed: int = 1, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.loss, self.now = loss, 1000.0
        self.a, self.b = End(CountBook(1)), End(CountBook(2))
        self.under_way: dict[int, deque[tuple[int, int]]] = {1: deque(), 2: deque()}  # number and size
        for end in (self.a, self.b):
            end.book.link_loss = loss
            end.book.begin_session(now=self.now)

    def other(self, end: End) -> End:
        return self.b if end is self.a else self.a

    def send(self, end: End, size: int) -> None:
        end.book.our += Traffic(sent=size)
        lost = self.rng.betavariate(50 * self.loss, 50 * (1 - self.loss)) if self.loss else 0.0
        end.packets += 1
        self.under_way[end.book.epoch % 3].append((end.packets, size - int(size * lost)))

    def arrive(self, end: End) -> None:
        """Whatever is under way from `end`."""
        queue = self.under_way[end.book.epoch % 3]
        while queue:
            self.other(end).book.our += Traffic(received=queue.popleft()[1])

    def exchange(self, end: End) -> None:
        queue = self.under_way[end.book.epoch % 3]
        while end.outbox:
            packets, report = end.outbox.popleft()
            while sum(size for number, size in queue if number <= packets) > OVERTAKEN:
                self.other(end).book.our += Traffic(received=queue.popleft()[1])
            self.other(end).hear(report, now=self.now)

    def trade(self, rounds: int, size: int = MEGABYTE) -> None:
        """`a` sends, and `b` a tenth of it; each reports once in STEP seconds."""
        for _ in range(rounds):
            self.now += STEP
            self.send(self.a, size)
            self.send(self.b, size // 10)
            for end in (self.a, self.b):
                self.arrive(end)
            for end in (self.a, self.b):
                end.report()
                self.exchange(end)

    def restart(self, end: End) -> None:
        """Its process has died; what was on its way to it is lost."""
        book = end.book
        record = replace(book, evidence=NO_EVIDENCE).record(b"")
        end.book = CountBook(book.epoch + 3, link_loss=self.loss)
        assert record is not None
        end.book.standing, end.book.suspicion = Standing(record.standing), record.suspicion
        end.outbox.clear()
        self.under_way[3 - book.epoch % 3].clear()
        for each in (end, self.other(end)):
            each.book.end_session(now=self.now)
            each.book.begin_session(now=self.now)
            each.outbox.clear()


def test_honest_ends_agree_and_know_what_each_other_counts() -> None:
    link = Link()
    link.trade(50)
    assert set(link.a.findings) == set(link.b.findings) == {Finding.AGREED}
    view = link.a.book.view(b"")
    assert view.their is not None and view.their.received == view.our.sent == 50 * MEGABYTE
    assert (view.lost_to_them, view.overstated_bytes, view.denied_bytes) == (0.0, 0, 0)


@pytest.mark.parametrize(("boast", "admit", "finding"), [(1.1, 1.0, Finding.OVERSTATED), (1.0, 0.7, Finding.DENIED)])
def test_a_cheat_is_warned_limited_and_suspended(boast: float, admit: float, finding: Finding) -> None:
    link = Link()
    link.trade(30)
    cheat = link.b if finding is Finding.OVERSTATED else link.a
    victim = link.other(cheat)
    link.trade(CALIBRATION + 1)
    cheat.boast, cheat.admit = boast, admit
    seen = []
    before = cheat.book.our  # from here on: what it counted honestly it does not take back
    for _ in range(200):
        cheat.book.last = None
        link.now += STEP
        link.send(link.a, 10 * MEGABYTE)
        link.arrive(link.a)
        victim.report()
        link.exchange(victim)
        honest = cheat.book.make_report(earned_units=0, owed_units=0)
        new = Traffic(
            sent=before.sent + int((honest.traffic.sent - before.sent) * admit),
            received=before.received + int((honest.traffic.received - before.received) * boast),
        )
        number = 0 if victim.book.their is None else victim.book.their.number
        victim.hear(replace(honest, number=number + 1, traffic=new), now=link.now)
        if victim.book.standing not in seen:
            seen.append(victim.book.standing)
    assert seen == list(Standing)
    assert finding in victim.findings and cheat.book.standing is Standing.TRUSTED
    view = victim.book.view(b"")
    assert (view.overstated_bytes > 0) is (finding is Finding.OVERSTATED)
    assert (view.denied_bytes > 0) is (finding is Finding.DENIED)


def test_loss_in_the_past_excuses_no_excess_now() -> None:
    """A relay cannot save up what was lost on the way to bill it later."""
    link = Link(loss=0.3)
    link.trade(60)
    link.loss = 0.0
    link.b.boast = 1.0
    lost = link.a.book.our.sent - link.b.book.our.received
    assert lost > 10 * MEGABYTE
    link.b.book.our += Traffic(received=4 * MEGABYTE)  # out of thin air, and less than was ever lost
    link.trade(1)
    assert link.a.findings[-1] is Finding.OVERSTATED


def test_a_peer_that_trades_and_does_not_report_is_found_though_it_reconnects() -> None:
    link = Link()
    link.trade(10)
    link.a.is_dumb = True
    for _ in range(60):
        link.trade(5)
        link.b.book.look_at_clock(billed_units=0, now=link.now)
        link.b.book.end_session(now=link.now)
        link.b.book.begin_session(now=link.now)
    assert link.b.book.finding is Finding.SILENT
    assert link.b.book.standing is Standing.SUSPENDED
    assert link.a.book.standing is Standing.TRUSTED


def test_who_neither_sends_nor_bills_need_not_report() -> None:
    link = Link()
    link.trade(10)
    for _ in range(100):
        link.now += STEP
        link.b.book.look_at_clock(billed_units=0, now=link.now)
    assert link.b.book.standing is Standing.TRUSTED
    for bill in range(20):
        link.now += STEP
        link.b.book.look_at_clock(billed_units=bill, now=link.now)
    assert link.b.book.finding is Finding.SILENT
    assert link.b.book.standing is Standing.SUSPENDED


@pytest.mark.parametrize("late", [0.1, 59.0])
def test_a_bill_that_comes_after_the_last_report_accuses_nobody(late: float) -> None:
    """Traffic has ended, and nothing is to be reported any more."""
    link = Link()
    link.trade(10)
    billed_at = link.now + late
    for _ in range(100):
        link.now += STEP
        link.b.book.look_at_clock(billed_units=int(link.now >= billed_at), now=link.now)
    assert link.b.book.finding is Finding.AGREED
    assert link.b.book.suspicion == 0


def test_who_bills_reports() -> None:
    book = CountBook(1)
    assert book.is_news(earned_units=0)
    book.make_report(earned_units=7, owed_units=0)
    assert not book.is_news(earned_units=7)
    assert book.is_news(earned_units=8)


def test_a_suspension_ends_after_a_time_that_doubles() -> None:
    book = CountBook(1)
    book.begin_session(now=0.0)
    now, ends = 0.0, []
    for _ in range(3):
        while not book.is_suspended:
            now += STEP
            book.our += Traffic(received=MEGABYTE)
            book.look_at_clock(billed_units=0, now=now)
        book.end_session(now=now)
        began = now
        while book.is_suspended:
            assert book.next_look_at is not None
            now = book.next_look_at
            book.look_at_clock(billed_units=0, now=now)
        ends.append(now - began)
        assert book.standing is Standing.LIMITED
        book.begin_session(now=now)
    assert ends == [600.0, 1200.0, 2400.0]


def test_good_conduct_is_rewarded_step_by_step() -> None:
    link = Link()
    link.trade(30)
    link.a.book.standing, link.a.book.suspicion = Standing.LIMITED, 6
    standings = []
    for _ in range(7 * GOOD_RUN):
        link.trade(1)
        standings.append(link.a.book.standing)
    assert list(dict.fromkeys(standings)) == [Standing.LIMITED, Standing.WARNED, Standing.TRUSTED]


def test_epochs_begin_with_sessions_and_not_too_often() -> None:
    link = Link()
    link.trade(3)
    report = link.a.book.make_report(earned_units=0, owed_units=0)
    with pytest.raises(CountsError):
        link.b.hear(replace(report, epoch=99), now=link.now)
    assert link.b.book.their is not None and link.b.book.their.epoch == 1
    for _ in range(40):
        link.restart(link.a)
        link.trade(1)
    assert link.b.book.finding is Finding.RESTARTS
    assert link.b.book.standing is Standing.LIMITED  # a crash is no fraud: it is not cut off


def test_an_end_that_echoes_old_reports_gains_a_bounded_blur() -> None:
    link = Link()
    link.trade(CALIBRATION + 2)
    found = 0
    base, sold = link.a.book.our, link.b.book.our
    for number in range(1, 100):
        link.now += STEP
        link.a.book.our += Traffic(sent=MEGABYTE)
        link.a.book.make_report(earned_units=0, owed_units=0)
        claimed = base.sent + int((link.a.book.our.sent - base.sent) * 1.5)
        link.a.hear(CountReport(2, 1000 + number, 1, 1, structs.replace(sold, received=claimed), 0, 0), now=link.now)
        found += link.a.findings[-1] is Finding.OVERSTATED
    assert found > 3


def test_more_loss_than_the_routing_measures_is_remarked_on_and_nothing_else() -> None:
    link = Link(loss=0.3)
    link.trade(60)
    assert Finding.LOSS not in link.a.findings
    assert 0.2 < link.a.book.view(b"").lost_to_them < 0.4
    link.a.book.link_loss = 0.0
    link.trade(1)
    assert link.a.findings[-1] is Finding.LOSS and link.a.book.standing is Standing.TRUSTED


def test_a_report_that_was_long_on_its_way_accuses_nobody() -> None:
    link = Link()
    link.trade(CALIBRATION + 2)
    for _ in range(5):
        for sender in (link.a, link.b):
            receiver = link.other(sender)
            for end in (sender, receiver):
                end.report()
            link.send(sender, 50 * MEGABYTE)
            link.arrive(sender)
            link.exchange(sender)
            link.exchange(receiver)
            link.trade(1)
    assert not {*link.a.findings, *link.b.findings} & {Finding.OVERSTATED, Finding.DENIED}


def test_what_was_counted_late_after_a_restart_accuses_nobody() -> None:
    """It takes a moment until a daemon knows whose the bytes are that it counts."""
    link = Link()
    link.trade(20)
    link.restart(link.b)
    late = 0
    for _ in range(CALIBRATION - 1):
        link.send(link.a, MEGABYTE)
        link.under_way[1].clear()
        late += MEGABYTE
        for end in (link.a, link.b):
            end.report()
            link.exchange(end)
    link.b.book.our += Traffic(received=late)
    link.trade(20)
    assert set(link.b.findings) == {Finding.AGREED}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("trade"), st.just("a"), st.integers(1, 3)),
        st.tuples(st.just("report"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("exchange"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("send"), st.sampled_from("ab"), st.integers(1, 50 * MEGABYTE)),
        st.tuples(st.just("arrive"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("report"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("exchange"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("session"), st.just("a"), st.just(0)),
        st.tuples(st.just("restart"), st.sampled_from("ab"), st.just(0)),
    ),
    max_size=150,
)


@settings(max_examples=200, deadline=None)
@example([("send", "a", 1_791_768), ("report", "a", 0), ("exchange", "a", 0), *[("trade", "a", 1)] * 2], 0.0, 0)
@example([("send", "a", OVERTAKEN), ("report", "a", 0), ("exchange", "a", 0), *[("trade", "a", 1)] * 2], 0.0, 0)
@given(steps, st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 2**32))
def test_honest_ends_never_find_an_excess(script: list[tuple[str, str, int]], loss: float, seed: int) -> None:
    """Whatever is lost, or late in these bounds, and whoever restarts: no report is ever taken for a cheat's."""
    link = Link(seed=seed, loss=loss)
    link.trade(CALIBRATION + 2)
    for kind, name, value in script:
        end = link.a if name == "a" else link.b
        link.now += 0.5
        match kind:
            case "trade":
                link.trade(value)
            case "send":
                link.send(end, value)
            case "arrive":
                link.arrive(end)
            case "report":
                end.report()
                if end.book.last is not None and end.book.last.number % (agreement.MAX_ECHO_LAG // 2) == 0:
                    link.exchange(link.a)  # an echo of a report that is no more remembered bounds nothing
                    link.exchange(link.b)
            case "exchange":
                link.exchange(end)
            case "restart":
                link.restart(end)
            case "session":
                for each in (link.a, link.b):
                    each.outbox.clear()
                    each.book.end_session(now=link.now)
                    each.book.begin_session(now=link.now)
    found = {*link.a.findings, *link.b.findings}
    assert not found & {Finding.OVERSTATED, Finding.DENIED}


@settings(max_examples=100, deadline=None)
@given(
    share=st.floats(0.02, 3.0),
    size=st.integers(100_000, 100 * MEGABYTE),
    loss=st.sampled_from([0.0, 0.1]),
    is_seller=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_cheat_beyond_loss_is_found_within_a_known_number_of_reports(
    share: float, size: int, loss: float, is_seller: bool, seed: int
) -> None:
    """The bound of docs/spec/channel.md, for steady traffic."""
    link = Link(seed=seed, loss=loss)
    gain = share - loss * (1 + share) * 1.6 if is_seller else min(share, 1.0) - loss * 1.6
    gain -= 1.2 / agreement.TOLERANCE * (1 + share)
    if gain <= 0.01:
        return
    blur = 2.5 * size  # the reports are one round apart, and half of that is slack
    bound = CALIBRATION + 2 + int((agreement.SLACK_BYTES + blur) / (gain * size)) + 1
    if is_seller:
        link.b.boast = 1 + share
    else:
        link.a.admit = max(0.0, 1 - share)
    victim = link.a if is_seller else link.b
    link.trade(bound + 1, size)
    assert (Finding.OVERSTATED if is_seller else Finding.DENIED) in victim.findings
