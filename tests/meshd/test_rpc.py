"""What meshctl is told, and what it may do."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv6Address, ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshd.accounting import Accounting
from meshd.billing import Billing
from meshd.budget import BudgetKeeper
from meshd.config import Config, ConfigError, InterfaceConfig, PriceConfig, parse
from meshd.control import INVALID_PARAMS, NOT_FOUND, POLICY, REFUSED, RpcError
from meshd.daemon import Daemon
from meshd.enforcement import Enforcement, HeldFile
from meshd.identity import overlay_address
from meshd.neighbours import Neighbours
from meshd.peer_rules import PeerRules
from meshd.radio import Sample, Source
from meshd.rpc import Methods, methods
from meshd.rpc_chain import ChainMethods
from meshd.rpc_channels import ChannelMethods
from meshd.rpc_credit import CreditMethods
from meshd.rpc_money import MoneyMethods
from meshd.rpc_prices import PriceMethods
from meshd.rpc_wallet import WalletMethods
from payments import events as pay
from payments.adapters.combined_chain import CombinedChain
from payments.agreement import CountsView, Finding, Standing
from payments.counts import Traffic
from payments.ports import ChainPort, ChainTip, WalletBalance
from payments.records import ChannelState, CountsRecord, CreditRecord, Direction, EngineState
from routing.speaker import NeighbourView, RouteView
from tests.meshd.fakes import FakeKernel, run
from tests.meshd.schema import closed, validate

KEY = bytes(range(32))
PEER, PEER_OTHER = b"\xaa" * 32, b"\xab" * 32
LINK = ("eth0", overlay_address(PEER))
LEDGER = pay.LedgerView(PEER, True, 5 * 10**9, 0, 0, 0, 0, 3, 4, 0, 7, 10_000, False, 0, "cltv")
COUNTS = CountsView(
    PEER, Standing.WARNED, Finding.DENIED, Traffic(1, 2, 3, 4), Traffic(5, 6, 0, 0), 7 * 10**9, 8, 0.25, 0.0, 9, 10
)
CREDIT = pay.CreditView(PEER, 50_000, -9_000, 1, 1, 2, 9_000, 3)
CHANNEL = pay.ChannelView(b"c" * 32, PEER, Direction.IN, ChannelState.OPEN, 1000, 5, 5, None, 99, None)


def route(prefix: str, metric: int = 100, *, selected: bool = True, feasible: bool = True) -> RouteView:
    network = ip_network(prefix)
    return RouteView(network, "eth0", LINK[1], LINK[1], metric, metric, 5, 0, 1, bytes(8), feasible, selected)


RECORDS = EngineState(
    counts=(CountsRecord(PEER, b"body", b"sign", 0, 0, 0), CountsRecord(PEER_OTHER, b"", b"", 0, 0, 0)),
    credits=(CreditRecord(PEER, 0, 0, 0, 0, b"", 1_000, 400, b"sign"),),
)

KEY_OF_A_PEER = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
KEY_OF_ANOTHER = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"


class Node:
    """The daemon as far as the methods look into it."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.routes: list[RouteView] = []
        self.neighbours: list[NeighbourView] = []
        self.qualities: dict[tuple[str, IPv6Address], tuple[float, Sample]] = {}
        self.asked: list[Any] = []
        self.balances_asked = 0
        speaker = SimpleNamespace(
            routes=lambda: self.routes,
            neighbours=lambda: self.neighbours,
            counters=dict,
            announced_price=lambda *_: 12,
        )
        engine = SimpleNamespace(
            ledgers=lambda: [LEDGER],
            channels=lambda: [CHANNEL],
            counts=lambda: [COUNTS],
            credits=lambda: [CREDIT],
            records=lambda: RECORDS,
            needs_chain=True,
        )
        kernel = FakeKernel().as_kernel()
        enforcement = Enforcement(kernel, Neighbours(), file=HeldFile(None), held={}, free_rate=64_000)
        self.daemon = SimpleNamespace(
            chain=None,
            config=Config(interfaces=(InterfaceConfig(name="eth0"),)),
            identity=SimpleNamespace(public_key=KEY, address=overlay_address(KEY)),
            started_at=0.0,
            fee_msat_per_gb=100,
            payments_enabled=enabled,
            own_prefixes=[ip_network("fd00::1/128")],
            redistribution=SimpleNamespace(announced={ip_network("::/0"): 7}),
            set_cost=self._set_cost,
            set_fee=self._set_fee,
            reload=self._reload,
            accounting=Accounting(kernel, Billing(price_notice=1), enforcement, report=None, strangers_window_msat=1),
            enforcement=enforcement,
            router=SimpleNamespace(speaker=speaker, attached={}, counters={}, put=self._put),
            lane=SimpleNamespace(problem="", outside={"e1": "why not"}, flows=2, bytes=77),
            sessions=SimpleNamespace(counters={}, peer_on=lambda *_: None),
            tunnels=None,
            price_follower=SimpleNamespace(load=1.5e6),
            peer_rules=PeerRules(None, hold=self._hold, on_change=self._changed),
            exposition=self._exposition,
            set_price_rule=self._set_price_rule,
            budget=BudgetKeeper({"day": 9}, ledgers=lambda: [LEDGER], set_buying=self._put, file=None, clock=lambda: 7),
            quality=SimpleNamespace(counters={}, known=lambda *link: self.qualities.get(link)),
            paymaster=SimpleNamespace(
                engine=engine,
                is_paying=True,
                height=7,
                is_chain_connected=True,
                wallet=self._wallet,
                keeper=SimpleNamespace(balance=self._balance),
                put=self._put,
                hold_payments=self._put,
            ),
        )
        self.money = MoneyMethods(cast("Daemon", self.daemon))
        self.methods = Methods(cast("Daemon", self.daemon), self.money)
        self.prices = PriceMethods(cast("Daemon", self.daemon), self.money)

    async def _hold(self, peer: bytes, carrying: bool) -> None:
        self.asked.append((peer, carrying))

    async def _changed(self) -> None:
        self.asked.append("policy")

    async def _exposition(self) -> bytes:
        return b"a 1\n"

    def _set_price_rule(self, rule: PriceConfig) -> None:
        self.daemon.config = replace(self.daemon.config, price=rule)

    async def _put(self, what: object) -> None:
        self.asked.append(what)

    async def _set_fee(self, fee: int) -> None:
        self.daemon.fee_msat_per_gb = fee
        self.asked.append(fee)

    async def _set_cost(self, interface: str, cost: int) -> None:
        if interface != "eth0":
            raise KeyError(interface)
        self.asked.append((interface, cost))

    async def _reload(self) -> list[str]:
        if self.asked:
            raise ConfigError("meshd.toml: wrong")
        self.asked.append("reload")
        return ["routing.port"]

    async def _wallet(self) -> SimpleNamespace:
        async def labels() -> dict[str, str]:
            return {"txid": "rent"}

        return SimpleNamespace(balance=lambda: self._balance(0), labels=labels)

    async def _balance(self, patience: float) -> WalletBalance:
        self.balances_asked += 1
        return WalletBalance(3, 2)


