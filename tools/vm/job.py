"""What the host and the guest share while a command runs: a folder with the command, its output and its exit code."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from threading import Event
from typing import IO

from tools.vm.common import VmError

POLL_INTERVAL = 0.05
END_TIMEOUT = 10.0  # from SIGTERM to SIGKILL
CONSOLE_TAIL = 20
GUEST_JOB = "/run/vm"  # where the guest has the folder
# By the system call: Debian's poweroff is systemd's, and there is none in the guest.
_POWER_OFF = "import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class VmTimeoutError(VmError):
    """The command did not end in time; the machine was stopped."""


class Time(StrEnum):
    """How the guest's clock goes. All but `REAL` are for User-Mode Linux only."""

    REAL = "real"
    SKIP = "skip"  # where every process waits, it jumps to the next timer
    STILL = "still"  # and it stands still while one computes: a program that waits by looking at it hangs


@dataclass(frozen=True, slots=True)
class Request:
    """`argv` runs as root with the host's files (read-only, writes are forgotten) in the folder `cwd`.

    `exchange`: a folder that is written through to the host; the guest has it under the same name. `timeout`: seconds
    of real time. `kernel_options`: words for the kernel's command line. `cancelled`: set to end it before its time.
    """

    argv: Sequence[str]
    cwd: Path = field(default_factory=Path.cwd)
    exchange: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_mb: int = 1024
    timeout: float = 600.0
    time: Time = Time.REAL
    kernel_options: Sequence[str] = ()
    cancelled: Event = field(default_factory=Event)


@contextmanager
def folder(request: Request) -> Iterator[Path]:
    """The job's folder, filled for the guest's init; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="vmlab-") as name:
        job = Path(name)
        for file in ("stdout", "stderr", "console"):
            (job / file).touch()
        variables = {"PATH": PATH, "HOME": "/root", "TERM": "dumb", "LANG": "C.UTF-8", "VMLAB": "1"}
        if request.exchange is not None:
            variables["VMLAB_EXCHANGE"] = str(request.exchange)
        exports = [
            f"export {key}={shlex.quote(value)}" for key, value in (variables | dict(request.environment)).items()
        ]
        lines = [
            *exports,
            "hostname vm; ip link set lo up",
            f"cd {shlex.quote(str(request.cwd))} || cd /",
            f"{shlex.join(request.argv)} >{GUEST_JOB}/stdout 2>{GUEST_JOB}/stderr </dev/null",
            f"echo $? >{GUEST_JOB}/status",
            "sync",
            f"exec {shlex.join([str(Path(sys.executable).resolve()), '-c', _POWER_OFF])}",
        ]
        (job / "run").write_text("\n".join(lines) + "\n")
        yield job


def follow(machine: subprocess.Popen[bytes], job: Path, request: Request, out: IO[str], err: IO[str]) -> int:
    """Passes on what the command writes until the machine has ended; the command's exit code.

    Raises VmTimeoutError, or VmError with the end of the console when the machine ended without an exit code.
    """
    deadline = time.monotonic() + request.timeout
    with (job / "stdout").open("rb") as stdout, (job / "stderr").open("rb") as stderr:

        def pass_on() -> None:
            for source, target in ((stdout, out), (stderr, err)):
                if text := source.read():
                    target.write(text.decode(errors="replace"))
                    target.flush()

        try:
            while machine.poll() is None and time.monotonic() < deadline and not request.cancelled.is_set():
                time.sleep(POLL_INTERVAL)
                pass_on()
            is_late = machine.poll() is None
        finally:
            end(machine)
        pass_on()
    if is_late:
        if request.cancelled.is_set():
            raise VmError("stopped before its end")
        raise VmTimeoutError(f"stopped after {request.timeout:g} s: --timeout gives it more")
    return _status(job)


def end(machine: subprocess.Popen[bytes]) -> None:
    """Of its whole process group: a User-Mode Linux kernel has a host's process for each of its own."""
    if machine.poll() is None:
        machine.terminate()
        try:
            machine.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(machine.pid, 9)
            machine.wait()


def _status(job: Path) -> int:
    try:
        return int((job / "status").read_text())
    except (FileNotFoundError, ValueError):
        console = (job / "console").read_text(errors="replace").splitlines()[-CONSOLE_TAIL:]
        raise VmError("the machine ended before its command did; its console said:\n" + "\n".join(console)) from None
