"""Commands that start, stop and watch the daemon as a service, and gather what a report of a fault needs."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from meshd import schemas
from meshd.ctl.command import CallError, Command, Context, whole
from meshd.ctl.text import Record, Style

GROUPS: dict[str, str] = {}
UNIT = "meshd"
DEFAULT_CONFIG = "/etc/meshd/meshd.toml"
_POLL_INTERVAL = 0.2
# syslog(3), as journald has it.
_LEVELS = ("error", "error", "error", "error", "warning", "info", "info", "debug")
_SERVICE = schemas.record(unit=schemas.text(), running=schemas.boolean())
_LOGS = schemas.array(
    schemas.record(
        time=schemas.text("ISO 8601, UTC"),
        level=schemas.text("", "debug", "info", "warning", "error"),
        message=schemas.text(),
    )
)
_REPORT = schemas.record(file=schemas.text("a .tar.gz"), parts=schemas.array(schemas.text("the files in it")))


def _systemctl(verb: str) -> None:
    """Raises CallError."""
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").exists():
        raise CallError("error", "no systemd here; in the foreground: meshd run --config FILE, and Ctrl-C ends it")
    done = subprocess.run(["systemctl", verb, UNIT], capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip() or done.stdout.strip()
        word = "denied" if "denied" in words.lower() or "authentication" in words.lower() else "error"
        raise CallError(word, f"systemctl {verb} {UNIT}: {words}")


def _up(context: Context) -> Record:
    _systemctl("start")
    deadline = time.monotonic() + context.options.timeout
    while True:
        try:
            context.call("status")
            return {"unit": UNIT, "running": True}
        except CallError as error:
            if error.word != "unreachable":
                raise
            if time.monotonic() > deadline:
                raise CallError("timeout", "started, and does not answer: meshctl logs, meshctl doctor") from error
        time.sleep(_POLL_INTERVAL)


def _down(context: Context) -> Record:  # noqa: ARG001
    _systemctl("stop")
    return {"unit": UNIT, "running": False}


def _service(result: Record, style: Style) -> str:
    return f"{result['unit']} {style.paint('runs', 'green') if result['running'] else 'is stopped'}."


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lines", "-n", metavar="N", type=whole(1, 100_000), default=50, help="the last N (50)")
    parser.add_argument("--unit", default=UNIT, help="another unit of systemd")


def _logs(context: Context) -> list[Record]:
    options = context.options
    argv = ["journalctl", "--unit", options.unit, "--lines", str(options.lines), "--output", "json", "--no-pager"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=options.timeout)
    except FileNotFoundError:
        raise CallError("error", "no journal here: meshd writes to its standard error") from None
    except subprocess.TimeoutExpired:
        raise CallError("timeout", "the journal does not answer") from None
    if done.returncode:
        raise CallError("error", f"journalctl: {done.stderr.strip()}")
    return [entry for line in done.stdout.splitlines() if (entry := _entry(line)) is not None]


def _entry(line: str) -> Record | None:
    try:
        fields = json.loads(line)
        at = datetime.fromtimestamp(int(fields["__REALTIME_TIMESTAMP"]) / 1e6, UTC)
        message = fields["MESSAGE"]
    except (ValueError, KeyError, TypeError):
        return None
    text = bytes(message).decode(errors="replace") if isinstance(message, list) else str(message)
    priority = str(fields.get("PRIORITY", "6"))
    level = _LEVELS[int(priority)] if re.fullmatch("[0-7]", priority) else "info"
    return {"time": at.isoformat(timespec="milliseconds"), "level": level, "message": text}


def _log_lines(result: list[Record], style: Style) -> str:
    colours = {"error": "red", "warning": "yellow", "debug": "dim"}
    lines = [f"{row['time'][:19]}  {style.paint(row['message'], colours.get(row['level']))}" for row in result]
    return "\n".join(lines) or "Nothing in the journal."


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    name = f"meshd-report-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.gz"
    parser.add_argument("--output", type=Path, default=Path(name), metavar="FILE", help="the archive")
    parser.add_argument("--config", type=Path, default=Path(DEFAULT_CONFIG), metavar="FILE", help=DEFAULT_CONFIG)


def _report(context: Context) -> Record:
    from meshd.bugreport import gather, write  # noqa: PLC0415  the daemon's libraries: no other command needs them

    options = context.options
    parts = gather(options.config, socket=options.socket if options.is_socket_given else None, timeout=options.timeout)
    try:
        write(options.output, parts)
    except OSError as error:
        raise CallError("error", f"{options.output}: {error.strerror}") from error
    context.say("Seeds, keys and passwords are left out; addresses and amounts are in it. Look before you send it.")
    return {"file": str(options.output), "parts": sorted(parts)}


COMMANDS = (
    Command(
        words="up",
        help="Start the daemon, and wait until it answers.",
        example="meshctl up",
        result=_SERVICE,
        render=_service,
        run=_up,
    ),
    Command(
        words="down",
        help="Stop the daemon: it settles, and leaves nothing in the kernel.",
        example="meshctl down",
        result=_SERVICE,
        render=_service,
        run=_down,
    ),
    Command(
        words="logs",
        help="What the daemon has logged.",
        example="meshctl logs --lines 200",
        result=_LOGS,
        render=_log_lines,
        run=_logs,
        arguments=_logs_arguments,
        watch=True,
    ),
    Command(
        words="bugreport",
        help="An archive of what a report of a fault needs, without secrets.",
        example="meshctl bugreport --output report.tar.gz",
        result=_REPORT,
        render=lambda result, _: f"{result['file']}: {', '.join(result['parts'])}",
        run=_report,
        arguments=_report_arguments,
    ),
)
