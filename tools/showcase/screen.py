"""The live view: redrawn in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

REDRAW_INTERVAL = 0.5
LINE_INTERVAL = 5.0


@dataclass(slots=True)
class Row:
    """One node as the screen shows it."""

    name: str
    next_hop: str  # towards the shop; "" at the shop itself
    metric: int
    price_msat_per_gb: int
    rate_bits: float
    owes_msat: int
    spent_msat: int
    earned_msat: int
    state: str


def sat_per_mb(price_msat_per_gb: float) -> str:
    return f"{price_msat_per_gb / 1e6:g}"


def sat(msat: int) -> str:
    return f"{msat / 1000:,.3f}"


@dataclass(slots=True)
class Screen:
    started_at: float = field(default_factory=time.monotonic)
    is_terminal: bool = field(default_factory=sys.stdout.isatty)
    _events: list[str] = field(default_factory=list)
    _drawn_lines: int = 0
    _next_at: float = 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started_at

    def say(self, text: str) -> None:
        """An event: stays in the output."""
        line = f"[{self.elapsed:6.1f} s] {text}"
        self._erase()
        print(line, flush=True)

    def _erase(self) -> None:
        if self._drawn_lines:
            sys.stdout.write(f"\x1b[{self._drawn_lines}F\x1b[J")
            self._drawn_lines = 0

    def is_due(self) -> bool:
        return time.monotonic() >= self._next_at

    def draw(self, rows: list[Row], title: str) -> None:
        self._next_at = time.monotonic() + (REDRAW_INTERVAL if self.is_terminal else LINE_INTERVAL)
        lines = [
            f"  {title}",
            f"  {'node':<7}{'next hop':<10}{'metric':>7}{'sat/MB':>8}{'Mbit/s':>8}{'owes sat':>12}{'spent sat':>14}"
            f"{'earned sat':>14}  state",
        ]
        for row in rows:
            lines.append(
                f"  {row.name:<7}{row.next_hop or '-':<10}{row.metric:>7}{sat_per_mb(row.price_msat_per_gb):>8}"
                f"{row.rate_bits / 1e6:>8.1f}{sat(row.owes_msat):>12}{sat(row.spent_msat):>14}"
                f"{sat(row.earned_msat):>14}  {row.state}"
            )
        self._erase()
        print("\n".join(lines), flush=True)
        self._drawn_lines = len(lines) if self.is_terminal else 0
