"""The replay command."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from routing.events import Input, Output
from tools.replayer import words
from tools.replayer.replay import Difference, Replay, ReplayError, Run

EXAMPLES = """
examples:
  sudo meshd run --record /var/tmp/node.recording
  tools/replay /var/tmp/node.recording
  tools/replay --words --until 30 /var/tmp/node.recording

Exit codes: 0 the engine said the same as then, 1 it said something else, 2 the file is no recording, or wrong usage.
"""
SAME, DIFFERENT, UNUSABLE = 0, 1, 2
PROGRESS_INTERVAL = 2.0
PROGRESS_STEP = 1_000_000  # octets between two looks at the clock


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/replay",
        description="Runs a recording of meshd's routing engine again offline, and compares outputs byte for byte.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="written by meshd run --record or meshsim run --record")
    parser.add_argument(
        "--until", type=_seconds, default=float("inf"), metavar="T", help="only the first T seconds of each run"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--words", action="store_true", help="show what came in and went out, and the state at the end")
    form.add_argument("--json", action="store_true", help="the result as one JSON object")
    form.add_argument("--digest", action="store_true", help="only a digest of all outputs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: see EXAMPLES."""
    arguments = _parser().parse_args(argv)
    replay = Replay(arguments.file, until=arguments.until)
    try:
        replay.progress = _progress(arguments.file.stat().st_size)
        if arguments.words:
            replay.watch = _show_event
        replay.run()
        _show(replay, arguments)
    except (ReplayError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return _reader_gone()
        reason = error if isinstance(error, ReplayError) else f"{arguments.file}: {error.strerror}"
        print(f"replay: {reason}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        return 130
    return SAME if replay.difference is None else DIFFERENT


def _reader_gone() -> int:
    """`tools/replay --words | head`: nobody reads on, and nothing was found out."""
    sys.stdout = None  # else the interpreter complains when it flushes
    return UNUSABLE


def _progress(size: int) -> Callable[[int], None]:
    """A line on stderr every two seconds: a short file stays silent."""
    shown, looked_at = time.monotonic(), 0

    def show(offset: int) -> None:
        nonlocal shown, looked_at
        if offset < looked_at + PROGRESS_STEP:
            return
        looked_at, now = offset, time.monotonic()
        if now - shown >= PROGRESS_INTERVAL:
            shown = now
            print(f"{offset / 1e6:.0f} of {size / 1e6:.0f} MB", file=sys.stderr, flush=True)

    return show


def _show_event(run: Run, now: float, event: Input, outputs: list[Output]) -> None:
    if run.inputs == 1:
        print(f"run of {_origin(run)}; router-id {run.header.config.router_id.hex()}")
    for line in words.timeline(now - run.header.now, event, outputs):
        print(line)


def _origin(run: Run) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.header.origin.items())


def _show(replay: Replay, arguments: argparse.Namespace) -> None:
    if arguments.digest:
        print(replay.digest)
    elif arguments.json:
        print(json.dumps(_document(replay), indent=2))
    else:
        for number, run in enumerate(replay.runs, start=1):
            _show_run(number, run, with_state=arguments.words)
    if replay.difference is not None and not arguments.json:
        _show_difference(replay.difference)


def _show_run(number: int, run: Run, *, with_state: bool) -> None:
    verdict = "the same as then" if run.difference is None else "DIFFERENT"
    counts = f"{run.inputs} inputs, {run.outputs} outputs in {run.seconds:.3f} s"
    print(f"run {number} ({_origin(run)}): {counts}: {verdict}")
    if run.failure is not None and run.difference is None:
        print(f"  the engine failed on the last input, as it did then: {run.failure}")
    if run.cut_at_line is not None:
        print(f"  ends at line {run.cut_at_line}, which was not written to its end (the node was killed?)")
    if with_state:
        for line in words.final_state(run.speaker):
            print(f"  {line}")


def _show_difference(difference: Difference) -> None:
    where = f"line {difference.line}, input {difference.number}, {difference.seconds:.6f} s"
    print(f"first difference: {where}, output {difference.output_index + 1}", file=sys.stderr)
    print(f"  input     {difference.input}", file=sys.stderr)
    print(f"  expected  {difference.expected or 'no more outputs'}", file=sys.stderr)
    print(f"  got       {difference.got or 'no more outputs'}", file=sys.stderr)
    if difference.trace:
        print(difference.trace, file=sys.stderr, end="")


def _document(replay: Replay) -> dict[str, Any]:
    runs = [
        {
            "origin": run.header.origin,
            "router_id": run.header.config.router_id.hex(),
            "inputs": run.inputs,
            "outputs": run.outputs,
            "seconds": run.seconds,
            "failure": run.failure,
            "cut_at_line": run.cut_at_line,
            "neighbours": len(run.speaker.neighbours()),
            "selected_routes": sum(route.is_selected for route in run.speaker.routes()),
            "counters": run.speaker.counters(),
        }
        for run in replay.runs
    ]
    difference = None if replay.difference is None else asdict(replay.difference)
    return {"ok": difference is None, "digest": replay.digest, "difference": difference, "runs": runs}


if __name__ == "__main__":
    sys.exit(main())
