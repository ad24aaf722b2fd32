"""Plots of a result folder: how the routes came, the prices over time, who carries and who earns.

matplotlib is an extra (`pip install meshd[plots]`), and is imported only here, when a plot is wanted.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

SIZE = (8.0, 4.5)  # inches
DPI = 120
LOG_FROM = 30.0  # times the least fee
MAX_HAPPENINGS = 200
MAX_NAMED = 6


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
        summary = json.loads((folder / "summary.json").read_text())
        happenings = [(float(item["at"]), str(item["what"])) for item in summary["happenings"]][:MAX_HAPPENINGS]
        last = nodes[-1]["time"]
        final = [row for row in nodes if row["time"] == last]
        carried: dict[float, float] = {}
        for row in nodes:
            carried[row["node"]] = carried.get(row["node"], 0.0) + row["carried_bytes"] / 1e6
        earned = [(row["earned_msat"] - row["owed_msat"]) / 1000 for row in final]
        figures = {
            "convergence": _convergence(Figure, times, happenings),
            "prices": _prices(Figure, nodes, happenings),
            "load": _ranked(Figure, list(carried.values()), "MB carried"),
            "earnings": _ranked(Figure, earned, "sat earned less owed"),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise PlotError(f"{folder}: no results of meshsim ({error})") from error
    for figure in figures.values():
        figure.suptitle(f"{summary['name']}, seed {summary['seed']}", fontsize="medium")
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


def _mark(axes: Any, happenings: list[tuple[float, str]]) -> None:
    """Vertical lines where something broke or was mended, with what it was."""
    for at, what in happenings:
        axes.axvline(at, color="tab:red", linewidth=0.8, linestyle=":")
        if len(happenings) <= MAX_NAMED:
            where = axes.get_xaxis_transform()
            axes.text(at, 0.02, f" {what}", transform=where, rotation=90, fontsize="small", color="tab:red", ha="right")


def _convergence(kind: Any, times: list[dict[str, float]], happenings: list[tuple[float, str]]) -> Any:
    figure, axes = _axes(kind, "seconds", "pairs with a route")
    at = [row["time"] for row in times]
    axes.step(at, [row["routes"] for row in times], where="post", color="tab:blue", label="routes")
    axes.set_ylim(0, 1.05 * max(1.0, *(row["routes"] for row in times)))
    _mark(axes, happenings)
    if any(row["offered_bytes"] for row in times):
        other = axes.twinx()
        sent = [row for row in times if row["offered_bytes"]]
        share = [row["delivered_bytes"] / row["offered_bytes"] for row in sent]
        label = "share of the traffic delivered"
        other.plot([row["time"] for row in sent], share, color="tab:orange", linestyle="--", label=label)
        other.set_ylabel(label)
        other.set_ylim(0, 1.05)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _prices(kind: Any, nodes: list[dict[str, float]], happenings: list[tuple[float, str]]) -> Any:
    """The median, and the middle half and all of the nodes that are up; on a logarithmic scale where they are apart."""
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
    fees = [fee for row in sorted_fees for fee in row]
    if min(fees) > 0 and max(fees) > LOG_FROM * min(fees):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda fee, _: f"{fee:g}")
    else:
        axes.set_ylim(0, 1.05 * max(fees) or 1.0)
    _mark(axes, happenings)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _ranked(kind: Any, values: list[float], title: str) -> Any:
    """One bar for each node; gains and losses in their colours, and how much of the gains the first tenth has."""
    figure, axes = _axes(kind, "nodes, the highest first", title)
    ranked = sorted(values, reverse=True)
    colours = ["tab:green" if value >= 0 else "tab:red" for value in ranked]
    axes.bar(range(1, len(ranked) + 1), ranked, width=0.9 if len(ranked) <= 100 else 1.0, color=colours)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.margins(x=0.01)
    gains = [value for value in ranked if value > 0]
    if gains:
        top = math.ceil(len(ranked) / 10)
        text = f"the first {top} of {len(ranked)} have {sum(gains[:top]) / sum(gains):.0%}"
        axes.text(0.98, 0.95, text, transform=axes.transAxes, ha="right", va="top")
    return figure
