"""What a check has to say, and what it has to look at."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from meshd.config import Config, ConfigError, load
from meshd.ctl.client import CallError, call

COMMAND_TIMEOUT = 10.0


class Level(Enum):
    OK = "ok"
    WARNING = "warning"  # it works, and may not for long, or not as well as it could
    ERROR = "error"  # it does not work
    SKIPPED = "skipped"  # it could not be looked at


@dataclass(frozen=True, slots=True)
class Finding:
    """`message`: what is so. `mending`: what to do, as a person would type it where that is possible."""

    check: str
    level: Level
    message: str
    mending: str = ""

    def as_dict(self) -> dict[str, str]:
        return {"check": self.check, "level": self.level.value, "message": self.message, "mending": self.mending}


def ok(check: str, message: str) -> Finding:
    return Finding(check, Level.OK, message)


def warning(check: str, message: str, mending: str) -> Finding:
    return Finding(check, Level.WARNING, message, mending)


def error(check: str, message: str, mending: str) -> Finding:
    return Finding(check, Level.ERROR, message, mending)


def skipped(check: str, message: str) -> Finding:
    return Finding(check, Level.SKIPPED, message)


@dataclass
class World:
    """What the checks look at. `now`: seconds since 1970."""

    config_path: Path
    socket: str | None = None  # else where the configuration says
    timeout: float = 10.0
    now: Callable[[], float] = time.time
    proc: Path = field(default=Path("/proc"))

    @cached_property
    def config_error(self) -> str | None:
        self.config  # noqa: B018  reads it
        return self._error

    @cached_property
    def config(self) -> Config:
        """The defaults, where there is none to be had."""
        self._error: str | None = None
        try:
            return load(self.config_path)
        except ConfigError as found:
            self._error = str(found)
            return Config()

    @property
    def socket_path(self) -> str:
        return self.socket or str(self.config.node.control_socket)

    @cached_property
    def status(self) -> dict[str, Any] | CallError:
        """What the daemon says of itself, or why it does not."""
        status: dict[str, Any] | CallError = self.ask("status")
        return status

    @property
    def is_running(self) -> bool:
        return not isinstance(self.status, CallError) or self.status.word not in ("unreachable",)

    def ask(self, method: str) -> Any:
        try:
            return call(self.socket_path, method, {}, timeout=self.timeout)
        except CallError as found:
            return found

    def run(self, *argv: str) -> subprocess.CompletedProcess[str] | None:
        """None: there is no such program, or it does not end."""
        try:
            return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired):
            return None

    def read(self, path: str) -> str | None:
        """A file below /proc; None: it is not there, or not for us."""
        try:
            return (self.proc / path).read_text().strip()
        except OSError:
            return None

    @cached_property
    def links(self) -> dict[str, dict[str, Any]]:
        """`ip -json address`, by name of the interface."""
        done = self.run("ip", "-json", "address", "show")
        rows: Sequence[dict[str, Any]] = json.loads(done.stdout) if done is not None and done.returncode == 0 else []
        return {row["ifname"]: row for row in rows if "ifname" in row}
