"""The vmlab command."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.ns import exit_on_signals
from tools.vm import job, machine, qemu, uml_build
from tools.vm.common import VmError, cache
from tools.vm.machine import Backend

EXIT_TIMEOUT, EXIT_NO_MACHINE = 124, 125

EXAMPLES = """
examples:
  tools/vmlab build                                 # the User-Mode Linux kernel: about seven minutes, once
  tools/vmlab run -- uname -a
  tools/vmlab run --option mac80211_hwsim.radios=4 -- iw phy
  tools/vmlab run --time skip -- sleep 86400        # a day in a second
  tools/vmlab run --exchange /tmp/out -- sh -c 'dmesg > /tmp/out/dmesg'
  tools/vmlab build --backend qemu && tools/vmlab run --backend qemu -- lsmod
  tools/vmlab status

The command runs as root, in this folder, and sees the host's files; what it writes to them is forgotten at the end,
but for the exchange folder. User-Mode Linux has the radios that --option mac80211_hwsim.radios=N says (2 if nothing).

Exit codes: that of the command; 2 the command line is wrong; 124 too late; 125 there is no machine, or it broke.
Kernels are kept in ~/.cache/meshd-vmlab (MESHD_VMLAB_CACHE changes that).
"""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _build(options: argparse.Namespace) -> int:
    started = time.monotonic()

    def progress(text: str) -> None:
        _say(f"[{time.monotonic() - started:5.1f}s] {text}")

    if options.backend == Backend.QEMU:
        print(qemu.build(progress, again=options.again))
    else:
        print(uml_build.build(progress, again=options.again, jobs=options.jobs))
    return 0


def _run(options: argparse.Namespace) -> int:
    variables = {}
    for setting in options.env:
        key, separator, value = setting.partition("=")
        if not separator or not key.isidentifier():
            _say(f"vmlab: '{setting}' is no variable; write NAME=VALUE")
            return 2
        variables[key] = value
    request = job.Request(
        argv=options.command,
        cwd=Path.cwd(),
        exchange=options.exchange.resolve() if options.exchange else None,
        environment=variables,
        memory_mb=options.memory,
        timeout=options.timeout,
        time=job.Time(options.time),
        kernel_options=options.option,
    )
    return machine.run(request, Backend(options.backend))


def _status(options: argparse.Namespace) -> int:
    document: dict[str, object] = {"cache": str(cache())}
    for backend, why in ((Backend.UML, uml_build.why_not_here()), (Backend.QEMU, qemu.why_not_here())):
        found = machine.kernel(backend)
        document[backend] = {"kernel": str(found) if found else None, "why_not_here": why}
    ready = [backend for backend in (Backend.UML, Backend.QEMU) if machine.kernel(backend)]
    document["auto"] = ready[0] if ready else None
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        for backend, why in ((Backend.UML, uml_build.why_not_here()), (Backend.QEMU, qemu.why_not_here())):
            command = "tools/vmlab build" + ("" if backend is Backend.UML else " --backend qemu")
            print(f"{backend:<5} {machine.kernel(backend) or why or f'not built: {command}'}")
    return 0 if ready else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmlab",
        description="Runs a command in a virtual machine whose kernel has radios (mac80211_hwsim), batman-adv,"
        " WireGuard, netem and flowtables.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    build = commands.add_parser("build", help="build or fetch a kernel, unless it is there")
    build.add_argument("--backend", choices=["uml", "qemu"], default="uml", help="default: %(default)s")
    build.add_argument("--again", action="store_true", help="although it is there; takes the newest source")
    build.add_argument("--jobs", type=int, default=0, metavar="N", help="compilers at a time (default: one a core)")
    build.set_defaults(run=_build)

    run = commands.add_parser("run", help="run a command in the machine: run -- uname -a")
    run.add_argument("--backend", choices=[*Backend], default="auto", help="default: uml where it is built, else qemu")
    run.add_argument(
        "--time",
        choices=[*job.Time],
        default="real",
        help="skip: idle time takes none; still: nor does computing (both uml only; default: real)",
    )
    run.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds of real time (default: %(default)g)"
    )
    run.add_argument("--memory", type=int, default=1024, metavar="MB", help="default: %(default)s")
    run.add_argument("--exchange", type=Path, metavar="DIR", help="a folder that is written through to the host")
    run.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the command")
    run.add_argument("--option", action="append", default=[], metavar="WORD", help="a kernel parameter")
    run.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    run.set_defaults(run=_run)

    status = commands.add_parser("status", help="which kernels are ready; exit code 1 if none")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    exit_on_signals()
    try:
        status: int = options.run(options)
        return status
    except job.VmTimeoutError as error:
        _say(f"vmlab: {error}")
        return EXIT_TIMEOUT
    except VmError as error:
        _say(f"vmlab: {error}")
        return EXIT_NO_MACHINE
    except KeyboardInterrupt:
        _say("vmlab: interrupted")
        return 130
