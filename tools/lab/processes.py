"""Processes that the lab started: found again by a later command, and never mistaken for somebody else's."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec


class Process(msgspec.Struct, frozen=True):
    """A pid alone is reused by the kernel; with its start time and command line it is one process."""

    pid: int
    started_ticks: int  # field 22 of /proc/PID/stat, since boot
    command: str


def _stat(pid: int) -> list[str]:
    # The command name, in parentheses, may itself hold spaces and parentheses: split after the last one.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def identify(pid: int) -> Process | None:
    """The process that has this pid now; None if none has, or it is a zombie."""
    try:
        fields = _stat(pid)
        command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]), command.decode(errors="replace"))


def is_alive(process: Process) -> bool:
    """The command line is not compared: between fork and exec it is still the parent's."""
    found = identify(process.pid)
    return found is not None and found.started_ticks == process.started_ticks


def send_signal(process: Process, number: signal.Signals) -> bool:
    """Signals exactly this process; False when it is gone. The pid file descriptor is opened first and checked
    after, so that the pid cannot be reused in between."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        try:
            if is_alive(process):
                signal.pidfd_send_signal(descriptor, number)
                return True
        finally:
            os.close(descriptor)
    return False


def wait_gone(process: Process, timeout: float) -> bool:
    """True once it has ended, with all its threads. A child of ours is reaped by whoever holds its Popen.

    A zombie may still have threads that keep its sockets open; its descriptor is readable only after the last of them.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if int(_stat(process.pid)[19]) != process.started_ticks:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    except (FileNotFoundError, ProcessLookupError):
        return True
    finally:
        os.close(descriptor)


def stop(processes: Iterable[Process], timeout: float = 5.0) -> list[Process]:
    """SIGTERM to all; SIGKILL to those still there when the time is up, which are returned."""
    waiting = [process for process in processes if send_signal(process, signal.SIGTERM)]
    deadline = time.monotonic() + timeout
    stubborn = [process for process in waiting if not wait_gone(process, max(0.0, deadline - time.monotonic()))]
    for process in stubborn:
        send_signal(process, signal.SIGKILL)
    for process in stubborn:
        wait_gone(process, 5.0)
    return stubborn
