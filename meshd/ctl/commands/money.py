"""Commands of payments: channels, ledger, paying."""

from __future__ import annotations

import argparse

from meshd import schemas
from meshd.ctl import render
from meshd.ctl.command import Command

GROUPS = {"pay": "Stop or resume payments.", "channel": "Close channels."}


def _close_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="the channels with every peer")
    which.add_argument(
        "--peer", metavar="PEER", help="those with this peer: its identity, the beginning of it, or its overlay address"
    )


def _close_question(options: argparse.Namespace) -> str:
    whose = "all channels" if options.all else f"the channels with {options.peer}"
    return f"Close {whose}? What was paid to us through them is claimed on the chain, less the fee."


COMMANDS = (
    Command(
        words="channels",
        help="The payment channels.",
        example="meshctl channels",
        method="channels",
        result=schemas.array(schemas.CHANNEL),
        render=render.channels,
        watch=True,
    ),
    Command(
        words="ledger",
        help="What was billed, paid and is owed, for each peer.",
        example="meshctl ledger",
        method="ledger",
        result=schemas.array(schemas.LEDGER),
        render=render.ledger,
        watch=True,
    ),
    Command(
        words="pay hold",
        help="Stop paying; sellers stop carrying for us once their window is used up.",
        example="meshctl pay hold",
        method="pay.hold",
        result=schemas.PAYING,
        render=render.paying,
    ),
    Command(
        words="pay resume",
        help="Pay again.",
        example="meshctl pay resume",
        method="pay.resume",
        result=schemas.PAYING,
        render=render.paying,
    ),
    Command(
        words="channel close",
        help="Close payment channels on the chain.",
        example="meshctl channel close --all --yes",
        method="channel.close",
        result=schemas.CLOSED,
        render=render.closed,
        arguments=_close_arguments,
        params=lambda options: {"peer": options.peer},
        question=_close_question,
    ),
)
