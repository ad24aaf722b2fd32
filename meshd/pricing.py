"""price = "auto": the fee follows the load (docs/pricing.md; the rule itself is `payments.pricing`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from meshd.config_price import PriceConfig
from meshd.logs import Logger
from payments import pricing
from routing.rules import PRICE_NOT_FOR_SALE

log = Logger("meshd.pricing")
BITS_PER_MBIT = 1_000_000


class PriceFollower:
    """`carried` tells the bytes that neighbours handed us to carry, since the start; `fee` what is asked now, which the
    operator may have set meanwhile; `set_fee` asks another, in msat per GB."""

    def __init__(
        self,
        config: PriceConfig,
        *,
        carried: Callable[[], int],
        fee: Callable[[], int],
        set_fee: Callable[[int], Awaitable[None]],
    ) -> None:
        self._config = config
        self._carried = carried
        self._fee = fee
        self._set_fee = set_fee
        self._announced = fee()
        self._price = float(self._announced)
        self._average = -1.0

    def set_rule(self, config: PriceConfig) -> None:
        """Go on by this from now on; it does nothing where the price is fixed."""
        self._config = config
        self._announced, self._average = self._fee(), -1.0
        self._price = float(self._announced)

    async def run(self) -> None:
        """Until cancelled."""
        before, began = self._carried(), trio.current_time()
        while True:
            await trio.sleep(self._config.interval)
            carried, now = self._carried(), trio.current_time()
            wanted = self.step(8 * (carried - before) / (now - began)) if self._config.price == "auto" else None
            before, began = carried, now
            if wanted is not None:
                log.debug("fee follows the load", fee_msat_per_gb=wanted)
                await self._set_fee(wanted)

    @property
    def load(self) -> float | None:
        """bit/s, the moving average that the fee follows; None: it has not been looked at yet."""
        return None if self._average < 0.0 else self._average

    def step(self, load: float) -> int | None:
        """One interval has passed, with so many bit/s. Returns the fee to ask from now on; None: as before.

        A fee that the operator set is where it goes on from; "not for sale" stays until the operator ends it.
        """
        self._average = pricing.smooth_load(self._average, load)
        fee = self._fee()
        if fee >= PRICE_NOT_FOR_SALE:
            return None
        if fee != self._announced:
            self._announced, self._price = fee, float(fee)
        config = self._config
        low, high = config.floor_msat_per_gb, config.ceiling_msat_per_gb
        capacity = config.capacity_mbit * BITS_PER_MBIT
        self._price = pricing.price_step(self._price, self._average, capacity, low, high)
        wanted = pricing.announced_price(self._price, fee, low, high)
        if wanted == fee:
            return None
        self._announced = wanted
        return wanted
