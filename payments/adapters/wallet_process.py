"""The wallet's book (`wallet_book`) in a process that is there only while it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from payments.ports import WalletError

IDLE_TIMEOUT = 20.0  # seconds
END_TIMEOUT = 10.0
ANSWER_TIMEOUT = 120.0  # bitcoinlib alone takes many seconds to load on a small machine

Address = tuple[str, int, int]  # address, branch, index


class BookProcess:
    """As `wallet_book.Book`, for any thread. The process starts with the first call, and ends IDLE_TIMEOUT after the
    last: all that it knows is on the disk."""

    def __init__(
        self,
        directory: Path,
        network: str,
        public_key: str,
        *,
        idle_timeout: float = IDLE_TIMEOUT,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """Raises WalletError when the directory is of another key. A process that does not answer is killed."""
        self._argv = [sys.executable, "-P", "-m", "payments.adapters.wallet_book", str(directory), network, public_key]
        self._idle_timeout = idle_timeout
        self.answer_timeout = answer_timeout
        self._lock = threading.RLock()
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None
        self._addresses: list[Address] = []
        with self._lock:
            self._start()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def close(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            process, self._process = self._process, None
            if process is None:
                return
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):  # what the process has not read cannot be written any more
                        stream.close()
            try:
                process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def addresses(self) -> list[Address]:
        with self._lock:
            return list(self._addresses)

    def new_addresses(self, branch: int, count: int) -> list[Address]:
        made = [(str(address), int(a), int(b)) for address, a, b in self._call("new_addresses", branch, count)]
        self._addresses += made
        return made

    def update_outputs(self, outputs: list[dict[str, Any]]) -> None:
        self._call("update_outputs", outputs)

    def balance_sat(self) -> int:
        return int(self._call("balance_sat"))

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
        )
        try:
            with self._watched(self._process):
                self._addresses = [(str(address), int(a), int(b)) for address, a, b in self._read()]
        except WalletError:
            self.close()
            raise
        self._wait_idle()

    def _call(self, name: str, *arguments: Any) -> Any:
        with self._lock:
            if self._process is None:
                self._start()
            if self._process is None or self._process.stdin is None:
                raise WalletError("the wallet's process did not start")
            try:
                with self._watched(self._process):
                    self._process.stdin.write(json.dumps({"call": name, "arguments": arguments}) + "\n")
                    answer = self._read()
            except OSError as error:
                self.close()
                raise WalletError(f"the wallet's process has ended: {error}") from error
            self._wait_idle()
            return answer

    @contextmanager
    def _watched(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Killed if it takes longer than it may: to write to it, or read from it, ends then."""
        watchdog = threading.Timer(self.answer_timeout, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _read(self) -> Any:
        line = "" if self._process is None or self._process.stdout is None else self._process.stdout.readline()
        if not line.endswith("\n"):  # nothing, or what it had written when it was killed
            self.close()
            raise WalletError("the wallet's process has ended; is meshd[wallet] installed?")
        answer = json.loads(line)
        if "error" in answer:
            raise WalletError(answer["error"])
        return answer["result"]

    def _wait_idle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self._idle_timeout, self.close)
        self._timer.daemon = True
        self._timer.start()