async def code_of(call: Callable[[dict[str, Any]], Awaitable[Any]], params: dict[str, Any] | None = None) -> int:
    with pytest.raises(RpcError) as refused:
        await call(params or {})
    return refused.value.code


def test_every_reading_method_gives_json() -> None:
    async def scenario() -> None:
        node = Node()
        node.routes = [route("fd00::/8"), route("10.0.0.0/8", selected=False)]
        node.neighbours = [NeighbourView("eth0", LINK[1], 96, 96, 96, 0xFFFF, 2)]
        node.daemon.accounting.neighbours.peer_by_link[LINK] = PEER
        await node.daemon.budget.check()
        table = methods(cast("Daemon", node.daemon))
        for method in table.values():
            validate(method.result, {"type": "object", "minProperties": 1})
            if not method.writes and not method.params:
                result = await method.handler({})
                json.dumps(result, allow_nan=False)
                validate(result, closed(method.result))
        (row,) = await node.methods.neighbours({})
        assert (row["identity"], row["owed_to_us_msat"], row["owed_to_them_msat"]) == (PEER.hex(), 7, 0)
        (ledger,) = await node.money.ledger({})
        assert ledger["billed_msat"] == 5

    run(scenario)


def test_how_well_a_neighbour_is_reached_and_who_says_so() -> None:
    async def scenario() -> None:
        node = Node()
        node.neighbours = [NeighbourView("eth0", LINK[1], 96, 96, 96, 0xFFFF, 2)]
        (row,) = await node.methods.neighbours({})
        assert row["quality"] is None
        node.qualities[LINK] = 0.98431, Sample(0.99, Source.TQ, tq=251)
        (row,) = await node.methods.neighbours({})
        assert row["quality"] == {
            "share": 0.9843,
            "source": "TQ",
            "throughput_kbps": None,
            "tq": 251,
            "signal_dbm": None,
        }

    run(scenario)


