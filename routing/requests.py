"""Route and seqno requests (RFC 8966 section 3.8): answering, forwarding, and asking for ourselves."""

from __future__ import annotations

from routing import rules
from routing.announcer import Announcer
from routing.config import Mode
from routing.rules import METRIC_INFINITY
from routing.tables import NEVER, Neighbour, PendingRequest, PrefixEntry, Route, State
from routing.tlv import RouteRequest, SeqnoRequest

HOP_COUNT = 64
FIRST_RESEND = 0.3  # seconds; doubles up to
RESEND_MAX = 16.0
SUPPRESS_TIMEOUT = 0.2  # a request that we passed on so recently is not passed on again: less than FIRST_RESEND
FORWARD_TIMEOUT = 10.0  # how long a requester is remembered
SLACK = 0.05  # resends due within this leave together
TARGETS_MAX = 3
FORWARDS_MAX = 3  # how often a request is passed on, by ourselves, while it is not answered
SEQNO_INTERVAL = 0.1  # least time between two increments of our own seqno
ADOPTION_TIMEOUT = 200.0  # after our start: the life of our earlier self in others' source tables


class Requests:
    def __init__(self, state: State, announcer: Announcer, *, now: float) -> None:
        self._state = state
        self._announcer = announcer
        self._pending: dict[PendingRequest, None] = {}
        self._seqno_changed_at = -NEVER
        self._adopt_until = now + ADOPTION_TIMEOUT

    def handle_route_request(self, neighbour: Neighbour, request: RouteRequest, *, now: float) -> None:
        """Section 3.8.1.1."""
        if request.prefix is None:
            self._announcer.request_dump(neighbour, now=now)
        elif neighbour.budget.may_reply(now=now):
            self._announcer.reply(request.prefix, request.source_prefix, neighbour)
        else:
            self._state.counters["route_request_limit"] += 1

    def handle_seqno_request(self, neighbour: Neighbour, request: SeqnoRequest, *, now: float) -> None:
        """Section 3.8.1.2."""
        if not neighbour.budget.may_request(now=now):
            self._state.counters["seqno_request_limit"] += 1
            return
        entry = self._state.entry_of(request.prefix, request.source_prefix)
        if entry is None:
            self._state.counters["seqno_request_unknown_prefix"] += 1
        elif self._is_answered_by(entry, request.router_id, request.seqno):
            self._announcer.reply(entry.prefix, entry.source_prefix, neighbour)
        elif request.router_id == self._state.config.router_id:
            self._raise_own_seqno(entry, neighbour, request.seqno, now=now)
        elif request.hop_count >= 2 and self._state.config.mode is Mode.ROUTER:
            self._forward(entry, neighbour, request, now=now)

    def chase(self, entry: PrefixEntry, *, now: float) -> None:
        """Sections 3.8.2.1 and 3.8.2.2: ask for a newer seqno where it would give us a route, or a better one."""
        for router_id, routes in self._unfeasible(entry).items():
            source = entry.source_of(router_id)
            if source is None:
                continue  # cannot be: it made them unfeasible
            seqno = rules.seqno_add(source.seqno, 1)
            pending = entry.requests.get(router_id) if entry.requests else None
            if pending is not None and pending.is_ours and not rules.seqno_less(pending.seqno, seqno):
                # Its resend timer is running. But a route that we want since has not been asked for yet.
                self._send_to_all(pending, [route for route in routes if route.neighbour not in pending.asked])
                continue
            pending = self._remember(entry, router_id, seqno, now=now)
            pending.is_ours = True
            pending.tries = 0
            pending.asked.clear()
            self._ask(pending, routes, now=now)

    def settle(self, entry: PrefixEntry, *, now: float) -> None:
        """The routes to `entry` have changed: requests that are answered by it are done with."""
        for pending in list((entry.requests or {}).values()):
            if pending.is_ours and pending.router_id not in self._unfeasible(entry):
                pending.is_ours = False  # that one route has got the seqno is not enough: another may want it, too
            if self._is_answered_by(entry, pending.router_id, pending.seqno):
                for requester in pending.requesters:
                    self._announcer.queue(entry, requester.interface, delay=0.0, now=now)
                self._drop_requesters(pending)
            if not pending.is_ours and not pending.requesters:
                self._forget(pending)

    def handle_timer(self, *, now: float) -> None:
        for pending in list(self._pending):
            if pending.requesters and pending.expires_at <= now:
                self._drop_requesters(pending)
            if pending.resend_at <= now + SLACK:
                self._resend(pending, now=now)
            if not pending.is_ours and not pending.requesters:
                self._forget(pending)
        self._arm()

    def forget_neighbour(self, neighbour: Neighbour) -> None:
        for pending in self._pending:
            pending.asked.pop(neighbour, None)
            pending.requesters.pop(neighbour, None)
        neighbour.request_count = 0

    def _is_answered_by(self, entry: PrefixEntry, router_id: bytes, seqno: int) -> bool:
        """We announce a route from another router, or one that is new enough."""
        if entry.announced_id is None:
            return False
        ours = self._state.seqno if entry.selected is None else entry.selected.update.seqno
        return entry.announced_id != router_id or not rules.seqno_less(ours, seqno)

    def _raise_own_seqno(self, entry: PrefixEntry, neighbour: Neighbour, seqno: int, *, now: float) -> None:
        if entry.own_metric is None or now < self._seqno_changed_at + SEQNO_INTERVAL:
            return  # a request that was worth it comes again
        self._seqno_changed_at = now
        raised = rules.seqno_add(self._state.seqno, 1)
        if seqno != raised and now < self._adopt_until:
            # We have restarted with a seqno behind the one that our earlier self had spread: catch up, once. Otherwise
            # one step at a time, so that nobody can make our seqno leap.
            self._adopt_until = -NEVER
            raised = seqno
        self._state.set_seqno(raised)
        self._announcer.queue(entry, neighbour.interface, delay=0.0, now=now)

    def _forward(self, entry: PrefixEntry, neighbour: Neighbour, request: SeqnoRequest, *, now: float) -> None:
        if neighbour.request_count >= self._state.config.max_requests_per_neighbour:
            self._state.counters["seqno_request_limit"] += 1
            return
        pending = entry.requests.get(request.router_id) if entry.requests else None
        is_known = pending is not None and not rules.seqno_less(pending.seqno, request.seqno)
        if pending is None or not is_known:
            target = self._next_hop(entry, neighbour)
            if target is None:
                return
            pending = self._remember(entry, request.router_id, request.seqno, now=now)
        elif now < pending.sent_at + SUPPRESS_TIMEOUT:
            target = None
        else:
            target = self._next_hop(entry, neighbour)
        if neighbour not in pending.requesters:
            pending.requesters[neighbour] = None
            neighbour.request_count += 1
        pending.expires_at = now + FORWARD_TIMEOUT
        if target is None:
            self._state.counters["seqno_request_suppressed"] += 1
            return
        pending.hop_count = request.hop_count - 1
        if not pending.is_ours:
            pending.tries = 0
        self._pass_on(pending, target, now=now)

    def _pass_on(self, pending: PendingRequest, target: Neighbour, *, now: float) -> None:
        """Each hop repeats it, so that a long way is not lost where each of its links loses a little."""
        self._send(pending, target, pending.hop_count)
        pending.sent_at = now
        if pending.is_ours:
            return  # that is repeated anyway
        pending.tries += 1
        pending.resend_at = NEVER
        if pending.tries < FORWARDS_MAX:
            delay = FIRST_RESEND * 2.0 ** (pending.tries - 1)
            pending.resend_at = now + delay * self._state.rng.uniform(0.9, 1.2)
            self._state.timers.set_earlier("requests", pending.resend_at)

    def _next_hop(self, entry: PrefixEntry, requester: Neighbour) -> Neighbour | None:
        """The selected route's, else that of the shortest feasible, else of the shortest unfeasible one."""
        if entry.selected is not None and entry.selected.neighbour is not requester:
            return entry.selected.neighbour
        others = [r for r in entry.by_age() if r.neighbour is not requester and r.metric < METRIC_INFINITY]
        if not others:
            return None
        return min(others, key=lambda r: (not is_route_feasible(r), r.metric)).neighbour

    def _unfeasible(self, entry: PrefixEntry) -> dict[bytes, list[Route]]:
        """By router-id: unfeasible routes that we would select, or do still use, shortest first."""
        current = entry.selected
        limit = current.metric if current is not None else METRIC_INFINITY
        found: dict[bytes, list[Route]] = {}
        for route in sorted(entry.by_age(), key=lambda r: r.metric):
            is_wanted = route is current or route.metric < limit
            if is_wanted and route.price <= self._state.price_max and not is_route_feasible(route):
                found.setdefault(route.update.router_id, []).append(route)
        return found

    def _resend(self, pending: PendingRequest, *, now: float) -> None:
        if not pending.is_ours:
            pending.resend_at = NEVER
            requester = next(iter(pending.requesters), None)
            if requester is not None and pending.hop_count > 0:
                target = self._next_hop(pending.entry, requester)
                if target is not None:
                    self._pass_on(pending, target, now=now)
            return
        routes = self._unfeasible(pending.entry).get(pending.router_id)
        if routes is None:
            pending.is_ours = False
            return
        self._ask(pending, routes, now=now)

    def _ask(self, pending: PendingRequest, routes: list[Route], *, now: float) -> None:
        self._send_to_all(pending, routes)
        delay = min(RESEND_MAX, FIRST_RESEND * 2.0**pending.tries)
        pending.tries = min(pending.tries + 1, 16)
        pending.sent_at = now
        pending.resend_at = now + delay * self._state.rng.uniform(0.9, 1.2)
        self._state.timers.set_earlier("requests", pending.resend_at)

    def _send_to_all(self, pending: PendingRequest, routes: list[Route]) -> None:
        """It is ours."""
        for route in routes[:TARGETS_MAX]:
            pending.asked[route.neighbour] = None
            self._send(pending, route.neighbour, HOP_COUNT)

    def _send(self, pending: PendingRequest, target: Neighbour, hop_count: int) -> None:
        entry = pending.entry
        request = SeqnoRequest(entry.prefix, pending.seqno, hop_count, pending.router_id, entry.source_prefix)
        self._state.send(target, request)

    def _remember(self, entry: PrefixEntry, router_id: bytes, seqno: int, *, now: float) -> PendingRequest:
        pending = entry.requests.get(router_id) if entry.requests else None
        if pending is None:
            pending = PendingRequest(entry, router_id, seqno, now, now + FORWARD_TIMEOUT)
            entry.requests = (entry.requests or {}) | {router_id: pending}
            self._pending[pending] = None
            self._state.timers.set_earlier("requests", pending.expires_at)
        pending.seqno = seqno
        return pending

    def _drop_requesters(self, pending: PendingRequest) -> None:
        for requester in pending.requesters:
            requester.request_count -= 1
        pending.requesters.clear()

    def _forget(self, pending: PendingRequest) -> None:
        self._pending.pop(pending, None)
        entry = pending.entry
        if entry.requests:
            entry.requests.pop(pending.router_id, None)
            entry.requests = entry.requests or None  # an empty dictionary takes more than the entry itself

    def _arm(self) -> None:
        deadlines = [p.resend_at if p.is_ours else min(p.resend_at, p.expires_at) for p in self._pending]
        if deadlines:
            self._state.timers.set("requests", min(deadlines))


def is_route_feasible(route: Route) -> bool:
    update = route.update
    source = route.entry.source_of(update.router_id)
    return source is None or rules.distance_less(update.seqno, update.metric, source.seqno, source.metric)
