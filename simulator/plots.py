"""Plots of a result folder: how the routes came, the prices over time, who carries and who earns.

matplotlib is an extra (`pip install meshd[plots]`), and is imported only here, when a plot is wanted.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

SIZE = (8.0, 4.5)  # inches
DPI = 120


class PlotError(Exception):
    """matplotlib is not installed, or the folder holds no results."""


def draw(folder: Path) -> list[Path]:
    """convergence.png, prices.png, load.png and earnings.png, in the folder. Raises PlotError and OSError."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  heavy, and an extra
    except ImportError as error:
        raise PlotError(f"{error}: install meshd[plots]") from error
    try:
        times = _rows(folder / "time.csv")
        nodes = _rows(folder / "nodes.csv")
        last = nodes[-1]["time"]
        final = [row for row in nodes if row["time"] == last]
        figures = {
            "convergence": _convergence(Figure, times),
            "prices": _prices(Figure, nodes),
            "load": _ranked(
                Figure,
                [sum(r["carried_bytes"] for r in nodes if r["node"] == f["node"]) / 1e6 for f in final],
                "MB carried",
            ),
            "earnings": _ranked(
                Figure, [(r["earned_msat"] - r["owed_msat"]) / 1000 for r in final], "sat earned less owed"
            ),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise PlotError(f"{folder}: no results of meshsim ({error})") from error
    written = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        written.append(path)
    return written


def _rows(path: Path) -> list[dict[str, float]]:
    """Numbers only; names and roles are left out."""
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if k not in ("name", "role")} for row in csv.DictReader(file)]


def _axes(kind: Any, x: str, y: str) -> tuple[Any, Any]:
    figure = kind(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _convergence(kind: Any, times: list[dict[str, float]]) -> Any:
    figure, axes = _axes(kind, "seconds", "pairs with a route")
    at = [row["time"] for row in times]
    axes.plot(at, [row["routes"] for row in times], color="tab:blue", label="routes")
    axes.set_ylim(bottom=0)
    if any(row["offered_bytes"] for row in times):
        other = axes.twinx()
        share = [row["delivered_bytes"] / row["offered_bytes"] if row["offered_bytes"] else 1.0 for row in times]
        other.plot(at, share, color="tab:orange", label="share of the traffic delivered")
        other.set_ylabel("share of the traffic delivered")
        other.set_ylim(0, 1.05)
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def _prices(kind: Any, nodes: list[dict[str, float]]) -> Any:
    """The median, and the middle half and all of the nodes that are up."""
    figure, axes = _axes(kind, "seconds", "fee, sat/MB")
    by_time: dict[float, list[float]] = {}
    for row in nodes:
        if row["up"] and row["fee"] < 2**32 - 1:
            by_time.setdefault(row["time"], []).append(row["fee"] / 1e6)
    at = sorted(by_time)
    sorted_fees = [sorted(by_time[time]) for time in at]

    def quantile(share: float) -> list[float]:
        return [fees[round(share * (len(fees) - 1))] for fees in sorted_fees]

    axes.fill_between(at, quantile(0.0), quantile(1.0), alpha=0.15, color="tab:blue", label="all nodes")
    axes.fill_between(at, quantile(0.25), quantile(0.75), alpha=0.35, color="tab:blue", label="middle half")
    axes.plot(at, quantile(0.5), color="tab:blue", label="median")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _ranked(kind: Any, values: list[float], title: str) -> Any:
    figure, axes = _axes(kind, "nodes, the highest first", title)
    ranked = sorted(values, reverse=True)
    axes.bar(range(1, len(ranked) + 1), ranked, width=1.0, color="tab:green")
    axes.axhline(0, color="black", linewidth=0.8)
    return figure
