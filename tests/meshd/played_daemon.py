"""A daemon for meshctl, on a real socket, that says what the test wants."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.meshd.ctl_answers import ANSWERS


class Daemon:
    """Answers each connection with `reply` (bytes), or else from ANSWERS; remembers what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self.reply: bytes | None = None
        self.replies: list[bytes | None] = []  # to the next ones, before `reply`
        self.error: tuple[int, str] | None = None
        self.silent = False
        self.answers = ANSWERS
        self.sequence: dict[str, list[Any]] = {}  # of the next answers of a method, before `answers`
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self.done = threading.Event()

    def serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                line = connection.makefile("rb").readline()
                if not line:
                    return
                self.requests.append(json.loads(line))
                reply = self.replies.pop(0) if self.replies else self.reply
                if self.silent:
                    self.done.wait()
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(self._answer() if reply is None else reply)

    def _answer(self) -> bytes:
        request = self.requests[-1]
        if self.error is not None:
            body: dict[str, Any] = {"error": {"code": self.error[0], "message": self.error[1]}}
        else:
            method = request["method"]
            body = {"result": self.sequence[method].pop(0) if self.sequence.get(method) else self.answers[method]}
        return json.dumps({"jsonrpc": "2.0", "id": request["id"], **body}).encode() + b"\n"


@contextmanager
def running(path: Path) -> Iterator[Daemon]:
    daemon = Daemon(path)
    thread = threading.Thread(target=daemon.serve)
    thread.start()
    try:
        yield daemon
    finally:
        with socket.socket(socket.AF_UNIX) as last:
            daemon.done.set()
            last.connect(str(path))
        thread.join()
        daemon._socket.close()
