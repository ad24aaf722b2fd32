"""The shape that every benchmark prints."""

from __future__ import annotations

import json

from tools.bench.common import Case, report

_CASE = Case("x", "Gbit/s", [1.0, 4.0, 3.0], [2.0, 4.0, 12.0])


def test_the_ratio_is_that_of_the_medians() -> None:
    assert (_CASE.ours, _CASE.anchor) == (3.0, 4.0)
    assert _CASE.ratio == 0.75


def test_json_has_what_the_readers_of_benchmarks_expect() -> None:
    read = json.loads(report([_CASE], as_json=True))
    assert read.keys() == {"cases", "machine"}
    case = read["cases"][0]
    expected = {"name": "x", "unit": "Gbit/s", "ours": 3.0, "anchor": 4.0, "ratio": 0.75, "higher_is_better": True}
    assert expected.items() <= case.items()
    assert "0.750" in report([_CASE], as_json=False)
