"""Where a fuzzer begins: the packets of the committed captures, cut into what the targets take."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

CAPTURES = Path(__file__).resolve().parents[2] / "tests/vectors/captures"
_HEADERS = 14 + 40 + 8  # Ethernet, IPv6, UDP


def packets() -> Iterator[bytes]:
    """Each payload once."""
    known: set[bytes] = set()
    for path in sorted(CAPTURES.glob("*.pcap")):
        data = path.read_bytes()
        at = 24
        while at + 16 <= len(data):
            (length,) = struct.unpack_from("<8xI", data, at)
            payload = data[at + 16 + _HEADERS : at + 16 + length]
            at += 16 + length
            if payload[:2] == b"\x2a\x02" and payload not in known:
                known.add(payload)
                yield payload


def scripts(rng: random.Random, count: int) -> Iterator[bytes]:
    """For the speaker: packets of the captures, from several neighbours at random times."""
    bodies = [packet[4:][:255] for packet in packets()]
    for _ in range(count):
        script = b""
        for body in rng.sample(bodies, 6):
            script += bytes((0x50 | rng.randrange(0xB0), rng.randrange(8), len(body))) + body
        yield script


def write(target: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    found: Iterable[bytes]
    if target == "decode":
        found = [octets for packet in packets() for octets in (packet, packet[4:])]
    else:
        found = scripts(random.Random(1), 100)
    for number, octets in enumerate(found):
        (directory / f"seed-{number}").write_bytes(octets)
