"""Do the counts of the two ends of a link agree, and what has a peer come to whose counts do not?

Honest ends differ by loss, which makes the sender's count grow faster, and by nothing else. What grows the other way is
an *excess*. It is measured from the lowest difference that there was before (a cumulative sum test, as Page's of 1954),
so that loss of the past excuses nothing; and between bounds, since the peer's report was made at some moment between
the report of ours that it answers and now: packets under way accuse nobody, and no clock is shared.

Each report with new excess adds to the suspicion, a run without takes from it. The steps are in `Standing`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from payments.counts import NO_TRAFFIC, CountReport, CountsError, Evidence, Traffic
from payments.records import CountsRecord

SLACK_BYTES = 256 * 1024  # what two readings may miss of each other ...
SLACK_SHARE = 2  # ... and one part in so many of what we counted between the two bounds
TOLERANCE = 128  # one byte in so many may differ for reasons that nobody knows
CALIBRATION = 6  # reports of a new pair of epochs that only say where to measure from
MAX_ECHO_LAG = 8  # so many reports back at most: who echoes an older one wants to blur the moment
GOOD_RUN = 20  # reports without excess that take one from the suspicion
REPORT_INTERVAL = 5.0
SILENCE_TIMEOUT = 60.0  # after which an end that trades and does not report is suspected, once in REPORT_INTERVAL
FORGIVE_INTERVAL = 600.0  # until one that was suspended is tried again; doubles each time
MAX_FORGIVE_INTERVAL = 86_400.0
MAX_EPOCHS = 6  # that a peer may begin at once, and one more in each EPOCH_INTERVAL
EPOCH_INTERVAL = 600.0
LOSS_SHARE = 0.05  # by which loss may exceed twice what the routing measures before it is remarked on


class Finding(Enum):
    AGREED = "agreed"
    LOSS = "loss"  # more is lost on the way than the routing measures; nobody is billed for it
    OVERSTATED = "overstated"  # it counts more from us than we sent: the ground of a bill that is too high
    DENIED = "denied"  # it counts less to us than we received: traffic that it does not want to pay for
    SILENT = "silent"  # it trades and does not report
    RESTARTS = "restarts"  # it begins new epochs, in which nothing can be measured yet, too often


SUSPICIOUS = frozenset({Finding.OVERSTATED, Finding.DENIED, Finding.SILENT, Finding.RESTARTS})


class Standing(IntEnum):
    """What a peer has come to. Each step includes those before it."""

    TRUSTED = 0
    WARNED = 1
    LIMITED = 2  # its window is at its start; its bills are accepted as far as our own meter goes, without tolerance
    SUSPENDED = 3  # it is held to the free tier, and no routes are taken from it


STEPS = {Standing.WARNED: 3, Standing.LIMITED: 6, Standing.SUSPENDED: 12}  # the suspicion from which on


@dataclass(frozen=True, slots=True)
class CountsView:
    """For operators. `their` None: it has never reported. Shares are of 1, over the last reports."""

    peer: bytes
    standing: Standing
    finding: Finding
    our: Traffic
    their: Traffic | None
    their_earned_units: int
    their_owed_units: int
    lost_to_them: float
    lost_from_them: float
    overstated_bytes: int
    denied_bytes: int


@dataclass(slots=True)
class Excess:
    """By how much one count has outgrown the other. `lowest` is scaled by TOLERANCE, less the volume itself."""

    lowest: int = 0
    found_bytes: int = 0

    def start(self, *, high: int, volume: int) -> None:
        self.lowest = high * TOLERANCE - volume

    def grew(self, *, low: int, high: int, volume: int, slack: int) -> bool:
        """`low` and `high` bound the difference now. What has grown beyond the slack is found, and measured from anew:
        a small leak, of which there are honest causes, is found seldom, and a run without finding it forgets it."""
        excess = low * TOLERANCE - volume - self.lowest
        is_found = excess > slack * TOLERANCE
        if is_found:
            self.found_bytes += excess // TOLERANCE
            self.start(high=high, volume=volume)
        else:
            self.lowest = min(self.lowest, high * TOLERANCE - volume)
        return is_found


@dataclass(slots=True)
class Loss:
    """Over the last reports: what the sender counted and the receiver did not."""

    recent: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=GOOD_RUN))

    def note(self, *, sent: int, received: int) -> None:
        self.recent.append((sent, received))

    @property
    def share(self) -> float:
        if not self.recent:
            return 0.0
        (sent_then, received_then), (sent_now, received_now) = self.recent[0], self.recent[-1]
        sent = sent_now - sent_then
        return 0.0 if sent <= SLACK_BYTES else min(1.0, max(0.0, 1 - (received_now - received_then) / sent))


@dataclass(slots=True)
class CountBook:
    """Our counts of the traffic with one peer, its reports, and what came of comparing them.

    `link_loss`: the share that the routing measures. `their`: the last report; until one has come, that of an earlier
    run of ours.
    """

    epoch: int
    our: Traffic = NO_TRAFFIC
    standing: Standing = Standing.TRUSTED
    finding: Finding = Finding.AGREED
    suspicion: int = 0
    suspensions: int = 0
    link_loss: float = 0.0
    evidence: Evidence | None = None
    their: CountReport | None = None
    last: CountReport | None = None  # of ours
    _shown: deque[tuple[int, Traffic]] = field(default_factory=lambda: deque(maxlen=MAX_ECHO_LAG))
    _is_heard: bool = False
    _is_new_session: bool = True
    _is_reported_anew: bool = True
    _calibration: int = CALIBRATION
    _good: int = 0
    _epochs_left: float = float(MAX_EPOCHS)
    _epochs_at: float = 0.0
    _silent_since: float | None = None  # None: no session, which has been silent for ...
    _silent_for: float = 0.0
    _received_then: int = 0  # what we had received when we last heard
    _billed_then: int | None = None  # and it had billed, at the last look at its silence
    _forgive_at: float | None = None
    _overstated: Excess = field(default_factory=Excess)
    _denied: Excess = field(default_factory=Excess)
    _loss_to: Loss = field(default_factory=Loss)
    _loss_from: Loss = field(default_factory=Loss)

    @property
    def is_limited(self) -> bool:
        return self.standing >= Standing.LIMITED

    @property
    def is_suspended(self) -> bool:
        return self.standing is Standing.SUSPENDED

    def begin_session(self, *, now: float) -> None:
        self._is_new_session = self._is_reported_anew = True
        self._silent_since = now - self._silent_for

    def end_session(self, *, now: float) -> None:
        if self._silent_since is not None:
            self._silent_for = now - self._silent_since
        self._silent_since = None

    # --- our reports ---

    def is_news(self, *, earned_units: int) -> bool:
        """The first report of a session is: either end may have been restarted. So is a bill that came after its
        traffic: who bills, reports."""
        if self._is_reported_anew or self.last is None:
            return True
        return self.our != self.last.traffic or earned_units != self.last.earned_units

    def make_report(self, *, earned_units: int, owed_units: int) -> CountReport:
        self._is_reported_anew = False
        number = 1 if self.last is None else self.last.number + 1
        echo = (self.their.epoch, self.their.number) if self._is_heard and self.their is not None else (0, 0)
        self.last = CountReport(self.epoch, number, *echo, self.our, earned_units, owed_units)
        self._shown.append((number, self.our))
        return self.last

    # --- theirs ---

    def hear(self, report: CountReport, evidence: Evidence, *, now: float) -> None:
        """Compare, and judge. Raises CountsError, nothing changed."""
        before = self.their
        is_same_epoch = before is not None and before.epoch == report.epoch
        if is_same_epoch and before is not None:
            report.check_follows(before)
        elif self._is_heard and not self._is_new_session:
            raise CountsError("a new epoch within a session")
        is_continued = is_same_epoch and self._is_heard
        self.their, self.evidence = report, evidence
        self._is_heard, self._is_new_session = True, False
        self._received_then, self._billed_then = self.our.received, None
        self._silent_for = 0.0
        if self._silent_since is not None:
            self._silent_since = now
        if is_continued:
            finding = self._compare(report)
        else:
            finding = Finding.AGREED if self._may_begin_epoch(now=now) else Finding.RESTARTS
            self._calibration = CALIBRATION
            self._measure_from(report)
        self._judge(finding, now=now)

    def _then(self, report: CountReport) -> Traffic:
        """Our counts when we made the report of ours that this one answers."""
        if report.echo_epoch == self.epoch:
            for number, traffic in self._shown:
                if number >= report.echo_number:
                    return traffic
        return self._shown[0][1] if self._shown else NO_TRAFFIC

    def _measure_from(self, report: CountReport) -> None:
        then, theirs = self._then(report), report.traffic
        self._overstated.start(high=theirs.received - then.sent, volume=theirs.received)
        self._denied.start(high=self.our.received - theirs.sent, volume=self.our.received)
        self._loss_to.recent.clear()
        self._loss_from.recent.clear()

    def _compare(self, report: CountReport) -> Finding:
        if self._calibration:
            self._calibration -= 1
            self._measure_from(report)
            return Finding.AGREED
        then, our, theirs = self._then(report), self.our, report.traffic
        is_overstated = self._overstated.grew(
            low=theirs.received - our.sent,
            high=theirs.received - then.sent,
            volume=theirs.received,
            slack=SLACK_BYTES + (our.sent - then.sent) // SLACK_SHARE,
        )
        is_denied = self._denied.grew(
            low=then.received - theirs.sent,
            high=our.received - theirs.sent,
            volume=our.received,
            slack=SLACK_BYTES + (our.received - then.received) // SLACK_SHARE,
        )
        self._loss_to.note(sent=then.sent, received=theirs.received)
        self._loss_from.note(sent=theirs.sent, received=our.received)
        if is_overstated:
            return Finding.OVERSTATED
        if is_denied:
            return Finding.DENIED
        is_lossy = max(self._loss_to.share, self._loss_from.share) > 2 * self.link_loss + LOSS_SHARE
        return Finding.LOSS if is_lossy else Finding.AGREED

    def _may_begin_epoch(self, *, now: float) -> bool:
        self._epochs_left = min(self._epochs_left + (now - self._epochs_at) / EPOCH_INTERVAL, float(MAX_EPOCHS))
        self._epochs_at = now
        if self._epochs_left < 1:
            return False
        self._epochs_left -= 1
        return True

    # --- time ---

    def look_at_clock(self, *, billed_units: int, now: float) -> None:
        """Silence, and the end of a suspension. Call it when `next_look_at` is due, and before it as you like.
        `billed_units`: their latest bill."""
        if self.is_suspended:
            if self._forgive_at is None:  # suspended in an earlier run
                self._forgive_at = now + self._forgive_interval
            elif now >= self._forgive_at:
                self.standing, self.suspicion = Standing.LIMITED, STEPS[Standing.LIMITED]
                self._forgive_at, self._calibration = None, CALIBRATION
        if self._silent_since is not None and now >= self._silent_since + SILENCE_TIMEOUT:
            self._silent_since = now - SILENCE_TIMEOUT + REPORT_INTERVAL
            # The bill for what it has reported may come after the report: only one that still grows is trade.
            is_billing = self._billed_then is not None and billed_units > self._billed_then
            self._billed_then = billed_units
            if self.our.received - self._received_then > SLACK_BYTES or is_billing:
                self._judge(Finding.SILENT, now=now)

    @property
    def next_look_at(self) -> float | None:
        times = [self._forgive_at] if self.is_suspended else []
        times.append(None if self._silent_since is None else self._silent_since + SILENCE_TIMEOUT)
        return min((time for time in times if time is not None), default=None)

    @property
    def _forgive_interval(self) -> float:
        return min(FORGIVE_INTERVAL * 2.0 ** min(max(self.suspensions - 1, 0), 16), MAX_FORGIVE_INTERVAL)

    def _judge(self, finding: Finding, *, now: float) -> None:
        self.finding = finding
        if finding in SUSPICIOUS:
            self._good = 0
            # A daemon that crashes all the time is no cheat; but who cannot be measured is not trusted with much.
            most = STEPS[Standing.SUSPENDED] - (finding is Finding.RESTARTS)
            self.suspicion = max(self.suspicion, min(self.suspicion + 1, most))
        else:
            self._good += 1
            if self._good >= GOOD_RUN:
                self._good, self.suspicion = 0, max(0, self.suspicion - 1)
        reached = max((step for step, least in STEPS.items() if self.suspicion >= least), default=Standing.TRUSTED)
        if reached > self.standing:
            self.standing = reached
            if self.is_suspended:
                self.suspensions = min(self.suspensions + 1, 1000)
                self._forgive_at = now + self._forgive_interval
        elif self.standing is Standing.LIMITED and self.suspicion < STEPS[Standing.WARNED]:
            self.standing = Standing.WARNED
        elif self.standing is Standing.WARNED and self.suspicion == 0:
            self.standing = Standing.TRUSTED

    # --- across restarts, and for operators ---

    def restore(self, record: CountsRecord) -> None:
        """Raises CountsError and ValueError if it is not what was written."""
        if record.body:
            self.their = CountReport.unpack(record.body)
            self.evidence = Evidence(record.body, record.signature)
        self.standing = Standing(record.standing)
        self.suspicion, self.suspensions = record.suspicion, record.suspensions

    def record(self, peer: bytes) -> CountsRecord | None:
        """None: there is nothing to keep."""
        if self.evidence is None and not self.suspicion:
            return None
        return CountsRecord(
            peer=peer,
            body=b"" if self.evidence is None else self.evidence.body,
            signature=b"" if self.evidence is None else self.evidence.signature,
            standing=int(self.standing),
            suspicion=self.suspicion,
            suspensions=self.suspensions,
        )

    def view(self, peer: bytes) -> CountsView:
        their = self.their
        return CountsView(
            peer=peer,
            standing=self.standing,
            finding=self.finding,
            our=self.our,
            their=None if their is None else their.traffic,
            their_earned_units=0 if their is None else their.earned_units,
            their_owed_units=0 if their is None else their.owed_units,
            lost_to_them=self._loss_to.share,
            lost_from_them=self._loss_from.share,
            overstated_bytes=self._overstated.found_bytes,
            denied_bytes=self._denied.found_bytes,
        )
