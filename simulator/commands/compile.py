"""meshsim compile: the exact fidelity as machine code."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from simulator import compiled


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "compile",
        help="make machine code of the exact fidelity, once: meshsim run is some two times as fast then",
        description="Puts routing/ and part of the simulator through mypyc (pip install meshd[fast]; a C compiler). "
        "Results are the same. MESHSIM_JIT=0 in the environment of meshsim run keeps it from using them.",
    )
    parser.set_defaults(handler=run)


def run(_: argparse.Namespace) -> int:
    started = time.monotonic()
    try:
        place = compiled.build()
    except (compiled.CompileError, OSError) as error:
        print(f"meshsim: {error}", file=sys.stderr)
        return 2
    print(f"{place} ({time.monotonic() - started:.0f} s)")
    return 0
