"""Is a neighbour whose Hello is late still there? It is asked at once, instead of waiting for more Hellos to be missed.

RFC 8966 section 3.3 obliges every speaker to answer an Acknowledgment Request within the interval that it names, so
that a few unanswered ones in a row tell more than missed Hellos, and sooner. An answer, or any other packet, ends the
check; the Hello that did not come still counts as missed (`routing.links`). Nothing is sent while Hellos are in time.
"""

from __future__ import annotations

from routing import rules
from routing.rules import HISTORY_BITS, METRIC_INFINITY
from routing.tables import NEVER, Doubt, HelloHistory, Neighbour, State
from routing.tlv import AckRequest

STALL_SHARE = 0.5  # woken up later than this part of the wait: it is we who slept, and answers may lie unread
PATIENCE_MAX = 4  # beyond that, a neighbour is believed to answer too slowly for checks to mean anything
FALSE_ALARM_GAP = 1  # a neighbour declared dead that had sent no more than so many Hellos meanwhile was not


class Liveness:
    def __init__(self, state: State) -> None:
        self._state = state

    def hear_hello(self, neighbour: Neighbour, record: HelloHistory, *, now: float) -> None:
        """When to begin to doubt: when a Hello is later than this neighbour's have lately been."""
        if record.interval > 0.0:
            neighbour.suspect_at = now + rules.hello_patience(record.interval, record.lateness)

    def hear(self, neighbour: Neighbour) -> None:
        """Any packet ends a check. Until the next Hello is due nothing more is asked."""
        neighbour.check_at = NEVER
        neighbour.checks = 0

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
        neighbour.checks = 0
        neighbour.check_at = max(now, neighbour.checked_at + self._wait(neighbour))

    def run(self, neighbour: Neighbour, *, now: float) -> bool:
        """Timers. True: the neighbour is gone."""
        if neighbour.suspect_at <= now:
            self.doubt(neighbour, now=now)
        if neighbour.check_at > now:
            return False
        wait = self._wait(neighbour)
        tries = self._tries(neighbour)
        is_stalled = neighbour.checks > 0 and now - neighbour.check_at > STALL_SHARE * wait
        if neighbour.checks >= tries and not is_stalled:
            self.hear(neighbour)
            return tries > 0
        neighbour.checks = min(neighbour.checks + 1, max(1, tries))
        neighbour.check_at = now + wait
        neighbour.checked_at = now
        neighbour.check_opaque = (neighbour.check_opaque + 1) & 0xFFFF
        self._state.send(neighbour, AckRequest(neighbour.check_opaque, max(1, int(wait * 100))))
        return False

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

    @staticmethod
    def _wait(neighbour: Neighbour) -> float:
        interval = max(neighbour.multicast.interval, neighbour.unicast.interval)
        return rules.check_wait(interval) * neighbour.patience

    @staticmethod
    def _tries(neighbour: Neighbour) -> int:
        if neighbour.patience > PATIENCE_MAX or neighbour.rxcost >= METRIC_INFINITY:
            return 0
        if neighbour.interface.is_wired:
            return rules.CHECKS_WIRED
        nominal = neighbour.interface.cost
        return rules.check_tries(nominal / neighbour.cost if neighbour.cost < METRIC_INFINITY else 0.0)
