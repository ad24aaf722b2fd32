"""Edge lists: `source,target[,cost]`, a heading line allowed; a line with a source only is a node without links."""

from __future__ import annotations

import csv
import io

from simulator.raw_graph import RawGraph, TopologyError

_HEADINGS = (["source", "target"], ["from", "to"])
MAX_FIELD = 1000


def read(text: str) -> RawGraph:
    """Fields are separated by commas, semicolons or tabs. Raises TopologyError with the line's number."""
    raw = RawGraph()
    start = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    separator = next((mark for mark in (",", ";", "\t") if mark in start), ",")
    rows = csv.reader(io.StringIO(text), delimiter=separator)
    is_first = True
    try:
        for row in rows:
            fields = [item.strip() for item in row]
            if not any(fields) or fields[0].startswith("#"):
                continue
            if is_first and [item.lower() for item in fields[:2]] in _HEADINGS:
                is_first = False
                continue
            is_first = False
            _add(raw, fields, rows.line_num)
    except csv.Error as error:
        raise TopologyError(f"line {rows.line_num}: {error}") from error
    return raw


def _add(raw: RawGraph, fields: list[str], line: int) -> None:
    if len(fields) > 3 or not fields[0] or max(map(len, fields)) > MAX_FIELD:
        raise TopologyError(f"line {line}: expected source,target[,cost]")
    if len(fields) == 1 or not fields[1]:
        raw.nodes.setdefault(fields[0], (None, None))
        return
    cost = None
    if len(fields) == 3 and fields[2]:
        try:
            cost = float(fields[2])
        except ValueError as error:
            raise TopologyError(f"line {line}: '{fields[2][:40]}' is not a cost") from error
    raw.add_link(fields[0], fields[1], cost, is_strict=False)


def write(raw: RawGraph) -> str:
    """Places are lost. Nodes come first, so that they keep their order."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["source", "target", "cost"])
    rows.writerows([name] for name in raw.nodes)
    rows.writerows([a, b, _number(cost)] for a, b, cost in raw.links)
    return out.getvalue()


def _number(cost: float | None) -> str:
    return "" if cost is None else f"{cost:g}" if cost != int(cost) else str(int(cost))
