"""The command: atheris (libFuzzer) on one target, and what it cost. Needs the `fuzz` extra."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from tools.fuzzer import seeds

EPILOG = """\
atheris comes with the extra: .venv/bin/python -m pip install -e '.[fuzz]'
An input that breaks something is written to crash-... in the current directory; give it to --input to see it again.

examples:
  tools/fuzz decode --inputs 10000000
  tools/fuzz speaker --seconds 600 --seed 3
  tools/fuzz decode --input crash-0123"""
REPORT_INTERVAL = 30.0
RSS_LIMIT_MB = 600
INPUT_TIMEOUT = 10  # seconds for one


@dataclass
class Tally:
    target: str
    seed: int
    inputs: int = 0
    octets_max: int = 0
    slowest_cpu_seconds: float = 0.0
    slowest_octets: int = 0
    cpu_seconds: float = 0.0
    rss_start_mb: float = 0.0
    rss_peak_mb: float = 0.0

    def report(self) -> None:
        self.cpu_seconds = round(time.process_time(), 1)
        self.rss_peak_mb = _peak_mb()
        rate = self.inputs / max(0.1, self.cpu_seconds)
        print(json.dumps(asdict(self) | {"inputs_per_cpu_second": round(rate)}), file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    try:
        import atheris  # noqa: PLC0415 - an extra
    except ImportError:
        print("fuzz: atheris is not installed: .venv/bin/python -m pip install -e '.[fuzz]'", file=sys.stderr)
        return 1
    # Instrumented while imported: this must be the first time.
    with atheris.instrument_imports(include=["routing"]):
        from tools.fuzzer.targets import TARGETS  # noqa: PLC0415
    run = TARGETS[arguments.target]
    if arguments.input is not None:
        run(arguments.input.read_bytes())
        print("nothing wrong with that")
        return 0
    tally = Tally(arguments.target, arguments.seed, rss_start_mb=_peak_mb())
    last = time.monotonic()

    def one(octets: bytes) -> None:
        nonlocal last
        started = time.process_time()
        run(octets)
        took = time.process_time() - started
        tally.inputs += 1
        tally.octets_max = max(tally.octets_max, len(octets))
        if took > tally.slowest_cpu_seconds:
            tally.slowest_cpu_seconds, tally.slowest_octets = took, len(octets)
        if tally.inputs % 256 == 0 and time.monotonic() - last > REPORT_INTERVAL:
            last = time.monotonic()
            tally.report()
        if tally.inputs == arguments.inputs:
            tally.report()

    _start(atheris, arguments, one)
    return 0  # not reached: libFuzzer ends the process


def _start(atheris: ModuleType, arguments: argparse.Namespace, one: object) -> None:
    corpus = arguments.corpus or Path(tempfile.mkdtemp(prefix=f"meshd-fuzz-{arguments.target}-"))
    seeds.write(arguments.target, corpus)
    options = [
        f"-runs={arguments.inputs}",
        f"-max_total_time={arguments.seconds}",
        f"-seed={arguments.seed}",
        "-max_len=1452",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-timeout={INPUT_TIMEOUT}",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup(["fuzz", *options, str(corpus)], one, enable_python_coverage=True)
    atheris.Fuzz()


def _peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/fuzz",
        description="Coverage-guided fuzzing of the Babel decoder and of a whole speaker.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", choices=("decode", "speaker"))
    parser.add_argument("--inputs", type=int, default=-1, metavar="N", help="stop after so many")
    parser.add_argument("--seconds", type=int, default=0, metavar="S", help="stop after so long; 0: never")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--corpus", type=Path, metavar="DIRECTORY", help="kept, and begun with (default: a new one)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="only this one")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
