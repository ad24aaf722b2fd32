"""The price rule and the buyers' hysteresis together, with real speakers: what the daemons would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.exact.world import World
from simulator.scenario import INTERNET, parse

EQUILIBRIUM = 1_000_000  # msat per GB, at which the buyers below want 70 % of what the sellers can carry
BUYERS = range(3, 13)


def one_seller(first: int, noise: float) -> list[float]:
    """Fees over the equilibrium's, step by step, of the only way from a buyer to the Internet."""
    world = World(
        parse(
            f"""
            [scenario]
            duration = 2500
            sample_interval = 10
            [topology]
            graph = "line:3"
            [[role]]
            nodes = 2
            role = "gateway"
            [[price]]
            nodes = 1
            policy = "auto"
            fee = {first}
            capacity = 10_000_000
            [[demand]]
            source = 0
            rate = {7_000_000 * 10**2}
            noise = {noise}
            elasticity = 2
            reference_price = {EQUILIBRIUM // 10}
            """
        ),
        seed=1,
    )
    world.run()
    return [rows[1][1] / EQUILIBRIUM for rows in world.samples.nodes]


@pytest.mark.parametrize("wrong", [1 / 8, 8])
def test_an_eightfold_wrong_price_settles_in_under_100_steps_and_stays_in_spite_of_noise(wrong: float) -> None:
    fees = one_seller(int(EQUILIBRIUM * wrong), 0.2)
    assert abs(fees[0] / wrong - 1) < 0.1
    assert all(abs(fee - 1) <= 0.1 for fee in fees[100:])
    assert len(fees) == 250


def two_sellers(tmp_path: Path, sticky_fraction: float) -> tuple[int, World]:
    """Ten buyers, each with a link to both sellers; how often they changed from one to the other."""
    pairs = [(0, 1), (0, 2), *((buyer, seller) for buyer in BUYERS for seller in (1, 2))]
    (tmp_path / "two.csv").write_text("".join(f"{a},{b}\n" for a, b in pairs))
    text = f"""
        [scenario]
        duration = 1500
        sample_interval = 10
        [topology]
        file = "two.csv"
        [routing]
        sticky_fraction = {sticky_fraction}
        [[role]]
        nodes = 0
        role = "gateway"
        [[price]]
        nodes = [1, 2]
        policy = "auto"
        fee = {EQUILIBRIUM}
        capacity = 10_000_000
        [[demand]]
        source = {list(BUYERS)}
        rate = 14_000_000
        noise = 0.05
        elasticity = 1
        reference_price = {EQUILIBRIUM // 10}
    """
    world = World(parse(text, base=tmp_path), seed=1)
    turns = 0
    while world.network.next_at() <= world.scenario.run.duration:
        at = world.network.next_at()
        turns += sum(c.destination == INTERNET and c.node in BUYERS and at > 60 for c in world.network.step())
    return turns, world


def test_two_equal_sellers_do_not_flap_and_without_hysteresis_they_do(tmp_path: Path) -> None:
    """All buyers begin at the same one, the worst case."""
    turns, calm = two_sellers(tmp_path, 0.1)
    assert turns < 4 * len(BUYERS)
    fees = [rows[seller][1] / EQUILIBRIUM for rows in calm.samples.nodes[50:] for seller in (1, 2)]
    assert all(abs(fee - 1) < 0.3 for fee in fees)
    loads = [sum(rows[seller][2] for rows in calm.samples.nodes[-30:]) for seller in (1, 2)]
    assert max(loads) < 3 * min(loads)
    turns, _ = two_sellers(tmp_path, 0.0)
    assert turns > 20 * len(BUYERS)
