"""A real Dask scheduler with two workers, and tables in Parquet."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator import dask_cluster, main, sweep, tables, topology
from simulator.batch import engine, shards
from simulator.run import random_fees

# Dask warns of ports in use and of memory, which is not ours to judge.
pytestmark = pytest.mark.filterwarnings("ignore")

SCENARIO = """
[scenario]
duration = 20
quiet = 1

[topology]
graph = "line:3"
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    import dask
    import distributed

    patience = dict.fromkeys(("distributed.comm.timeouts.connect", "distributed.comm.timeouts.tcp"), "300s")
    with (
        dask.config.set(patience),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
    ):
        yield cluster.scheduler_address


def test_shards_on_a_cluster_are_the_run_in_one_piece(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    graph = topology.build("grid:5x4", random.Random("0/graph"))
    whole = engine.simulate(graph, random_fees(graph, (0, 1_000_000), random.Random("0/fees")))
    jobs = engine.jobs(graph, random_fees(graph, (0, 1_000_000), random.Random("0/fees")), shards=5)
    apart = shards.run(jobs, dask_cluster.submit(address))
    assert apart.trace.digest() == whole.trace.digest()
    assert (apart.next_hop == whole.next_hop).all()
    assert main.main(["batch", "--topology", "grid:5x4", "--dask", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trace"] == whole.trace.digest()


def test_a_sweep_on_a_cluster_is_that_of_one_process(address: str, tmp_path: Path) -> None:
    path = tmp_path / "line.toml"
    path.write_text(SCENARIO)
    cells = sweep.cells(sweep.read_document(path), tmp_path, [], range(4))
    here, there, table = tmp_path / "here", tmp_path / "there", tmp_path / "there.parquet"
    assert sweep.run(cells, here) == 4
    command = ["sweep", str(path), "--seeds", "4", "--dask", address, "--output", str(there), "--table", str(table)]
    assert main.main(command) == 0
    assert sweep.done(there) == sweep.done(here)
    columns = tables.read_parquet(table)
    assert sorted(columns["seed"]) == [0, 1, 2, 3]
    assert len(set(columns["trace"])) == 4


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECT_TIMEOUT", 1)
    assert main.main(["batch", "--topology", "grid:2x2", "--dask", "tcp://127.0.0.1:1"]) == 2
    path = tmp_path / "line.toml"
    path.write_text(SCENARIO)
    output = ["--output", str(tmp_path / "rows")]
    assert main.main(["sweep", str(path), *output, "--max-memory", "1M"]) == 2
    assert main.main(["sweep", str(path), *output, "--table", str(tmp_path / "rows.xls")]) == 2
    columns = {"a": [1, 2], "b": ["x", None]}
    tables.write(tmp_path / "t.csv", columns)
    assert (tmp_path / "t.csv").read_text() == "a,b\n1,x\n2,\n"
    tables.write(tmp_path / "t.parquet", columns)
    assert tables.read_parquet(tmp_path / "t.parquet") == columns
