"""Reads a recording line by line, gives each input to a new engine, and compares what comes out with what came then."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from routing.events import Input, Output
from routing.recording import (
    Event,
    Header,
    RecordingError,
    describe_error,
    encode,
    event_line,
    failure_line,
    is_header,
    read_event,
    read_header,
)
from routing.speaker import Speaker

MAX_LINE = 64 * 1024 * 1024  # a file that is no recording may have no line at all


class ReplayError(Exception):
    """The file cannot be read, or is no recording that this version understands. The message says where."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the engine first did something else. `number` counts the inputs of its run from 1; texts are JSON."""

    line: int
    number: int
    seconds: float  # since the start of the run
    input: str
    output_index: int
    expected: str | None  # None: there was no such output
    got: str | None
    trace: str = ""  # of an exception


@dataclass(slots=True)
class Run:
    """From one header to the next: one life of a daemon."""

    header: Header
    speaker: Speaker
    inputs: int = 0
    outputs: int = 0
    seconds: float = 0.0  # from the start to the last input
    failure: str | None = None  # the engine raised, then and now
    cut_at_line: int | None = None  # the last line was not written to its end
    difference: Difference | None = None


@dataclass(slots=True)
class Replay:
    """`watch` sees every input with the outputs of now; `progress` the octets read so far."""

    path: Path
    until: float = float("inf")  # seconds since the start of each run
    watch: Callable[[Run, float, Input, list[Output]], None] = lambda *_: None
    progress: Callable[[int], None] = lambda _: None
    runs: list[Run] = field(default_factory=list)
    _digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    @property
    def digest(self) -> str:
        """Of all outputs, in their order: of two replays it is the same only if they said the same."""
        return str(self._digest.hexdigest())

    @property
    def difference(self) -> Difference | None:
        return self.runs[-1].difference if self.runs else None

    def run(self) -> None:
        """To the end of the file, or to the first difference. Raises ReplayError."""
        pending: tuple[int, RecordingError] | None = None
        for number, line, is_whole in self._lines():
            if is_header(line) or not self.runs:
                if pending is not None:  # cut by the end of its daemon: the next one began a new line
                    self.runs[-1].cut_at_line, pending = pending[0], None
                self._begin(number, line)
                continue
            if pending is not None:
                raise ReplayError(f"{self.path}: line {pending[0]}: {pending[1]}") from pending[1]
            run = self.runs[-1]
            if not is_whole:
                run.cut_at_line = number
                break
            try:
                event = read_event(line, run.header.decoder)
            except RecordingError as error:
                pending = number, error
                continue
            if event.at - run.header.now <= self.until:  # else on to the next run, if there is one
                self._step(run, number, line, event)
            if run.difference is not None:
                return
        if not self.runs:
            raise ReplayError(f"{self.path}: empty")
        if pending is not None:
            raise ReplayError(f"{self.path}: line {pending[0]}: {pending[1]}") from pending[1]

    def _lines(self) -> Iterator[tuple[int, str, bool]]:
        """Number, text, and whether the line has an end."""
        number = offset = 0
        try:
            with self.path.open("rb") as file:
                while data := file.readline(MAX_LINE):
                    number += 1
                    offset += len(data)
                    self.progress(offset)
                    yield number, data.decode("utf-8", errors="replace"), data.endswith(b"\n")
        except OSError as error:
            raise ReplayError(f"{self.path}: {error.strerror}") from error

    def _begin(self, number: int, line: str) -> None:
        try:
            header = read_header(line)
        except RecordingError as error:
            raise ReplayError(f"{self.path}: line {number}: {error}") from error
        self.runs.append(Run(header, header.speaker()))

    def _step(self, run: Run, number: int, line: str, event: Event) -> None:
        run.inputs += 1
        run.seconds = event.at - run.header.now
        try:
            outputs = run.speaker.handle(event.input, now=event.at)
        except Exception as error:
            run.failure = describe_error(error)
            if failure_line(event.input, error, now=event.at) != line:
                trace = "".join(traceback.format_exception(error))
                run.difference = self._differ(run, number, event, [f'"raised {run.failure}"'], trace)
            return
        run.outputs += len(outputs)
        self.watch(run, event.at, event.input, outputs)
        got = event_line(event.input, outputs, now=event.at)
        self._digest.update(got.encode())
        if got != line:
            run.difference = self._differ(run, number, event, [_text(output) for output in outputs])

    def _differ(self, run: Run, number: int, event: Event, got: list[str], trace: str = "") -> Difference | None:
        """None: the lines differ in fields that only one of the two versions has, and say the same."""
        try:
            expected = [_text(output) for output in run.header.decoder.outputs(event)]
        except RecordingError as error:
            raise ReplayError(f"{self.path}: line {number}: {error}") from error
        if event.raised is not None:
            expected = [f'"raised {event.raised}"']
        pairs = (index for index in range(max(len(expected), len(got))) if expected[index:][:1] != got[index:][:1])
        index = next(pairs, None)
        if index is None:
            return None
        return Difference(
            line=number,
            number=run.inputs,
            seconds=run.seconds,
            input=_text(event.input),
            output_index=index,
            expected=expected[index] if index < len(expected) else None,
            got=got[index] if index < len(got) else None,
            trace=trace,
        )


def _text(value: object) -> str:
    return json.dumps(encode(value), separators=(",", ":"))
