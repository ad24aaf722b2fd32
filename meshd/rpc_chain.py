"""What meshctl can ask of the chain's backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd import schemas
from meshd.control import Method
from payments.adapters.combined_chain import CombinedChain

if TYPE_CHECKING:
    from meshd.rpc_money import MoneyMethods


class ChainMethods:
    """The handlers; each takes checked parameters and returns JSON."""

    def __init__(self, money: MoneyMethods) -> None:
        self._node = money.node

    async def backends(self, _: dict[str, Any]) -> Any:
        chain, paymaster = self._node.chain, self._node.paymaster
        if not isinstance(chain, CombinedChain):
            name = self._node.config.chain.backend
            return [{"name": name, "height": paymaster.height, "answering": paymaster.is_chain_connected}]
        return [
            {
                "name": backend.name,
                "height": None if backend.tip is None else backend.tip.height,
                "answering": backend.is_answering,
            }
            for backend in chain.backends
        ]


def chain_methods(money: MoneyMethods) -> dict[str, Method]:
    """Their part of the method table."""
    return {
        "chain.backends": Method(
            ChainMethods(money).backends,
            "Where blocks come from: the height that each last told, and whether it answers.",
            result=schemas.array(schemas.BACKEND),
        )
    }
