"""Is a neighbour whose Hello is late still there? It is asked at once, instead of waiting for more Hellos to be missed.

RFC 8966 section 3.3 obliges every speaker to answer an Acknowledgment Request within the interval that it names, so
that a few unanswered ones in a row tell more than missed Hellos, and sooner. On a wire an answer, or any other packet,
ends the check. On a radio link a lost Hello is nothing unusual, and the question is how many requests are lost: each
answer is a step back, each missing one a step towards a conviction, and it goes on until one side has won. The Hello
that did not come counts as missed all the same (`routing.links`). Nothing is sent while Hellos are in time.
"""

from __future__ import annotations

from enum import Enum

from routing import rules
from routing.rules import HISTORY_BITS, METRIC_INFINITY
from routing.tables import NEVER, Doubt, HelloHistory, Neighbour, State
from routing.tlv import Ack, AckRequest

STALL_SHARE = 0.5  # woken up later than this part of the wait: it is we who slept, and answers may lie unread
CONVICTION = 4  # steps, of which the missing Hello is the first
PATIENCE_MAX = 4  # beyond that, a neighbour is believed to answer too slowly for checks to mean anything
FALSE_ALARM_GAP = 1  # a neighbour declared dead that had sent no more than so many Hellos meanwhile was not


class Verdict(Enum):
    NONE = "none"
    LOSSY = "lossy"
    GONE = "gone"


class Liveness:
    def __init__(self, state: State) -> None:
        self._state = state
        self._lag = 0.0  # of our own timers: where we run late, others on the same machine or path do as well

    def note_lag(self, late: float) -> None:
        self._lag = rules.learn_lag(self._lag, late)

    def hear_hello(self, neighbour: Neighbour, record: HelloHistory, *, now: float) -> None:
        """When to begin to doubt: when a Hello is later than this neighbour's have lately been."""
        if record.interval > 0.0:
            neighbour.suspect_at = now + rules.hello_patience(record.interval, record.lateness)
        if neighbour.ack_ratio < 1.0:
            neighbour.trust = rules.learn_trust(neighbour.trust, record.history)
            if neighbour.trust >= rules.TRUST_ENOUGH:
                neighbour.ack_ratio = 1.0

    def hear(self, neighbour: Neighbour) -> None:
        """Any packet: it is not gone. Until the next Hello is due nothing more is asked."""
        neighbour.is_heard = True
        if neighbour.interface.is_wired:
            self._end(neighbour)

    def acknowledge(self, neighbour: Neighbour, ack: Ack) -> bool:
        """False: not what was asked last in a check."""
        if ack.opaque != neighbour.check_opaque:
            return False
        if neighbour.check_at < NEVER and not neighbour.is_answered:
            neighbour.is_answered = True
            neighbour.answers += 1
            neighbour.score -= 1
            if neighbour.score < 0:
                self._end(neighbour)
        return True

    def miss_hello(self, neighbour: Neighbour, record: HelloHistory, *, now: float) -> None:
        """A Hello has been counted as missed, half an interval after it was due. The next is due in the other half."""
        if record.history and neighbour.check_at == NEVER:
            delay = rules.hello_patience(record.interval, record.lateness) - 0.5 * record.interval
            neighbour.suspect_at = now + delay

    def doubt(self, neighbour: Neighbour, *, now: float) -> None:
        """Begin a check, unless one is under way or could tell nothing."""
        neighbour.suspect_at = NEVER
        if neighbour.check_at < NEVER or self._tries(neighbour) == 0:
            return
        neighbour.checks = neighbour.answers = 0
        neighbour.score = 1  # the Hello
        neighbour.is_heard = False
        neighbour.is_answered = True  # nothing asked yet
        neighbour.check_at = max(now, neighbour.checked_at + self._wait(neighbour))

    def run(self, neighbour: Neighbour, *, now: float) -> Verdict:
        """Timers. `Verdict.LOSSY`: `ack_ratio` says how lossy the link is for now."""
        if neighbour.suspect_at <= now:
            self.doubt(neighbour, now=now)
        if neighbour.check_at > now:
            return Verdict.NONE
        late = now - neighbour.check_at
        is_stalled = late > STALL_SHARE * self._wait(neighbour)
        self.note_lag(late)
        if neighbour.checks > 0 and is_stalled:
            neighbour.checks -= 1  # it may have been answered: once more
        elif not neighbour.is_answered:
            neighbour.score += 1
        verdict = self._judge(neighbour)
        if verdict is not Verdict.NONE or neighbour.checks >= rules.CHECKS_MAX:
            self._end(neighbour)
            return verdict
        neighbour.checks += 1
        wait = self._wait(neighbour)
        neighbour.check_at = now + wait
        neighbour.checked_at = now
        neighbour.is_answered = False
        neighbour.check_opaque = (neighbour.check_opaque + 1) & 0xFFFF
        self._state.send(neighbour, AckRequest(neighbour.check_opaque, max(1, int(wait * 100))))
        return Verdict.NONE

    def _judge(self, neighbour: Neighbour) -> Verdict:
        tries = self._tries(neighbour)
        if tries == 0:
            return Verdict.NONE  # it has become pointless: the limit ends it
        if not neighbour.is_heard and neighbour.checks < tries:
            return Verdict.NONE
        if neighbour.is_heard and neighbour.score < CONVICTION:
            return Verdict.NONE
        if neighbour.interface.is_wired:
            return Verdict.GONE
        neighbour.ack_ratio = rules.convicted_ratio(neighbour.answers, neighbour.checks)
        neighbour.trust = 0
        return Verdict.LOSSY if neighbour.is_heard else Verdict.GONE

    @staticmethod
    def _end(neighbour: Neighbour) -> None:
        neighbour.check_at = NEVER
        neighbour.checks = 0

    def bury(self, neighbour: Neighbour) -> None:
        """Remember when it was declared dead, to find out whether that was wrong."""
        doubts = neighbour.interface.doubts
        doubts.pop(neighbour.address, None)
        if len(doubts) >= self._state.config.max_neighbours_per_interface:
            del doubts[next(iter(doubts))]
        doubts[neighbour.address] = Doubt(neighbour.multicast.expected_seqno, neighbour.patience)

    def meet(self, neighbour: Neighbour, seqno: int) -> None:
        """One that comes back as if nothing had happened has only been slow: it gets more time from now on."""
        doubt = neighbour.interface.doubts.pop(neighbour.address, None)
        if doubt is None:
            return
        # The one that was awaited, or the next, or one that had been counted as missed.
        is_false_alarm = (seqno - doubt.expected_seqno + HISTORY_BITS) & 0xFFFF <= HISTORY_BITS + FALSE_ALARM_GAP
        neighbour.patience = min(2 * PATIENCE_MAX, doubt.patience * 2) if is_false_alarm else doubt.patience
        if is_false_alarm:
            self._state.counters["neighbour_lost_by_mistake"] += 1

    def _wait(self, neighbour: Neighbour) -> float:
        interval = max(neighbour.multicast.interval, neighbour.unicast.interval)
        return rules.check_wait(interval) * neighbour.patience + self._lag

    @staticmethod
    def _tries(neighbour: Neighbour) -> int:
        if neighbour.patience > PATIENCE_MAX or neighbour.rxcost >= METRIC_INFINITY:
            return 0
        if neighbour.interface.is_wired:
            return rules.CHECKS_WIRED
        if neighbour.ack_ratio < 1.0:
            return 0
        # Not by the cost: a slow link is no lossy one.
        nominal, cost = neighbour.interface.cost, neighbour.etx_cost
        return rules.check_tries(nominal / cost if cost < METRIC_INFINITY else 0.0)
