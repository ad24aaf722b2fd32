"""What a node says of its way to a destination, to its own operator and to others who ask hop by hop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd import schemas
from meshd.control import INVALID_PARAMS, NOT_FOUND, Method, Param, RpcError
from meshd.identity import overlay_address
from meshd.names import address_of, identity_of
from meshd.waypoints import MAX_TEXT, Waypoint

if TYPE_CHECKING:
    from meshd.daemon import Daemon
    from meshd.rpc import Methods

INFINITY = 65535


class PathMethods:
    """The handlers; each takes checked parameters and returns JSON."""

    def __init__(self, daemon: Daemon, node: Methods) -> None:
        self._daemon = daemon
        self._node = node

    async def look(self, destination: str) -> Waypoint:
        """Ours, for `meshd.waypoints`. Nothing that is wrong with the question is an error."""
        try:
            path = await self._node.path({"destination": destination})
        except RpcError as error:
            return self._waypoint(why=str(error))
        chosen = path["chosen"]
        if path["origin"]:
            return self._waypoint(arrived=True, prefix=path["prefix"], metric=0, why="its own")
        if chosen is None:
            return self._waypoint(prefix=path["prefix"], why=path["alternatives"][0]["reason"])
        cost, share = self._link(chosen["interface"], chosen["next_hop"])
        return self._waypoint(
            prefix=path["prefix"],
            next_node=chosen["neighbour"],
            metric=chosen["metric"],
            price_msat_per_gb=chosen["price_msat_per_gb"],
            link_cost=cost,
            share=share,
            why=_why(chosen, path["alternatives"]),
        )

    def _waypoint(self, **said: Any) -> Waypoint:
        nothing: dict[str, Any] = {
            "arrived": False,
            "prefix": None,
            "next_node": None,
            "metric": INFINITY,
            "price_msat_per_gb": 0,
            "link_cost": None,
            "share": None,
        }
        made = nothing | said
        made["why"] = made["why"][:MAX_TEXT]
        identity = self._daemon.identity.public_key
        return Waypoint(nonce=b"", identity=identity, fee_msat_per_gb=self._daemon.fee_msat_per_gb, **made)

    def _link(self, interface: str, next_hop: str) -> tuple[int | None, float | None]:
        for neighbour in self._daemon.router.speaker.neighbours():
            if (neighbour.interface, str(neighbour.address)) == (interface, next_hop):
                known = self._daemon.quality.known(neighbour.interface, neighbour.address)
                return neighbour.cost, None if known is None else round(known[0], 4)
        return None, None

    async def address(self, params: dict[str, Any]) -> Any:
        identity = identity_of(self._daemon.config, params["name"])
        if identity is None:
            raise RpcError(NOT_FOUND, f"nobody is called {params['name']!r}")
        return {"address": str(overlay_address(identity))}

    async def hops(self, params: dict[str, Any]) -> Any:
        try:
            destination = address_of(self._daemon.config, params["destination"])
        except ValueError:
            raise RpcError(
                INVALID_PARAMS, f"{params['destination']!r} is no address, and nobody is called so"
            ) from None
        found = await self._daemon.waypoints.trace(destination)
        last = found[-1][1]
        return {
            "destination": str(destination),
            "reached": last is not None and last.arrived,
            "hops": [_hop(number, node, waypoint) for number, (node, waypoint) in enumerate(found)],
        }


def _why(chosen: dict[str, Any], others: list[dict[str, Any]]) -> str:
    if not others:
        return "the only route"
    best = min(others, key=lambda row: row["metric"])
    return f"metric {chosen['metric']}; another: {best['reason']}"


def _hop(number: int, node: str, waypoint: Waypoint | None) -> dict[str, Any]:
    if waypoint is None:
        blank: dict[str, Any] = dict.fromkeys(schemas.PATH_HOP["properties"])
        return blank | {"hop": number, "node": node, "answered": False, "arrived": False, "why": "it does not say"}
    return {
        "hop": number,
        "node": node,
        "answered": True,
        "arrived": waypoint.arrived,
        "prefix": waypoint.prefix,
        "next": waypoint.next_node,
        "metric": waypoint.metric,
        "price_msat_per_gb": waypoint.price_msat_per_gb,
        "fee_msat_per_gb": waypoint.fee_msat_per_gb,
        "link_cost": waypoint.link_cost,
        "quality": waypoint.share,
        "why": waypoint.why,
    }


def path_methods(node: PathMethods) -> dict[str, Method]:
    return {
        "path.hops": Method(
            node.hops,
            "The nodes on the way to an address: each is asked for its next hop, what that costs, and why.",
            {"destination": Param("string", "IPv4 or IPv6 address")},
            result=schemas.PATH_HOPS,
        ),
        "address": Method(
            node.address,
            "The address of a node that has a name here.",
            {"name": Param("string", "of a [[peer]], or a nickname in [[neighbour]]")},
            result=schemas.record(address=schemas.ADDRESS),
        ),
    }
