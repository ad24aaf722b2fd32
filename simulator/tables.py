"""Tables in files: CSV, or Parquet where pyarrow is there."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class TableError(Exception):
    """It cannot be written; the message says why."""


def write(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Columns of one length, by name; the format is that of the file name's end. Raises TableError, OSError."""
    match path.suffix:
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
        case ".parquet":
            _write_parquet(path, columns)
        case _:
            raise TableError(f"{path}: write .csv or .parquet")


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """Raises TableError, OSError."""
    found: dict[str, list[Any]] = _pyarrow("pyarrow.parquet").read_table(path).to_pydict()
    return found


def _write_parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    table = _pyarrow("pyarrow").table({name: list(column) for name, column in columns.items()})
    with path.open("wb") as file:
        _pyarrow("pyarrow.parquet").write_table(table, file)


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TableError("Parquet needs pyarrow: pip install meshd[parquet]") from error
