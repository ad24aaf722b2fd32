"""What a case of tools/bench/simulator is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MEGA = 2**20
Document = Mapping[str, Any]


def nothing_to_check(_: Document) -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Task:
    """`command`, and what it may take: CPU seconds and MiB of memory (None: no target). `is_long`: over a minute on a
    quiet machine, so left out by --quick.

    `anchor`: the name of an earlier case, whose CPU time ours is divided by; None: `seconds`. `work`: what the two do
    not have in common. `check`: what is wrong with the JSON object that the command printed."""

    name: str
    command: tuple[str, ...]
    seconds: float | None = None
    memory: float | None = None
    is_long: bool = False
    anchor: str | None = None
    work: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Document], list[str]] = nothing_to_check


def meshsim(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "simulator.main", *arguments, "--json")


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)
