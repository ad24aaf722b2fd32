"""What systemd is told about us: started, reloading, stopping, alive (sd_notify(3), sd_watchdog_enabled(3)).

Without systemd there is no NOTIFY_SOCKET in the environment, and nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

import trio

from meshd.logs import Logger

log = Logger("meshd.service")
MAX_WATCHDOG = 3600.0  # seconds


class ServiceManager:
    """One datagram for each report; one that cannot be sent is lost, as it is for every other service."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_interval = _watchdog_interval(environment)

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Followed by `ready`."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    async def feed_watchdog(self) -> None:
        """Until cancelled, from the daemon's own loop: where that hangs, systemd starts the daemon anew."""
        while self.watchdog_interval is not None:
            self._send("WATCHDOG=1")
            await trio.sleep(self.watchdog_interval / 2)

    def _send(self, *fields: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.sendto("\n".join(fields).encode(), self._address)
        except OSError as error:
            log.warning("service manager not told", reason=error)


def _watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """Seconds; None: no watchdog, or one that is meant for another process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    interval = int(text) / 1e6 if text.isdecimal() and len(text) < 20 else 0.0
    return min(interval, MAX_WATCHDOG) if interval else None
