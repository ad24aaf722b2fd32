"""Commands that look at the node and its routing, and steer it."""

from __future__ import annotations

import argparse
from typing import Any

from meshd import schemas
from meshd.ctl import render
from meshd.ctl.command import Command, Context, choice_error, whole
from meshd.ctl.text import NOT_FOR_SALE

GROUPS = {"price": "Show or change the fee.", "interface": "Change an interface."}


_PATH = schemas.record(
    **schemas.PATH["properties"],
    hops=schemas.nullable(schemas.array(schemas.PATH_HOP, "null: no other node was asked")),
)


def _path_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DEST", help="an IPv4 or IPv6 address, or a nickname")
    parser.add_argument("--source", metavar="ADDR", help="where the packets come from, for source-specific routes")
    parser.add_argument("--local", action="store_true", help="what this node knows; no other is asked")


def _path(context: Context) -> Any:
    options = context.options
    source = {} if options.source is None else {"source": options.source}
    result = context.call("path", destination=options.destination, **source)
    # The others are asked for the way from them, which a source of ours says nothing of.
    is_asked = not options.local and not source and result["chosen"] is not None
    hops = context.call("path.hops", destination=options.destination)["hops"] if is_asked else None
    return {**result, "hops": hops}


def _path_exit(result: Any) -> str:
    # A question that was answered with "nowhere" is an answer, and a script wants to see it.
    return "ok" if result["origin"] or result["chosen"] is not None else "not_found"


def _fee(text: str) -> int:
    if text == "not-for-sale":
        return NOT_FOR_SALE
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text) < NOT_FOR_SALE:
        raise choice_error(text, f"0 to {NOT_FOR_SALE - 1}, or not-for-sale")
    return int(text)


def _price_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "fee", metavar="MSAT_PER_GB", type=_fee, help='1000000 is 1 sat/MB; "not-for-sale": carry for nobody'
    )


def _cost_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("interface", metavar="INTERFACE", help="its name")
    parser.add_argument("cost", metavar="COST", type=whole(1, 65534), help="1 to 65534; lower is preferred")


COMMANDS = (
    Command(
        words="status",
        help="This node: identity, interfaces, money.",
        example="meshctl status",
        method="status",
        result=schemas.STATUS,
        render=render.status,
        watch=True,
    ),
    Command(
        words="neighbours",
        help="Who is in range, and how it stands with them.",
        example="meshctl neighbours --watch",
        method="neighbours",
        result=schemas.array(schemas.NEIGHBOUR),
        render=render.neighbours,
        watch=True,
        aliases=("neighbors",),
    ),
    Command(
        words="tunnels",
        help="The WireGuard tunnels: whose, over what, to where.",
        example="meshctl tunnels",
        method="tunnels",
        result=schemas.array(schemas.TUNNEL),
        render=render.tunnels,
        watch=True,
    ),
    Command(
        words="routes",
        help="Every route, with metric and price; * is in use.",
        example="meshctl routes --json",
        method="routes",
        result=schemas.array(schemas.ROUTE),
        render=render.routes,
        watch=True,
    ),
    Command(
        words="path",
        help="Which way packets to an address go, hop by hop: price, quality, and why not another.",
        example="meshctl path fd00::1",
        result=_PATH,
        render=render.path,
        run=_path,
        arguments=_path_arguments,
        watch=True,
        exit_word=_path_exit,
    ),
    Command(
        words="price show",
        help="The fee asked for carrying traffic.",
        example="meshctl price show",
        method="price.show",
        result=schemas.FEE,
        render=render.fee,
        watch=True,
    ),
    Command(
        words="price set",
        help="Change the fee asked for carrying traffic.",
        example="meshctl price set 200000",
        method="price.set",
        result=schemas.FEE,
        render=render.fee,
        arguments=_price_arguments,
        params=lambda options: {"fee_msat_per_gb": options.fee},
    ),
    Command(
        words="interface cost",
        help="Give an interface another cost, until the next start.",
        example="meshctl interface cost wlan0 256",
        method="interface.cost",
        result=schemas.COST,
        render=render.cost,
        arguments=_cost_arguments,
        params=lambda options: {"interface": options.interface, "cost": options.cost},
    ),
    Command(
        words="reload",
        help="Read filters, redistribution, budgets, costs and MAC keys anew from the file.",
        example="meshctl reload",
        method="reload",
        result=schemas.RELOADED,
        render=render.reloaded,
    ),
)