def test_path_says_which_way_and_why_not_another() -> None:
    async def scenario() -> None:
        node = Node()
        wide, unfeasible = route("fd00::/8"), route("fd00::/16", 50, selected=False, feasible=False)
        node.routes = [
            wide,
            route("fd00::/16", 100),
            replace(unfeasible, interface="eth1"),
            route("fd00::/16", 200, selected=False),
            route("fd00::/16", 65535, selected=False),
        ]
        path = await node.methods.path({"destination": "fd00::5"})
        assert (path["prefix"], path["chosen"]["metric"]) == ("fd00::/16", 100)
        reasons = [other["reason"] for other in path["alternatives"]]
        assert reasons == ["not feasible: it could loop", "metric 200 is above 100", "unreachable"]
        specific = replace(route("fd00::/16", 300), source_prefix=ip_network("fd01::/64"))
        node.routes += [specific, replace(route("fd00::/32", 400), source_prefix=ip_network("fd01::/64"))]
        assert (await node.methods.path({"destination": "fd00::5", "source": "fd02::1"}))["chosen"]["metric"] == 100
        shorter = await node.methods.path({"destination": "fd00:1::5", "source": "fd01::1"})
        assert (shorter["prefix"], shorter["source_prefix"]) == ("fd00::/16", "fd01::/64")
        longer = await node.methods.path({"destination": "fd00::5", "source": "fd01::1"})
        assert (longer["prefix"], longer["chosen"]["metric"]) == ("fd00::/32", 400)
        own = await node.methods.path({"destination": "fd00::1"})
        assert own["origin"] and own["chosen"] is None
        assert await code_of(node.methods.path, {"destination": "10.0.0.1"}) == NOT_FOUND
        assert await code_of(node.methods.path, {"destination": "example"}) == INVALID_PARAMS

    run(scenario)


def test_the_cost_of_an_interface_is_set_within_its_range() -> None:
    async def scenario() -> None:
        node = Node()
        for bad in (0, 65535):
            assert await code_of(node.methods.interface_cost, {"interface": "eth0", "cost": bad}) == INVALID_PARAMS
        assert await code_of(node.methods.interface_cost, {"interface": "eth9", "cost": 1}) == NOT_FOUND
        assert node.asked == []
        answer = {"interface": "eth0", "cost": 65534}
        assert await node.methods.interface_cost(answer) == answer
        assert node.asked == [("eth0", 65534)]

    run(scenario)


def test_a_reload_says_what_is_wrong() -> None:
    async def scenario() -> None:
        node = Node()
        assert await node.methods.reload({}) == {
            "filters": 0,
            "redistributions": 0,
            "restart_needed": ["routing.port"],
        }
        with pytest.raises(RpcError, match=r"nothing has changed: meshd\.toml: wrong") as refused:
            await node.methods.reload({})
        assert refused.value.code == REFUSED

    run(scenario)


