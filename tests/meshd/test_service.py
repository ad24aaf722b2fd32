"""What systemd hears, by a socket such as its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from meshd.service import ServiceManager
from tests.meshd.fakes import run


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


def heard(systemd: socket.socket) -> list[list[str]]:
    found = []
    while True:
        try:
            found.append(systemd.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return found


def test_each_change_is_said(systemd: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": systemd.getsockname()})
    manager.ready("roof fd00::1")
    manager.reloading()
    manager.stopping()
    first, second, third = heard(systemd)
    assert first == ["READY=1", "STATUS=roof fd00::1"]
    assert second[0] == "RELOADING=1" and second[1].removeprefix("MONOTONIC_USEC=").isdecimal()
    assert third == ["STOPPING=1"]


def test_an_abstract_socket_is_found() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0meshd-test-{os.getpid()}")
        receiver.setblocking(False)
        ServiceManager({"NOTIFY_SOCKET": f"@meshd-test-{os.getpid()}"}).stopping()
        assert heard(receiver) == [["STOPPING=1"]]


def test_without_systemd_or_when_it_is_gone_nothing_happens(tmp_path: Path) -> None:
    ServiceManager({}).ready("")
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("")


def test_the_watchdog_is_fed_twice_in_its_interval(systemd: socket.socket) -> None:
    async def scenario() -> None:
        manager = ServiceManager({"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "30000000"})
        with trio.move_on_after(100):
            await manager.feed_watchdog()

    run(scenario)
    assert heard(systemd) == [["WATCHDOG=1"]] * 7


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(environment: dict[str, str]) -> None:
    manager = ServiceManager(environment)
    assert manager.watchdog_interval is None
    run(manager.feed_watchdog)  # returns
