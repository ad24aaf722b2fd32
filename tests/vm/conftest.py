"""Tests marked `vm` run in a virtual machine (tools/vmlab), those of one module in one: pytest runs there again with
exactly these, and its reports are taken over here, as xdist does. Where there is no kernel, or the machine breaks, they
skip and say why: only what a test itself has found wrong fails.

Inside a machine (`tools/vmlab run -- .venv/bin/python -m pytest tests/vm`) they are ordinary tests.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from tests.lab.conftest import lab_base, pytest_runtest_makereport
from tools.vm import machine
from tools.vm.common import VmError, require_commands
from tools.vm.job import Request, Time

__all__ = ["lab_base", "pytest_runtest_makereport"]  # fixture and hook, for what runs inside
INSIDE = "VMLAB"  # in the environment of what runs in a machine
REPORTS = "VMLAB_REPORTS"  # a file to which the pytest in there writes them, a line each
HOURS = "VMLAB_HOURS"  # for test_long.py, which takes minutes an hour
collect_ignore = [] if HOURS in os.environ else ["test_long.py"]
ROOT = Path(__file__).parents[2]
TIMEOUT = 420.0  # of real time for a module; the tests' own limits are for what they wait for
RADIOS = 4
TOOLS = {"iw": "iw", "batctl": "batctl", "wg": "wireguard-tools"}  # tools/setup --for vm
MEMORY_MB = 2048

Reports = dict[str, list[dict[str, object]]]  # by test

# Modules at work, or done, by name: their reports, and why some are missing. Each machine has one processor, and all
# start at once when the first test is due.
_cancelled = Event()
_running: dict[str, Future[tuple[Reports, str]]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.vm)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    del nextitem
    if INSIDE in os.environ or not item.get_closest_marker("vm"):  # pytest asks of all tests
        return None
    if not _running:
        _start(item.session.items)
    reports, broken = _running[_module(item)].result()
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in reports.get(item.nodeid) or [_skipped(item, broken)]:
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Inside: told at once, so that it is known even if the machine breaks at the next test."""
    if (file := os.environ.get(REPORTS)) and INSIDE in os.environ:
        with open(file, "a") as reports:
            reports.write(json.dumps(report._to_json()) + "\n")


def pytest_sessionfinish() -> None:
    """Nobody waits for machines whose tests are not asked for any more (pytest -x, Ctrl-C)."""
    _cancelled.set()


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _start(items: Sequence[pytest.Item]) -> None:
    # As Ctrl-C does, which tools/test, where we run in the background, can only pass on as this: machines have process
    # groups of their own, and would stay.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted: dict[str, list[str]] = {}
    for item in items:
        if item.get_closest_marker("vm"):
            wanted.setdefault(_module(item), []).append(item.nodeid)
    pool = ThreadPoolExecutor(os.cpu_count(), "machine")
    for module, tests in wanted.items():
        _running[module] = pool.submit(_run_module, tests)
    pool.shutdown(wait=False)


def _run_module(wanted: Sequence[str]) -> tuple[Reports, str]:
    """What fails is tried once more, in a new machine: a host that is busy can hold one up at any time."""
    reports, broken = _run_inside(wanted)
    failed = [test for test, told in reports.items() if any(data["outcome"] == "failed" for data in told)]
    if failed and not _cancelled.is_set():
        again, _ = _run_inside(failed)
        reports |= again
    return reports, broken


def _run_inside(wanted: Sequence[str]) -> tuple[Reports, str]:
    """What became of these tests, and, for those of which nothing is known, why."""
    with tempfile.TemporaryDirectory(prefix="vmtests-") as name:
        exchange = Path(name)
        reports = exchange / "reports"
        words = io.StringIO()
        try:
            if os.geteuid() != 0:
                raise VmError("not root, and the machine's programs see the host's files with our rights")
            require_commands(TOOLS, "what runs in the machine")
            machine.run(_request(wanted, exchange, reports), out=words, err=words)
            broken = f"pytest in the machine said: {words.getvalue()[-2000:]}"
        except VmError as error:
            broken = str(error)
        return _read(reports), broken


def _request(wanted: Sequence[str], exchange: Path, reports: Path) -> Request:
    passed_on = {key: value for key, value in os.environ.items() if key in (HOURS, "CI")}
    return Request(
        argv=[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *wanted],
        cwd=ROOT,
        exchange=exchange,
        environment={REPORTS: str(reports), "PYTHONUNBUFFERED": "1"} | passed_on,
        memory_mb=MEMORY_MB,
        timeout=TIMEOUT + 3600 * float(os.environ.get(HOURS, "0")),
        time=Time.SKIP if machine.choose() is machine.Backend.UML else Time.REAL,
        cancelled=_cancelled,
        kernel_options=[f"mac80211_hwsim.radios={RADIOS}"],
    )


def _read(reports: Path) -> Reports:
    found: Reports = {}
    if reports.exists():
        with reports.open() as file:
            for line in file:
                if line.endswith("\n"):  # a machine may break in the middle of one
                    data = json.loads(line)
                    found.setdefault(data["nodeid"], []).append(data | {"$report_type": "TestReport"})
    # A test of which the end is not told did not end: the machine broke.
    return {nodeid: reports for nodeid, reports in found.items() if reports[-1]["when"] == "teardown"}


def _skipped(item: pytest.Item, reason: str) -> dict[str, object]:
    return {
        "$report_type": "TestReport",
        "nodeid": item.nodeid,
        "location": item.location,
        "keywords": {item.name: 1},
        "outcome": "skipped",
        "longrepr": (str(item.path), 0, f"Skipped: no virtual machine: {reason}"),
        "when": "setup",
        "duration": 0,
    }
