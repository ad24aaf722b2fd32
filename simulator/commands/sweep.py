"""meshsim sweep and meshsim compare."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from simulator import sweep, tables
from simulator.commands.large import Progress, memory_size
from simulator.dask_cluster import ClusterError
from simulator.draft import graph_of
from simulator.preflight import PreflightError, exact
from simulator.scenario import ScenarioError
from simulator.sweep import SweepError
from simulator.tables import TableError

EXAMPLES = """
examples:
  meshsim sweep city.toml --vary routing.hello_interval=1,4 --seeds 10 --workers 2 --output sweep.jsonl
  meshsim sweep city.toml --vary demand.0.rate=1e6,4e6 --vary price.0.policy='"fixed","auto"' --output sweep.jsonl
  meshsim sweep city.toml --seeds 100 --dask tcp://10.0.0.1:8786 --output sweep.jsonl --table sweep.parquet
  meshsim compare before.jsonl after.jsonl
  meshsim compare sweep.jsonl --by routing.hello_interval

A sweep that was interrupted goes on where it stopped when the same command is given again.
"""


def add_parser(commands: Any) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    run = commands.add_parser(
        "sweep", help="a grid of scenarios, with several seeds each", epilog=EXAMPLES, formatter_class=formatter
    )
    run.add_argument("scenario", type=Path, help="a TOML file (docs/scenarios.md)")
    run.add_argument("--vary", action="append", default=[], metavar="TABLE.KEY=VALUE,VALUE", help="may be repeated")
    run.add_argument("--seeds", type=int, default=1, help="0 up to this less one (default: 1)")
    run.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    run.add_argument("--dask", metavar="ADDRESS", help="run on this cluster, such as tcp://10.0.0.1:8786")
    run.add_argument(
        "--max-memory", type=memory_size, metavar="SIZE", help="refuse runs that need more each, such as 2G"
    )
    run.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines; what is there is kept")
    run.add_argument("--table", type=Path, metavar="FILE", help="write all rows there too: .csv or .parquet")
    run.set_defaults(handler=run_sweep)
    compare = commands.add_parser(
        "compare", help="two sweeps or result folders, by their means", epilog=EXAMPLES, formatter_class=formatter
    )
    compare.add_argument("first", type=Path)
    compare.add_argument("second", type=Path, nargs="?", help="left out with --by")
    compare.add_argument("--by", metavar="TABLE.KEY", help="compare the first and the last value of it in one sweep")
    compare.add_argument("--json", action="store_true", help="as one JSON object")
    compare.set_defaults(handler=run_compare)


def run_sweep(options: argparse.Namespace) -> int:
    """0: every run was good by itself; 1: not so."""
    progress = Progress()
    try:
        document = sweep.read_document(options.scenario)
        variations = [sweep.parse_variation(text) for text in options.vary]
        wanted = sweep.cells(document, options.scenario.parent, variations, range(max(1, options.seeds)))
        if options.max_memory is not None:
            for cell in wanted:
                graph = graph_of(cell.scenario(), cell.seed)
                exact(len(graph), graph.number_of_edges()).check(options.max_memory)
        count = sweep.run(
            wanted,
            options.output,
            workers=options.workers,
            dask=options.dask,
            progress=lambda done, whole: progress.show(done / whole, f"{done} of {whole} runs"),
        )
        rows = sweep.done(options.output)
        if options.table is not None:
            tables.write(options.table, sweep.columns(rows.values()))
    except (SweepError, ScenarioError, ClusterError, TableError, PreflightError) as error:
        print(f"meshsim: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"meshsim: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    ours = [rows[cell.scenario().digest(), cell.seed] for cell in wanted]
    bad = sum(not row["ok"] for row in ours)
    print(f"{len(wanted)} runs, {count} of them now; {bad} not good; {options.output}")
    return 0 if not bad else 1


def run_compare(options: argparse.Namespace) -> int:
    try:
        first, second = _sides(options)
    except SweepError as error:
        print(f"meshsim: {error}", file=sys.stderr)
        return 2
    differences = sweep.compare(first, second)
    if options.json:
        document = {
            item.name: {"means": item.means, "deviations": item.deviations, "is_clear": item.is_clear}
            for item in differences
        }
        print(json.dumps(document, indent=2))
        return 0
    print(f"{'':<32}{f'{len(first)} runs':>24}{f'{len(second)} runs':>24}")
    for item in differences:
        cells = (f"{mean:.6g} ±{deviation:.2g}" for mean, deviation in zip(item.means, item.deviations, strict=True))
        print(f"{item.name:<32}{''.join(f'{cell:>24}' for cell in cells)}{'  *' if item.is_clear else ''}")
    print("*: the means are further apart than twice both standard deviations")
    return 0


def _sides(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows = sweep.read_rows(options.first)
    if options.by is None:
        if options.second is None:
            raise SweepError("two files are compared, or one with --by")
        return rows, sweep.read_rows(options.second)
    values: list[Any] = []
    for row in rows:
        value = row.get("varied", {}).get(options.by)
        if value is not None and value not in values:
            values.append(value)
    if len(values) < 2:
        raise SweepError(f"{options.first}: {options.by} has not two values in it")
    values.sort(key=str if any(isinstance(value, str) for value in values) else None)
    return tuple([row for row in rows if row.get("varied", {}).get(options.by) == v] for v in (values[0], values[-1]))  # type: ignore[return-value]
