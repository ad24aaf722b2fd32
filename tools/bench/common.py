"""What every program under tools/bench prints: a table, or with --json one object of `cases` and `machine`."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One thing measured in both ways, alternately, in one run: the n-th sample of ours beside the n-th of the anchor.

    `ours` and `anchor` are medians, in `unit`.
    """

    name: str
    unit: str
    ours_samples: Sequence[float]
    anchor_samples: Sequence[float]
    higher_is_better: bool = True
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def ours(self) -> float:
        return statistics.median(self.ours_samples)

    @property
    def anchor(self) -> float:
        return statistics.median(self.anchor_samples)

    @property
    def ratio(self) -> float:
        """ours / anchor."""
        return self.ours / self.anchor

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "ours": self.ours,
            "anchor": self.anchor,
            "ratio": round(self.ratio, 4),
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "ours_samples": list(self.ours_samples),
            "anchor_samples": list(self.anchor_samples),
            **self.notes,
        }


def machine() -> dict[str, object]:
    """Numbers of different machines, or of one under different loads, cannot be compared; ratios of one run can."""
    return {
        "cpus": os.cpu_count(),
        "cpu_model": _cpu_model(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def report(cases: Sequence[Case], *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"cases": [case.as_dict() for case in cases], "machine": machine()}, indent=2)
    width = max(24, *(len(case.name) for case in cases)) if cases else 24
    lines = [f"{'case':<{width}} {'ours':>12} {'anchor':>12} {'ratio':>7}  unit"]
    lines += [f"{c.name:<{width}} {c.ours:>12.4g} {c.anchor:>12.4g} {c.ratio:>7.3f}  {c.unit}" for c in cases]
    return "\n".join(lines)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.machine()
