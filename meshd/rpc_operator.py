"""What the operator can ask a node for itself, and say of single peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd import schemas
from meshd.control import INVALID_PARAMS, REFUSED, Method, Param, RpcError
from meshd.identity import overlay_address
from meshd.peer_rules import Rule
from meshd.rpc_money import MoneyMethods

if TYPE_CHECKING:
    from meshd.daemon import Daemon

IDENTITY_DIGITS = 64


class OperatorMethods:
    """The handlers; each takes checked parameters and returns JSON."""

    def __init__(self, daemon: Daemon, money: MoneyMethods) -> None:
        self._node = daemon
        self._money = money

    async def metrics(self, _: dict[str, Any]) -> Any:
        text = await self._node.exposition()
        return {"content_type": "text/plain; version=0.0.4; charset=utf-8", "text": text.decode()}

    async def peer_list(self, _: dict[str, Any]) -> Any:
        return [_row(peer, rule) for peer, rule in self._node.peer_rules.all().items()]

    async def peer_set(self, params: dict[str, Any]) -> Any:
        try:
            rule = Rule(params["rule"])
        except ValueError:
            raise RpcError(INVALID_PARAMS, f"rule: expected {', '.join(each.value for each in Rule)}") from None
        peer = self._peer(params["peer"])
        try:
            await self._node.peer_rules.set(peer, rule)
        except OSError as error:
            raise RpcError(REFUSED, f"nothing has changed: {error}") from error
        return _row(peer, rule)

    def _peer(self, text: str) -> bytes:
        """Also one that has never been here, by its whole public key."""
        try:
            return self._money.find_peer(text)
        except RpcError:
            if len(text) != IDENTITY_DIGITS:
                raise
            try:
                return bytes.fromhex(text)
            except ValueError:
                raise RpcError(INVALID_PARAMS, f"{text!r} is not a public key") from None


def _row(peer: bytes, rule: Rule) -> dict[str, Any]:
    return {"peer": peer.hex(), "peer_address": str(overlay_address(peer)), "rule": rule.value}


def operator_methods(node: OperatorMethods) -> dict[str, Method]:
    """The part of the method table that is the operator's."""
    return {
        "metrics": Method(node.metrics, "All figures, as Prometheus reads them.", result=schemas.METRICS),
        "peer.list": Method(node.peer_list, "The rules for single peers.", result=schemas.array(schemas.PEER_RULE)),
        "peer.set": Method(
            node.peer_set,
            "A rule for a peer: blocked, free (carried without limit, and not billed) or normal. Kept across restarts.",
            {
                "peer": Param("string", "public key, its beginning, or overlay address"),
                "rule": Param("string", "blocked, free or normal"),
            },
            result=schemas.PEER_RULE,
            writes=True,
        ),
    }
