"""The order in which services end; and what is said of an interface reaches the tunnels over it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from meshd.config import parse
from meshd.daemon import Daemon, _serving
from meshd.neighbours import Neighbours
from meshd.tunnels import Tunnel
from routing.events import SetPolicy
from routing.filters import REFUSED
from tests.meshd.fakes import run


class Service:
    """Takes `to_end` seconds to end."""

    def __init__(self, name: str, journal: list[str], *, to_end: float = 1.0, fails: bool = False) -> None:
        self.name, self.journal, self.to_end, self.fails = name, journal, to_end, fails

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            if self.fails:
                await trio.sleep(1)
                raise OSError(self.name)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.to_end)
            self.journal.append(self.name)


async def in_order(journal: list[str], *services: Service) -> None:
    async with AsyncExitStack() as stack:
        for service in services:
            await stack.enter_async_context(_serving(service.run))
        try:
            await trio.sleep_forever()
        finally:
            journal.append("block")


def test_the_last_to_start_ends_first_each_when_the_one_before_has_ended() -> None:
    async def scenario() -> None:
        journal: list[str] = []
        with trio.move_on_after(5):
            await in_order(journal, Service("sessions", journal, to_end=0.0), Service("paymaster", journal))
        assert journal == ["block", "paymaster", "sessions"]

    run(scenario)


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_ends_all_in_the_same_order(failing: int) -> None:
    async def scenario() -> None:
        journal: list[str] = []
        services = [Service(name, journal, fails=n == failing) for n, name in enumerate(("first", "second"))]
        with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(20):
            await in_order(journal, *services)
        assert caught.group_contains(OSError)
        assert journal == (["first", "block", "second"] if failing == 0 else ["second", "block", "first"])

    run(scenario)


def test_a_cancel_during_the_start_is_no_deadlock() -> None:
    async def scenario() -> None:
        async def slow(task_status: trio.TaskStatus[None]) -> None:
            await trio.sleep(10)
            task_status.started()

        with trio.move_on_after(1) as scope:
            async with _serving(slow):
                pytest.fail("it has not started")
        assert scope.cancelled_caught and trio.current_time() < 10**9

    run(scenario)


SECURED = """
    [[interface]]
    name = "eth0"
    security = "wireguard"
    [[interface]]
    name = "eth1"
    security = "none"
    [[filter]]
    direction = "import"
    interface = "eth0"
    action = "refuse"
"""


FAR_END = IPv6Address("fe80::7")


class Secured:
    """As much of a daemon as its own methods need: eth0 has tunnels over it, of which mw2 is not up yet."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self._config_path = Path()
        self.config = parse(SECURED)
        self.router = SimpleNamespace(
            set_cost=self._set_cost, put=self._put, add_interface=self._add, set_keys=self._set_keys
        )
        self.redistribution = SimpleNamespace(set_rules=self.asked.append)
        self.tunnels = SimpleNamespace(
            set_cost=lambda name, cost: self.asked.append(("under", name, cost)) or ["mw1", "mw2"],
            names=lambda: {"eth0": ["mw1", "mw2"]},
            all=lambda: [SimpleNamespace(name="mw1", peer=b"p", far_end=FAR_END)],
        )
        self._distrusted: set[bytes] = set()
        self.payments_enabled = True
        self.budget = SimpleNamespace(is_buying=True, set_limits=self._set_limits)
        self.accounting = SimpleNamespace(neighbours=Neighbours())
        self._policy = lambda: Daemon._policy(cast("Daemon", self))
        self.peer_rules = SimpleNamespace(blocked=frozenset[bytes]())
        self._refused_peers = lambda: Daemon._refused_peers(cast("Daemon", self))

    async def set_cost(self, name: str, cost: int) -> None:
        await Daemon.set_cost(cast("Daemon", self), name, cost)

    async def _set_keys(self, name: str, keys: Any, *, verify: bool) -> None:
        self.asked.append(("keys", name))

    async def _set_cost(self, name: str, cost: int) -> None:
        if name not in ("mw1", "eth1"):
            raise KeyError(name)
        self.asked.append((name, cost))

    async def _set_limits(self, limits: Any) -> None:
        self.asked.append(limits)

    async def _put(self, event: Any) -> None:
        self.asked.append(event)

    async def _add(self, interface: Any, far_end: Any) -> None:
        self.asked.append(interface.name)


def test_the_cost_of_an_interface_is_that_of_the_tunnels_over_it() -> None:
    async def scenario() -> None:
        node = Secured()
        daemon = cast("Daemon", node)
        await Daemon.set_cost(daemon, "eth0", 7)
        await Daemon.set_cost(daemon, "eth1", 8)
        assert node.asked == [("under", "eth0", 7), ("mw1", 7), ("eth1", 8)]
        assert [interface.cost for interface in node.config.interfaces] == [7, 8]
        with pytest.raises(KeyError):
            await Daemon.set_cost(daemon, "eth9", 7)

    run(scenario)


def test_a_reload_takes_secured_interfaces_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Secured()
        node._config_path = tmp_path / "meshd.toml"
        changed = SECURED.replace('"wireguard"', '"wireguard"\ncost = 7') + "[budget]\nper_day_msat = 9\n"
        node._config_path.write_text(changed + "[routing]\nmax_price_msat_per_gb = 8\nport = 9\n")
        assert await Daemon.reload(cast("Daemon", node)) == ["routing.port"]
        policy, limits, *others, rules = node.asked
        assert (limits["day"], policy.policy.price_max_msat_per_gb) == (9, 8)
        assert isinstance(policy, SetPolicy) and [rule.interface for rule in policy.policy.imports] == ["mw1", "mw2"]
        assert others == [("under", "eth0", 7), ("mw1", 7), ("eth1", 96), ("keys", "eth1")]
        assert rules == ()

    run(scenario)


def test_once_the_budget_is_used_up_routes_with_a_price_are_left() -> None:
    async def scenario() -> None:
        node = Secured()
        node.budget.is_buying = False
        assert Daemon._policy(cast("Daemon", node)).price_max_msat_per_gb == 0
        node.budget.is_buying = True
        assert Daemon._policy(cast("Daemon", node)).price_max_msat_per_gb == 100_000_000

    run(scenario)


def test_a_filter_on_an_interface_is_in_force_before_a_tunnel_over_it_is_used() -> None:
    async def scenario() -> None:
        node = Secured()
        under = node.config.interfaces[0]
        tunnel = cast("Tunnel", SimpleNamespace(name="mw1", peer=b"p", under=under, far_end=FAR_END))
        await Daemon._tunnel_up(cast("Daemon", node), tunnel)
        policy, name = node.asked
        assert isinstance(policy, SetPolicy) and name == "mw1"
        assert [rule.interface for rule in policy.policy.imports] == ["mw1", "mw2"]

    run(scenario)


def test_a_distrusted_peer_without_a_session_has_no_routes_taken_from_its_tunnel() -> None:
    async def scenario() -> None:
        node = Secured()
        node.config = replace(node.config, filters=())
        node._distrusted.add(b"p")
        tunnel = cast(
            "Tunnel", SimpleNamespace(name="mw1", peer=b"p", under=node.config.interfaces[0], far_end=FAR_END)
        )
        await Daemon._tunnel_up(cast("Daemon", node), tunnel)
        policy, name = node.asked
        assert isinstance(policy, SetPolicy) and name == "mw1"
        assert [(rule.interface, rule.neighbour, rule.add_metric) for rule in policy.policy.imports] == [
            ("mw1", FAR_END, REFUSED)
        ]

    run(scenario)
