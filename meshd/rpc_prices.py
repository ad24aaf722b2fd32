"""What meshctl can ask a node about its price and its budget, and tell it: as a seller and as a buyer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meshd import schemas
from meshd.control import INVALID_PARAMS, POLICY, Method, Param, RpcError
from meshd.rpc_money import MoneyMethods
from payments.budget import LENGTH_BY_PERIOD
from routing.rules import PRICE_NOT_FOR_SALE

if TYPE_CHECKING:
    from meshd.daemon import Daemon

PARAM_BY_PERIOD = {period: f"per_{period}_msat" for period in LENGTH_BY_PERIOD}
MAX_BUDGET_MSAT = 10**15
MAX_CAPACITY_MBIT = 1_000_000


class PriceMethods:
    """The handlers; each takes checked parameters and returns JSON."""

    def __init__(self, daemon: Daemon, money: MoneyMethods) -> None:
        self._node = daemon
        self._money = money

    async def price_show(self, _: dict[str, Any]) -> Any:
        node, price = self._node, self._node.config.price
        is_auto = node.payments_enabled and price.price == "auto"
        load = node.price_follower.load if is_auto else None
        return {
            "fee_msat_per_gb": node.fee_msat_per_gb,
            "price": "auto" if is_auto else "fixed",
            "floor_msat_per_gb": price.floor_msat_per_gb if is_auto else None,
            "ceiling_msat_per_gb": price.ceiling_msat_per_gb if is_auto else None,
            "capacity_mbit": price.capacity_mbit if is_auto else None,
            "load_mbit": None if load is None else round(load / 1e6, 3),
        }

    async def price_set(self, params: dict[str, Any]) -> Any:
        """Until the next start; the configuration file is the operator's."""
        self._money.require_payments()
        fee = params["fee_msat_per_gb"]
        if not 0 <= fee <= PRICE_NOT_FOR_SALE:
            raise RpcError(
                INVALID_PARAMS, f"fee_msat_per_gb = {fee}: expected 0 to {PRICE_NOT_FOR_SALE} (not for sale)"
            )
        await self._node.set_fee(fee)
        return await self.price_show({})

    async def price_auto(self, params: dict[str, Any]) -> Any:
        """Until the next start; the configuration file is the operator's."""
        self._money.require_payments()
        capacity = params.get("capacity_mbit")
        wanted = replace(self._node.config.price, price="auto" if params["on"] else "fixed")
        if capacity is not None:
            if not 1 <= capacity <= MAX_CAPACITY_MBIT:
                raise RpcError(INVALID_PARAMS, f"capacity_mbit = {capacity}: expected 1 to {MAX_CAPACITY_MBIT}")
            wanted = replace(wanted, capacity_mbit=capacity)
        fee = min(max(self._node.fee_msat_per_gb, wanted.floor_msat_per_gb), wanted.ceiling_msat_per_gb)
        problem = replace(wanted, fee_msat_per_gb=fee).problem()
        if problem:
            raise RpcError(POLICY, f"[price]: {problem}")
        self._node.set_price_rule(wanted)
        return await self.price_show({})

    async def budget_show(self, _: dict[str, Any]) -> Any:
        self._money.require_payments()
        return self._node.budget.view() | {"max_price_msat_per_gb": self._node.config.routing.max_price_msat_per_gb}

    async def budget_set(self, params: dict[str, Any]) -> Any:
        """Until the next start; the configuration file is the operator's."""
        self._money.require_payments()
        limits = {period: params[name] for period, name in PARAM_BY_PERIOD.items() if params.get(name) is not None}
        for period, limit in limits.items():
            if not 0 <= limit <= MAX_BUDGET_MSAT:
                raise RpcError(
                    INVALID_PARAMS, f"{PARAM_BY_PERIOD[period]} = {limit}: expected 0 (no limit) to {MAX_BUDGET_MSAT}"
                )
        if not limits:
            raise RpcError(INVALID_PARAMS, f"expected one of {', '.join(PARAM_BY_PERIOD.values())}")
        await self._node.budget.set_limits(limits)
        return await self.budget_show({})


def price_methods(node: PriceMethods) -> dict[str, Method]:
    """The part of the method table that is about prices and budgets."""
    return {
        "price.show": Method(
            node.price_show, "What we ask for carrying a GB, and the load that it follows.", result=schemas.FEE
        ),
        "price.set": Method(
            node.price_set,
            "Ask another fee from now on; a rise is billed after the notice.",
            {"fee_msat_per_gb": Param("integer", "msat per GB; 4294967295: not for sale")},
            result=schemas.FEE,
            writes=True,
        ),
        "price.auto": Method(
            node.price_auto,
            "Let the fee follow the load, or stay with what is asked now; until the next start.",
            {
                "on": Param("boolean", "false: fixed"),
                "capacity_mbit": Param("integer", "what the node can carry; as configured if left out", required=False),
            },
            result=schemas.FEE,
            writes=True,
        ),
        "budget.show": Method(
            node.budget_show, "What was spent this hour, day and month, and what may be.", result=schemas.BUDGET
        ),
        "budget.set": Method(
            node.budget_set,
            "Spend at most so much from now on, until the next start; 0: no limit.",
            {name: Param("integer", f"msat in a {period}", required=False) for period, name in PARAM_BY_PERIOD.items()},
            result=schemas.BUDGET,
            writes=True,
        ),
    }
