"""Runs on a Dask cluster, by the address of its scheduler. Its workers need the same meshd installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
CONNECT_TIMEOUT = 60  # seconds


class ClusterError(Exception):
    """There is no such cluster, or no Dask; the message says which."""


def submit(
    address: str,
) -> Callable[[Callable[[Job], Result], Sequence[Job]], Iterator[tuple[int, Result]]]:
    """Results come as they are ready, each with its job's number. A job of a worker that is lost is run by another."""

    def run(function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        distributed = _distributed()
        try:
            client = distributed.Client(address, timeout=CONNECT_TIMEOUT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ClusterError(f"no Dask scheduler at {address}: {error}") from error
        with client:
            numbers = {}
            for number, job in enumerate(jobs):
                # A function's results are not pure to Dask: the same job may run again after its code has changed.
                numbers[client.submit(function, job, pure=False)] = number
            for future in distributed.as_completed(list(numbers), loop=client.loop):
                yield numbers.pop(future), future.result()

    return run


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise ClusterError("--dask needs Dask: pip install meshd[dask]") from error
