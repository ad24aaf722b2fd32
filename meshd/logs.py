"""Structured logging to stderr: `event key=value …` for people, one JSON object per line for machines."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import msgspec

_STDERR = 2  # the descriptor
LEVELS = ("debug", "info", "warning", "error")


class Logger:
    """`log.info("route installed", prefix=prefix)`: a fixed event text, and what varies as fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    @property
    def is_debugging(self) -> bool:
        """Is it worth the while to put the fields together, of what happens often?"""
        return self._logger.isEnabledFor(logging.DEBUG)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields})

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line + "".join(f" {key}={_text(value)}" for key, value in _fields(record).items())


class JournalFormatter(TextFormatter):
    """For journald, which has its own clock, and takes the level from the line's beginning (sd-daemon(3))."""

    _PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def __init__(self) -> None:
        logging.Formatter.__init__(self, "%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = next((value for level, value in self._PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": record.created, "level": record.levelname.lower(), "logger": record.name}
        entry["event"] = record.getMessage()
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        entry |= {key: _text(value) for key, value in _fields(record).items()}
        return msgspec.json.encode(entry).decode()


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int | float | bool) or value is None:
        return value
    text = str(value)
    # Some of it was said by peers: it must not look like a line of ours, or move the cursor.
    return text if text.isprintable() else ascii(text)


def _is_journal(descriptor: int) -> bool:
    """Whether the open file is the stream that systemd names in JOURNAL_STREAM: device and inode (systemd.exec(5))."""
    stream = os.environ.get("JOURNAL_STREAM")
    if stream is None:
        return False
    status = os.fstat(descriptor)
    return stream == f"{status.st_dev}:{status.st_ino}"


def set_up(level: str, style: str) -> None:
    """Log to stderr. `level` is one of LEVELS, `style` "text" or "json"; text is written as journald wants it where
    stderr leads there."""
    handler = logging.StreamHandler(sys.stderr)
    text = JournalFormatter() if _is_journal(_STDERR) else TextFormatter()
    handler.setFormatter(JsonFormatter() if style == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("pyroute2", "bitcoinlib", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
