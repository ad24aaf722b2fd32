from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing import rules
from routing.rules import METRIC_INFINITY, PRICE_NOT_FOR_SALE

u16 = st.integers(0, 0xFFFF)


@pytest.mark.parametrize(
    ("a", "b", "is_less"),
    [
        (0, 1, True),
        (1, 0, False),
        (5, 5, False),
        (0xFFFF, 0, True),
        (0, 0xFFFF, False),
        (0, 0x7FFF, True),
        (0, 0x8000, False),
    ],
)
def test_seqno_less(a: int, b: int, is_less: bool) -> None:
    assert rules.seqno_less(a, b) is is_less


@given(u16, st.integers(1, 0x7FFF))
def test_a_seqno_is_less_than_its_successors_across_the_wrap(seqno: int, n: int) -> None:
    assert rules.seqno_less(seqno, rules.seqno_add(seqno, n))
    assert not rules.seqno_less(rules.seqno_add(seqno, n), seqno)


@pytest.mark.parametrize(
    ("a", "b", "total"),
    [(1, 2, 3), (65534, 0, 65534), (65534, 1, METRIC_INFINITY), (METRIC_INFINITY, 0, METRIC_INFINITY)],
)
def test_metric_add(a: int, b: int, total: int) -> None:
    assert rules.metric_add(a, b) == total


@pytest.mark.parametrize(
    ("a", "b", "total"),
    [(1, 2, 3), (PRICE_NOT_FOR_SALE - 1, 1, PRICE_NOT_FOR_SALE), (PRICE_NOT_FOR_SALE, 7, PRICE_NOT_FOR_SALE)],
)
def test_price_add_never_wraps(a: int, b: int, total: int) -> None:
    assert rules.price_add(a, b) == total


@pytest.mark.parametrize(
    ("price", "metric"),
    [
        (0, 0),
        (1_000_000, 256),  # 1 sat/MB
        (1_953, 0),  # half a unit less a little
        (1_954, 1),
        (255_996_093, 65535),
        (PRICE_NOT_FOR_SALE - 1, METRIC_INFINITY),
        (PRICE_NOT_FOR_SALE, METRIC_INFINITY),
    ],
)
def test_price_metric(price: int, metric: int) -> None:
    assert rules.price_metric(price, 256.0) == metric


def test_not_for_sale_has_no_metric_however_light_prices_weigh() -> None:
    assert rules.price_metric(PRICE_NOT_FOR_SALE, 0.0) == METRIC_INFINITY


@given(u16, u16, u16, u16)
def test_feasible_is_strictly_better(seqno: int, metric: int, fd_seqno: int, fd_metric: int) -> None:
    if metric < METRIC_INFINITY and fd_metric < METRIC_INFINITY:
        there = rules.is_feasible(seqno, metric, fd_seqno, fd_metric)
        back = rules.is_feasible(fd_seqno, fd_metric, seqno, metric)
        assert not (there and back)


def test_feasibility() -> None:
    assert rules.is_feasible(1, 99, 1, 100)
    assert not rules.is_feasible(1, 100, 1, 100)
    assert rules.is_feasible(2, 500, 1, 100)
    assert not rules.is_feasible(0xFFFF, 5, 0, 100)
    assert rules.is_feasible(0, METRIC_INFINITY, 1, 1)


@pytest.mark.parametrize(
    ("history", "cost"), [(0xC000, 96), (0xA000, 96), (0x6000, 96), (0x8000, 65535), (0x1FFF, 65535)]
)
def test_two_out_of_three(history: int, cost: int) -> None:
    assert rules.wired_rxcost(history, 96) == cost


def test_etx() -> None:
    assert rules.reception_ratio(0xFFFF, 16) == 1.0
    assert rules.reception_ratio(0x8000, 1) == 1.0
    assert rules.reception_ratio(0, 16) == 0.0
    assert rules.reception_ratio(0x7FFF, 16) < rules.reception_ratio(0xFFFE, 16)
    assert rules.etx_rxcost(0.5, 256) == 512
    assert rules.etx_cost(512, 0.5, 256) == 1024
    assert rules.etx_cost(96, 1.0, 256) == 256  # alpha is at most 1
    assert rules.etx_cost(METRIC_INFINITY, 1.0, 256) == METRIC_INFINITY
    assert rules.etx_cost(256, 0.0, 256) == METRIC_INFINITY


def test_hysteresis() -> None:
    margin = rules.sticky_margin(200, 96, False, 0.1)
    assert margin == 20
    assert not rules.is_route_better(480, 500, margin, False)
    assert rules.is_route_better(479, 500, margin, False)
    assert rules.is_route_better(499, 500, margin, True)
    assert not rules.is_route_better(500, 500, margin, True)
    assert rules.sticky_margin(0, 256, True, 0.1) == 32


def test_a_price_move_is_followed_by_lot() -> None:
    assert rules.is_price_move(60, 100)
    assert not rules.is_price_move(50, 100)  # the way is better, too
    assert not rules.is_price_move(60, 0)
    assert not rules.is_price_worth(200, 20, 0.1, 1.0)
    assert rules.is_price_worth(200, 21, 0.1, 1.0)
    assert not rules.is_price_worth(200, 100, 0.1, rules.LOT_MAX)
    assert rules.is_price_worth(200, 101, 0.1, rules.LOT_MAX)


def test_the_rules_compile_with_numba() -> None:
    numba = pytest.importorskip("numba", reason="numba is not installed")
    assert numba.njit(rules.seqno_less)(0xFFFF, 0)
    assert numba.njit(rules.reception_ratio)(0xFFFF, 16) == 1.0
    assert numba.njit(rules.blended_cost)(96, 96, 0.5) == 192
