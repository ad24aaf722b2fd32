"""Commands of payments: channels, ledger, paying."""

from __future__ import annotations

import argparse

from meshd import schemas
from meshd.ctl import render
from meshd.ctl.command import Command, whole

GROUPS = {"pay": "Stop or resume payments.", "channel": "Look at, open and close payment channels."}


def _open_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peer", metavar="PEER", help="its nickname, identity, beginning of that, or overlay address")
    parser.add_argument(
        "--capacity", metavar="SAT", type=whole(5_000, 10_000_000, " sat"), help="as configured, if left out"
    )


def _open_params(options: argparse.Namespace) -> dict[str, object]:
    return {"peer": options.peer, **({} if options.capacity is None else {"capacity_sat": options.capacity})}


def _open_question(options: argparse.Namespace) -> str:
    amount = "the configured amount" if options.capacity is None else f"{options.capacity:,} sat"
    return f"Lock {amount} in a channel to {options.peer}, and pay the fee of its transaction?"


def _close_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "channel",
        metavar="CHANNEL",
        nargs="?",
        help="one, by its id or the beginning of it; we may be its payer",
    )
    which.add_argument("--all", action="store_true", help="the channels with every peer")
    which.add_argument(
        "--peer",
        metavar="PEER",
        help="those with it: nickname, identity, beginning of that, or overlay address",
    )


def _close_question(options: argparse.Namespace) -> str:
    if options.channel is not None:
        return f"Close channel {options.channel}? Each gets on the chain what is its own, less the fee."
    whose = "all channels" if options.all else f"the channels with {options.peer}"
    return f"Close {whose}? What was paid to us through them is claimed on the chain, less the fee."


def _close_params(options: argparse.Namespace) -> dict[str, object]:
    return {"peer": options.peer} if options.channel is None else {"channel": options.channel}


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
        words="receipts",
        help="What neighbours have signed for us last: payments, counts, promises.",
        example="meshctl receipts --json",
        method="receipts",
        result=schemas.array(schemas.RECEIPT),
        render=render.receipts,
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
        words="channel list",
        help="The payment channels, as `meshctl channels`.",
        example="meshctl channel list",
        method="channels",
        result=schemas.array(schemas.CHANNEL),
        render=render.channels,
        watch=True,
    ),
    Command(
        words="channel open",
        help="Open a channel to a neighbour, before anything is owed.",
        example="meshctl channel open fd91::1 --capacity 200000",
        method="channel.open",
        result=schemas.OPENED,
        render=render.opened,
        arguments=_open_arguments,
        params=_open_params,
        question=_open_question,
    ),
    Command(
        words="channel close",
        help="Close payment channels on the chain.",
        example="meshctl channel close --all --yes",
        method="channel.close",
        result=schemas.CLOSED,
        render=render.closed,
        arguments=_close_arguments,
        params=_close_params,
        question=_close_question,
    ),
)
