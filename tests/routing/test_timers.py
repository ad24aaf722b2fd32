from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing.timers import Timers

KEYS = st.sampled_from("abc")
TIMES = st.integers(0, 20).map(float)


def test_a_deadline_can_move_both_ways() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 5.0)
    timers.set("a", 9.0)
    assert timers.pop_due(8.0) is None
    timers.set("a", 3.0)
    timers.set_earlier("a", 4.0)
    assert timers.next_deadline() == 3.0
    assert timers.pop_due(3.0) == "a"
    assert timers.next_deadline() is None


@given(st.lists(st.tuples(st.sampled_from(["set", "earlier", "cancel", "pop"]), KEYS, TIMES)))
def test_against_a_plain_dictionary(steps: list[tuple[str, str, float]]) -> None:
    timers: Timers[str] = Timers()
    model: dict[str, float] = {}
    for what, key, at in steps:
        if what == "set":
            timers.set(key, at)
            model[key] = at
        elif what == "earlier":
            timers.set_earlier(key, at)
            model[key] = min(at, model.get(key, at))
        elif what == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            due = timers.pop_due(at)
            assert (due is None) == all(deadline > at for deadline in model.values())
            if due is not None:
                assert model[due] == min(model.values())
                del model[due]
        assert timers.next_deadline() == min(model.values(), default=None)
