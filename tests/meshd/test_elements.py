"""Elements of sets as the kernel writes them, and as it might."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.kernel import elements as module
from meshd.kernel.elements import Element, elements
from meshd.kernel.netlink import attribute
from tests.meshd.test_meter_memory import kernel_element, message

_NUMBER = st.integers(0, 2**64 - 1)
_KEY = st.sampled_from([4, 8, 12]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
_FLAGS = attribute(3, struct.pack(">I", 1))


def test_all_elements_of_a_message_are_read() -> None:
    wanted = [(struct.pack("=I", n) * 11, 1000 * n, n) for n in range(300)]
    assert list(elements(message(wanted))) == wanted


def test_an_empty_list_has_none() -> None:
    assert list(elements(message([]))) == []


@given(st.lists(st.tuples(_KEY, _NUMBER, _NUMBER, st.booleans()), max_size=12))
def test_elements_that_are_not_like_the_first_are_read_too(wanted: list[tuple[bytes, int, int, bool]]) -> None:
    inner = [kernel_element(*fields) + (_FLAGS if flags else b"") for *fields, flags in wanted]
    data = bytes(4) + attribute(3, b"".join(attribute(1, part) for part in inner))
    assert list(elements(data)) == [tuple(fields) for *fields, _ in wanted]


@pytest.mark.parametrize("missing", ["key", "counter"])
def test_what_has_no_key_or_no_counter_counts_nothing(missing: str) -> None:
    whole = kernel_element(b"abcd", 5, 6)
    part = whole[12:] if missing == "key" else whole[:12]
    expected: Element = (b"", 5, 6) if missing == "key" else (b"abcd", 0, 0)
    data = bytes(4) + attribute(3, attribute(1, part) + attribute(1, whole))
    assert list(elements(data)) == [expected, (b"abcd", 5, 6)]


def test_what_the_kernel_writes_today_is_read_by_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_element", None)
    wanted = [(bytes([n]) * 44, n, n) for n in range(10)]
    assert list(elements(message(wanted))) == wanted
