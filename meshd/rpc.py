"""What meshctl can ask a node, and tell it. Results are plain JSON values; money is msat, names carry the unit."""

from __future__ import annotations

import math
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, Any

import trio

from meshd import __version__, schemas
from meshd.config import Config, ConfigError, InterfaceConfig
from meshd.control import INVALID_PARAMS, NOT_FOUND, REFUSED, Method, Param, RpcError
from meshd.enforcement import State
from meshd.identity import overlay_address
from meshd.names import address_of
from meshd.rpc_money import MoneyMethods, money_methods
from meshd.rpc_operator import OperatorMethods, operator_methods
from meshd.rpc_path import PathMethods, path_methods
from meshd.rpc_prices import PriceMethods, price_methods
from meshd.tunnel import Tunnel
from routing.events import Prefix
from routing.speaker import RouteView

if TYPE_CHECKING:
    from meshd.daemon import Daemon

WALLET_TIMEOUT = 10.0
BALANCE_AGE = 1.0  # the wallet asks the chain and writes its database for it
UNITS_PER_MSAT = 10**9
MAX_COST = 65534


class Methods:
    """The handlers; each takes checked parameters and returns JSON."""

    def __init__(self, daemon: Daemon, money: MoneyMethods) -> None:
        self._node = daemon
        self._money = money

    async def status(self, _: dict[str, Any]) -> Any:
        node = self._node
        await node.accounting.look()
        paymaster, ledgers = node.paymaster, node.paymaster.engine.ledgers()
        return {
            "name": node.config.node.name,
            "version": __version__,
            "identity": node.identity.public_key.hex(),
            "address": str(node.identity.address),
            "uptime_seconds": trio.current_time() - node.started_at,
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "interfaces": [self._interface(interface) for interface in node.config.interfaces],
            "neighbours": len(node.router.speaker.neighbours()),
            "routes": sum(route.is_selected for route in node.router.speaker.routes()),
            "fee_msat_per_gb": node.fee_msat_per_gb,
            "paying": node.payments_enabled and paymaster.is_paying,
            "chain": {
                "backend": node.config.chain.backend,
                "height": paymaster.height,
                "connected": paymaster.is_chain_connected,
            },
            "wallet": {"balance_sat": await self._money.balance()},
            "totals": {
                "carried_bytes": node.accounting.sum().carried,
                "earned_msat": sum(ledger.received_msat for ledger in ledgers),
                "spent_msat": sum(ledger.sent_msat for ledger in ledgers),
            },
            "fast_lane": {
                "problem": node.lane.problem or None,
                "outside": node.lane.outside,
                "flows": node.lane.flows,
                "bytes": node.lane.bytes,
            },
            "counters": {
                **node.router.speaker.counters(),
                **node.router.counters,
                **node.sessions.counters,
                **node.quality.counters,
                **({} if node.tunnels is None else node.tunnels.counters + node.tunnels.discovery.counters),
            },
        }

    def _interface(self, interface: InterfaceConfig) -> dict[str, Any]:
        node = self._node
        attached = node.router.attached.get(interface.name)
        address = None if attached is None else attached.address
        if interface.security == "wireguard" and node.tunnels is not None:
            address = node.tunnels.address_on(interface.name)
        return {
            "name": interface.name,
            "kind": interface.kind.value,
            "security": interface.security,
            "up": address is not None,
            "address": None if address is None else str(address),
        }

    async def tunnels(self, _: dict[str, Any]) -> Any:
        tunnels = [] if self._node.tunnels is None else self._node.tunnels.all()
        return [self._tunnel(tunnel) for tunnel in tunnels]

    @staticmethod
    def _tunnel(tunnel: Tunnel) -> dict[str, Any]:
        status, now = tunnel.status, trio.current_time()
        endpoint = (None if status is None else status.endpoint) or tunnel.wanted
        return {
            "interface": tunnel.name,
            "under": tunnel.under.name,
            "static": tunnel.static is not None,
            "identity": tunnel.peer.hex(),
            "address": str(overlay_address(tunnel.peer)),
            "endpoint": None if endpoint is None else str(endpoint),
            "port": None if status is None else status.port,
            "mtu": tunnel.mtu,
            "state": tunnel.state(now=now),
            "heard_seconds_ago": None if math.isinf(tunnel.heard_at) else round(now - tunnel.heard_at, 1),
            "received_bytes": 0 if status is None else status.received,
        }

    def _under(self, interface: str) -> str:
        """The interface that a tunnel goes over; any other itself."""
        tunnel = None if self._node.tunnels is None else self._node.tunnels.on(interface)
        return interface if tunnel is None else tunnel.under.name

    def _quality(self, link: tuple[str, IPv6Address]) -> dict[str, Any] | None:
        """As a driver or batman-adv tells it; None: Hellos alone do."""
        known = self._node.quality.known(*link)
        if known is None:
            return None
        share, sample = known
        return {
            "share": round(share, 4),
            "source": sample.source.value,
            "throughput_kbps": sample.throughput,
            "tq": sample.tq,
            "signal_dbm": sample.signal,
        }

    def _peer(self, link: tuple[str, IPv6Address]) -> bytes | None:
        """Who a neighbour is, by its session; in a tunnel also where there are no payments, and so no sessions."""
        peer = self._node.accounting.neighbours.peer_by_link.get(link)
        tunnel = None if peer is not None or self._node.tunnels is None else self._node.tunnels.on(link[0])
        return peer if tunnel is None else tunnel.peer

    async def neighbours(self, _: dict[str, Any]) -> Any:
        node = self._node
        await node.accounting.look()
        ledger_by_peer = {ledger.peer: ledger for ledger in node.paymaster.engine.ledgers()}
        rows = []
        for neighbour in node.router.speaker.neighbours():
            link = (neighbour.interface, neighbour.address)
            peer = self._peer(link)
            ledger = None if peer is None else ledger_by_peer.get(peer)
            totals = node.accounting.totals.get(link)
            state = node.enforcement.state_of(node.enforcement.neighbours.port_by_link.get(link))
            connected = node.sessions.peer_on(*link) is not None
            rows.append(
                {
                    "interface": neighbour.interface,
                    "under": self._under(neighbour.interface),
                    "link_local": str(neighbour.address),
                    "identity": None if peer is None else peer.hex(),
                    "address": None if peer is None else str(overlay_address(peer)),
                    "cost": neighbour.cost,
                    "rxcost": neighbour.rxcost,
                    "txcost": neighbour.txcost,
                    "rtt_ms": None if neighbour.rtt is None else round(neighbour.rtt * 1000, 3),
                    "quality": self._quality(link),
                    "routing_refused": neighbour.refused_count,
                    "session": "up" if connected else "down",
                    "state": state.value,
                    "rate_bits_per_second": None if state is State.OPEN else node.enforcement.free_rate,
                    "window_msat": None if ledger is None else ledger.window_msat,
                    "owed_to_us_msat": None if ledger is None else max(ledger.unpaid_msat, 0),
                    "owed_to_them_msat": None if ledger is None else max(-ledger.unpaid_msat, 0),
                    "bytes_in": 0 if totals is None else totals.received,
                    "bytes_free": 0 if totals is None else totals.free,
                    "bytes_refused": 0 if totals is None else totals.refused,
                    "bytes_out": 0 if totals is None else totals.sent,
                }
            )
        return rows

    async def routes(self, _: dict[str, Any]) -> Any:
        node = self._node
        rows = [self._own_route(prefix) for prefix in node.own_prefixes]
        rows += [self._own_route(prefix, source_prefix=source) for prefix, source in node.config.routing.announce_from]
        rows += [self._own_route(prefix, metric) for prefix, metric in node.redistribution.announced.items()]
        return rows + [self._route(route) for route in node.router.speaker.routes()]

    def _own_route(self, prefix: Prefix, metric: int = 0, source_prefix: Prefix | None = None) -> dict[str, Any]:
        blank: dict[str, Any] = dict.fromkeys(("interface", "under", "next_hop", "neighbour"))
        blank |= {"advertised_metric": metric, "metric": metric}
        prices = {"price_msat_per_gb": 0, "announced_price_msat_per_gb": 0}
        return {
            "prefix": str(prefix),
            "source_prefix": None if source_prefix is None else str(source_prefix),
            **blank,
            **prices,
            "selected": True,
            "feasible": True,
            "refused": False,
            "origin": True,
        }

    def _route(self, route: RouteView) -> dict[str, Any]:
        node = self._node
        peer = self._peer((route.interface, route.address))
        announced = None
        if route.is_selected:
            announced = node.router.speaker.announced_price(route.prefix, route.source_prefix)
        return {
            "prefix": str(route.prefix),
            "source_prefix": None if route.source_prefix is None else str(route.source_prefix),
            "interface": route.interface,
            "under": self._under(route.interface),
            "next_hop": str(route.next_hop),
            "neighbour": None if peer is None else str(overlay_address(peer)),
            "advertised_metric": route.advertised_metric,
            "metric": route.metric,
            "price_msat_per_gb": route.price_msat_per_gb,
            "announced_price_msat_per_gb": announced,
            "selected": route.is_selected,
            "feasible": route.is_feasible,
            "refused": route.is_refused,
            "origin": False,
        }

    async def path(self, params: dict[str, Any]) -> Any:
        config = self._node.config
        destination = read_address(config, params["destination"])
        source = None if params.get("source") is None else read_address(config, params["source"])
        rows = [row for row in await self.routes({}) if _matches(row, destination, source)]
        if not rows:
            raise RpcError(NOT_FOUND, f"no route to {destination}" + ("" if source is None else f" from {source}"))
        best = max(rows, key=_specificity)  # RFC 9079 section 4: the destination first
        prefix, source_prefix = best["prefix"], best["source_prefix"]
        candidates = [row for row in rows if _specificity(row) == _specificity(best)]
        own = next((row for row in candidates if row["origin"]), None)
        chosen = own or next((row for row in candidates if row["selected"]), None)
        others = [row | {"reason": _why_not(row, chosen)} for row in candidates if row is not chosen]
        return {
            "destination": str(destination),
            "prefix": prefix,
            "source_prefix": source_prefix,
            "origin": own is not None,
            "chosen": None if own is not None else chosen,
            "alternatives": others,
        }

    async def interface_cost(self, params: dict[str, Any]) -> Any:
        """Until the next start; the configuration file is the operator's."""
        name, cost = params["interface"], params["cost"]
        if not 1 <= cost <= MAX_COST:
            raise RpcError(INVALID_PARAMS, f"cost = {cost}: expected 1 to {MAX_COST}")
        try:
            await self._node.set_cost(name, cost)
        except KeyError:
            known = ", ".join(interface.name for interface in self._node.config.interfaces)
            raise RpcError(NOT_FOUND, f"no interface {name}; there are {known}") from None
        return {"interface": name, "cost": cost}

    async def reload(self, _: dict[str, Any]) -> Any:
        try:
            waiting = await self._node.reload()
        except ConfigError as error:
            raise RpcError(REFUSED, f"nothing has changed: {error}") from error
        config = self._node.config
        return {
            "filters": len(config.filters),
            "redistributions": len(config.redistributions),
            "restart_needed": waiting,
        }


