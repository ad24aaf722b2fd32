"""The traffic: datagrams at an even rate, which no crash of anybody interrupts. Runs inside a node.

traffic.py send HOST PORT BYTES_PER_SECOND     until it is ended; SIGSTOP and SIGCONT pause it
traffic.py sink HOST PORT                      takes them, and says nothing
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable

SIZE = 1200
INTERVAL = 0.01
LONGEST_GAP = 0.1  # what was not sent in a pause is not made up for


def send(host: str, port: str, rate: str) -> None:
    due, before = 0.0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        while True:
            now = time.monotonic()
            due += min(now - before, LONGEST_GAP) * float(rate)
            before = now
            while due >= SIZE:
                due -= SIZE
                try:
                    udp.sendto(bytes(SIZE), (host, int(port)))
                except OSError:
                    break  # no route for a moment
            time.sleep(INTERVAL)


def sink(host: str, port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((host, int(port)))
        while True:
            udp.recv(65536)


PROGRAMS: dict[str, Callable[..., None]] = {"send": send, "sink": sink}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
