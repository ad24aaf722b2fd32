"""Somebody on a shared wire who sends in others' names; runs inside its namespace, with raw frames.

thief.py INTERFACE BUYER_MAC RELAY_MAC BUYER_LL RELAY_LL BUYER_TUNNEL_LL BUYER_IP SHOP_IP PORT

First it listens, until it has a beacon and tunnel packets of the buyer; then it replays, forges and lies, and prints
how many frames of each kind it has sent.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from ipaddress import IPv4Address, IPv6Address

from meshd import beacon as wire
from meshd.beacon import Beacon
from meshd.identity import Identity

US = Identity(b"\x66" * 32)
OUR_MAC = bytes.fromhex("020000000066")
OUR_ADDRESS = IPv6Address("fe80::ff:fe00:66")
BABEL_GROUP, BABEL_PORT = IPv6Address("ff02::1:6"), 6696
ETHER_IP, ETHER_IP6, UDP = 0x0800, 0x86DD, 17
WANTED_TUNNEL_FRAMES = 300
SPOOFED, SIZE = 1000, 1000
NUMBER_AT = 4 + 1 + 8 + 32 + 8  # in a beacon: magic, version, network, key, incarnation


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data + bytes(len(data) % 2))) if len(data) % 2 == 0 else 0
    if len(data) % 2:
        return checksum(data + b"\0")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip6_frame(mac: bytes, source: IPv6Address, target: IPv6Address, port: int, data: bytes) -> bytes:
    """UDP to a group, from and to the port."""
    length = 8 + len(data)
    pseudo = source.packed + target.packed + struct.pack("!II", length, UDP)
    head = struct.pack("!HHH", port, port, length)
    total = checksum(pseudo + head + b"\0\0" + data) or 0xFFFF
    header = struct.pack("!IHBB", 6 << 28, length, UDP, 1) + source.packed + target.packed
    to = b"\x33\x33" + target.packed[-4:]
    return to + mac + struct.pack("!H", ETHER_IP6) + header + head + struct.pack("!H", total) + data


def ip4_frame(to: bytes, mac: bytes, source: IPv4Address, target: IPv4Address, port: int) -> bytes:
    data = bytes(SIZE)
    length = 20 + 8 + len(data)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, UDP, 0) + source.packed + target.packed
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return to + mac + struct.pack("!H", ETHER_IP) + header + struct.pack("!HHHH", port, port, 8 + len(data), 0) + data


def listen(link: socket.socket, buyer: bytes, relay: bytes) -> tuple[bytes, list[bytes]]:
    """A beacon of the buyer, and frames of its tunnel to the relay."""
    beacon, frames = b"", []
    link.settimeout(60)
    while not beacon or len(frames) < WANTED_TUNNEL_FRAMES:
        frame = link.recv(65536)
        if frame[6:12] != buyer or frame[12:14] != struct.pack("!H", ETHER_IP6) or frame[20] != UDP:
            continue
        if frame[:2] == b"\x33\x33" and struct.unpack_from("!H", frame, 56)[0] == wire.PORT:
            beacon = frame[62:]
        elif frame[:6] == relay and frame[62:63] == b"\x04" and len(frame) > SIZE:
            frames.append(frame)
    return beacon, frames[:WANTED_TUNNEL_FRAMES]


def beacons(original: bytes, buyer: bytes, buyer_address: IPv6Address) -> dict[str, list[bytes]]:
    (number,) = struct.unpack_from("!I", original, NUMBER_AT)
    newer = bytearray(original)
    struct.pack_into("!I", newer, NUMBER_AT, number + 1_000_000)
    lie = Beacon(US.public_key, 2**40, 1, 60.0, buyer_address)
    foreign = wire.encode(Beacon(US.public_key, 1, 1, 60.0, OUR_ADDRESS), US, network=wire.network_tag("another chain"))

    def frame(data: bytes, mac: bytes = buyer, source: IPv6Address = buyer_address) -> bytes:
        return ip6_frame(mac, source, wire.GROUP, wire.PORT, data)

    return {
        "stale": [frame(original)] * 20,
        "forged": [frame(bytes(newer))] * 20,
        "foreign": [frame(foreign, OUR_MAC, OUR_ADDRESS)] * 20,
        "wrong source": [frame(original, OUR_MAC, OUR_ADDRESS)] * 20,
        "own key, another's address": [frame(wire.encode(lie, US, network=wire.network_tag("regtest")))] * 2,
    }


def dial(interface: str, ours: IPv6Address, theirs: IPv6Address) -> str:
    """A session in the relay's name: what comes of it."""
    index = socket.if_nametoindex(interface)
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as caller:
        caller.settimeout(10)
        try:
            caller.bind((str(ours), 0, 0, index))
            caller.connect((str(theirs), 6697, 0, index))
            caller.sendall(struct.pack("!H", 32) + bytes(32))
            return "answered" if caller.recv(100) else "closed"
        except OSError as error:
            return f"refused: {error}"


def main(interface: str, *words: str) -> None:
    buyer, relay = (bytes.fromhex(word.replace(":", "")) for word in words[:2])
    buyer_address, relay_address, tunnel_address = map(IPv6Address, words[2:5])
    buyer_ip, shop_ip = map(IPv4Address, words[5:7])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as link:
        link.bind((interface, 0))
        original, tunnelled = listen(link, buyer, relay)
        kinds = beacons(original, buyer, buyer_address)
        kinds["data"] = [ip4_frame(relay, buyer, buyer_ip, shop_ip, int(words[7]))] * SPOOFED
        hello = bytes([42, 2, 0, 8, 4, 6]) + struct.pack("!HHH", 0, 1, 100)
        kinds["Babel"] = [
            ip6_frame(buyer, source, BABEL_GROUP, BABEL_PORT, hello) for source in (buyer_address, tunnel_address)
        ] * 5
        kinds["tunnel packets again"] = tunnelled
        for frames in kinds.values():
            for frame in frames:
                link.send(frame)
                time.sleep(0.001)
    said = dial(interface, relay_address, buyer_address)
    print(json.dumps({"sent": {kind: len(frames) for kind, frames in kinds.items()}, "session": said}))


if __name__ == "__main__":
    main(*sys.argv[1:])
