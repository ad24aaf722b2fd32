"""The price rules (design section 9): scalar functions on ints and floats, nothing else.

The daemon and the simulator call them, and the simulator's compiled engines compile these same functions. So: no
objects, no containers, no keyword-only arguments, no exceptions. Prices are msat per GB, loads and capacities share one
unit (bit/s or bytes), times are seconds.

Near equilibrium a step moves the price's logarithm by (z - 1) / 16. Where the load answers one interval later with
elasticity e, the loop is stable for e up to 16, smoothing included (tests/payments/test_pricing.py). What would
oscillate is everybody who goes to the cheapest at once; against that, each buyer has its own lot
(`routing.rules.is_price_worth`, tests/simulator/test_prices.py).
"""

from __future__ import annotations

import math

PRICE_INTERVAL = 10.0  # between two steps
TARGET_UTILISATION = 0.7
PRICE_DAMPING = 16.0
EXCESS_MAX = 2.0  # of the load over the target that counts
LOAD_WEIGHT = 0.5  # of the newest interval in the average
TELL_FRACTION = 0.02  # smaller moves of the price are kept until they add up


def smooth_load(average: float, load: float) -> float:
    """The exponential moving average after one more interval. `average` < 0: there was none before."""
    if average < 0.0:
        return load
    return average + LOAD_WEIGHT * (load - average)


def price_step(price: float, load: float, capacity: float, floor: float, ceiling: float) -> float:
    """The price after one interval at that (smoothed) load: up when above 70 % of the capacity, else down.

    Kept as a float, since a small integer price would never move; `announced_price` rounds it.
    """
    excess = EXCESS_MAX
    if capacity > 0.0:
        excess = min(EXCESS_MAX, max(load, 0.0) / (TARGET_UTILISATION * capacity))
    stepped = max(price, 1.0) * math.exp((excess - 1.0) / PRICE_DAMPING)
    return min(max(stepped, floor), ceiling)


def announced_price(price: float, announced: int, floor: int, ceiling: int) -> int:
    """What to ask: the rounded price, or what was asked before if that is within 2 %. Each new one is told to the whole
    mesh."""
    wanted = min(max(int(price + 0.5), floor), ceiling)
    if wanted in (floor, ceiling) or not floor <= announced <= ceiling:
        return wanted
    return announced if abs(wanted - announced) <= TELL_FRACTION * announced else wanted