def test_what_is_redistributed_is_shown_as_our_own_and_refused_routes_as_such() -> None:
    async def scenario() -> None:
        node = Node()
        node.routes = [replace(route("10.0.0.0/8", 65535, selected=False), is_refused=True)]
        own = next(row for row in await node.methods.routes({}) if row["prefix"] == "::/0")
        assert own["origin"] and own["metric"] == 7
        answer = await node.methods.path({"destination": "10.0.0.1"})
        assert [row["reason"] for row in answer["alternatives"]] == ["refused by a filter"]

    run(scenario)


def test_price_is_set_within_its_range() -> None:
    async def scenario() -> None:
        node = Node()
        for bad in (-1, 2**32):
            assert await code_of(node.prices.price_set, {"fee_msat_per_gb": bad}) == INVALID_PARAMS
        assert node.asked == [] and node.daemon.fee_msat_per_gb == 100
        assert (await node.prices.price_set({"fee_msat_per_gb": 2**32 - 1}))["fee_msat_per_gb"] == 2**32 - 1
        assert node.asked == [2**32 - 1]

    run(scenario)


def test_a_fee_that_follows_the_load_is_shown_with_it() -> None:
    async def scenario() -> None:
        node = Node()
        assert (await node.prices.price_show({}))["load_mbit"] is None
        node.daemon.config = parse('[price]\nprice = "auto"\ncapacity_mbit = 20\n')
        shown = await node.prices.price_show({})
        assert (shown["price"], shown["load_mbit"], shown["capacity_mbit"]) == ("auto", 1.5, 20)

    run(scenario)


def test_a_budget_is_set_within_its_range_and_shown_with_what_was_spent() -> None:
    async def scenario() -> None:
        node = Node()
        await node.daemon.budget.check()
        for bad in ({}, {"per_hour_msat": -1}, {"per_day_msat": 10**15 + 1}):
            assert await code_of(node.prices.budget_set, bad) == INVALID_PARAMS
        shown = await node.prices.budget_set({"per_hour_msat": 5})
        by_period = {row["period"]: (row["limit_msat"], row["spent_msat"], row["ends_at"]) for row in shown["periods"]}
        assert by_period == {"hour": (5, 0, 3600), "day": (9, 0, 86_400), "month": (None, 0, 2_592_000)}
        assert shown["is_buying"]
        assert shown["max_price_msat_per_gb"] == 100_000_000

    run(scenario)


@pytest.mark.parametrize("text", [PEER.hex(), PEER.hex().upper(), "aaaa", str(overlay_address(PEER))])
def test_channels_are_closed_with_the_peer_that_is_meant(text: str) -> None:
    async def scenario() -> None:
        node = Node()
        closed = await node.money.channel_close({"peer": text})
        assert closed["channels"] == [CHANNEL.channel_id.hex()]
        assert node.asked == [pay.OperatorCloseChannels(PEER)]

    run(scenario)


def test_a_channel_is_opened_and_closed_alone() -> None:
    async def scenario() -> None:
        node = Node()
        channels = ChannelMethods(node.money)
        opened = await channels.open({"peer": "aaaa", "capacity_sat": 50_000})
        assert (opened["peer"], opened["capacity_sat"]) == (PEER.hex(), 50_000)
        assert (await channels.open({"peer": "aaaa"}))["capacity_sat"] == 100_000
        for capacity_sat in (0, -1, 4_999, 10_000_001):
            assert await code_of(channels.open, {"peer": "aaaa", "capacity_sat": capacity_sat}) == INVALID_PARAMS
        closed = await channels.close({"channel": CHANNEL.channel_id.hex()[:5]})
        assert closed["channels"] == [CHANNEL.channel_id.hex()]
        for text in ("", "zz", CHANNEL.channel_id.hex() + "00"):
            assert await code_of(channels.close, {"channel": text}) == NOT_FOUND
        assert node.asked == [
            pay.OperatorOpenChannel(PEER, 50_000),
            pay.OperatorOpenChannel(PEER, None),
            pay.OperatorCloseChannel(CHANNEL.channel_id),
        ]

    run(scenario)


