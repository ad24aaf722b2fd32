"""Before a large run: about how long it will take and how much memory, and whether that is allowed.

The constants were measured on a machine of two cores (docs/fidelities.md); they are right within a factor of two or so.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from simulator import jit

BASE_BYTES = 150e6  # the interpreter, numpy and numba
EXACT_BASE_BYTES = 80e6  # without numba
SLOWDOWN = 150.0  # without a compiler
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


class PreflightError(Exception):
    """The run would need more than it may; the message has both figures."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """CPU seconds, and bytes of memory at the most."""

    seconds: float
    memory: float

    def __str__(self) -> str:
        return f"about {_duration(self.seconds)} of CPU time and {self.memory / 2**20:.0f} MiB"

    def check(self, max_memory: float | None) -> None:
        """Raises PreflightError."""
        if max_memory is not None and self.memory > max_memory:
            raise PreflightError(
                f"this run needs about {self.memory / 2**20:.0f} MiB; at most {max_memory / 2**20:.0f} are allowed "
                "(--max-memory)"
            )


def batch(
    nodes: int,
    links: int,
    *,
    destinations: int | None = None,
    workers: int = 1,
    rounds: int = 0,
    keeps_routes: bool = False,
) -> Estimate:
    """Each destination costs some updates over each link, more in wide networks, and `rounds` repetitions of them a
    little each. Each worker has the tables of one destination."""
    wanted = nodes if destinations is None else destinations
    updates = wanted * 2 * links * (1.2 + 0.01 * nodes**0.5)
    memory = BASE_BYTES + workers * (600.0 * nodes + 300.0 * links) + (12.0 * wanted * nodes if keeps_routes else 0.0)
    seconds = updates * 0.2e-6 + rounds * wanted * (2 * links * 6e-9 + nodes * 4e-9)
    return Estimate(seconds * _slowdown(), memory)


def flow(nodes: int, links: int, *, rounds: int = 20) -> Estimate:
    """Each round is one search through the whole mesh."""
    return Estimate((rounds + 1) * (nodes + links) * 0.7e-6 * _slowdown(), BASE_BYTES + 160.0 * nodes + 90.0 * links)


def exact(nodes: int, links: int, *, seconds: float = 60.0, is_compiled: bool = False) -> Estimate:
    """Each update over each link of a cold start, more in wide networks; it is repeated every 16 s of virtual time.
    Each node has an entry for each destination, and a route to it by each neighbour."""
    seconds_each, share = (5e-6, 1.0) if is_compiled else (11e-6, 1.4)
    tables = 200.0 * nodes**2 + 240.0 * 2 * links * nodes
    return Estimate(exact_messages(nodes, links, seconds=seconds) * seconds_each, EXACT_BASE_BYTES + share * tables)


def exact_messages(nodes: int, links: int, *, seconds: float) -> float:
    return 2.0 * links * nodes * (1.2 + 0.025 * math.sqrt(nodes) + seconds / 16.0)


def parse_size(text: str) -> float:
    """`500M`, `2G`. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"'{text}' is not a size; write 500M or 2G")
    return float(found[1]) * _UNITS[found[2].upper()]


def _slowdown() -> float:
    return 1.0 if jit.is_available() else SLOWDOWN


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
