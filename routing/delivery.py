"""Bad news has to arrive: acknowledged updates (RFC 8966 sections 3.3 and 3.7.2).

Whoever misses bad news (a retraction, a longer or dearer path, another router-id) sends packets nowhere, or does not
know what it pays. So a packet with bad news asks for an acknowledgment, and what is in it is sent again, as it is by
then, until everybody has acknowledged who does so at all. Whoever misses good news keeps a longer path, or none, until
the next full update: on links that have lost something lately it is treated as bad news is. On a link of many
neighbours their answers would cost more than the news: there it is sent twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from routing.rules import METRIC_INFINITY
from routing.tables import NEVER, Batch, Interface, Neighbour, News, PrefixEntry, State
from routing.tlv import AckRequest

ACK_INTERVAL_CS = 10  # within this an answer is asked for
FIRST_RESEND = 0.2  # seconds; doubles each time
RESENDS_MAX = 4
RESENDS_UNASKED = 1  # where nobody is asked to answer
ASKED_MAX = 4  # neighbours on one link; if there are more, nobody is asked
LOSSY_TIMEOUT = 120.0  # how long one loss is remembered
UNANSWERED_MAX = 3  # batches that a neighbour may leave unanswered before it is not asked any more


class Delivery:
    def __init__(self, state: State) -> None:
        self._state = state
        self._opaque = state.rng.randrange(0x10000)

    @staticmethod
    def is_tracked(interface: Interface, entry: PrefixEntry, news: int, *, is_lossy: bool) -> bool:
        """Whether what leaves of `entry` now has to arrive. `is_lossy`: something has been lost there lately."""
        if entry in interface.awaiting:
            return True
        if news == News.BAD and entry.advertised_on & interface.bit:
            return True
        return is_lossy and news >= News.GOOD

    def track(
        self, interface: Interface, entries: Sequence[PrefixEntry], *, is_news: bool, now: float
    ) -> list[AckRequest]:
        """`entries` leave in one packet, with this in it. Not `is_news`: all of them leave again as they were."""
        old = {interface.awaiting[entry]: None for entry in entries if entry in interface.awaiting}
        if not is_news and len(old) == 1:
            (batch,) = old  # a late answer to the first asking is as good
            batch.resends += 1
        else:
            batch = self._new_batch(interface, () if is_news else old)
            batch.resends = 0 if is_news else max(other.resends for other in old) + 1
        for entry in entries:
            self.forget_entry(interface, entry)
            batch.entries[entry] = None
            interface.awaiting[entry] = batch
        interface.batches[batch.opaque] = batch
        batch.resend_at = now + FIRST_RESEND * 2.0**batch.resends * self._state.rng.uniform(1.0, 1.5)
        interface.resend_at = min(interface.resend_at, batch.resend_at)
        self._state.timers.set_earlier(interface, interface.resend_at)
        return [AckRequest(batch.opaque, ACK_INTERVAL_CS)] if batch.missing else []

    def take_due(self, interface: Interface, *, now: float) -> list[PrefixEntry]:
        """What has to be sent again."""
        due: list[PrefixEntry] = []
        for batch in list(interface.batches.values()):
            if batch.resend_at > now:
                continue
            batch.resend_at = NEVER
            if batch.resends < (RESENDS_MAX if batch.missing else RESENDS_UNASKED):
                due += batch.entries
                if any(neighbour.unanswered_batches == 0 for neighbour in batch.missing):
                    interface.lossy_until = now + LOSSY_TIMEOUT
                continue
            for neighbour in batch.missing:
                neighbour.unanswered_batches += 1
            self._dissolve(interface, batch)
        interface.resend_at = min((batch.resend_at for batch in interface.batches.values()), default=NEVER)
        return due

    def receive_ack(self, neighbour: Neighbour, opaque: int) -> list[PrefixEntry]:
        """Prefixes that everybody on the link knows by now to be out of our reach."""
        neighbour.unanswered_batches = 0
        interface = neighbour.interface
        batch = interface.batches.get(opaque)
        if batch is None or neighbour not in batch.missing:
            self._state.counters["ack_unexpected"] += 1
            return []
        del batch.missing[neighbour]
        if batch.missing:
            return []
        self._dissolve(interface, batch)
        if not batch.is_everybody_asked:
            return []
        retracted = [entry for entry in batch.entries if not entry.advertised_on & interface.bit]
        for entry in retracted:
            entry.held_on &= ~interface.bit
        return retracted

    def forget_neighbour(self, neighbour: Neighbour) -> None:
        """It has not answered, and will not."""
        for batch in list(neighbour.interface.batches.values()):
            if neighbour in batch.missing:
                del batch.missing[neighbour]
                batch.is_everybody_asked = False
                if not batch.missing:
                    self._dissolve(neighbour.interface, batch)

    @staticmethod
    def forget_entry(interface: Interface, entry: PrefixEntry) -> None:
        batch = interface.awaiting.pop(entry, None)
        if batch is not None:
            del batch.entries[entry]
            if not batch.entries:
                interface.batches.pop(batch.opaque, None)

    def _new_batch(self, interface: Interface, old: Iterable[Batch]) -> Batch:
        """Asks all, or those who have not answered to `old`."""
        reachable = [n for n in interface.neighbours.values() if n.cost < METRIC_INFINITY]
        asked = [n for n in reachable if n.unanswered_batches < UNANSWERED_MAX] if len(reachable) <= ASKED_MAX else []
        is_everybody_asked = len(asked) == len(reachable)
        if old:
            asked = [n for n in asked if any(n in batch.missing for batch in old)]
            is_everybody_asked = is_everybody_asked and all(batch.is_everybody_asked for batch in old)
        self._opaque = (self._opaque + 1) & 0xFFFF
        return Batch(self._opaque, {}, dict.fromkeys(asked), is_everybody_asked)

    @staticmethod
    def _dissolve(interface: Interface, batch: Batch) -> None:
        interface.batches.pop(batch.opaque, None)
        for entry in batch.entries:
            interface.awaiting.pop(entry, None)
