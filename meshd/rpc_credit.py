"""What meshctl can ask and tell of debts that are settled on credit. Money is msat; names carry the unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd import schemas
from meshd.control import INVALID_PARAMS, REFUSED, Method, Param, RpcError
from meshd.identity import overlay_address
from payments import events as pay

if TYPE_CHECKING:
    from meshd.rpc_money import MoneyMethods


class CreditMethods:
    """The handlers; each takes checked parameters and returns JSON."""

    def __init__(self, money: MoneyMethods) -> None:
        self._money = money
        self._paymaster = money.node.paymaster

    async def credit(self, _: dict[str, Any]) -> Any:
        return [
            {
                "peer": view.peer.hex(),
                "peer_address": str(overlay_address(view.peer)),
                "limit_msat": view.limit_msat,
                "balance_msat": -view.owed_msat,
                "promised_by_us_msat": view.paid_msat,
                "acknowledged_msat": view.acknowledged_msat,
                "promised_by_them_msat": view.their_paid_msat,
                "redeemed_by_us_msat": view.redeemed_msat,
                "redeemed_by_them_msat": view.their_redeemed_msat,
            }
            for view in self._paymaster.engine.credits()
        ]

    async def credit_redeem(self, params: dict[str, Any]) -> Any:
        """The peer gave us so much outside: its promises are worth that much less."""
        self._money.require_payments()
        peer, amount_msat = self._money.find_peer(params["peer"]), params["amount_msat"]
        view = next((each for each in self._paymaster.engine.credits() if each.peer == peer), None)
        if view is None or view.limit_msat is None:
            raise RpcError(REFUSED, "there is no session with it in which debts are settled on credit")
        if not 0 < amount_msat <= -view.owed_msat:
            raise RpcError(INVALID_PARAMS, f"amount_msat = {amount_msat}: expected 1 to {max(0, -view.owed_msat)}")
        await self._paymaster.put(pay.OperatorRedeemCredit(peer, amount_msat))
        return {"peer": peer.hex(), "amount_msat": amount_msat}


def credit_methods(money: MoneyMethods) -> dict[str, Method]:
    """Their part of the method table."""
    node = CreditMethods(money)
    return {
        "credit": Method(
            node.credit,
            "What neighbours and we have promised each other, where debts are on credit.",
            result=schemas.array(schemas.CREDIT),
        ),
        "credit.redeem": Method(
            node.credit_redeem,
            "A neighbour has paid us outside for what it has promised: its debt is so much less.",
            {
                "peer": Param("string", "public key, its beginning, or overlay address"),
                "amount_msat": Param("integer", "1 to what it owes"),
            },
            result=schemas.REDEEMED,
            writes=True,
        ),
    }
