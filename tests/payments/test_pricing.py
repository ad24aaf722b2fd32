"""The price rules: where they settle, how fast, and what makes them flap."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payments import pricing

CAPACITY = 1e6
EQUILIBRIUM = 1e6
FLOOR, CEILING = 1_000, 2**32 - 2


def seller(wrong: float, elasticity: float, *, noise: float = 0.0, delay: int = 1, seed: int = 0) -> Iterator[float]:
    """Announced prices over the equilibrium, where the demand answers `delay` intervals later."""
    rng = random.Random(seed)
    price, average = EQUILIBRIUM * wrong, -1.0
    announced = int(price)
    told = [announced] * (delay + 1)
    while True:
        demand = 0.7 * CAPACITY * (told[-1 - delay] / EQUILIBRIUM) ** -elasticity
        average = pricing.smooth_load(average, demand * (1 + rng.uniform(-noise, noise)))
        price = pricing.price_step(price, average, CAPACITY, FLOOR, CEILING)
        announced = pricing.announced_price(price, announced, FLOOR, CEILING)
        told.append(announced)
        yield announced / EQUILIBRIUM


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([1 / 8, 8.0]),
    st.floats(1.0, 16.0),
    st.integers(0, 1),
)
def test_it_settles_from_an_eightfold_wrong_price_in_under_100_steps(
    wrong: float, elasticity: float, delay: int
) -> None:
    path = list(itertools.islice(seller(wrong, elasticity, delay=delay), 400))
    assert all(abs(price - 1) <= 0.1 for price in path[99:])


@settings(max_examples=20, deadline=None)
@given(st.floats(2.0, 8.0), st.integers(0, 2**32))
def test_it_stays_near_under_noise(elasticity: float, seed: int) -> None:
    path = list(itertools.islice(seller(1.0, elasticity, noise=0.2, seed=seed), 500))
    assert all(abs(price - 1) <= 0.1 for price in path)


def test_beyond_what_it_is_made_for_it_oscillates() -> None:
    """The test above can fail."""
    path = list(itertools.islice(seller(1.1, 48.0), 400))
    assert max(path[300:]) / min(path[300:]) > 1.2


@given(st.floats(0, 2**32), st.floats(-1, 1e18), st.floats(0, 1e18), st.integers(0, 2**31), st.integers(0, 2**31))
def test_a_price_stays_within_its_bounds(price: float, load: float, capacity: float, low: int, more: int) -> None:
    floor, ceiling = low, low + more
    stepped = pricing.price_step(price, load, capacity, floor, ceiling)
    assert floor <= stepped <= ceiling
    assert floor <= pricing.announced_price(stepped, int(price), floor, ceiling) <= ceiling
    if floor <= price <= ceiling and price >= 1:
        assert abs(math.log(stepped / price)) <= 1 / pricing.PRICE_DAMPING + 1e-9


def test_steps_are_as_the_design_says() -> None:
    assert pricing.price_step(1000.0, 0.7, 1.0, 1, 1e9) == pytest.approx(1000)
    assert pricing.price_step(1000.0, 9.0, 1.0, 1, 1e9) == pytest.approx(1000 * math.exp(1 / 16))
    assert pricing.price_step(1000.0, 0.0, 1.0, 1, 1e9) == pytest.approx(1000 * math.exp(-1 / 16))
    assert pricing.price_step(1000.0, 0.0, 0.0, 1, 1e9) > 1000  # no capacity at all is no bargain
    assert pricing.price_step(0.0, 9.0, 1.0, 0, 1e9) > 0  # nor is a price of nothing the end


def test_small_moves_are_not_told() -> None:
    assert pricing.announced_price(1_019.0, 1_000, 1, 10_000) == 1_000
    assert pricing.announced_price(1_021.0, 1_000, 1, 10_000) == 1_021
    assert pricing.announced_price(1_019.0, 1_000, 1, 1_010) == 1_010
    assert pricing.announced_price(5.0, 3, 5, 9) == 5
