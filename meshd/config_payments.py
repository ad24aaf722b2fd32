"""The tables [payments] and [[neighbour]] of the configuration: money between neighbours, and how it is settled."""

from __future__ import annotations

from dataclasses import dataclass

from meshd.config_kinds import boolean, choice, identity, integer, key, seconds, text
from payments.config import MAX_CREDIT_MSAT, SETTLEMENTS

_MAX_SAT = 21_000_000 * 100_000_000
_SETTLEMENT = choice(*SETTLEMENTS)
_EXAMPLE_IDENTITY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentsConfig:
    """Money between neighbours."""

    enabled: bool = key(boolean(), "Meter, bill and pay. Without it the node routes and carries for nothing.", True)
    session_port: int = key(integer(1, 65535), "TCP port of the sessions with neighbours.", 6697)
    tick: float = key(seconds(0.1, 60), "The longest time between settlements of a debt.", 5.0)
    window_msat: int = key(
        integer(1, 10**12), "What a new neighbour may owe before we stop carrying its traffic.", 10_000
    )
    max_window_msat: int = key(
        integer(1, 10**12), "What a neighbour that always paid may owe: the most that can be lost to it.", 1_000_000
    )
    free_rate: int = key(
        integer(0, 10**11),
        "Bits per second that are carried, and not billed, for each neighbour that has not paid, and for all those "
        "together that have no payment session; 0: nothing but some DNS.",
        64_000,
    )
    channel_capacity_sat: int = key(
        integer(1_000, _MAX_SAT), "What is locked in each payment channel that this node opens.", 100_000
    )
    channel_expiry_blocks: int = key(
        integer(10, 65535), "How long a channel lasts; its unspent rest comes back then at the latest.", 2016
    )
    expiry_margin_blocks: int = key(
        integer(2, 65535), "How long before its end a channel is no longer paid through, and claimed.", 144
    )
    min_confirmations: int = key(
        integer(1, 1000), "How deep a neighbour's channel must be in the chain before it counts as money.", 3
    )
    keep_for_neighbours: bool = key(
        boolean(),
        "Keep for neighbours, sealed, what they were paid last (8 KiB each, 64 at most), and give it back when they"
        " have lost it. Ours is left with neighbours that do so.",
        True,
    )
    settlement: str = key(
        _SETTLEMENT,
        "How debts are settled, where no [[neighbour]] says otherwise; both ends must have the same. cltv: payment"
        " channels on the chain. credit: signed promises up to a limit, without any chain, for friends and labs:"
        " whoever comes by may owe that much, so rather name friends. null: metered and shown, never paid.",
        "cltv",
    )
    credit_limit_msat: int = key(
        integer(0, MAX_CREDIT_MSAT),
        "Of credit: what either end may owe the other in promises; the lower one of both ends holds.",
        1_000_000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourConfig:
    """What one neighbour is called here, and how debts with it are settled. One table for each that differs."""

    identity: bytes = key(identity(), "Its public key: `meshctl status` shows it there.", example=_EXAMPLE_IDENTITY)
    name: str = key(
        text("a nickname of 1 to 63 letters, digits, dots, hyphens or underscores, or empty", r"[A-Za-z0-9._-]{0,63}"),
        "A nickname, which meshctl takes in the place of its address.",
        "",
    )
    settlement: str | None = key(_SETTLEMENT, "As in [payments], for it alone.", None, "credit")
    credit_limit_msat: int | None = key(
        integer(0, MAX_CREDIT_MSAT), "As in [payments], for it alone.", None, 10_000_000
    )