def test_no_channel_is_opened_where_debts_are_settled_otherwise() -> None:
    async def scenario() -> None:
        node = Node()
        node.daemon.paymaster.engine.ledgers = lambda: [replace(LEDGER, settlement="credit")]
        assert await code_of(ChannelMethods(node.money).open, {"peer": "aaaa"}) == POLICY
        assert node.asked == []

    run(scenario)


def test_receipts_are_what_neighbours_have_signed() -> None:
    async def scenario() -> None:
        (counts, credit) = await ChannelMethods(Node().money).receipts({})
        assert (counts["kind"], counts["signed"], counts["signature"]) == ("counts", b"body".hex(), b"sign".hex())
        assert (credit["kind"], credit["amount_msat"]) == ("credit", 600)

    run(scenario)


def test_a_peer_that_is_not_clearly_meant_is_none() -> None:
    async def scenario() -> None:
        node = Node()
        assert await code_of(node.money.channel_close, {"peer": ""}) == INVALID_PARAMS
        assert await code_of(node.money.channel_close, {"peer": "zz:zz"}) == INVALID_PARAMS
        assert await code_of(node.money.channel_close, {"peer": "b"}) == NOT_FOUND
        other = replace(LEDGER, peer=PEER_OTHER)
        node.daemon.paymaster.engine.ledgers = lambda: [LEDGER, other]
        assert await code_of(node.money.channel_close, {"peer": "a"}) == NOT_FOUND
        assert node.asked == []
        await node.money.channel_close({})
        assert node.asked == [pay.OperatorCloseChannels(None)]

    run(scenario)


def test_what_a_neighbour_gave_outside_is_redeemed_as_far_as_it_owes() -> None:
    async def scenario() -> None:
        node = Node()
        credit = CreditMethods(node.money)
        (row,) = await credit.credit({})
        assert (row["limit_msat"], row["balance_msat"], row["promised_by_them_msat"]) == (50_000, 9_000, 9_000)
        for amount_msat in (0, -1, 9_001):
            params = {"peer": PEER.hex(), "amount_msat": amount_msat}
            assert await code_of(credit.credit_redeem, params) == INVALID_PARAMS
        assert node.asked == []
        await credit.credit_redeem({"peer": PEER.hex(), "amount_msat": 9_000})
        assert node.asked == [pay.OperatorRedeemCredit(PEER, 9_000)]
        node.daemon.paymaster.engine.credits = lambda: [replace(CREDIT, limit_msat=None)]
        assert await code_of(credit.credit_redeem, {"peer": PEER.hex(), "amount_msat": 1}) == REFUSED

    run(scenario)


def test_without_payments_nothing_waits_for_an_engine_that_does_not_run() -> None:
    async def scenario() -> None:
        node = Node(enabled=False)
        of, money = node.prices, node.money
        for call in (
            of.budget_show,
            money.pay_hold,
            money.pay_resume,
            money.channel_close,
            WalletMethods(money).script,
            CreditMethods(money).credit_redeem,
        ):
            assert await code_of(call) == REFUSED
        assert await code_of(of.price_set, {"fee_msat_per_gb": 1}) == REFUSED
        status = await node.methods.status({})
        assert (status["paying"], status["wallet"]["balance_sat"], node.balances_asked) == (False, None, 0)
        assert node.asked == []

    run(scenario)


def test_who_is_in_a_tunnel_is_known_without_payments() -> None:
    async def scenario() -> None:
        node = Node(enabled=False)
        tunnel = SimpleNamespace(peer=PEER, under=InterfaceConfig(name="eth0"))
        node.daemon.tunnels = SimpleNamespace(on={"mw1": tunnel}.get)
        node.neighbours = [NeighbourView(name, LINK[1], 96, 96, 96, 0xFFFF, 2) for name in ("mw1", "eth1")]
        rows = await node.methods.neighbours({})
        assert [(row["under"], row["identity"]) for row in rows] == [("eth0", PEER.hex()), ("eth1", None)]

    run(scenario)


