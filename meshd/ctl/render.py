"""What the daemon answers, as text for people. One function for each command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshd.ctl.text import NOT_FOR_SALE, Cell, Record, Style, duration, money, price, rate, size, table


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _short(value: str | None) -> str:
    """Enough of a hash to tell it from another; all of it is in --json."""
    return "-" if value is None else value[:12]


def _interface(row: Record) -> str:
    """People know the interface under a tunnel, not the tunnel's own name."""
    under = row.get("under")
    return row["interface"] if under in (None, row["interface"]) else f"{under} (tunnel)"


_STATE_COLOURS = {"up": "green", "open": "green", "free": "yellow", "down": "red", "suspended": "red"}


def _state(word: str) -> Cell:
    return word, _STATE_COLOURS.get(word)


def _carrying(item: Record) -> Cell:
    """With the rate of the free tier, for one that is held to it."""
    word, bits = item["state"], item["rate_bits_per_second"]
    return word if bits is None else f"{word} ({rate(bits)})", _STATE_COLOURS.get(word)


def _fast_lane(lane: Record) -> str:
    if lane["problem"] is not None:
        return f"off: {lane['problem']}"
    outside = "".join(f"; not on {name}: {reason}" for name, reason in sorted(lane["outside"].items()))
    return f"{lane['flows']} flows, {size(lane['bytes'])} carried{outside}"


def status(result: Record, style: Style) -> str:
    chain, totals, balance = result["chain"], result["totals"], result["wallet"]["balance_sat"]
    connected = "connected" if chain["connected"] else style.paint("not connected", "red")
    lines = [
        ("node", f"{result['name']} (meshd {result['version']}, up {duration(result['uptime_seconds'])})"),
        ("identity", result["identity"]),
        ("address", result["address"]),
        ("neighbours", str(result["neighbours"])),
        ("routes", str(result["routes"])),
        ("fee", price(result["fee_msat_per_gb"])),
        ("paying", "yes" if result["paying"] else style.paint("on hold", "yellow")),
        ("chain", f"{chain['backend']}, height {_text(chain['height'])}, {connected}"),
        ("wallet", "unknown" if balance is None else f"{balance:,} sat"),
        ("carried", size(totals["carried_bytes"])),
        ("fast lane", _fast_lane(result["fast_lane"])),
        ("earned", money(totals["earned_msat"])),
        ("spent", money(totals["spent_msat"])),
    ]
    rows = [
        (item["name"], item["kind"], _state("up" if item["up"] else "down"), _text(item["address"]))
        for item in result["interfaces"]
    ]
    summary = "\n".join(f"{style.paint(f'{label:<10}', 'bold')}  {text}" for label, text in lines)
    return f"{summary}\n\n" + table(("INTERFACE", "KIND", "STATE", "ADDRESS"), rows, style)


def neighbours(result: list[Record], style: Style) -> str:
    if not result:
        return "No neighbours."
    headers = (
        "INTERFACE", "LINK-LOCAL", "ADDRESS", ">COST", ">RTT", "QUALITY", "SESSION", "STATE",
        ">WINDOW", ">OWED TO US", ">OWED TO THEM", ">IN", ">FREE", ">REFUSED", ">OUT",
    )  # fmt: skip
    rows = [
        (
            _interface(item),
            item["link_local"],
            _text(item["address"]),
            str(item["cost"]),
            "-" if item["rtt_ms"] is None else f"{item['rtt_ms']:.1f} ms",
            _quality(item["quality"]),
            _state(item["session"]),
            _carrying(item),
            money(item["window_msat"]),
            money(item["owed_to_us_msat"]),
            money(item["owed_to_them_msat"]),
            size(item["bytes_in"]),
            size(item["bytes_free"]),
            size(item["bytes_refused"]),
            size(item["bytes_out"]),
        )
        for item in result
    ]
    return table(headers, rows, style)


def _quality(item: Record | None) -> str:
    """Of the best that the link can be, and how that is known."""
    if item is None:
        return "-"
    kbps, tq = item["throughput_kbps"], item["tq"]
    figure = f"TQ {tq}" if kbps is None else f"{kbps / 1000:.1f} Mbit/s"
    by = "" if item["source"] in ("TQ", "throughput") else f" by {item['source']}"
    return f"{item['share'] * 100:.0f} % ({figure}{by})"


