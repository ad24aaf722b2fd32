"""Old backups: what the other end knows brings them up to date."""

from __future__ import annotations

import pytest

from tests.payments.test_engine import assert_settled
from tests.payments.world import World


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_old_backup_of_either_end_is_brought_up_to_date_by_the_other(name: str) -> None:
    world = World().with_channel()
    node = getattr(world, name)
    backup = node.store.copy()
    for _ in range(10):
        world.meter(world.b, world.a, 5_000)
        world.advance(5.0)
    assert_settled(world, 50_001)
    node.store = backup
    world.crash(node)
    world.connect()
    world.advance(5.0)
    assert_settled(world, 50_001)
    world.meter(world.b, world.a, 5_000)
    world.advance(5.0)
    assert_settled(world, 55_001)
    assert world.a.ledger(world.b).their_billed_units == world.a.ledger(world.b).accepted_units
