"""The meshlab command."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from tools.lab import network, state, topology
from tools.lab.lab import DEFAULT_FUNDS_SAT, Lab, require_root
from tools.lab.state import CHAIN, LabError
from tools.lab.topology import SECURITIES, Topology, TopologyError
from tools.ns import exit_on_signals

EXAMPLES = """
examples:
  tools/meshlab up line:5 --rate 50mbit
  tools/meshlab up diamond --fee 100000 --fee n3=900000
  tools/meshlab up house.toml --name house
  tools/meshlab exec n1 -- curl http://10.77.0.5:8000/
  tools/meshlab ctl n1 routes
  tools/meshlab kill n3; tools/meshlab start n3
  tools/meshlab logs n3
  tools/meshlab down

A topology file:
  [defaults]
  rate = "50mbit"
  [[node]]
  name = "buyer"
  [[node]]
  name = "relay"
  fee_msat_per_gb = 500000
  [node.config.payments]        # anything of the daemon's configuration
  max_window_msat = 100000
  [[link]]
  nodes = ["buyer", "relay"]
  rate = "10mbit"

Exit codes: 0 done; 1 it failed; 2 the command line is wrong; exec and ctl: that of the command.
Files are in /run/meshlab/NAME (MESHLAB_DIR changes /run/meshlab).
"""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fees(arguments: Sequence[str]) -> tuple[int | None, dict[str, int]]:
    everyone: int | None = None
    by_name: dict[str, int] = {}
    for argument in arguments:
        name, _, value = argument.rpartition("=")
        if not value.isdecimal() or int(value) >= 2**32:
            raise TopologyError(f"'{argument}' is not a fee; write 100000 or n3=100000 (msat per GB, below 2^32)")
        if name:
            by_name[name] = int(value)
        else:
            everyone = int(value)
    return everyone, by_name


def _topology(options: argparse.Namespace) -> Topology:
    made = topology.load(options.topology)
    made = made.with_fees(*_fees(options.fee))
    if options.security:
        made = replace(made, security=options.security)
    return made.with_rate(options.rate) if options.rate else made


def _up(options: argparse.Namespace) -> int:
    started = time.monotonic()

    def progress(text: str) -> None:
        _say(f"[{time.monotonic() - started:5.1f}s] {text}")

    exit_on_signals()
    lab = Lab(_topology(options), name=options.name, funds_sat=options.funds, record=options.record, progress=progress)
    lab.up()
    lab.detach()
    if options.wait:
        progress("waiting for routes")
        try:
            lab.wait_routes(options.wait)
        except LabError as error:
            _say(f"meshlab: {error} (the lab stays up)")
            return 1
    progress(f"lab '{options.name}' is up: tools/meshlab status, exec, ctl, logs, down")
    return 0


def _status_document(lab: Lab) -> dict[str, object]:
    return {
        "name": lab.state.name,
        "complete": lab.state.is_complete,
        "directory": str(lab.directory),
        "chain": {"running": lab.is_running(CHAIN), "socket": str(lab.chain_socket)},
        "nodes": {
            node: {
                "running": lab.is_running(node),
                "pid": lab.state.process_by_node[node].pid if node in lab.state.process_by_node else None,
                "address": lab.address(node),
                "fee_msat_per_gb": lab.state.fee_by_node[node],
                "namespace": lab.namespace(node),
                "control_socket": str(lab.control_socket(node)),
                "neighbours": lab.topology.neighbours(node),
            }
            for node in lab.nodes
        },
        "links": [{"nodes": [link.a, link.b], "rate": link.rate} for link in lab.state.links],
    }


def _status(options: argparse.Namespace) -> int:
    lab = Lab.find(options.name)
    if options.json:
        print(json.dumps(_status_document(lab), indent=2))
        return 0
    whole = "" if lab.state.is_complete else "  (not complete: meshlab down)"
    chain = "runs" if lab.is_running(CHAIN) else "ENDED"
    print(f"lab {lab.state.name} in {lab.directory}, chain {chain}{whole}")
    print(f"{'node':<12}{'state':<8}{'pid':>8}  {'address':<16}{'msat/GB':>10}  neighbours")
    for node in lab.nodes:
        running = lab.is_running(node)
        pid = str(lab.state.process_by_node[node].pid) if running else "-"
        neighbours = " ".join(lab.topology.neighbours(node))
        fee = lab.state.fee_by_node[node]
        print(f"{node:<12}{'runs' if running else 'ENDED':<8}{pid:>8}  {lab.address(node):<16}{fee:>10}  {neighbours}")
    return 0


def _exec(options: argparse.Namespace) -> NoReturn:
    command = network.inside(Lab.find(options.name).namespace(options.node), options.command)
    os.execvp(command[0], command)  # noqa: S606 - the operator's own command


def _ctl(options: argparse.Namespace) -> NoReturn:
    command = Lab.find(options.name).ctl_argv(options.node, *options.command)
    os.execv(command[0], command)  # noqa: S606 - meshctl with the operator's arguments


def _logs(options: argparse.Namespace) -> int:
    lab = Lab.find(options.name)
    nodes = [CHAIN if node == "chain" else node for node in options.nodes] or lab.nodes
    paths = [str(lab.log(node)) for node in nodes]
    return subprocess.run(
        ["tail", "-n", options.lines, *(["-F"] if options.follow else []), *paths], check=False
    ).returncode


def _kill(options: argparse.Namespace) -> int:
    Lab.find(options.name).kill_node(options.node, signal.Signals[options.signal])
    return 0


def _start(options: argparse.Namespace) -> int:
    lab = Lab.find(options.name)
    lab.start_node(options.node)
    lab.detach()
    return 0


def _rate(options: argparse.Namespace) -> int:
    Lab.find(options.name).set_rate(options.node, options.peer, None if options.rate == "none" else options.rate)
    return 0


def _down(options: argparse.Namespace) -> int:
    for name in state.names() if options.all else [options.name]:
        Lab.find(name).down(keep_files=options.keep)
        _say(f"lab '{name}' is down")
    return 0


def _list(options: argparse.Namespace) -> int:
    found = state.names()
    print(json.dumps(found) if options.json else "\n".join(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meshlab",
        description="A mesh of meshd daemons on this machine, each in a network namespace.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="lab", help="which lab (default: lab)")
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    up = commands.add_parser("up", parents=[common], help="build a topology and start a daemon in each node")
    up.add_argument("topology", help="line:N, ring:N, grid:WxH, diamond, or a .toml file")
    up.add_argument("--rate", help="of every link: 500kbit, 50mbit, 1gbit (default: the file's, or no limit)")
    up.add_argument(
        "--security", choices=SECURITIES, help="of every link (default: the file's, or none: what is sent can be read)"
    )
    up.add_argument(
        "--fee", action="append", default=[], metavar="[NODE=]MSAT", help="msat per GB, of all or of one node"
    )
    up.add_argument(
        "--funds", type=int, default=DEFAULT_FUNDS_SAT, metavar="SAT", help="into each wallet (default: %(default)s)"
    )
    up.add_argument("--record", action="store_true", help="daemons record their routing engines, for tools/replay")
    up.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="until every node has a route to every other"
    )
    up.set_defaults(run=_up)

    status = commands.add_parser("status", parents=[common], help="nodes, addresses, what runs")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)

    execute = commands.add_parser("exec", parents=[common], help="run a command in a node: exec n3 -- curl ...")
    execute.add_argument("node")
    execute.add_argument("command", nargs="+", help="after --")
    execute.set_defaults(run=_exec)

    ctl = commands.add_parser("ctl", parents=[common], help="run meshctl against a node: ctl n1 routes")
    ctl.add_argument("node")
    ctl.add_argument("command", nargs=argparse.REMAINDER)
    ctl.set_defaults(run=_ctl)
    _add_node_commands(commands, common)
    return parser


def _add_node_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    logs = commands.add_parser("logs", parents=[common], help="what the daemons wrote")
    logs.add_argument("nodes", nargs="*", metavar="NODE", help="default: all; 'chain' is the chain")
    logs.add_argument("-f", "--follow", action="store_true")
    logs.add_argument("-n", "--lines", default="20")
    logs.set_defaults(run=_logs)

    kill = commands.add_parser("kill", parents=[common], help="signal a node's daemon and wait for its end")
    kill.add_argument("node")
    kill.add_argument("--signal", default="SIGKILL", choices=["SIGTERM", "SIGINT", "SIGKILL"])
    kill.set_defaults(run=_kill)

    start = commands.add_parser("start", parents=[common], help="start a daemon that has ended")
    start.add_argument("node")
    start.set_defaults(run=_start)

    rate = commands.add_parser("rate", parents=[common], help="change the rate of a link: rate n1 n2 5mbit")
    rate.add_argument("node")
    rate.add_argument("peer")
    rate.add_argument("rate", help="5mbit, or none")
    rate.set_defaults(run=_rate)

    down = commands.add_parser("down", parents=[common], help="stop everything and remove it, after a crash too")
    down.add_argument("--all", action="store_true", help="every lab there is")
    down.add_argument("--keep", action="store_true", help="keep the files: logs, state, configuration")
    down.set_defaults(run=_down)

    listing = commands.add_parser("list", help="names of the labs that are up")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_list)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        if options.verb not in ("list", "status", "logs"):
            require_root()
        status: int = options.run(options)
        return status
    except TopologyError as error:
        _say(f"meshlab: {error}")
        return 2
    except (LabError, network.NetworkError) as error:
        _say(f"meshlab: {error}")
        return 1
    except KeyboardInterrupt:
        _say("meshlab: interrupted")
        return 130
