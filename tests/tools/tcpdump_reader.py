"""tools/dissect against tcpdump: what tcpdump must print for a record, line by line and letter by letter.

tcpdump 4.99 says more of round-trip times and authentication than tshark 4.0 does. It knows neither AE 4 nor prices,
shows source prefixes as unknown sub-TLVs, and no sub-TLVs of requests.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tools.babel_readers import packets_in
from tools.dissector.main import describe

Record = dict[str, Any]
TRAILER = "----"
INVALID = "Update (invalid)"  # tcpdump's last word on a packet with AE 4


def assert_agrees_with_tcpdump(capture: Path) -> int:
    """How many TLVs were compared."""
    command = ["tcpdump", "-tnvv", "-r", str(capture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    theirs: list[list[str]] = []
    for line in done.stdout.splitlines():
        if line.startswith("\t"):
            theirs[-1].append(line[1:])
        else:
            assert re.search(r"babel 2 \(\d+\)$", line), line
            theirs.append([])
    ours = [_lines(describe(packet)["tlvs"]) for packet in packets_in(capture)]
    assert ours == theirs
    return sum(map(len, ours))


def _lines(records: list[Record]) -> list[str]:
    body = [_line(record) for record in records if not record.get("trailer")]
    trailer = [_line(record) for record in records if record.get("trailer")]
    lines = body + ([TRAILER, *trailer] if trailer else [])
    return lines[: lines.index(INVALID) + 1] if INVALID in lines else lines


def _line(record: Record) -> str:
    assert not record.get("malformed"), record
    words = _WORDS.get(record["tlv"])
    if words is None:
        return f"Unknown message type {record['type']}"
    has_sub_tlvs = record["tlv"] in ("Hello", "IHU", "Update") and record.get("ae") != 4
    return words(record) + (_sub_tlvs(record) if has_sub_tlvs else "")


def _update(r: Record) -> str:
    if r["ae"] == 4:
        return INVALID
    flags = "".join(word for bit, word in ((0x80, "/prefix"), (0x40, "/id"), (0x3F, "/unknown")) if r["flags"] & bit)
    interval = "infinity" if r["interval"] == 655.35 else _seconds(r)
    return f"Update{flags} {r['prefix'] or 'any'} metric {r['metric']} seqno {r['seqno']} interval {interval}"


def _sub_tlvs(record: Record) -> str:
    return "".join(f" {'(M) ' if sub.get('mandatory') else ''}{_sub_tlv(sub)}" for sub in record["sub_tlvs"])


def _sub_tlv(sub: Record) -> str:
    times = [sub[name] / 1e6 for name in ("transmitted_us", "origin_us", "received_us") if name in sub]
    if times:
        return f"sub-timestamp {'|'.join(f'{time:.6f}s' for time in times)}"
    return {0: "sub-pad1", 1: "sub-padn"}.get(sub["type"], f"sub-unknown-0x{sub['type']:02x}")


def _seconds(record: Record) -> str:
    return f"{record['interval']:.2f}s"


def _router_id(record: Record) -> str:
    return ":".join(re.findall("..", record["router_id"]))


def _octets(name: str, head: int = 0) -> Callable[[Record], str]:
    return lambda r: f"{name} {head + len(r['body']) // 2}"


_WORDS: dict[str, Callable[[Record], str]] = {
    "Pad1": lambda _: "Pad 1",
    "PadN": _octets("Pad", 2),
    "Acknowledgment Request": lambda r: f"Acknowledgment Request {r['opaque']:04x} {_seconds(r)}",
    "Acknowledgment": lambda r: f"Acknowledgment {r['opaque']:04x}",
    "Hello": lambda r: (
        f"Hello {'(Unicast) ' if r['unicast'] else ''}seqno {r['seqno']} "
        + (f"interval {_seconds(r)}" if r["interval"] else "unscheduled")
    ),
    "IHU": lambda r: f"IHU {r['address'] or 'any'} rxcost {r['rxcost']} interval {_seconds(r)}",
    "Router-Id": lambda r: f"Router Id {_router_id(r)}",
    "Next Hop": lambda r: f"Next Hop {r['address']}",
    "Update": _update,
    "Route Request": lambda r: f"Route Request for {r['prefix'] or 'any'}",
    "Seqno Request": lambda r: (
        f"Seqno Request ({r['hop_count']} hops) for {r['prefix']} seqno {r['seqno']} id {_router_id(r)}"
    ),
    "MAC": _octets("MAC len"),
    "PC": lambda r: f"PC value {r['counter']} index len {len(r['index']) // 2}",
    "Challenge Request": _octets("Challenge Request len"),
    "Challenge Reply": _octets("Challenge Reply len"),
}
