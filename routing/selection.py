"""The route table and the choice among its routes (RFC 8966 sections 3.5 and 3.6), on the composite cost.

One deliberate reading of section 3.5.3: an update that makes the *selected* route unfeasible (same router-id, longer
way) neither is ignored nor unselects it. We keep forwarding on it, compare it by its new metric, announce that, and ask
for a newer seqno at once. It stays loop-free: the next hop's feasibility distance was below ours when we selected the
route, it never rises, and ours can only fall to something that we announce, which is the next hop's own announced
distance plus a positive cost. So a price rise costs nobody a packet.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from routing import rules
from routing.announcer import Announcer
from routing.budget import ASK_INTERVAL, flap
from routing.config import Mode
from routing.events import BlockRoute, InstallRoute, LearnedPrice, RemoveRoute
from routing.filters import Policy, appraise
from routing.requests import Requests, is_route_feasible
from routing.rules import METRIC_INFINITY
from routing.tables import NEVER, Neighbour, PrefixEntry, Route, State
from routing.tlv import Prefix, RouteRequest, Update, identity, route_key

HOLD_SECONDS_PER_CS = 0.035  # a route lives for 3.5 update intervals (RFC 8966 appendix B)
REFRESH_SHARE = 0.125  # the last part of its life, in which we ask for a selected route again (section 3.8.2.3)
SOURCE_TIMEOUT = 200.0  # garbage collection of feasibility distances (appendix B: 3 minutes)
PRICE_PATIENCE = 10.0  # sticky timeouts until a buyer that did not follow a price thinks again
SCAN_INTERVAL = 1.0  # least time between two passes over the tables
ROUTER_ID_ZEROS = bytes(8)
ROUTER_ID_ONES = b"\xff" * 8
_THIS_NETWORK = IPv4Network("0.0.0.0/8")


class Selection:
    def __init__(self, state: State, announcer: Announcer, requests: Requests) -> None:
        self._state = state
        self._announcer = announcer
        self._requests = requests
        self._is_stub = state.config.mode is Mode.STUB
        self._is_open = state.policy.is_import_open
        self._price_max = state.price_max
        self._scan_at = NEVER  # at the latest, as far as we have asked for it
        self._refreshed_at = -NEVER  # when a route was last refreshed, by an update of this interval; and its new end
        self._refreshed_cs = 0
        self._expires_at = -NEVER
        self._new_at = -NEVER  # when a route that had none before was last learned, and its `rest_at`
        self._new_rest_at = -NEVER

    def originate(self, prefix: Prefix, source_prefix: Prefix | None, metric: int, *, now: float) -> None:
        entry = self._state.entry_of(prefix, source_prefix) or self._new_entry(prefix, source_prefix)
        if entry.own_metric is not None and metric > entry.own_metric:
            # Nobody need find our longer distance unfeasible (section 3.7.3).
            self._state.set_seqno(rules.seqno_add(self._state.seqno, 1))
        entry.own_metric = metric
        self.reconsider(entry, now=now)

    def withdraw(self, prefix: Prefix, source_prefix: Prefix | None, *, now: float) -> None:
        entry = self._state.entry_of(prefix, source_prefix)
        if entry is not None and entry.own_metric is not None:
            entry.own_metric = None
            self.reconsider(entry, now=now)
            self._state.timers.set_earlier("scan", now + SOURCE_TIMEOUT)

    def receive_update(self, neighbour: Neighbour, update: Update, *, now: float) -> None:
        """Section 3.5.3."""
        if update.price_msat_per_gb is not None and not neighbour.is_priced:
            self._note_priced(neighbour, now=now)
        config = self._state.config
        if self._is_stub and update.prefix not in config.stub_prefixes:
            return
        entry = self._state.entry_of(update.prefix, update.source_prefix)
        route = entry.route_of(neighbour) if entry is not None else None
        if route is not None and _is_repeated(update, route.update):
            self._refresh(route, now=now)
        elif not self._is_acceptable(neighbour, update):
            return
        elif update.metric >= METRIC_INFINITY or update.router_id == config.router_id:
            # A route that leads back to ourselves is as good as none.
            if route is not None:
                self._drop(route, now=now)
        elif route is not None:
            rest_at = route.rest_at
            route.rest_at = flap(rest_at, now=now)
            if self._may_change(neighbour, update, rest_at, now=now):
                self._change(route, update, now=now)
        elif self._has_room_for(neighbour, entry, update):
            key = route_key(update.prefix, update.source_prefix)
            rest_at = neighbour.budget.flaps.pop(key, -NEVER) if neighbour.budget.flaps else -NEVER
            if self._may_change(neighbour, update, rest_at, now=now):
                entry = entry or self._new_entry(update.prefix, update.source_prefix)
                self._add(neighbour, entry, update, rest_at=self._rest_at(rest_at, now=now), now=now)
            else:
                neighbour.budget.remember_flaps(key, flap(rest_at, now=now), now=now)

    def retract_all(self, neighbour: Neighbour, *, now: float) -> None:
        """A wildcard retraction (section 4.6.9)."""
        if neighbour.route_count == 0:
            return
        for entry in list(self._state.prefixes.values()):
            route = entry.route_of(neighbour)
            if route is not None:
                self._drop(route, now=now)

    def forget_neighbours(self, neighbours: list[Neighbour], *, now: float) -> None:
        """They are gone: so are their routes. The prices that they asked end with them, without a `LearnedPrice`."""
        for entry in list(self._state.prefixes.values()):
            for neighbour in neighbours:
                route = entry.route_of(neighbour)
                if route is not None:
                    entry.remove(route)
                    neighbour.budget.remember_flaps(entry.key, route.rest_at, now=now)
            if entry.selected is not None and entry.selected.neighbour in neighbours:
                self.reconsider(entry, now=now)
        for neighbour in neighbours:
            neighbour.route_count = 0

    def change_link_cost(self, neighbour: Neighbour, *, now: float) -> None:
        for entry in list(self._state.prefixes.values()):
            route = entry.route_of(neighbour)
            if route is not None:
                route.metric = self._metric(route)
                self.reconsider(entry, now=now)

    def set_policy(self, policy: Policy, *, now: float) -> None:
        """Each prefix moves from its old route to its new one in one step; none is without a route in between."""
        before, self._state.policy = self._state.policy, policy
        self._is_open = policy.is_import_open
        self._price_max = self._state.price_max
        for entry in list(self._state.prefixes.values()):
            for route in entry.known():
                self._appraise(route)
            self.reconsider(entry, now=now)
        if policy.exports != before.exports:
            # What is longer than before would be unfeasible to those who heard of it (section 3.7.3).
            self._state.set_seqno(rules.seqno_add(self._state.seqno, 1))
            self._announcer.announce_anew(now=now)

    def announce_all(self, *, now: float) -> None:
        """Our fee has changed."""
        for entry in self._state.prefixes.values():
            self._announcer.announce(entry, now=now)

    def reconsider(self, entry: PrefixEntry, *, now: float, barred: Route | None = None) -> None:
        """Select again (section 3.6), and do all that follows from it. `barred` may not be kept."""
        current = entry.selected if entry.selected is not barred else None
        best: Route | None = None
        unfeasible_metric = METRIC_INFINITY
        if entry.own_metric is None:
            best, current, unfeasible_metric = self._survey(entry, current)
        if best is current:
            entry.patient_at = NEVER
        elif best is not None and current is not None and not self._is_switch_due(entry, current, best, now=now):
            best = current
        if best is not entry.selected or best is None:
            before = entry.selected
            self._select(entry, best, now=now)
            self._announcer.turn(entry, before, best, now=now)
        self._announcer.announce(entry, now=now)
        if unfeasible_metric <= (METRIC_INFINITY - 1 if best is None else best.metric):
            self._requests.chase(entry, now=now)
        if entry.requests:
            self._requests.settle(entry, now=now)

    def scan(self, *, now: float) -> None:
        """Expire routes, refresh those about to expire, collect garbage; then sleep until the next can be due."""
        next_at = self._scan_at = NEVER
        for entry in list(self._state.prefixes.values()):
            routes = entry.known()
            if any(route.expires_at <= now for route in routes):
                routes = entry.by_age()  # each makes room for the choice of another
            for route in routes:
                next_at = min(next_at, self._check_expiry(route, now=now))
            source_count = len(entry.sources())
            next_at = min(next_at, self._collect_sources(entry, now=now))
            if len(entry.sources()) < source_count and entry.routes and entry.selected is None:
                self.reconsider(entry, now=now)  # nobody answered our requests; what was unfeasible is so no more
            next_at = min(next_at, self._check_hold(entry, now=now))
            if entry.retract_until > now:
                next_at = min(next_at, entry.retract_until)
            elif entry.is_blocked:
                continue
            elif not (entry.routes or entry.announced_id or entry.source or entry.requests):
                self._remove_entry(entry)
        if next_at < NEVER:
            self._scan_by(next_at, now=now)

    def release(self, entry: PrefixEntry) -> None:
        """Neighbours on one more interface know that it is gone (section 3.5.4)."""
        if not (entry.held_on or entry.advertised_on):
            entry.hold_until = -NEVER
            self._end_hold(entry)

    def end_holds(self) -> None:
        """There are no neighbours any more."""
        for entry in self._state.prefixes.values():
            self._end_hold(entry)

    def _new_entry(self, prefix: Prefix, source_prefix: Prefix | None) -> PrefixEntry:
        entry = PrefixEntry(prefix, source_prefix)
        self._state.prefixes[entry.key] = entry
        if source_prefix is None:
            self._state.entry_by_id[identity(prefix)] = entry
        else:
            self._state.source_prefixes[source_prefix] += 1
        return entry

    def _has_room_for(self, neighbour: Neighbour, entry: PrefixEntry | None, update: Update) -> bool:
        """For one more route."""
        state, source_prefix = self._state, update.source_prefix
        if neighbour.route_count >= state.config.max_routes_per_neighbour:
            reason = "route_limit"
        elif entry is not None:
            return True
        elif (
            source_prefix is not None
            and source_prefix not in state.source_prefixes
            and len(state.source_prefixes) >= state.config.max_source_prefixes
        ):
            reason = "source_prefix_limit"
        elif len(state.prefixes) >= state.config.max_prefixes:
            reason = "prefix_limit"
        else:
            return True
        state.counters[reason] += 1
        return False

    def _is_acceptable(self, neighbour: Neighbour, update: Update) -> bool:
        if update.interval_cs == 0:
            reason = "update_without_interval"
        elif update.metric < METRIC_INFINITY and update.router_id in (ROUTER_ID_ZEROS, ROUTER_ID_ONES):
            reason = "update_router_id"  # section 4.1.3
        elif update.metric >= METRIC_INFINITY or update.next_hop is None or update.next_hop == neighbour.address:
            return True
        elif isinstance(update.next_hop, IPv4Address):
            # Whether it is the neighbour's cannot be known. What goes there is metered by the MAC address that answers.
            if _is_usable(update.next_hop) and update.next_hop != neighbour.interface.address4:
                return True
            reason = "update_ipv4_next_hop"
        else:
            # We could not tell whom to pay.
            reason = "update_third_party_next_hop"
        self._state.counters[reason] += 1
        return False

    def _rest_at(self, before: float, *, now: float) -> float:
        """Of a new route: one object for all of a packet."""
        if before > now:
            return flap(before, now=now)
        if now != self._new_at:
            self._new_at, self._new_rest_at = now, flap(before, now=now)
        return self._new_rest_at

    def _add(self, neighbour: Neighbour, entry: PrefixEntry, update: Update, *, rest_at: float, now: float) -> None:
        neighbour.route_count += 1
        self._state.route_count += 1
        route = Route(neighbour, entry, update, METRIC_INFINITY, 0, now, rest_at, self._state.route_count)
        entry.add(route)
        self._appraise(route)
        self._refresh(route, now=now)
        self._scan_by(_refresh_at(route), now=now)
        self._report_price(route, update.price_msat_per_gb or 0)
        self._follow_up(route, now=now)

    def _change(self, route: Route, update: Update, *, now: float) -> None:
        old = route.update
        is_same_router = old.router_id == update.router_id
        old_next_hop = route.next_hop
        route.update = update
        has_moved = update.next_hop is not old.next_hop and route.next_hop != old_next_hop
        self._appraise(route)
        self._refresh(route, now=now)
        self._scan_by(_refresh_at(route), now=now)
        if self._state.config.tells_prices:
            price = update.price_msat_per_gb or 0
            if price != (old.price_msat_per_gb or 0):
                self._report_price(route, price)
        was_selected = route.entry.selected is route
        self._follow_up(route, is_same_router=is_same_router, now=now)
        if has_moved and was_selected and route.entry.selected is route:
            self._install(route)

    def _appraise(self, route: Route) -> None:
        """What the route is worth to us by what was told of it, our filters, and the cost of the link."""
        if self._is_open:
            route.added_metric, route.price = 0, route.update.price_msat_per_gb or 0
        else:
            route.added_metric, route.price = appraise(
                self._state.policy,
                route.update,
                route.neighbour.interface.name,
                route.neighbour.address,
                is_priced=route.neighbour.is_priced,
                price_weight=self._state.config.price_weight,
            )
        route.metric = self._metric(route)

    @staticmethod
    def _metric(route: Route) -> int:
        return rules.metric_add(rules.metric_add(route.update.metric, route.neighbour.cost), route.added_metric)

    def _note_priced(self, neighbour: Neighbour, *, now: float) -> None:
        neighbour.is_priced = True
        if self._is_open or not neighbour.route_count:
            return
        for entry in list(self._state.prefixes.values()):
            route = entry.route_of(neighbour)
            if route is not None:
                self._appraise(route)
                self.reconsider(entry, now=now)

    def _refresh(self, route: Route, *, now: float) -> None:
        interval_cs = route.update.interval_cs
        if now != self._refreshed_at or interval_cs != self._refreshed_cs:
            # One object for all routes of a packet: there may be millions of routes.
            self._refreshed_at, self._refreshed_cs = now, interval_cs
            self._expires_at = now + HOLD_SECONDS_PER_CS * interval_cs
        route.expires_at = self._expires_at
        route.is_refresh_requested = False

    def _scan_by(self, at: float, *, now: float) -> None:
        """However short the intervals that neighbours announce, the tables are not gone through all the time."""
        at = max(at, now + SCAN_INTERVAL)
        if at < self._scan_at:
            self._scan_at = at
            self._state.timers.set_earlier("scan", at)

    def _follow_up(self, route: Route, *, is_same_router: bool = True, now: float) -> None:
        """Select again, unless the news can make no difference."""
        entry = route.entry
        selected = entry.selected
        if route is selected:
            # Section 3.5.3: unfeasible and from another router, it must go.
            is_barred = not is_same_router and not is_route_feasible(route)
            self.reconsider(entry, now=now, barred=route if is_barred else None)
        elif selected is None or route.metric < selected.metric:
            self.reconsider(entry, now=now)

    def _may_change(self, neighbour: Neighbour, update: Update, rest_at: float, *, now: float) -> bool:
        """Whoever changes its routes all the time is not listened to each time (`routing.budget`)."""
        budget = neighbour.budget
        if budget.may_change(rest_at, neighbour.route_count, now=now):
            if budget.missed:
                budget.missed.pop(route_key(update.prefix, update.source_prefix), None)
            return True
        budget.note_missed(route_key(update.prefix, update.source_prefix))
        self._state.counters["update_limit"] += 1
        if neighbour.ask_at == NEVER:
            neighbour.ask_at = now + ASK_INTERVAL
            self._state.timers.set_earlier(neighbour, neighbour.ask_at)
        return False

    def _drop(self, route: Route, *, now: float) -> None:
        entry = route.entry
        entry.remove(route)
        route.neighbour.route_count -= 1
        route.neighbour.budget.remember_flaps(entry.key, route.rest_at, now=now)
        self._report_price(route, None)
        if entry.selected is route:
            self.reconsider(entry, now=now)

    def _survey(self, entry: PrefixEntry, current: Route | None) -> tuple[Route | None, Route | None, int]:
        """The shortest selectable route; `current` if it may be kept; the metric of the shortest unfeasible route."""
        best: Route | None = None
        best_metric = unfeasible_metric = METRIC_INFINITY
        kept: Route | None = None
        price_max = self._price_max
        first = entry.source
        for route in entry.routes:
            if route is None:
                continue
            metric = route.metric
            if metric >= METRIC_INFINITY or route.price > price_max:
                continue
            update = route.update
            source = first
            if source is not None and source.router_id != update.router_id:
                source = entry.source_of(update.router_id)
            if source is None:
                if first is not None and len(entry.sources()) >= self._state.config.max_sources_per_prefix:
                    continue
            elif not rules.distance_less(update.seqno, update.metric, source.seqno, source.metric):
                unfeasible_metric = min(unfeasible_metric, metric)
                if route is not current:
                    continue
            if route is current:
                kept = route
            if metric < best_metric or (metric == best_metric and _is_preferred(route, best, current)):
                best, best_metric = route, metric
        return best, kept, unfeasible_metric

    def _is_switch_due(self, entry: PrefixEntry, current: Route, best: Route, *, now: float) -> bool:
        """Hysteresis: a small gain is taken late and at a random time, so that not all buyers move at once."""
        config = self._state.config
        is_noisy = current.neighbour.is_noisy
        paid = rules.price_metric(current.price, config.price_weight)
        is_settled = now - entry.found_at >= config.settle_timeout
        gain = current.metric - best.metric
        if is_settled and rules.is_price_move(paid - rules.price_metric(best.price, config.price_weight), gain):
            return self._is_price_due(entry, paid, gain, now=now)
        margin = rules.sticky_margin(paid, max(0, current.metric - paid), is_noisy, config.sticky_fraction)
        is_patient = not is_settled or now >= entry.patient_at
        if rules.is_route_better(best.metric, current.metric, margin, is_patient):
            entry.patient_at = NEVER
            return True
        self._wait(entry, config.sticky_timeout, now=now)
        return False

    def _is_price_due(self, entry: PrefixEntry, paid: int, gain: int, *, now: float) -> bool:
        """The other route is better for its price: each buyer has its own lot, and draws another now and then."""
        config, rng = self._state.config, self._state.rng
        is_settled = False
        if entry.lot == 0.0:
            entry.lot = rng.uniform(1.0, rules.LOT_MAX)
        elif now >= entry.patient_at:
            entry.lot, entry.patient_at = rng.uniform(1.0, rules.LOT_MAX), NEVER
            is_settled = gain == entry.waits_for  # nobody else has followed: prices do not answer
        if entry.patient_at == NEVER:
            entry.waits_for = gain
        if (
            rules.is_price_worth(paid, gain, config.sticky_fraction, entry.lot)
            or is_settled
            or not config.sticky_timeout
        ):
            entry.lot, entry.patient_at = 0.0, NEVER
            return True
        self._wait(entry, config.sticky_timeout * PRICE_PATIENCE, now=now)
        return False

    def _wait(self, entry: PrefixEntry, mean: float, *, now: float) -> None:
        """Look at it again at a random time, so that not all do at once."""
        if entry.patient_at == NEVER:
            entry.patient_at = now + mean * self._state.rng.uniform(0.5, 1.5)
            self._state.timers.set(entry, entry.patient_at)

    def _select(self, entry: PrefixEntry, route: Route | None, *, now: float) -> None:
        """`route` None: also if there was none before, but for a prefix of our own perhaps."""
        was_in_kernel = entry.selected is not None or entry.is_blocked
        if entry.selected is None:
            entry.found_at = now
        entry.selected = route
        if route is not None:
            entry.is_blocked = False
            self._install(route)
        elif entry.own_metric is None and self._is_relied_on(entry, now=now):
            self._block(entry, now=now)
        elif was_in_kernel:
            entry.is_blocked = False
            self._state.outputs.append(RemoveRoute(entry.prefix, entry.source_prefix))

    @staticmethod
    def _is_relied_on(entry: PrefixEntry, *, now: float) -> bool:
        """A neighbour may send us packets for the prefix. Nothing is less specific than a plain default route."""
        is_covered = entry.prefix.prefixlen > 0 or entry.source_prefix is not None
        return is_covered and (entry.advertised_on != 0 or entry.hold_until > now)

    def _block(self, entry: PrefixEntry, *, now: float) -> None:
        """Section 3.5.4: what covers the prefix may lead back to us, through a neighbour that still relies on us."""
        if entry.is_blocked:
            return
        entry.is_blocked = True
        entry.hold_until = self._announcer.hold_until(now=now)
        self._scan_by(entry.hold_until, now=now)
        self._state.outputs.append(BlockRoute(entry.prefix, entry.source_prefix))

    def _check_hold(self, entry: PrefixEntry, *, now: float) -> float:
        """When to look at it again."""
        if not entry.is_blocked:
            return NEVER
        if entry.hold_until > now:
            return entry.hold_until
        self._end_hold(entry)
        return NEVER

    def _end_hold(self, entry: PrefixEntry) -> None:
        """Whoever heard of the route has heard of its end, or has let it expire."""
        if entry.is_blocked:
            entry.is_blocked = False
            entry.advertised_on = entry.held_on = 0
            self._state.outputs.append(RemoveRoute(entry.prefix, entry.source_prefix))

    def _install(self, route: Route) -> None:
        entry, interface = route.entry, route.neighbour.interface.name
        install = InstallRoute(
            entry.prefix, interface, route.next_hop, route.metric, route.price, source_prefix=entry.source_prefix
        )
        self._state.outputs.append(install)

    def _report_price(self, route: Route, price: int | None) -> None:
        if not self._state.config.tells_prices:
            return
        entry, neighbour = route.entry, route.neighbour
        interface = neighbour.interface.name
        self._state.outputs.append(
            LearnedPrice(interface, neighbour.address, entry.prefix, price, source_prefix=entry.source_prefix)
        )

    def _check_expiry(self, route: Route, *, now: float) -> float:
        """When to look at this route again."""
        if route.expires_at <= now:
            self._drop(route, now=now)
            return NEVER
        if route.entry.selected is not route or route.is_refresh_requested:
            return route.expires_at
        if now < _refresh_at(route):
            return _refresh_at(route)
        route.is_refresh_requested = True
        self._state.send(route.neighbour, RouteRequest(route.entry.prefix, route.entry.source_prefix))
        return route.expires_at

    def _collect_sources(self, entry: PrefixEntry, *, now: float) -> float:
        next_at = NEVER
        for source in entry.sources():
            if source.router_id == entry.announced_id:
                continue
            if source.used_at + SOURCE_TIMEOUT <= now:
                entry.forget_source(source)
            else:
                next_at = min(next_at, source.used_at + SOURCE_TIMEOUT)
        return next_at

    def _remove_entry(self, entry: PrefixEntry) -> None:
        del self._state.prefixes[entry.key]
        entry.is_forgotten = True
        if entry.source_prefix is None:
            del self._state.entry_by_id[identity(entry.prefix)]
        else:
            known = self._state.source_prefixes
            known[entry.source_prefix] -= 1
            if not known[entry.source_prefix]:
                del known[entry.source_prefix]
        self._state.timers.cancel(entry)
        for interface in self._state.interfaces.values():
            interface.pending.pop(entry, None)
            self._announcer.delivery.forget_entry(interface, entry)


def _is_repeated(update: Update, before: Update) -> bool:
    return update is before or (update.metric == before.metric and update.seqno == before.seqno and update == before)


def _is_preferred(route: Route, to: Route | None, current: Route | None) -> bool:
    """Of two that are as good: the one that we have, else the older one."""
    return to is not None and to is not current and (route is current or route.serial < to.serial)


def _refresh_at(route: Route) -> float:
    return route.expires_at - REFRESH_SHARE * HOLD_SECONDS_PER_CS * route.update.interval_cs


def _is_usable(next_hop: IPv4Address) -> bool:
    """Of one host, and not ourselves."""
    is_reserved = next_hop.is_multicast or next_hop.is_reserved  # the latter has the broadcast address
    return not (is_reserved or next_hop.is_loopback or next_hop in _THIS_NETWORK)
