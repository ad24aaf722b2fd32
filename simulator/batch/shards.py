"""One big batch run in pieces: in processes or by a Dask cluster, in a folder so that it can go on where it stopped.

A shard's result depends on its destinations alone. A piece in the folder is named by a digest of all that it comes
from: another network, other steps or other rules leave it alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from routing import rules
from simulator.batch import engine, kernel
from simulator.batch.engine import BatchError, BatchResult, Job
from simulator.trace import RouteTrace

Progress = Callable[[int, int], None]
Submit = Callable[[Callable[[Job], BatchResult], Sequence[Job]], Iterable[tuple[int, BatchResult]]]
_COUNTS = ("routes", "updates", "requests", "changes", "loops")


def in_threads(workers: int) -> Submit:
    """They run at the same time where the kernel is compiled."""

    def submit(run: Callable[[Job], BatchResult], jobs: Sequence[Job]) -> Iterator[tuple[int, BatchResult]]:
        with ThreadPoolExecutor(workers) as pool:
            yield from _as_ready(pool, run, jobs)

    return submit


def in_processes(workers: int) -> Submit:
    """`workers` new ones. Results come as they are ready, each with its job's number."""

    def submit(run: Callable[[Job], BatchResult], jobs: Sequence[Job]) -> Iterator[tuple[int, BatchResult]]:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from _as_ready(pool, run, jobs)

    return submit


def _as_ready(
    pool: Executor, run: Callable[[Job], BatchResult], jobs: Sequence[Job]
) -> Iterator[tuple[int, BatchResult]]:
    futures = {pool.submit(run, job): number for number, job in enumerate(jobs)}
    try:
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    finally:
        for future in futures:
            future.cancel()


def run(
    jobs: Sequence[Job],
    submit: Submit,
    folder: Path | None = None,
    progress: Progress = lambda _done, _all: None,
) -> BatchResult:
    """All shards, but for those that `folder` has already. Raises BatchError, OSError."""
    found: dict[int, BatchResult] = {}
    names = [f"shard-{digest(job)}.npz" for job in jobs]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        found = {n: load(folder / name) for n, name in enumerate(names) if (folder / name).exists()}
    missing = [number for number in range(len(jobs)) if number not in found]
    progress(len(found), len(jobs))
    for place, result in submit(engine.run_job, [jobs[number] for number in missing]):
        found[missing[place]] = result
        if folder is not None:
            save(folder / names[missing[place]], result)
        progress(len(found), len(jobs))
    return engine.merge([found[number] for number in range(len(jobs))])


def digest(job: Job) -> str:
    """Of a job and of the code that runs it."""
    state = hashlib.blake2b(digest_size=12)
    for source in (rules.__file__, kernel.__file__):
        state.update(Path(source).read_bytes())
    for array in (job.nodes, job.slots, job.steps, np.array(job.destinations)):
        state.update(np.ascontiguousarray(array).tobytes() + b"/")
    settings = (job.weight, job.is_immediate, job.is_traced, job.keeps_routes, job.traced_ticks)
    state.update(repr(settings).encode())
    return state.hexdigest()


def save(path: Path, result: BatchResult) -> None:
    """Whole, or not at all."""
    digests = result.trace.digests()
    arrays: dict[str, Any] = {
        "destinations": np.array(result.destinations, np.int64),
        "metric": result.metric,
        "next_hop": result.next_hop,
        "counts": np.array([getattr(result, name) for name in _COUNTS], np.int64),
        "step_ticks": np.array(result.step_ticks, np.int64),
        "traced": np.array(sorted(digests), np.int64),
        "digests": np.frombuffer(b"".join(digests[d] for d in sorted(digests)), np.uint8),
        "trace_count": np.array([result.trace.count], np.int64),
    }
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    unfinished.replace(path)


def load(path: Path) -> BatchResult:
    """Raises BatchError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            octets = arrays["digests"].tobytes()
            digests = {int(d): octets[16 * n : 16 * n + 16] for n, d in enumerate(arrays["traced"])}
            trace = RouteTrace()
            trace.__setstate__((digests, int(arrays["trace_count"][0])))
            return BatchResult(
                [int(d) for d in arrays["destinations"]],
                arrays["metric"],
                arrays["next_hop"],
                **dict(zip(_COUNTS, (int(count) for count in arrays["counts"]), strict=True)),
                step_ticks=[int(ticks) for ticks in arrays["step_ticks"]],
                trace=trace,
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise BatchError(f"{path}: not a shard of a batch run ({error}); remove it") from error
