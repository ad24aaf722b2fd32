"""Commands that look at the mesh as a whole: a live view, a graph, and packets sent to try a way."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from typing import Any

from meshd import schemas
from meshd.ctl.command import CallError, Command, Context, whole
from meshd.ctl.text import Record, Style, money, rate, size, table

GROUPS: dict[str, str] = {}
_UNREACHABLE = 65535

_TOP_ROW = schemas.record(
    neighbour=schemas.text("its overlay address, or that on the link"),
    interface=schemas.text(),
    cost=schemas.integer(),
    state=schemas.text(),
    in_bits_per_second=schemas.nullable(schemas.integer("null: not known before the second look")),
    out_bits_per_second=schemas.nullable(schemas.integer()),
    owed_to_us_msat=schemas.nullable(schemas.MSAT),
    owed_to_them_msat=schemas.nullable(schemas.MSAT),
    bytes_in=schemas.COUNT,
    bytes_out=schemas.COUNT,
)
_TOP = schemas.record(
    name=schemas.text(),
    uptime_seconds=schemas.number(),
    routes=schemas.COUNT,
    earned_msat=schemas.MSAT,
    spent_msat=schemas.MSAT,
    neighbours=schemas.array(_TOP_ROW),
)
_NODE = schemas.record(id=schemas.text("overlay address or prefix"), label=schemas.text())
_LINK = schemas.record(source=schemas.text(), target=schemas.text(), cost=schemas.number("the metric"))
GRAPH = schemas.record(
    "NetJSON NetworkGraph (netjson.org)",
    type={"const": "NetworkGraph", "type": "string"},
    protocol=schemas.text(),
    version=schemas.text(),
    metric=schemas.text(),
    router_id=schemas.text(),
    nodes=schemas.array(_NODE),
    links=schemas.array(_LINK),
    dot=schemas.nullable(schemas.text("with --dot: the same for Graphviz")),
)
_PING = schemas.record(
    destination=schemas.ADDRESS,
    sent=schemas.COUNT,
    received=schemas.COUNT,
    rtt_ms=schemas.nullable(schemas.record(min=schemas.number(), average=schemas.number(), max=schemas.number())),
)
_HOP = schemas.record(
    hop=schemas.COUNT,
    address=schemas.nullable(schemas.ADDRESS),
    rtt_ms=schemas.nullable(schemas.number()),
    arrived=schemas.boolean("it is the destination"),
)
_TRACE = schemas.record(destination=schemas.ADDRESS, reached=schemas.boolean(), hops=schemas.array(_HOP))
_EARNED = schemas.record(
    peer=schemas.text(), earned_msat=schemas.MSAT, spent_msat=schemas.MSAT, owed_to_us_msat=schemas.MSAT
)
_EARNINGS = schemas.record(
    earned_msat=schemas.MSAT,
    spent_msat=schemas.MSAT,
    net_msat=schemas.MSAT,
    carried_bytes=schemas.COUNT,
    uptime_seconds=schemas.number(),
    peers=schemas.array(_EARNED),
)


# --- top


def _top(context: Context) -> Record:
    status, rows = context.call("status"), context.call("neighbours")
    before = context.previous or {"uptime_seconds": status["uptime_seconds"], "neighbours": []}
    seconds = status["uptime_seconds"] - before["uptime_seconds"]  # below 0: it has started anew
    known = {(row["neighbour"], row["interface"]): row for row in before["neighbours"]}
    return {
        "name": status["name"],
        "uptime_seconds": status["uptime_seconds"],
        "routes": status["routes"],
        "earned_msat": status["totals"]["earned_msat"],
        "spent_msat": status["totals"]["spent_msat"],
        "neighbours": [_top_row(row, known, seconds) for row in rows],
    }


def _top_row(row: Record, known: dict[tuple[str, str], Record], seconds: float) -> Record:
    name, interface = row["address"] or row["link_local"], row["under"]
    old = known.get((name, interface))

    def bits(key: str) -> int | None:
        return None if old is None or seconds <= 0 else max(0, round(8 * (row[key] - old[key]) / seconds))

    keys = ("cost", "state", "owed_to_us_msat", "owed_to_them_msat", "bytes_in", "bytes_out")
    return {
        "neighbour": name,
        "interface": interface,
        "in_bits_per_second": bits("bytes_in"),
        "out_bits_per_second": bits("bytes_out"),
        **{key: row[key] for key in keys},
    }


def _top_text(result: Record, style: Style) -> str:
    head = (
        f"{style.paint(result['name'], 'bold')}  {len(result['neighbours'])} neighbours, {result['routes']} routes, "
        f"earned {money(result['earned_msat'])}, spent {money(result['spent_msat'])}"
    )
    headers = ("NEIGHBOUR", "INTERFACE", ">COST", "STATE", ">IN", ">OUT", ">OWED TO US", ">OWED TO THEM")
    rows = [
        (
            row["neighbour"],
            row["interface"],
            str(row["cost"]),
            (row["state"], None if row["state"] == "open" else "red"),
            "-" if row["in_bits_per_second"] is None else rate(row["in_bits_per_second"]),
            "-" if row["out_bits_per_second"] is None else rate(row["out_bits_per_second"]),
            money(row["owed_to_us_msat"]),
            money(row["owed_to_them_msat"]),
        )
        for row in sorted(result["neighbours"], key=lambda row: -(row["in_bits_per_second"] or 0))
    ]
    return f"{head}\n\n{table(headers, rows, style)}"


# --- graph


def _graph_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--netjson", action="store_true", help="NetJSON NetworkGraph (the default)")
    which.add_argument("--dot", action="store_true", help="for Graphviz")


def _graph(context: Context) -> Record:
    status, neighbours, routes = (context.call(name) for name in ("status", "neighbours", "routes"))
    own = status["address"]
    nodes, links = {own: status["name"]}, []
    for row in neighbours:
        name = row["address"] or row["link_local"]
        nodes[name] = name
        if row["cost"] < _UNREACHABLE:
            links.append({"source": own, "target": name, "cost": row["cost"]})
    for row in routes:
        if row["origin"] or not row["selected"] or row["metric"] >= _UNREACHABLE:
            continue
        by, target = row["neighbour"] or row["next_hop"], row["prefix"].removesuffix("/128")
        if target in nodes:
            continue
        nodes[target] = target
        links.append({"source": by, "target": target, "cost": max(0, row["advertised_metric"])})
    for link in links:
        nodes.setdefault(link["source"], link["source"])
    result: Record = {
        "type": "NetworkGraph",
        "protocol": "babel",
        "version": status["version"],
        "metric": "babel",
        "router_id": own,
        "nodes": [{"id": name, "label": label} for name, label in nodes.items()],
        "links": links,
        "dot": None,
    }
    if context.options.dot:
        result["dot"] = _dot(result)
    return result


def _dot(graph: Record) -> str:
    quoted = json.dumps
    lines = [f"  {quoted(node['id'])} [label={quoted(node['label'])}];" for node in graph["nodes"]]
    lines += [
        f"  {quoted(link['source'])} -- {quoted(link['target'])} [label={quoted(str(link['cost']))}];"
        for link in graph["links"]
    ]
    return "\n".join(["graph mesh {", *lines, "}"])


def _graph_text(result: Record, style: Style) -> str:  # noqa: ARG001
    if result["dot"] is not None:
        return str(result["dot"])
    return json.dumps({key: value for key, value in result.items() if key != "dot"}, indent=1)


# --- ping and trace


def _address(context: Context) -> str:
    """Of an address, a name that the daemon knows, or one that the machine does. Raises CallError."""
    from meshd.ctl.probe import resolve  # noqa: PLC0415

    text = context.options.destination
    if ":" not in text and not text.replace(".", "").isdigit():
        try:
            return str(context.call("address", name=text)["address"])
        except CallError as error:
            if error.word == "denied":
                raise
    return resolve(text)


def _ping_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DEST", help="an address, a nickname, or a host name")
    parser.add_argument("--packets", metavar="N", type=whole(1, 1000), default=5, help="so many (5)")


def _ping(context: Context) -> Record:
    options = context.options
    address = _address(context)
    argv = ["ping", "-n", "-q", "-c", str(options.packets), "-i", "0.2", "-W", "2", address]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=options.timeout)
    except FileNotFoundError:
        raise CallError("error", "ping is not installed: apt install iputils-ping") from None
    except subprocess.TimeoutExpired:
        raise CallError("timeout", f"no answer from {address} in {options.timeout:g} s") from None
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", done.stdout)
    if counts is None:
        raise CallError("error", done.stderr.strip() or "ping said nothing")
    times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)", done.stdout)
    rtt = None if times is None else dict(zip(("min", "average", "max"), map(float, times.groups()), strict=True))
    return {"destination": address, "sent": int(counts[1]), "received": int(counts[2]), "rtt_ms": rtt}


def _ping_text(result: Record, style: Style) -> str:  # noqa: ARG001
    rtt = result["rtt_ms"]
    times = (
        "" if rtt is None else f", {rtt['min']:.2f} / {rtt['average']:.2f} / {rtt['max']:.2f} ms (least, mean, most)"
    )
    return f"{result['destination']}: {result['received']} of {result['sent']} came back{times}"


def _trace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DEST", help="an address, a nickname, or a host name")
    parser.add_argument("--hops", metavar="N", type=whole(1, 255), default=30, help="at most (30)")


def _trace(context: Context) -> Record:
    from meshd.ctl.probe import trace  # noqa: PLC0415  sockets, which other commands do not open

    address = _address(context)
    hops = trace(address, max_hops=context.options.hops)
    return {"destination": address, "reached": bool(hops) and hops[-1]["arrived"], "hops": hops}


def _trace_text(result: Record, style: Style) -> str:
    rows = [
        (
            str(hop["hop"]),
            hop["address"] or "*",
            "-" if hop["rtt_ms"] is None else f"{hop['rtt_ms']:.2f} ms",
        )
        for hop in result["hops"]
    ]
    end = "" if result["reached"] else f"\n{result['destination']} was not reached."
    return table((">HOP", "ADDRESS", ">RTT"), rows, style) + end


# --- earnings


def _earnings(context: Context) -> Record:
    status, ledgers = context.call("status"), context.call("ledger")
    peers = [
        {
            "peer": row["peer_address"],
            "earned_msat": row["received_msat"],
            "spent_msat": row["sent_msat"],
            "owed_to_us_msat": row["balance_msat"],
        }
        for row in ledgers
    ]
    totals = status["totals"]
    return {
        "earned_msat": totals["earned_msat"],
        "spent_msat": totals["spent_msat"],
        "net_msat": totals["earned_msat"] - totals["spent_msat"],
        "carried_bytes": totals["carried_bytes"],
        "uptime_seconds": status["uptime_seconds"],
        "peers": sorted(peers, key=lambda row: -row["earned_msat"]),
    }


def _earnings_text(result: Record, style: Style) -> str:
    net, carried = style.paint(money(result["net_msat"]), "bold"), size(result["carried_bytes"])
    head = f"Earned {money(result['earned_msat'])}, spent {money(result['spent_msat'])}, net {net}; {carried} carried."
    if not result["peers"]:
        return head
    rows = [
        (row["peer"], money(row["earned_msat"]), money(row["spent_msat"]), money(row["owed_to_us_msat"]))
        for row in result["peers"]
    ]
    return f"{head}\n\n{table(('PEER', '>EARNED', '>SPENT', '>OWED TO US'), rows, style)}"


def _dead_end(result: Any) -> str:
    return "ok" if result.get("reached", result.get("received", 0)) else "not_found"


COMMANDS = (
    Command(
        words="top",
        help="Neighbours and what goes over them, live.",
        example="meshctl top",
        result=_TOP,
        render=_top_text,
        run=_top,
        watch=True,
        live=True,
    ),
    Command(
        words="graph",
        help="What this node knows of the mesh, as a graph.",
        example="meshctl graph --dot",
        result=GRAPH,
        render=_graph_text,
        run=_graph,
        arguments=_graph_arguments,
        watch=True,
    ),
    Command(
        words="ping",
        help="Send packets to an address, and see whether they come back.",
        example="meshctl ping fd00::1",
        result=_PING,
        render=_ping_text,
        run=_ping,
        arguments=_ping_arguments,
        watch=True,
        exit_word=_dead_end,
    ),
    Command(
        words="trace",
        help="The nodes that packets to an address go through, one by one.",
        example="meshctl trace fd00::1",
        result=_TRACE,
        render=_trace_text,
        run=_trace,
        arguments=_trace_arguments,
        watch=True,
        exit_word=_dead_end,
    ),
    Command(
        words="earnings",
        help="What was earned and spent, and with whom.",
        example="meshctl earnings",
        result=_EARNINGS,
        render=_earnings_text,
        run=_earnings,
        watch=True,
    ),
)