def read_address(config: Config, text: str) -> IPv4Address | IPv6Address:
    """Raises RpcError."""
    try:
        return address_of(config, text)
    except ValueError:
        message = f"{text!r} is no address, and nobody is called so; expected 10.0.0.1, fd12::1, or a name"
        raise RpcError(INVALID_PARAMS, message) from None


def _matches(
    row: dict[str, Any], destination: IPv4Address | IPv6Address, source: IPv4Address | IPv6Address | None
) -> bool:
    """Without a source, only what is for any source does."""
    source_prefix = row["source_prefix"]
    is_source = source_prefix is None or (source is not None and source in ip_network(source_prefix))
    return is_source and destination in ip_network(row["prefix"])


def _specificity(row: dict[str, Any]) -> tuple[int, int]:
    source_prefix = row["source_prefix"]
    length = -1 if source_prefix is None else ip_network(source_prefix).prefixlen
    return ip_network(row["prefix"]).prefixlen, length


def _why_not(row: dict[str, Any], chosen: dict[str, Any] | None) -> str:
    if row["refused"]:
        return "refused by a filter"
    if row["metric"] >= 65535:
        return "unreachable"
    if not row["feasible"]:
        return "not feasible: it could loop"
    if chosen is None:
        return "dearer than the maximum price"
    if row["metric"] > chosen["metric"]:
        return f"metric {row['metric']} is above {chosen['metric']}"
    return "not better by enough to change, or not for long enough"


