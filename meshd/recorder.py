"""Writes a recording of the speaker (routing.recording) to a file. Whatever happens to the file, the daemon goes on."""

from __future__ import annotations

import os
from pathlib import Path

from meshd.logs import Logger
from routing.recording import is_header

log = Logger("meshd.recorder")
HEADER_START = 64


class RecorderError(OSError):
    """The recording cannot begin; the message names the file."""


class Recorder:
    """Appends. One write for each line: what the kernel has taken survives our SIGKILL.

    A recording is replayed from its start, so that nothing may be missing in the middle: after the first failure, and
    at `max_bytes`, it ends. Earlier recordings in the file stay; each begins with a header.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        try:
            # What a mesh's routes are is its own affair: for the owner only.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RecorderError(error.errno, f"cannot record to {path}: {error.strerror}") from error
        try:
            self._size = self._check()
        except BaseException:
            os.close(self._file)
            raise

    def _check(self) -> int:
        size = os.fstat(self._file).st_size
        if size and not is_header(os.pread(self._file, HEADER_START, 0).decode(errors="replace")):
            raise RecorderError(f"cannot record to {self.path}: it holds something else than a recording")
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            size += os.write(self._file, b"\n")  # the last daemon was killed in the middle of a line
        return size

    def write(self, line: str) -> bool:
        """False: it has ended. Never raises."""
        data = line.encode()
        if self._size + len(data) > self._max_bytes:
            return self._end("it has reached its greatest size", written=0)
        try:
            written = os.write(self._file, data)
        except OSError as error:
            return self._end(error.strerror or str(error), written=0)
        if written < len(data):
            return self._end("the disk is full", written=written)
        self._size += written
        return True

    def _end(self, reason: str, *, written: int) -> bool:
        log.error("recording ended; the node goes on", file=self.path, bytes=self._size, reason=reason)
        try:
            if written:
                os.ftruncate(self._file, self._size)  # half a line is of no use
        except OSError as error:
            log.error("recording not trimmed", file=self.path, reason=error)
        return False

    def close(self) -> None:
        os.close(self._file)