def tunnels(result: list[Record], style: Style) -> str:
    if not result:
        return "No tunnels."
    headers = ("INTERFACE", "OVER", "ADDRESS", "ENDPOINT", ">PORT", ">MTU", "STATE", ">HEARD", ">RECEIVED")
    rows = [
        (
            item["interface"],
            item["under"],
            item["address"],
            _text(item["endpoint"]),
            _text(item["port"]),
            str(item["mtu"]),
            (item["state"], "green" if item["state"] == "up" else "yellow"),
            "-" if item["heard_seconds_ago"] is None else f"{item['heard_seconds_ago']:.0f} s ago",
            size(item["received_bytes"]),
        )
        for item in result
    ]
    return table(headers, rows, style)


def routes(result: list[Record], style: Style) -> str:
    if not result:
        return "No routes."
    headers = ("", "PREFIX", "VIA", "INTERFACE", ">METRIC", ">PRICE", ">ANNOUNCED", "NOTE")
    return table(headers, [_route_row(item) for item in result], style)


def _route_row(item: Record) -> Sequence[Cell]:
    if item["origin"]:
        announced = price(item["announced_price_msat_per_gb"])
        return ("*", _pair(item), "-", "-", str(item["metric"]), "-", announced, "own")
    note = "refused" if item["refused"] else "" if item["feasible"] else "unfeasible"
    return (
        ("*", "green") if item["selected"] else "",
        _pair(item),
        item["next_hop"],
        _interface(item),
        str(item["metric"]),
        price(item["price_msat_per_gb"]),
        price(item["announced_price_msat_per_gb"]),
        (item.get("reason") or note, "dim"),
    )


def _pair(item: Record) -> str:
    prefix, source_prefix = item["prefix"], item["source_prefix"]
    return str(prefix) if source_prefix is None else f"{prefix} from {source_prefix}"


def path(result: Record, style: Style) -> str:
    destination, prefix, chosen = result["destination"], _pair(result), result["chosen"]
    if result["origin"]:
        return f"{destination} is reached through this node itself ({prefix})."
    if chosen is None:
        return f"No route to {destination}."
    lines = [
        f"{destination} matches {prefix}: via {chosen['next_hop']} on {_interface(chosen)}, "
        f"metric {chosen['metric']}, price {price(chosen['price_msat_per_gb'])}"
    ]
    if result["hops"]:
        lines += ["", _hops(result["hops"], style)]
    if result["alternatives"]:
        headers = ("", "PREFIX", "VIA", "INTERFACE", ">METRIC", ">PRICE", ">ANNOUNCED", "WHY NOT")
        lines += ["", table(headers, [_route_row(item) for item in result["alternatives"]], style)]
    return "\n".join(lines)


def channels(result: list[Record], style: Style) -> str:
    if not result:
        return "No channels."
    headers = ("CHANNEL", "PEER", "DIRECTION", "STATE", ">CAPACITY", ">PAID", ">EXPIRES AT", "FUNDING", "CLOSING")
    rows = [
        (
            _short(item["channel_id"]),
            _text(item["peer_address"]),
            item["direction"],
            _state(item["state"]),
            f"{item['capacity_sat']:,} sat",
            money(item["cumulative_msat"]),
            str(item["expiry_height"]),
            _short(item["funding"]),
            _short(item["closing_txid"]),
        )
        for item in result
    ]
    return table(headers, rows, style)


def ledger(result: list[Record], style: Style) -> str:
    if not result:
        return "No accounts."
    amounts = (
        "window", "billed", "acknowledged", "their_billed", "accepted", "sent", "received", "balance",
    )  # fmt: skip
    headers = ("PEER", "STATE", "COUNTS", *(">" + name.replace("_", " ").upper() for name in amounts))
    rows: list[Sequence[Cell]] = [
        (
            _text(item["peer_address"]),
            _state(item["state"]),
            _agreement(item["counts"]),
            *(money(item[f"{name}_msat"]) for name in amounts),
        )
        for item in result
    ]
    return table(headers, rows, style)


def credit(result: list[Record], style: Style) -> str:
    if not result:
        return "No debts are settled on credit."
    amounts = ("limit", "balance", "promised_by_us", "promised_by_them", "redeemed_by_us", "redeemed_by_them")
    headers = ("PEER", *(">" + name.replace("_", " ").upper() for name in amounts))
    rows: list[Sequence[Cell]] = [
        (item["peer_address"], *(money(item[f"{name}_msat"]) for name in amounts)) for item in result
    ]
    return table(headers, rows, style)