def methods(daemon: Daemon) -> dict[str, Method]:
    """The method table of the control socket."""
    money = MoneyMethods(daemon)
    node = Methods(daemon, money)
    return {
        "status": Method(node.status, "Identity, interfaces, chain, wallet and totals.", result=schemas.STATUS),
        "neighbours": Method(
            node.neighbours,
            "Who is in reach, at what cost, and how the account with each stands.",
            result=schemas.array(schemas.NEIGHBOUR),
        ),
        "tunnels": Method(
            node.tunnels,
            "The WireGuard tunnels: whose, over what, to where, when last heard.",
            result=schemas.array(schemas.TUNNEL),
        ),
        "routes": Method(
            node.routes,
            "All routes that were heard, with price and quality, and which are selected.",
            result=schemas.array(schemas.ROUTE),
        ),
        "path": Method(
            node.path,
            "Which way packets for an address take from here, and why not another.",
            {
                "destination": Param("string", "IPv4 or IPv6 address, or a name"),
                "source": Param("string", "Where they come from; for source-specific routes", required=False),
            },
            result=schemas.PATH,
        ),
        **path_methods(PathMethods(daemon, node)),
        **price_methods(PriceMethods(daemon, money)),
        "interface.cost": Method(
            node.interface_cost,
            "Give an interface another cost; traffic moves without loss.",
            {"interface": Param("string", "its name"), "cost": Param("integer", "1 to 65534; lower is preferred")},
            result=schemas.COST,
            writes=True,
        ),
        "reload": Method(
            node.reload,
            "Read filters, redistribution, `unpriced`, maximum price, budgets, costs and MAC keys anew from the file.",
            result=schemas.RELOADED,
            writes=True,
        ),
        **money_methods(money),
        **operator_methods(OperatorMethods(daemon, money)),
    }


def path_of(daemon: Daemon) -> PathMethods:
    """What the daemon tells others of its ways."""
    return PathMethods(daemon, Methods(daemon, MoneyMethods(daemon)))
