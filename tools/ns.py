"""Network namespaces for tests, the lab and the benchmarks: made by name, deleted without fail.

Every namespace and every process belongs to one `Namespaces`. Leaving it, by any way but SIGKILL, ends the processes
that it started (by pid) and deletes the namespaces that it made, and with them their interfaces, routes and rules.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import IO, Any, Self


class Namespaces:
    """`prefix` is put before every name, so that whoever sees a stale one knows whose it was; then the process id, so
    that two checkouts on one machine do not delete each other's."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}{os.getpid()}-"
        self._names: list[str] = []
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        atexit.register(self.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, name: str) -> str:
        """Make the namespace `prefix + name`, with `lo` up. One left over under that name, of a process long gone, is
        deleted first."""
        full = self.prefix + name
        subprocess.run(["ip", "netns", "del", full], check=False, capture_output=True)
        self._ip("netns", "add", full)
        self._names.append(full)
        self._ip("-n", full, "link", "set", "lo", "up")
        return full

    def full(self, name: str) -> str:
        return self.prefix + name

    def veth(self, a: tuple[str, str], b: tuple[str, str], *, macs: tuple[str, str] | None = None) -> None:
        """A wire between `a` and `b`, each (name of the namespace, name of the interface), up at both ends."""
        ends = []
        for index, (name, interface) in enumerate((a, b)):
            address = ["address", macs[index]] if macs else []
            ends.append(["name", interface, *address, "netns", self.full(name)])
        self._ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for name, interface in (a, b):
            self._ip("-n", self.full(name), "link", "set", interface, "up")

    def run(
        self, name: str, argv: Sequence[str], *, stdin: str | None = None, check: bool = True, timeout: float = 60
    ) -> str:
        """What `argv`, run to its end inside the namespace, wrote to its standard output."""
        command = ["ip", "netns", "exec", self.full(name), *argv]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)} in {name} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def popen(
        self,
        name: str,
        argv: Sequence[str],
        *,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = None,
        env: dict[str, str] | None = None,
        text: bool = True,
    ) -> subprocess.Popen[Any]:
        """Start `argv` in the namespace. `ip netns exec` execs it, so that the pid is its own."""
        command = ["ip", "netns", "exec", self.full(name), *argv]
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, env=env, text=text)
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[Any]) -> None:
        """End one process of ours before the others; by SIGTERM, after five seconds by SIGKILL."""
        process.terminate()
        _end(process)
        self._processes.remove(process)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            _end(process)
        self._processes.clear()
        while self._names:
            subprocess.run(["ip", "netns", "del", self._names.pop()], check=False, capture_output=True)
        atexit.unregister(self.close)

    @staticmethod
    def _ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the stack, so that context managers delete what they made."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)


def _end(process: subprocess.Popen[Any]) -> None:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
