"""Where kernels are kept, what is missing here, and how a long command shows that it is alive."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

Progress = Callable[[str], None]
PROGRESS_INTERVAL = 15.0
LOG_TAIL = 25


class VmError(Exception):
    """The virtual machine cannot be had; the message says what is missing and how to get it."""


def cache() -> Path:
    """Where kernels are kept; MESHD_VMLAB_CACHE names another place."""
    return Path(os.environ.get("MESHD_VMLAB_CACHE") or Path.home() / ".cache" / "meshd-vmlab")


@contextlib.contextmanager
def exclusive(what: str, progress: Progress) -> Iterator[None]:
    """One builder of it at a time; another waits and then finds the work done."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{what}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another tools/vmlab is building; waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require_commands(package_by_command: Mapping[str, str], purpose: str) -> None:
    """Raises VmError with the Debian packages of the commands that are not there."""
    packages = sorted({package for command, package in package_by_command.items() if shutil.which(command) is None})
    if packages:
        raise VmError(f"{purpose} needs {', '.join(packages)}: apt-get install {' '.join(packages)}")


def run_quietly(argv: Sequence[str], log: Path, progress: Progress, *, cwd: Path | None = None) -> None:
    """Its words go to `log`; a line of progress now and then. Raises VmError with the end of them when it fails."""
    with log.open("ab") as output:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd)
        try:
            told_at = time.monotonic()
            while child.poll() is None:
                time.sleep(0.1)
                if time.monotonic() - told_at > PROGRESS_INTERVAL:
                    told_at = time.monotonic()
                    progress(f"  ... {_last_line(log)}")
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if child.returncode != 0:
        lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        raise VmError(f"{' '.join(argv[:4])} ... ended with {child.returncode}:\n" + "\n".join(lines))


def output_of(argv: Sequence[str]) -> str:
    """What a query says; empty if it fails or is not there."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return lines[-1].strip()[:100] if lines else ""