def test_the_ledger_shows_the_counts_of_both_ends() -> None:
    async def scenario() -> None:
        (entry,) = await Node().money.ledger({})
        counts = entry["counts"]
        assert (counts["standing"], counts["finding"]) == ("warned", "denied")
        assert counts["ours"] == {"sent": 1, "received": 2, "carried": 3, "refused": 4}
        assert counts["theirs"]["received"] == 6
        assert (counts["their_earned_msat"], counts["their_owed_msat"]) == (7, 0)
        assert (counts["overstated_bytes"], counts["denied_bytes"]) == (9, 10)

    run(scenario)


def test_each_backend_of_the_chain_is_shown_with_what_it_last_told() -> None:
    async def scenario() -> None:
        node = Node()
        backends = ChainMethods(node.money).backends
        assert await backends({}) == [{"name": "kernel", "height": 7, "answering": True}]
        combined = node.daemon.chain = CombinedChain([(name, cast("ChainPort", None)) for name in ("a", "b")])
        combined.backends[0].tip, combined.backends[0].is_answering = ChainTip(9, bytes(32)), True
        assert await backends({}) == [
            {"name": "a", "height": 9, "answering": True},
            {"name": "b", "height": None, "answering": False},
        ]

    run(scenario)


def test_rules_for_peers_known_and_unknown() -> None:
    async def scenario() -> None:
        node = Node()
        table = methods(cast("Daemon", node.daemon))
        told = await table["peer.set"].handler({"peer": "aaaa", "rule": "blocked"})
        assert told == {"peer": PEER.hex(), "peer_address": str(overlay_address(PEER)), "rule": "blocked"}
        assert node.asked == [(PEER, False), "policy"]
        await table["peer.set"].handler({"peer": "cd" * 32, "rule": "free"})
        assert [row["rule"] for row in await table["peer.list"].handler({})] == ["blocked", "free"]
        assert await code_of(table["peer.set"].handler, {"peer": "ee", "rule": "free"}) == NOT_FOUND
        assert await code_of(table["peer.set"].handler, {"peer": "zz" * 32, "rule": "free"}) == INVALID_PARAMS
        assert await code_of(table["peer.set"].handler, {"peer": "aaaa", "rule": "hated"}) == INVALID_PARAMS

    run(scenario)


def test_a_price_that_follows_the_load_needs_a_capacity() -> None:
    async def scenario() -> None:
        node = Node()
        auto = methods(cast("Daemon", node.daemon))["price.auto"].handler
        assert await code_of(auto, {"on": True}) == POLICY
        assert await code_of(auto, {"on": True, "capacity_mbit": 0}) == INVALID_PARAMS
        shown = await auto({"on": True, "capacity_mbit": 20})
        assert (shown["price"], shown["capacity_mbit"]) == ("auto", 20)
        assert (await auto({"on": False}))["price"] == "fixed"

    run(scenario)


def test_names_stand_for_addresses_and_peers() -> None:
    async def scenario() -> None:
        node = Node()
        named = f'[[neighbour]]\nidentity = "{KEY_OF_A_PEER}"\nname = "roof"\n'
        named += f'[[peer]]\nname = "gw"\nidentity = "{KEY_OF_ANOTHER}"\nlisten_port = 1\n'
        node.daemon.config = parse(named)
        table = methods(cast("Daemon", node.daemon))
        address = overlay_address(bytes.fromhex(KEY_OF_A_PEER))
        assert await table["address"].handler({"name": "roof"}) == {"address": str(address)}
        assert await code_of(table["address"].handler, {"name": "cellar"}) == NOT_FOUND
        assert node.money.find_peer("gw") == bytes.fromhex(KEY_OF_ANOTHER)
        node.routes = [route(f"{address}/128")]
        assert (await node.methods.path({"destination": "roof"}))["destination"] == str(address)
        assert await code_of(node.methods.path, {"destination": "cellar"}) == INVALID_PARAMS

    run(scenario)
