"""Commands of the operator: single peers, prices by themselves, budgets, figures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from meshd import schemas
from meshd.ctl import render
from meshd.ctl.command import Command, whole
from meshd.ctl.text import Record, Style, duration, money, price, table

GROUPS = {
    "peer": "Block a peer, carry it for nothing, or neither.",
    "budget": "Show or change what this node spends at most.",
}
_MAX_MSAT = 10**15
_RULE_COLOURS = {"blocked": "red", "free": "green"}


def _peer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peer", metavar="PEER", help="its nickname, identity, beginning of that, or overlay address")


def _rule(word: str, verb: str, text: str, question: str | None = None) -> Command:
    def params(options: argparse.Namespace) -> dict[str, Any]:
        return {"peer": options.peer, "rule": word}

    def ask(options: argparse.Namespace) -> str:
        return f"{question} {options.peer}?"

    return Command(
        words=f"peer {verb}",
        help=text,
        example=f"meshctl peer {verb} fd00::1" + ("" if question is None else " --yes"),
        method="peer.set",
        result=schemas.PEER_RULE,
        render=lambda result, style: _rules([result], style),
        arguments=_peer_arguments,
        params=params,
        question=None if question is None else ask,
    )


def _rules(result: list[Record], style: Style) -> str:
    if not result:
        return "No peer has a rule of its own."
    rows = [(row["peer_address"], (row["rule"], _RULE_COLOURS.get(row["rule"]))) for row in result]
    return table(("PEER", "RULE"), rows, style)


def _budget_arguments(parser: argparse.ArgumentParser) -> None:
    for period in ("hour", "day", "month"):
        parser.add_argument(f"--per-{period}", metavar="MSAT", type=whole(0, _MAX_MSAT), help="at most; 0: no limit")


def _budget_params(options: argparse.Namespace) -> dict[str, Any]:
    wanted = {f"per_{period}_msat": getattr(options, f"per_{period}") for period in ("hour", "day", "month")}
    return {name: value for name, value in wanted.items() if value is not None}


def _budget(result: Record, style: Style, *, now: Callable[[], float] = time.time) -> str:
    state = "buying" if result["is_buying"] else style.paint("a budget is used up: nothing that costs is bought", "red")
    rows = [
        (
            row["period"],
            money(row["spent_msat"]),
            "none" if row["limit_msat"] is None else money(row["limit_msat"]),
            duration(max(0.0, row["ends_at"] - now())),
        )
        for row in result["periods"]
    ]
    head = f"{state}; at most {price(result['max_price_msat_per_gb'])}"
    return f"{head}\n\n{table(('PERIOD', '>SPENT', '>LIMIT', '>ENDS IN'), rows, style)}"


def _auto_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--off", action="store_true", help="stay with the fee that is asked now")
    parser.add_argument("--capacity", metavar="MBIT", type=whole(1, 1_000_000), help="what the node can carry, Mbit/s")


def _auto_params(options: argparse.Namespace) -> dict[str, Any]:
    capacity = {} if options.capacity is None else {"capacity_mbit": options.capacity}
    return {"on": not options.off, **capacity}


COMMANDS = (
    Command(
        words="price auto",
        help="Let the fee follow the load, until the next start.",
        example="meshctl price auto --capacity 50",
        method="price.auto",
        result=schemas.FEE,
        render=render.fee,
        arguments=_auto_arguments,
        params=_auto_params,
    ),
    Command(
        words="budget show",
        help="What was spent this hour, day and month, and what may be.",
        example="meshctl budget show",
        method="budget.show",
        result=schemas.BUDGET,
        render=_budget,
        watch=True,
    ),
    Command(
        words="budget set",
        help="Spend at most so much from now on, until the next start.",
        example="meshctl budget set --per-day 5000000",
        method="budget.set",
        result=schemas.BUDGET,
        render=_budget,
        arguments=_budget_arguments,
        params=_budget_params,
    ),
    Command(
        words="peer list",
        help="The peers that have a rule of their own.",
        example="meshctl peer list",
        method="peer.list",
        result=schemas.array(schemas.PEER_RULE),
        render=_rules,
    ),
    _rule("blocked", "block", "Hold a peer to the free tier, and take no routes from it.", "Block"),
    _rule("normal", "allow", "Treat a peer as any other again."),
    _rule("free", "free", "Carry a peer without limit, and do not bill it.", "Carry for nothing"),
    Command(
        words="metrics",
        help="All figures, as Prometheus reads them.",
        example="meshctl metrics",
        method="metrics",
        result=schemas.METRICS,
        render=lambda result, _: str(result["text"]).rstrip("\n"),
        watch=True,
    ),
)
