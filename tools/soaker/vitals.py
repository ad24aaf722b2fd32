"""What a daemon holds, as the kernel and the daemon itself tell it, and whether that grows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """`at`: seconds since the start of the run. `memory`: bytes of its own in RAM, without what it maps of files."""

    at: float
    memory: int
    resident: int
    descriptors: int
    tasks: int


def look(pid: int, tasks: int, *, at: float) -> Vitals:
    """Raises OSError if the process has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value}
    return Vitals(at, kib["RssAnon"] * 1024, kib["VmRSS"] * 1024, len(os.listdir(f"/proc/{pid}/fd")), tasks)


def slope(seen: Sequence[Vitals]) -> float:
    """How much memory grows, bytes in an hour: the median of the slopes of all pairs (Theil and Sen), which a few
    high moments do not move. 0 with fewer than two looks."""
    rates = sorted(
        (later.memory - earlier.memory) / (later.at - earlier.at)
        for number, earlier in enumerate(seen)
        for later in seen[number + 1 :]
    )
    return rates[len(rates) // 2] * HOUR if rates else 0.0


def differing_pairs(ledgers: Mapping[str, Iterable[Mapping[str, Any]]], names: Mapping[str, str]) -> list[str]:
    """Whose books differ: what one says that it has paid must be what the other says that it got.

    `ledgers`: by node, as the daemon tells them. `names`: of nodes, by identity.
    """
    paid = {(node, names[entry["peer"]]): entry["sent_msat"] for node, rows in ledgers.items() for entry in rows}
    got = {(names[entry["peer"]], node): entry["received_msat"] for node, rows in ledgers.items() for entry in rows}
    return [
        f"{payer} says {paid.get((payer, payee), 0)} msat to {payee}, which says {got.get((payer, payee), 0)}"
        for payer, payee in sorted(paid.keys() | got.keys())
        if paid.get((payer, payee), 0) != got.get((payer, payee), 0)
    ]


def held(ledgers: Mapping[str, Iterable[Mapping[str, Any]]], names: Mapping[str, str]) -> list[str]:
    """Who is still held to the free tier, by whom, and what it owes."""
    return [
        f"{node} holds {names[entry['peer']]} to the free tier: {entry['balance_msat']} of {entry['window_msat']} msat"
        for node, rows in ledgers.items()
        for entry in rows
        if entry["state"] == "suspended"
    ]
