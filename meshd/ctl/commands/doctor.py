"""`meshctl doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from meshd import schemas
from meshd.ctl.command import Command, Context
from meshd.ctl.text import Style

GROUPS: dict[str, str] = {}
DEFAULT_CONFIG = "/etc/meshd/meshd.toml"
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red", "skipped": "dim"}
_FINDING = schemas.record(
    check=schemas.text(),
    level=schemas.text("", "ok", "warning", "error", "skipped"),
    message=schemas.text("what is so"),
    mending=schemas.text("what to do; empty where nothing is wrong"),
)
RESULT = schemas.record(healthy=schemas.boolean("nothing is of level error"), findings=schemas.array(_FINDING))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=Path(DEFAULT_CONFIG), metavar="FILE", help=f"the daemon's ({DEFAULT_CONFIG})"
    )


def _run(context: Context) -> Any:
    from meshd.doctor import Level, World, examine  # noqa: PLC0415  the daemon's libraries: no other command needs them

    options = context.options
    socket = options.socket if options.is_socket_given else None
    findings = examine(World(options.config, socket=socket, timeout=min(options.timeout, 10.0)))
    healthy = all(finding.level is not Level.ERROR for finding in findings)
    return {"healthy": healthy, "findings": [finding.as_dict() for finding in findings]}


def _render(result: Any, style: Style) -> str:
    lines = []
    for finding in result["findings"]:
        level = style.paint(f"{finding['level']:<8}", _COLOURS[finding["level"]])
        lines.append(f"{level} {finding['check']:<14} {finding['message']}")
        if finding["mending"]:
            lines.append(f"{'':<23} -> {finding['mending']}")
    return "\n".join(lines)


COMMANDS = (
    Command(
        words="doctor",
        help="What is wrong with this node, and how to mend it.",
        example="meshctl doctor",
        result=RESULT,
        render=_render,
        run=_run,
        arguments=_arguments,
        exit_word=lambda result: "ok" if result["healthy"] else "degraded",
    ),
)
