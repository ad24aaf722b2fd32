"""Announces routes that others have put into the kernel, by the operator's rules, for as long as they are there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

import trio

from meshd.config import RedistributeConfig
from meshd.following import follow
from meshd.kernel import KernelRoute, RouteWatch
from meshd.logs import Logger
from routing.events import Input, OriginateRoute, Prefix, WithdrawRoute

log = Logger("meshd.redistribution")
RETRY_INTERVAL = 1.0


class Redistribution:
    """`put` gives the speaker an input; not if it is cancelled. `own` are announced anyway, and never touched."""

    def __init__(
        self,
        watch: RouteWatch,
        rules: Sequence[RedistributeConfig],
        own: Collection[Prefix],
        put: Callable[[Input], Awaitable[None]],
    ) -> None:
        self.announced: dict[Prefix, int] = {}  # metric by prefix
        self._watch = watch
        self._rules = rules
        self._own = own
        self._put = put
        self._scope = trio.CancelScope()

    def set_rules(self, rules: Sequence[RedistributeConfig]) -> None:
        """Judges all routes anew; what is still wanted stays announced."""
        self._rules = rules
        self._scope.cancel()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._scope = trio.CancelScope()
            with self._scope:
                if self._rules:
                    await follow("routes", self._watch.watch, self._announce, retry=RETRY_INTERVAL)
                await self._announce([])
                await trio.sleep_forever()

    async def _announce(self, routes: Iterable[KernelRoute]) -> None:
        wanted = wanted_metrics(self._rules, routes, self._own)
        # Cancelled there, `_put` has not put: what we know to be announced is what is.
        for prefix in self.announced.keys() - wanted.keys():
            await self._put(WithdrawRoute(prefix))
            del self.announced[prefix]
            log.info("no longer announced", prefix=prefix)
        for prefix, metric in wanted.items():
            if self.announced.get(prefix) != metric:
                await self._put(OriginateRoute(prefix, metric))
                self.announced[prefix] = metric
                log.info("announced", prefix=prefix, metric=metric)


def wanted_metrics(
    rules: Sequence[RedistributeConfig], routes: Iterable[KernelRoute], own: Collection[Prefix]
) -> dict[Prefix, int]:
    """The first rule that matches a route decides; of several routes to a prefix, the one that is announced nearest."""
    wanted: dict[Prefix, int] = {}
    for route in routes:
        rule = next((rule for rule in rules if _matches(rule, route)), None)
        if rule is not None and rule.action == "accept" and route.prefix not in own:
            wanted[route.prefix] = min(rule.metric, wanted.get(route.prefix, rule.metric))
    return wanted


def _matches(rule: RedistributeConfig, route: KernelRoute) -> bool:
    low, high = rule.lengths
    return (
        route.table == rule.table
        and rule.protocol in (None, route.protocol)
        and (rule.interface is None or rule.interface in route.interfaces)
        and low <= route.prefix.prefixlen <= high
        and (rule.prefix is None or _is_within(route.prefix, rule.prefix))
    )


def _is_within(prefix: Prefix, network: Prefix) -> bool:
    return prefix.version == network.version and prefix.subnet_of(network)  # type: ignore[arg-type]
