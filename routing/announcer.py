"""Sending updates (RFC 8966 section 3.7): what we announce of each prefix, when it leaves, and on which interfaces.

An interface queues prefixes, not updates: what is sent is built when it leaves, so a newer state replaces a queued one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network

from routing import links, rules
from routing.config import Mode
from routing.delivery import Delivery
from routing.events import AnnouncedPrice, SendPacket
from routing.filters import added_metric
from routing.rules import METRIC_INFINITY, PRICE_NOT_FOR_SALE
from routing.tables import NEVER, Interface, Neighbour, News, PrefixEntry, Route, Source, State
from routing.tlv import AckRequest, Prefix, Tlv, Update

HOLD_INTERVALS = 3.5  # a neighbour keeps our route for so many update intervals (appendix B)
RETRACTION_HOLD_INTERVALS = 2.5  # full updates repeat a retraction for so many update intervals
HOLD_UNTOLD = 1 << 4096  # in `PrefixEntry.held_on`: for interfaces that are down
BURST_PACKETS = 8  # so many at once fit any queue on the way
BURST_INTERVAL = 0.01
UPDATE_OCTETS = 48  # a priced IPv6 host route with its Router-Id TLV
DUMP_SPACING = 0.2  # least time between two full dumps to different neighbours on one link
DUMP_INTERVAL = 1.0  # least time between two full dumps to one neighbour
_Told = tuple[bytes | None, int, int]  # router-id (None: no route), metric and price of an announcement
_NOTHING: _Told = (None, METRIC_INFINITY, 0)


class Announcer:
    def __init__(self, state: State) -> None:
        self._state = state
        self.delivery = Delivery(state)
        self._is_router = state.config.mode is Mode.ROUTER
        self._interval_cs = max(1, round(state.config.update_interval * 100))

    def announce(self, entry: PrefixEntry, *, now: float) -> None:
        """The selected route of `entry`, or its numbers, may have changed: tell the neighbours if it concerns them."""
        entry.update = None
        new = self._announcement(entry)
        old: _Told = (entry.announced_id, entry.announced_metric, entry.announced_price)
        if new == old:
            return
        entry.announced_id, entry.announced_metric, entry.announced_price = new
        if new[0] is None:
            entry.retract_until = now + RETRACTION_HOLD_INTERVALS * self._state.config.update_interval
            self._state.timers.set_earlier("scan", entry.retract_until)
        source = entry.source_of(old[0]) if old[0] is not None else None
        if source is not None:
            source.used_at = now
        self._report_price(entry, old, new)
        delay = self._delay(entry, old, new, now=now)
        news = _judge(old, new)
        for interface in self._state.interfaces.values():
            self.queue(entry, interface, news, delay=delay, now=now)

    def turn(self, entry: PrefixEntry, old: Route | None, new: Route | None, *, now: float) -> None:
        """Split horizon follows the selected route: what was its way out has to hear of it now, even if our metric is
        the same as before, and what is its way out now has to hear that we are no way back."""
        if old is None or new is None or old.neighbour.interface is new.neighbour.interface:
            return
        for route in (old, new):
            interface = route.neighbour.interface
            if self._is_split(interface):
                self.queue(entry, interface, News.GOOD, delay=self._state.config.urgent_timeout, now=now)

    def announce_anew(self, *, now: float) -> None:
        """Our export filters have changed: neighbours hear of all that they may know, and lose what they may not."""
        for entry in self._state.prefixes.values():
            entry.update = None
            if entry.announced_id is not None:
                for interface in self._state.interfaces.values():
                    self.queue(entry, interface, News.BAD, delay=self._state.config.urgent_timeout, now=now)

    def queue(
        self, entry: PrefixEntry, interface: Interface, news: int = News.SMALL, *, delay: float, now: float
    ) -> None:
        """What we know of `entry` leaves by multicast within `delay` seconds; 0: at the end of this `handle`."""
        if not interface.neighbours:
            return
        if news >= interface.pending.get(entry, News.NONE):
            interface.pending[entry] = news
        if delay <= 0.0:
            self._state.flushing[interface] = None
        elif now + delay < interface.flush_at:
            interface.flush_at = now + self._state.jitter(delay)
            self._state.timers.set_earlier(interface, interface.flush_at)

    def hold_until(self, *, now: float) -> float:
        """When every neighbour has let a route of ours expire, whatever it missed (section 3.5.4)."""
        return now + HOLD_INTERVALS * self._state.config.update_interval

    def flush(self, interface: Interface, *, now: float) -> None:
        """News first, bad news before good, then what is left of a full update; no more than a burst at a time."""
        if now < interface.paced_until and interface.neighbours:
            self._flush_by(interface, interface.paced_until)
            return
        pending, interface.pending = interface.pending, {}
        interface.flush_at = NEVER
        limit = BURST_PACKETS * _portion(interface)
        if len(pending) > limit:
            first = sorted(pending, key=lambda entry: -pending[entry])
            interface.pending = {entry: pending[entry] for entry in first[limit:]}
            pending = {entry: pending[entry] for entry in first[:limit]}
        full: dict[PrefixEntry, None] = {}
        if interface.dump:
            full = {entry: None for entry in pending if entry in interface.dump}
            for entry in full:
                del interface.dump[entry]
            rest = self._take(interface.dump, limit - len(pending))
            pending |= dict.fromkeys(rest, News.NONE)
            full |= rest
        if interface.pending or interface.dump:
            interface.paced_until = now + BURST_INTERVAL
            self._flush_by(interface, interface.paced_until)
        self._multicast(interface, pending, full, now=now)

    def resend(self, interface: Interface, *, now: float) -> None:
        """Bad news that has not been acknowledged."""
        for entry in self.delivery.take_due(interface, now=now):
            self.queue(entry, interface, News.NONE, delay=0.0, now=now)

    def send_full_update(self, to: Interface | Neighbour, *, now: float) -> None:
        """Section 3.7.1. An only neighbour is spoken to by multicast too (BIRD takes no unicast updates)."""
        if isinstance(to, Neighbour) and len(to.interface.neighbours) > 1:
            self._send_dump(to, now=now)
            return
        interface = to if isinstance(to, Interface) else to.interface
        interface.dump = self._whole_table(now=now)
        self.flush(interface, now=now)

    def dumps(self) -> list[Interface | Neighbour]:
        """Who gets a full update now. Several neighbours on one link get one together."""
        waiting = self._state.dumping
        if not waiting:
            return []
        # Those who are still there.
        asking = [n for n in waiting if isinstance(n, Neighbour) and n.interface.neighbours.get(n.address) is n]
        full = {to: None for to in waiting if isinstance(to, Interface)}
        many = Counter(neighbour.interface for neighbour in asking)
        full |= {interface: None for interface, count in many.items() if count > 1}
        for neighbour in asking:
            if neighbour.interface in full:
                neighbour.dump.clear()
        return [*full, *(neighbour for neighbour in asking if neighbour.interface not in full)]

    def forget_interface(self, entry: PrefixEntry, interface: Interface, *, now: float) -> None:
        """Its neighbours cannot be told. The other end need not know that it is down."""
        if entry.advertised_on & interface.bit:
            self._note_retraction(entry, interface.bit, now=now)
        if entry.held_on & interface.bit:
            entry.held_on = entry.held_on & ~interface.bit | HOLD_UNTOLD

    def _whole_table(self, *, now: float) -> dict[PrefixEntry, None]:
        entries = self._state.prefixes.values()
        return {entry: None for entry in entries if entry.announced_id is not None or entry.retract_until >= now}

    def _send_dump(self, neighbour: Neighbour, *, now: float) -> None:
        interface = neighbour.interface
        if not neighbour.dump:
            neighbour.dump = self._whole_table(now=now)
        entries = self._take(neighbour.dump, BURST_PACKETS * _portion(interface))
        updates = (self._update_on(entry, interface, is_full=True, now=now) for entry in entries)
        self._emit(interface, neighbour, [update for update in updates if update is not None])
        if neighbour.dump:
            neighbour.paced_until = neighbour.dump_at = now + BURST_INTERVAL
            self._state.timers.set_earlier(neighbour, neighbour.dump_at)

    def _take(self, dump: dict[PrefixEntry, None], limit: int) -> dict[PrefixEntry, None]:
        """Out of what is left; not what we have forgotten since."""
        taken = list(itertools.islice(dump, max(0, limit)))
        for entry in taken:
            del dump[entry]
        return {entry: None for entry in taken if not entry.is_forgotten}

    def _flush_by(self, interface: Interface, at: float) -> None:
        interface.flush_at = min(interface.flush_at, at)
        self._state.timers.set_earlier(interface, interface.flush_at)

    def request_full_update(self, interface: Interface) -> None:
        self._state.dumping[interface] = None

    def request_dump(self, neighbour: Neighbour, *, now: float) -> None:
        """A full dump for this neighbour: with this `handle`, unless the last one was very recent."""
        interface = neighbour.interface
        at = neighbour.last_dump_at + DUMP_INTERVAL
        is_leaving = any(isinstance(to, Neighbour) and to.interface is interface for to in self._state.dumping)
        if len(interface.neighbours) > 1 and not is_leaving:
            at = max(at, interface.dumped_at + DUMP_SPACING)  # who asks in the meantime gets it together with others
        if neighbour.dump:
            at = neighbour.paced_until
        if at <= now:
            interface.dumped_at = now
            neighbour.dump_at = NEVER
            neighbour.last_dump_at = now
            self._state.dumping[neighbour] = None
        else:
            neighbour.dump_at = min(neighbour.dump_at, at)
            self._state.timers.set_earlier(neighbour, neighbour.dump_at)

    def reply(self, prefix: Prefix, source_prefix: Prefix | None, neighbour: Neighbour) -> None:
        """Sections 3.8.1.1 and 3.8.1.2: an explicit request gets an update or a retraction, split horizon or not."""
        entry = self._state.entry_of(prefix, source_prefix)
        if entry is None:
            self._state.send(neighbour, _spoken_on(neighbour.interface, self._retraction(prefix, source_prefix)))
            return
        built = entry.update or self._build(entry)
        update = self._exported(entry, built, neighbour.interface) or self._retraction(prefix, source_prefix)
        if update.metric < METRIC_INFINITY:
            entry.advertised_on |= neighbour.interface.bit
        self._state.send(neighbour, _spoken_on(neighbour.interface, update))

    def _announcement(self, entry: PrefixEntry) -> _Told:
        config = self._state.config
        if entry.own_metric is not None:
            return config.router_id, entry.own_metric, 0
        route = entry.selected
        if route is None or not self._is_router:
            return _NOTHING
        # Design section 6: the metric that we announce, and that feasibility is computed on, carries our fee.
        metric = rules.composite_metric(route.metric, self._state.fee, config.price_weight)
        price = rules.price_add(route.price, self._state.fee)
        if metric >= METRIC_INFINITY or price >= PRICE_NOT_FOR_SALE:
            return _NOTHING
        return route.update.router_id, metric, price

    def _report_price(self, entry: PrefixEntry, old: _Told, new: _Told) -> None:
        if old[2] != new[2] or (old[0] is None) != (new[0] is None):
            entry.price_epoch = (entry.price_epoch + 1) & 0xFFFF
            if self._state.config.tells_prices:
                price = new[2] if new[0] is not None else None
                self._state.outputs.append(AnnouncedPrice(entry.prefix, price, entry.source_prefix))

    def _delay(self, entry: PrefixEntry, old: _Told, new: _Told, *, now: float) -> float:
        """Section 3.7.2: how urgent the news is. Retractions do not wait at all."""
        config = self._state.config
        if new[0] is None:
            return 0.0
        is_urgent = (
            old[0] is None
            or now - entry.found_at < config.settle_timeout
            or old[0] != new[0]
            or not rules.is_small_change(old[1], new[1])
            or not rules.is_small_change(old[2], new[2])
        )
        return config.urgent_timeout if is_urgent else config.small_change_timeout

    def _update_on(self, entry: PrefixEntry, interface: Interface, *, is_full: bool, now: float) -> Update | None:
        """What `interface` should hear of the prefix; None: nothing."""
        update = entry.update or self._build(entry)
        bit = interface.bit
        if update.metric >= METRIC_INFINITY:
            if not (is_full or entry.advertised_on & bit or entry in interface.awaiting):
                return None  # nobody there ever heard of it
            self._note_retraction(entry, bit, now=now)
            return update
        exported = None if self._is_horizon(entry, interface) else self._exported(entry, update, interface)
        if exported is None:
            # Section 3.7.4, or a filter. Whoever was told of an earlier route must not keep it.
            if not (entry.advertised_on & bit or entry in interface.awaiting):
                return None
            self._note_retraction(entry, bit, now=now)
            return self._retraction(entry.prefix, entry.source_prefix)
        entry.advertised_on |= bit
        return exported

    def _note_retraction(self, entry: PrefixEntry, bit: int, *, now: float) -> None:
        if entry.advertised_on & bit:
            entry.advertised_on &= ~bit
            entry.held_on |= bit
            entry.hold_until = self.hold_until(now=now)

    def _is_horizon(self, entry: PrefixEntry, interface: Interface) -> bool:
        route = entry.selected
        return route is not None and route.neighbour.interface is interface and self._is_split(interface)

    def _is_split(self, interface: Interface) -> bool:
        return interface.is_wired and self._state.config.split_horizon

    def _build(self, entry: PrefixEntry) -> Update:
        """The announcement as a TLV. It is about to be sent, so the feasibility distance follows (section 3.7.3)."""
        router_id, metric, price = entry.announced_id, entry.announced_metric, entry.announced_price
        if router_id is None:
            entry.update = self._retraction(entry.prefix, entry.source_prefix)
            return entry.update
        if entry.selected is None:
            seqno = self._state.seqno
        else:
            seqno = entry.selected.update.seqno
            if not self._state.policy.exports:
                self._note_distance(entry, router_id, seqno, metric)
        entry.update = Update(
            prefix=entry.prefix,
            metric=metric,
            seqno=seqno,
            interval_cs=self._interval_cs,
            router_id=router_id,
            # Our own prefixes say that we know prices: where we tell none, we ask nothing (docs/spec/routing.md).
            price_msat_per_gb=price or (0 if entry.selected is None else None),
            price_epoch=entry.price_epoch if price else 0,
            source_prefix=entry.source_prefix,
        )
        return entry.update

    def _exported(self, entry: PrefixEntry, update: Update, interface: Interface) -> Update | None:
        """As our filters let `interface` hear it; None: not at all. It is about to be sent."""
        filters = self._state.policy.exports
        if not filters or update.metric >= METRIC_INFINITY:
            return update
        added = added_metric(filters, update, update.price_msat_per_gb or 0, interface.name)
        metric = rules.metric_add(update.metric, added)
        if metric >= METRIC_INFINITY:
            return None
        if entry.selected is not None:
            self._note_distance(entry, update.router_id, update.seqno, metric)
        return replace(update, metric=metric) if added else update

    @staticmethod
    def _note_distance(entry: PrefixEntry, router_id: bytes, seqno: int, metric: int) -> None:
        source = entry.source_of(router_id)
        if source is None:
            entry.source = Source(router_id, seqno, metric, 0.0, entry.source)
        elif rules.distance_less(seqno, metric, source.seqno, source.metric):
            source.seqno = seqno
            source.metric = metric

    def _retraction(self, prefix: Prefix, source_prefix: Prefix | None) -> Update:
        return Update(
            prefix,
            METRIC_INFINITY,
            self._state.seqno,
            self._interval_cs,
            self._state.config.router_id,
            source_prefix=source_prefix,
        )

    def _multicast(
        self, interface: Interface, news_of: dict[PrefixEntry, int], full: dict[PrefixEntry, None], *, now: float
    ) -> None:
        """What has to arrive goes first, so that few packets ask for an acknowledgment."""
        tracked: dict[PrefixEntry, Update] = {}
        others: list[Update] = []
        is_lossy = now < interface.lossy_until or links.has_losses(interface)
        for entry, news in news_of.items():
            is_tracked = self.delivery.is_tracked(interface, entry, news, is_lossy=is_lossy)
            update = self._update_on(entry, interface, is_full=entry in full, now=now)
            if update is not None and is_tracked:
                tracked[entry] = update
            elif update is not None:
                others.append(update)
        asking: list[list[AckRequest]] = []
        entries = list(tracked)
        size = _portion(interface)
        for start in range(0, len(entries), size):
            portion = entries[start : start + size]
            is_news = any(news_of[entry] != News.NONE for entry in portion)
            asking.append(self.delivery.track(interface, portion, is_news=is_news, now=now))
        self._emit(interface, None, [*tracked.values(), *others], asking)

    def _emit(
        self,
        interface: Interface,
        neighbour: Neighbour | None,
        updates: list[Update],
        asking: Sequence[list[AckRequest]] = (),
    ) -> None:
        """In portions that fit one datagram each, so that a lost one loses little; one of `asking` before each."""
        tlvs: Sequence[Tlv] = updates
        if interface.address4 is not None:
            tlvs = [_spoken_on(interface, update) for update in updates]
        size = _portion(interface)
        destination = neighbour.address if neighbour is not None else None
        for number, start in enumerate(range(0, len(tlvs), size)):
            request = asking[number] if number < len(asking) else []
            portion = (*request, *tlvs[start : start + size])
            self._state.packets.append(SendPacket(interface.name, destination, portion))


def _judge(old: _Told, new: _Told) -> int:
    if new[0] is None:
        return News.BAD
    if old[0] is None:
        return News.GOOD
    if old[0] != new[0] or new[2] > old[2]:
        return News.BAD
    if rules.is_small_change(old[1], new[1]):
        return News.GOOD if new[2] < old[2] else News.SMALL
    return News.BAD if new[1] > old[1] else News.GOOD


def _portion(interface: Interface) -> int:
    """How many updates fit, beside an Acknowledgment Request."""
    return max(1, (interface.mtu - 60) // UPDATE_OCTETS)


def _spoken_on(interface: Interface, update: Update) -> Update:
    """RFC 9229 section 2.2: an interface with an IPv4 address is the next hop of IPv4 prefixes by that."""
    if interface.address4 is None or not isinstance(update.prefix, IPv4Network):
        return update
    return replace(update, next_hop=interface.address4)
