"""What one neighbour may cost us, and through us the rest of the mesh, however much it says.

Whatever exceeds a budget is treated as lost on the way. Babel stands the loss of any packet, so no budget can make a
loop; and what was not taken is asked for again once there is room. Budgets are token buckets, wide enough for what an
honest neighbour does in its worst minute. A neighbour that restarts keeps those that it has used up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from routing.tlv import RouteKey

REPLIES_BURST = 1000.0  # updates and acknowledgments that it asks for, one by one
REPLIES_RATE = 100.0  # per second
REQUESTS_BURST = 1000.0  # seqno requests
REQUESTS_RATE = 50.0
COSTS_BURST = 32.0  # changes of the cost in its IHUs: each touches all its routes
COSTS_RATE = 1.0
FLAPS_BURST = 16.0  # changes of one route, before it is damped
FLAPS_RATE = 0.5
FLAPS_SPAN = (FLAPS_BURST - 0.999) / FLAPS_RATE  # what has changed so often is at rest no sooner
CHANGES_RATE = 20.0  # new and changed routes, all together, and for each of its routes
CHANGES_RATE_PER_ROUTE = 0.25
ASK_INTERVAL = 2.0  # between two requests for what was not taken
ASK_MAX = 32  # prefixes one by one; if there are more, for all
FLAPS_KEPT = 256  # routes of which flapping is remembered before those at rest are forgotten


@dataclass(slots=True)
class Bucket:
    """Tokens that come at a steady rate, up to a burst."""

    tokens: float
    at: float

    def take(self, burst: float, rate: float, *, now: float) -> bool:
        self.tokens = min(burst, self.tokens + (now - self.at) * rate)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@dataclass(slots=True)
class Budget:
    """Of one neighbour."""

    changes_burst: float  # a whole table, at once
    replies: Bucket
    requests: Bucket
    costs: Bucket
    changes: Bucket
    flaps: dict[RouteKey, float] = field(default_factory=dict)  # `Route.rest_at` of routes that are gone
    flaps_kept: int = FLAPS_KEPT
    missed: dict[RouteKey, None] = field(default_factory=dict)  # prefixes of which an update was not taken
    refused: int = 0  # how much exceeded it

    def may_reply(self, *, now: float) -> bool:
        return self._count(self.replies.take(REPLIES_BURST, REPLIES_RATE, now=now))

    def may_request(self, *, now: float) -> bool:
        return self._count(self.requests.take(REQUESTS_BURST, REQUESTS_RATE, now=now))

    def may_change_cost(self, *, now: float) -> bool:
        return self._count(self.costs.take(COSTS_BURST, COSTS_RATE, now=now))

    def may_change(self, rest_at: float, route_count: int, *, now: float) -> bool:
        """A new route, or one whose numbers change. `flap` moves its `rest_at`."""
        rate = CHANGES_RATE + CHANGES_RATE_PER_ROUTE * route_count
        return self._count(rest_at <= now + FLAPS_SPAN and self.changes.take(self.changes_burst, rate, now=now))

    def note_missed(self, key: RouteKey) -> None:
        if len(self.missed) <= ASK_MAX:
            self.missed[key] = None

    def remember_flaps(self, key: RouteKey, rest_at: float, *, now: float) -> None:
        """Of a route that is gone, and may come back."""
        if rest_at <= now:
            return
        if len(self.flaps) >= self.flaps_kept:
            # So this dictionary holds what changed in the last half minute.
            self.flaps = {k: at for k, at in self.flaps.items() if at > now}
            self.flaps_kept = max(FLAPS_KEPT, 2 * len(self.flaps))
        self.flaps[key] = rest_at

    def _count(self, is_allowed: bool) -> bool:
        self.refused += not is_allowed
        return is_allowed


def flap(rest_at: float, *, now: float) -> float:
    """When a route that changes now will be at rest: a bucket of `FLAPS_BURST` tokens, as the time when it is full."""
    return max(rest_at, now) + 1.0 / FLAPS_RATE if rest_at <= now + FLAPS_SPAN else rest_at


def new_budget(max_routes: int, *, now: float) -> Budget:
    changes = float(max_routes)
    return Budget(
        changes,
        replies=Bucket(REPLIES_BURST, now),
        requests=Bucket(REQUESTS_BURST, now),
        costs=Bucket(COSTS_BURST, now),
        changes=Bucket(changes, now),
    )
