"""Commands of the wallet: money on the chain, outside of channels."""

from __future__ import annotations

import argparse

from meshd import schemas
from meshd.ctl.command import Command, choice_error, whole
from meshd.ctl.text import Record, Style, table

GROUPS = {"wallet": "Money on the chain, outside of channels."}
_MAX_SAT = 21_000_000 * 100_000_000


def _fee_rate(text: str) -> float:
    """An argparse type."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.1 <= rate <= 10_000:
        raise choice_error(text, "sat per virtual byte, from 0.1 to 10000")
    return rate


def _fee_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fee", metavar="SAT_PER_VB", type=_fee_rate, help="as the chain says, for a few blocks, if left out"
    )


def _label_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label", metavar="TEXT", help="what it is for, to be found again")


def _address_arguments(parser: argparse.ArgumentParser) -> None:
    _label_argument(parser)


def _send_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="whom to pay")
    parser.add_argument("amount", metavar="SAT", type=whole(1, _MAX_SAT, " sat"), help="how much")
    _fee_argument(parser)
    _label_argument(parser)


def _send_params(options: argparse.Namespace) -> Record:
    return {"address": options.address, "amount_sat": options.amount, **_fee_param(options), **_label_param(options)}


def _send_question(options: argparse.Namespace) -> str:
    return f"Pay {options.amount:,} sat, and the fee, to {options.address}?"


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="ADDRESS", help="a fresh address of our own, if left out")
    parser.add_argument("--everything", action="store_true", help="all that there is, to empty the wallet")
    _fee_argument(parser)


def _sweep_params(options: argparse.Namespace) -> Record:
    to = {} if options.to is None else {"address": options.to}
    return {**to, **({"everything": True} if options.everything else {}), **_fee_param(options)}


def _sweep_question(options: argparse.Namespace) -> str:
    what = "all that the wallet has" if options.everything else "what closed channels have left"
    return f"Send {what}, less the fee, to {options.to or 'an address of our own'}?"


def _fee_param(options: argparse.Namespace) -> Record:
    return {} if options.fee is None else {"fee_sat_per_vb": options.fee}


def _label_param(options: argparse.Namespace) -> Record:
    return {} if options.label is None else {"label": options.label}


def _balance(result: Record, style: Style) -> str:
    rows = [
        ("confirmed", f"{result['confirmed_sat']:,} sat"),
        ("unconfirmed", f"{result['unconfirmed_sat']:,} sat"),
        ("locked in channels", f"{result['locked_in_channels_sat']:,} sat"),
        ("to be claimed", f"{result['claimable_msat'] // 1000:,} sat"),
    ]
    return table(("WHERE", ">AMOUNT"), rows, style)


def _address(result: Record, style: Style) -> str:  # noqa: ARG001  a renderer like the others
    return str(result["address"])


def _sent(result: Record, style: Style) -> str:  # noqa: ARG001
    later = "" if result["broadcast"] else "\nThe chain is away: it is sent when it is back."
    return f"{result['txid']}, fee {result['fee_sat']:,} sat{later}"


def _labels(result: list[Record], style: Style) -> str:
    if not result:
        return "No labels."
    return table(("ADDRESS OR TRANSACTION", "LABEL"), [(item["key"], item["text"]) for item in result], style)


COMMANDS = (
    Command(
        words="wallet balance",
        help="What there is on the chain, and in channels.",
        example="meshctl wallet balance",
        method="wallet.balance",
        result=schemas.WALLET_BALANCE,
        render=_balance,
        watch=True,
    ),
    Command(
        words="wallet address",
        help="A fresh address to be paid to.",
        example="meshctl wallet address --label savings",
        method="wallet.address",
        params=_label_param,
        result=schemas.NEW_ADDRESS,
        render=_address,
        arguments=_address_arguments,
    ),
    Command(
        words="wallet send",
        help="Pay somebody on the chain.",
        example="meshctl wallet send ADDRESS 50000 --fee 2.5",
        method="wallet.send",
        params=_send_params,
        result=schemas.SENT,
        render=_sent,
        arguments=_send_arguments,
        question=_send_question,
    ),
    Command(
        words="wallet sweep",
        help="Bring together what closed channels have left, or empty the wallet.",
        example="meshctl wallet sweep",
        method="wallet.sweep",
        params=_sweep_params,
        result=schemas.SENT,
        render=_sent,
        arguments=_sweep_arguments,
        question=_sweep_question,
    ),
    Command(
        words="wallet labels",
        help="What was written beside addresses and transactions.",
        example="meshctl wallet labels",
        method="wallet.labels",
        result=schemas.array(schemas.LABEL),
        render=_labels,
    ),
)
