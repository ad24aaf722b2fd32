"""A grid of scenarios, each with several seeds; what is done already is not run again.

A row for each run is added to a file of JSON lines when it is finished. A row is known by its scenario's digest, which
stands for all that the scenario says, and its seed: a sweep that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from simulator import dask_cluster, results
from simulator.exact.world import World
from simulator.scenario import Scenario, ScenarioError, build, read_file

MAX_RUNS = 100_000


class SweepError(Exception):
    """The sweep cannot be run, or its file cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: the scenario's `document` with the `varied` keys set, and a seed."""

    document: Mapping[str, Any]
    base: Path
    varied: Mapping[str, Any]
    seed: int

    def scenario(self) -> Scenario:
        return build(self.document, base=self.base)


def read_document(path: Path) -> dict[str, Any]:
    """Raises SweepError."""
    try:
        return tomllib.loads(read_file(path).decode())
    except (ScenarioError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SweepError(f"{path}: {error}") from error


def parse_variation(text: str) -> tuple[str, list[Any]]:
    """`routing.hello_interval=1,4` or `price.0.fee=[0,1000]`; the values are TOML. Raises SweepError."""
    name, mark, values = text.partition("=")
    try:
        found = tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError as error:
        raise SweepError(f"'{text}': {error}; write table.key=VALUE,VALUE as in TOML") from error
    if not mark or not found or name.count(".") not in (1, 2):
        raise SweepError(f"'{text}' varies nothing; write table.key=VALUE,VALUE, or table.NUMBER.key for [[table]]")
    return name, found


def cells(
    document: Mapping[str, Any], base: Path, variations: Sequence[tuple[str, list[Any]]], seeds: Iterable[int]
) -> list[Cell]:
    """All combinations. Raises SweepError, ScenarioError."""
    names = [name for name, _ in variations]
    found = []
    seeds = list(seeds)
    for values in itertools.product(*(values for _, values in variations)):
        changed = copy.deepcopy(dict(document))
        for name, value in zip(names, values, strict=True):
            _set(changed, name, value)
        build(changed, base=base)
        found += [Cell(changed, base, dict(zip(names, values, strict=True)), seed) for seed in seeds]
        if len(found) > MAX_RUNS:
            raise SweepError(f"more than {MAX_RUNS} runs")
    return found


def _set(document: dict[str, Any], name: str, value: Any) -> None:
    table, *middle, key = name.split(".")
    target = document.setdefault(table, {})
    try:
        for number in middle:
            target = target[int(number)]
        target[key] = value
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise SweepError(f"'{name}' is not in the scenario; [[{table}]] are counted from 0") from error


def done(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows by scenario digest and seed. A last line that was cut off is left out. Raises SweepError."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if not path.exists():
        return rows
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["scenario"], row["seed"]] = row
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise SweepError(f"{path}: line {number} is not a row of a sweep") from error
    return rows


def run_cell(cell: Cell) -> dict[str, Any]:
    """In whatever process. Raises ScenarioError."""
    world = World(cell.scenario(), seed=cell.seed, wire=False)
    world.run(lambda _: None)
    return {**results.document(world), "varied": dict(cell.varied)}


def run(
    wanted: Sequence[Cell],
    path: Path,
    *,
    workers: int = 1,
    dask: str | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> int:
    """Runs what `path` does not have yet, and adds it there; on the Dask cluster at that address, if one is given.
    Returns how many were run. Raises SweepError, ClusterError."""
    known = done(path)
    missing = [cell for cell in wanted if (cell.scenario().digest(), cell.seed) not in known]
    _mend(path)
    with path.open("a") as file:
        for count, row in enumerate(_rows(missing, workers, dask), start=1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            progress(count, len(missing))
    return len(missing)


def _mend(path: Path) -> None:
    """Cuts off a line that was not finished."""
    if path.exists():
        text = path.read_text()
        if text and not text.endswith("\n"):
            path.write_text(text[: text.rfind("\n") + 1])


def _rows(missing: Sequence[Cell], workers: int, dask: str | None) -> Iterator[dict[str, Any]]:
    if dask is not None:
        for _, row in dask_cluster.submit(dask)(run_cell, missing):
            yield row
    elif workers <= 1:
        yield from map(run_cell, missing)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for future in as_completed([pool.submit(run_cell, cell) for cell in missing]):
                yield future.result()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of a sweep's file, or the one row of a result folder. Raises SweepError."""
    if path.is_dir():
        try:
            return [json.loads((path / "summary.json").read_text())]
        except (OSError, ValueError) as error:
            raise SweepError(f"{path}: no summary in it") from error
    if not path.exists():
        raise SweepError(f"{path}: no such file or folder")
    return list(done(path).values())


@dataclass(frozen=True, slots=True)
class Difference:
    """Means over all rows of two files, and the standard deviation in each."""

    name: str
    means: tuple[float, float]
    deviations: tuple[float, float]

    @property
    def is_clear(self) -> bool:
        """More than twice both deviations together."""
        return abs(self.means[1] - self.means[0]) > 2 * sum(self.deviations)


def compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Of all numbers that both have."""
    columns = [_numbers(rows) for rows in (a, b)]
    return [
        Difference(
            name,
            (statistics.fmean(columns[0][name]), statistics.fmean(columns[1][name])),
            (statistics.pstdev(columns[0][name]), statistics.pstdev(columns[1][name])),
        )
        for name in columns[0]
        if name in columns[1]
    ]


def columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What all rows have in common: what was varied, the seed, and all numbers; for a table."""
    items = list(rows)
    names = sorted({name for row in items for name in row.get("varied", {})})
    found: dict[str, list[Any]] = {name: [row.get("varied", {}).get(name) for row in items] for name in names}
    numbers = [_numbers([row]) for row in items]
    for name in numbers[0] if numbers else ():
        if all(name in each for each in numbers):
            found[name] = [each[name][0] for each in numbers]
    return found | {"trace": [row.get("trace") for row in items]}


def _numbers(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        tables = [("", row), *((f"{key}.", value) for key, value in row.items() if isinstance(value, dict))]
        for prefix, table in tables:
            for name, value in table.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found.setdefault(prefix + name, []).append(float(value))
    return found
