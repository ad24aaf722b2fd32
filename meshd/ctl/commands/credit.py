"""Commands of debts without a chain, and of the chain's backends."""

from __future__ import annotations

import argparse

from meshd import schemas
from meshd.ctl import render
from meshd.ctl.command import Command

GROUPS = {"credit": "Debts that are settled by promises.", "chain": "Where blocks come from."}


def _amount(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected msat, at least 1, not {text!r}")
    return int(text)


def _redeem_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peer", metavar="PEER", help="its nickname, identity, beginning of that, or overlay address")
    parser.add_argument("amount", metavar="MSAT", type=_amount, help="1 to what it owes")


COMMANDS = (
    Command(
        words="credit list",
        help="What neighbours and this node have promised each other.",
        example="meshctl credit list",
        method="credit",
        result=schemas.array(schemas.CREDIT),
        render=render.credit,
        watch=True,
    ),
    Command(
        words="credit redeem",
        help="A neighbour has paid outside, in cash or in kind: its debt is so much less.",
        example="meshctl credit redeem d75a9801 250000",
        method="credit.redeem",
        result=schemas.REDEEMED,
        render=render.redeemed,
        arguments=_redeem_arguments,
        params=lambda options: {"peer": options.peer, "amount_msat": options.amount},
        question=lambda options: f"Take {options.amount} msat off what {options.peer} owes? That cannot be taken back.",
    ),
    Command(
        words="chain backends",
        help="The height that each backend last told, and whether it answers.",
        example="meshctl chain backends",
        method="chain.backends",
        result=schemas.array(schemas.BACKEND),
        render=render.backends,
        watch=True,
    ),
)
