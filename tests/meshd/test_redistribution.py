"""Which routes of the kernel are announced, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from ipaddress import ip_network
from typing import cast

import pytest
import trio

from meshd.config import parse
from meshd.kernel import KernelRoute, NetlinkError, RouteWatch
from meshd.redistribution import RETRY_INTERVAL, Redistribution, wanted_metrics
from routing.events import Input, OriginateRoute, WithdrawRoute
from tests.meshd.fakes import run

DEFAULT = ip_network("0.0.0.0/0")
LAN = ip_network("192.0.2.0/24")


def of(prefix: str, *, table: int = 254, protocol: int = 16, interface: str = "eth0") -> KernelRoute:
    return KernelRoute(ip_network(prefix), table, protocol, ("wlan0", interface))


@pytest.mark.parametrize(
    ("keys", "announced"),
    [
        ("", ["0.0.0.0/0", "192.0.2.0/24", "192.0.2.64/26", "::/0"]),
        ('prefix = "0.0.0.0/0"', ["0.0.0.0/0"]),
        ('prefix = "192.0.2.0/24"\nor_longer = true', ["192.0.2.0/24", "192.0.2.64/26"]),
        ('prefix = "0.0.0.0/0"\nmin_length = 25', ["192.0.2.64/26"]),
        ("max_length = 0", ["0.0.0.0/0", "::/0"]),
        ('protocol = "static"', ["192.0.2.0/24"]),
        ("table = 100", ["10.0.0.0/8"]),
        ('interface = "eth1"', ["::/0"]),
        ('interface = "wlan0"\nprotocol = 4', ["192.0.2.0/24"]),
    ],
)
def test_what_a_rule_takes(keys: str, announced: list[str]) -> None:
    routes = [
        of("0.0.0.0/0"),
        of("192.0.2.0/24", protocol=4),
        of("192.0.2.64/26"),
        of("::/0", interface="eth1"),
        of("10.0.0.0/8", table=100),
    ]
    rules = parse(f"[[redistribute]]\n{keys}\nmetric = 9").redistributions
    assert wanted_metrics(rules, routes, []) == {ip_network(prefix): 9 for prefix in announced}


def test_the_first_rule_decides_and_our_own_prefixes_are_left_alone() -> None:
    rules = parse(
        """
        [[redistribute]]
        action = "refuse"
        interface = "eth1"
        [[redistribute]]
        protocol = "dhcp"
        metric = 7
        [[redistribute]]
        metric = 3
        """
    ).redistributions
    routes = [of("0.0.0.0/0"), of("::/0", interface="eth1"), of("192.0.2.0/24")]
    assert wanted_metrics(rules, routes, []) == {DEFAULT: 7, LAN: 7}
    assert wanted_metrics(rules, routes, [LAN]) == {DEFAULT: 7}
    assert wanted_metrics(rules, [of("0.0.0.0/0"), of("0.0.0.0/0", protocol=3)], []) == {DEFAULT: 3}


class Watch:
    """In place of the kernel: `see` is what it tells next."""

    def __init__(self) -> None:
        self.routes: list[KernelRoute] = []
        self.news = trio.Event()
        self.failures = 0

    def see(self, *prefixes: str) -> None:
        self.routes = [of(prefix) for prefix in prefixes]
        self.news.set()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[list[KernelRoute]]]:
        async with aclosing(self._changes()) as changes:
            yield changes

    async def _changes(self) -> AsyncIterator[list[KernelRoute]]:
        while True:
            self.news = trio.Event()
            if self.failures:
                self.failures -= 1
                raise NetlinkError(16)
            yield self.routes
            await self.news.wait()


def test_a_default_route_is_announced_while_it_is_there_and_a_change_of_rules_withdraws_nothing_needlessly() -> None:
    async def scenario() -> None:
        said: list[Input] = []

        async def put(event: Input) -> None:
            await trio.lowlevel.checkpoint()
            said.append(event)

        def of_late() -> list[Input]:
            taken = list(said)
            said.clear()
            return taken

        watch = Watch()
        watch.failures = 1
        rules = parse('[[redistribute]]\nprefix = "0.0.0.0/0"').redistributions
        made = Redistribution(cast("RouteWatch", watch), rules, [], put)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            await trio.sleep(RETRY_INTERVAL + 0.1)
            assert of_late() == []
            watch.see("0.0.0.0/0", "192.0.2.0/24")
            await trio.sleep(0.1)
            assert of_late() == [OriginateRoute(DEFAULT, 0)]
            made.set_rules(parse("[[redistribute]]\nmetric = 5").redistributions)
            await trio.sleep(0.1)
            assert of_late() == [OriginateRoute(DEFAULT, 5), OriginateRoute(LAN, 5)]
            watch.see("192.0.2.0/24")
            await trio.sleep(0.1)
            assert of_late() == [WithdrawRoute(DEFAULT)]
            assert made.announced == {LAN: 5}
            made.set_rules(())
            await trio.sleep(0.1)
            assert of_late() == [WithdrawRoute(LAN)]
            watch.see("0.0.0.0/0")
            await trio.sleep(0.1)
            assert of_late() == []
            nursery.cancel_scope.cancel()

    run(scenario)


def test_the_end_does_not_wait_for_a_speaker_that_takes_nothing_any_more() -> None:
    async def scenario() -> None:
        watch, asked = Watch(), []

        async def put(event: Input) -> None:
            asked.append(event)
            await trio.sleep_forever()

        watch.see("0.0.0.0/0")
        rules = parse("[[redistribute]]").redistributions
        made = Redistribution(cast("RouteWatch", watch), rules, [], put)
        with trio.move_on_after(1) as ended, trio.fail_after(60):
            await made.run()
        assert ended.cancelled_caught and asked == [OriginateRoute(DEFAULT, 0)]
        assert made.announced == {}  # it was not put

    run(scenario)
