"""The dissect command."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scapy.packet import Packet

EXAMPLES = """
examples:
  tools/dissect capture.pcap
  tools/dissect --json capture.pcap | jq -r '.tlvs[] | select(.tlv == "Update") | .prefix'
  sudo tools/dissect --interface wlan0
"""


class DissectError(Exception):
    """What a person can mend."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/dissect",
        description="Babel packets of a capture file, or of a live interface, in words.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("capture", nargs="?", type=Path, metavar="FILE", help="pcap or pcapng")
    where.add_argument("--interface", metavar="NAME", help="listen there until interrupted (needs root)")
    parser.add_argument("--json", action="store_true", help="one JSON object for each packet")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after N Babel packets")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok, 1 error (a file that is no capture, no such interface), 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    show = _show_json if arguments.json else _show_words
    try:
        with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
            _dissect(arguments, show)
    except DissectError as error:
        print(f"dissect: {error}", file=sys.stderr)
        return 1
    return 0


def _dissect(arguments: argparse.Namespace, show: Callable[[dict[str, Any]], None]) -> None:
    logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
    try:
        from scapy.error import Scapy_Exception  # noqa: PLC0415  heavy: a second to load
        from scapy.layers import inet6, l2  # noqa: F401, PLC0415  what captures begin with
        from scapy.sendrecv import sniff  # noqa: PLC0415
        from scapy.utils import PcapReader  # noqa: PLC0415

        from tools.dissector import layers  # noqa: PLC0415
    except ImportError as error:
        raise DissectError(f"scapy is not installed ({error}); run tools/setup --for test") from error
    left = arguments.count or None

    def handle(packet: Packet) -> None:
        nonlocal left
        if layers.Babel in packet:
            show(describe(packet))
            left = None if left is None else left - 1

    try:
        if arguments.interface:
            sniff(iface=arguments.interface, store=False, prn=handle, stop_filter=lambda _: left == 0)
            return
        # Scapy would leave a file open that is no capture.
        with arguments.capture.open("rb") as file:
            for packet in PcapReader(file):
                handle(packet)
                if left == 0:
                    break
    except (Scapy_Exception, OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise DissectError(f"{arguments.capture or arguments.interface}: {reason}") from error


def describe(packet: Packet) -> dict[str, Any]:
    """A packet with a Babel layer as plain data: time, addresses, and a record for each TLV (see `words`)."""
    from scapy.layers.inet6 import IPv6  # noqa: PLC0415

    from tools.dissector import layers, words  # noqa: PLC0415

    source, destination = (packet[IPv6].src, packet[IPv6].dst) if IPv6 in packet else ("?", "?")
    babel = packet[layers.Babel]
    described: dict[str, Any] = {"at": float(packet.time), "source": source, "destination": destination}
    if babel.magic != 42 or babel.version != 2:
        return described | {"error": "not Babel version 2", "tlvs": []}
    if babel.body_length > len(babel.original) - layers.HEADER:
        described["error"] = "shorter than its body length says"
    return described | {"tlvs": words.PacketReader(source).read(babel)}


def _show_json(described: dict[str, Any]) -> None:
    print(json.dumps(described), flush=True)


def _show_words(described: dict[str, Any]) -> None:
    from tools.dissector import words  # noqa: PLC0415

    at = datetime.fromtimestamp(described["at"], tz=UTC).strftime("%H:%M:%S.%f")
    fault = f" ({described['error']})" if "error" in described else ""
    print(f"{at} {described['source']} > {described['destination']}{fault}")
    for record in described["tlvs"]:
        print(f"    {words.line(record)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
