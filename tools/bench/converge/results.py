"""From samples to cases: ours beside the better of the anchors, medians and spread. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.bench.common import machine
from tools.bench.converge.follow import median_and_spread
from tools.bench.converge.run import Sample

OURS = "meshd"
BOUNDS = {"price rise, rerouted": 1.0}  # seconds; where no anchor can do the same


@dataclass(frozen=True)
class Result:
    """One case on one topology with one hello interval. `anchor` is the daemon with the least median; or "bound"."""

    name: str
    unit: str
    samples: dict[str, list[Sample]]

    @property
    def medians(self) -> dict[str, float]:
        return {daemon: _spread(samples)[0] for daemon, samples in self.samples.items()}

    @property
    def anchor(self) -> str | None:
        medians = {daemon: value for daemon, value in self.medians.items() if daemon != OURS}
        if medians:
            return min(medians, key=lambda daemon: medians[daemon])
        return "bound" if self.samples[OURS][0].case in BOUNDS else None

    @property
    def anchor_value(self) -> float | None:
        if self.anchor == "bound":
            return BOUNDS[self.samples[OURS][0].case]
        return self.medians[self.anchor] if self.anchor is not None else None

    @property
    def ratio(self) -> float | None:
        """Ours to the better anchor; None where one is missing, or both are nothing."""
        anchor, ours = self.anchor_value, self.medians.get(OURS)
        return ours / anchor if anchor and ours is not None else None

    def is_over(self, daemon: str) -> bool:
        """Its median stands for "longer than the limit"."""
        samples = self.samples.get(daemon, [])
        return sum(sample.is_over for sample in samples) * 2 > len(samples)

    def as_dict(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "name": self.name,
            "ours": self.medians.get(OURS),
            "anchor": self.anchor_value,
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "unit": self.unit,
            "higher_is_better": False,
            "anchor_is": self.anchor,
            "over_limit": sorted(daemon for daemon in self.samples if self.is_over(daemon)),
        }
        for daemon, samples in self.samples.items():
            shown[f"{daemon}_samples"] = [sample.value for sample in samples]
        return shown


def collect(samples: Iterable[Sample]) -> list[Result]:
    """In the order in which they came up first."""
    found: dict[tuple[str, str, str], dict[str, list[Sample]]] = {}
    for sample in samples:
        by_daemon = found.setdefault((sample.case, sample.spec, sample.hello), {})
        by_daemon.setdefault(sample.daemon, []).append(sample)
    return [
        Result(f"{case}, {spec}, hello {hello}", next(iter(by_daemon.values()))[0].unit, by_daemon)
        for (case, spec, hello), by_daemon in found.items()
    ]


def table(results: Sequence[Result]) -> str:
    """Medians, with the least and the greatest where there is more than one sample."""
    rows: list[tuple[str, ...]] = [("case", "unit", OURS, "babeld", "bird", "ratio")]
    for result in results:
        cells = [_cell(result, daemon) for daemon in (OURS, "babeld", "bird")]
        if result.anchor == "bound":
            cells[1] = f"< {result.anchor_value:g}"
        ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
        rows.append((result.name, result.unit, *cells, ratio))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_json(results: Sequence[Result], *, limit: float) -> str:
    cases = [result.as_dict() for result in results]
    return json.dumps({"cases": cases, "limit_seconds": limit, "machine": machine()}, indent=2)


def _spread(samples: Sequence[Sample]) -> tuple[float, float, float]:
    return median_and_spread([sample.value for sample in samples])


def _cell(result: Result, daemon: str) -> str:
    samples = result.samples.get(daemon)
    if not samples:
        return "-"
    median, low, high = _spread(samples)
    over = ">" if result.is_over(daemon) else ""
    spread = f" ({low:.3g}-{high:.3g})" if len(samples) > 1 and high > low else ""
    return f"{over}{median:.3g}{spread}"