def redeemed(result: Record, style: Style) -> str:  # noqa: ARG001
    return f"{money(result['amount_msat'])} less are owed by {result['peer']}."


def backends(result: list[Record], style: Style) -> str:
    rows: list[Sequence[Cell]] = [
        (item["name"], _text(item["height"]), "yes" if item["answering"] else ("no", "red")) for item in result
    ]
    return table(("BACKEND", ">HEIGHT", "ANSWERS"), rows, style)


_STANDING_COLOURS = {"warned": "yellow", "limited": "red", "suspended": "red"}


def _agreement(counts: Record | None) -> Cell:
    """What the other end's counts of the link come to, and how much is lost on it in the worse direction."""
    if counts is None or counts["theirs"] is None:
        return "-" if counts is None or counts["standing"] == "trusted" else (counts["standing"], "yellow")
    lost = max(counts["lost_to_them"], counts["lost_from_them"])
    text = counts["finding"] + (f", {lost:.1%} lost" if lost >= 0.001 else "")
    if counts["standing"] != "trusted":
        text = f"{counts['standing']}: {text}"
    return text, _STANDING_COLOURS.get(counts["standing"])


def fee(result: Record, style: Style) -> str:  # noqa: ARG001  a renderer like the others
    msat_per_gb = result["fee_msat_per_gb"]
    if msat_per_gb == NOT_FOR_SALE:
        return "Fee: not for sale"
    text = f"Fee: {price(msat_per_gb)} ({msat_per_gb:,} msat/GB)"
    if result["price"] != "auto":
        return text
    load = "not known yet" if result["load_mbit"] is None else f"{result['load_mbit']:g} Mbit/s"
    bounds = f"{price(result['floor_msat_per_gb'])} and {price(result['ceiling_msat_per_gb'])}"
    return f"{text}, between {bounds} with the load: {load} of {result['capacity_mbit']} Mbit/s"


def cost(result: Record, style: Style) -> str:  # noqa: ARG001
    return f"Cost of {result['interface']}: {result['cost']}"


def reloaded(result: Record, style: Style) -> str:
    text = f"In force: {result['filters']} filters, {result['redistributions']} rules of redistribution."
    if result["restart_needed"]:
        text += style.paint(f"\nOnly after a restart: {', '.join(result['restart_needed'])}.", "yellow")
    return text


def paying(result: Record, style: Style) -> str:
    return "Paying." if result["paying"] else style.paint("Payments are on hold.", "yellow")


def receipts(result: list[Record], style: Style) -> str:
    if not result:
        return "No receipts."
    rows = [
        (
            _text(item["peer_address"]),
            item["kind"],
            _short(item["channel_id"]),
            "-" if item["amount_msat"] is None else money(item["amount_msat"]),
            _short(item["signature"]),
        )
        for item in result
    ]
    return table(("PEER", "OF", "CHANNEL", ">AMOUNT", "SIGNATURE"), rows, style)


def opened(result: Record, style: Style) -> str:  # noqa: ARG001
    return f"Opening a channel of {result['capacity_sat']:,} sat to {result['peer_address']}, when it agrees."


def closed(result: Record, style: Style) -> str:  # noqa: ARG001
    ids = result["channels"]
    if not ids:
        return "No channel to close."
    txid = f", transaction {result['txid']}" if result["txid"] else ""
    return f"Closing {len(ids)} channel{'s' if len(ids) > 1 else ''}{txid}:\n" + "\n".join(f"  {name}" for name in ids)


def _hops(rows: list[Record], style: Style) -> str:
    headers = (">HOP", "NODE", ">METRIC", ">PRICE", ">FEE", ">LINK COST", ">QUALITY", "WHY")
    cells = [
        (
            str(row["hop"]),
            row["node"],
            _text(row["metric"]),
            "-" if row["arrived"] else price(row["price_msat_per_gb"]),
            price(row["fee_msat_per_gb"]),
            _text(row["link_cost"]),
            "-" if row["quality"] is None else f"{row['quality'] * 100:.0f} %",
            (row["why"], "dim"),
        )
        for row in rows
    ]
    return table(headers, cells, style)
