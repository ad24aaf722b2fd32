"""The traffic of the lab tests; runs inside a node. Uses nothing of ours but the standard library.

pump.py sink HOST PORT PROGRESS        takes one connection, counts, answers its end with the sum
pump.py send HOST PORT BYTES REPORT    sends so many bytes (or until SIGTERM), then compares sums with the sink
pump.py echo HOST                      exit code 0: HOST itself answered (ICMP port unreachable)
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CHUNK = 64 * 1024
ECHO_PORT, ECHO_ATTEMPTS = 9, 5


def write(path: str, text: str) -> None:
    """Whole or not at all: somebody may be reading."""
    Path(path + ".new").write_text(text)
    Path(path + ".new").rename(path)


def sink(host: str, port: str, progress: str) -> int:
    with socket.create_server((host, int(port))) as listening:
        write(progress, "0")
        connection, _ = listening.accept()
    received = 0
    with connection:
        while chunk := connection.recv(CHUNK):
            received += len(chunk)
            write(progress, str(received))
        connection.sendall(received.to_bytes(8, "big"))
    return 0


def send(host: str, port: str, wanted: str, report: str) -> int:
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    sent = 0
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.settimeout(None)
        while sent < int(wanted) and not stopping:
            chunk = bytes(min(CHUNK, int(wanted) - sent))
            connection.sendall(chunk)
            sent += len(chunk)
        connection.shutdown(socket.SHUT_WR)
        received = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
    write(report, json.dumps({"sent": sent, "received": received}))
    return 0 if sent == received else 1


def echo(host: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(1)
        probe.connect((host, ECHO_PORT))
        for _ in range(ECHO_ATTEMPTS):
            try:
                probe.send(b"?")
                probe.recv(1)
            except ConnectionRefusedError:
                return 0
            except TimeoutError:
                continue
    return 1


PROGRAMS: dict[str, Callable[..., int]] = {"sink": sink, "send": send, "echo": echo}

if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](*sys.argv[2:]))
