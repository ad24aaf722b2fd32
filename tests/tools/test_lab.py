"""The lab in real namespaces with a real chain; the daemon is a stand-in (whole meshes: tests/lab)."""

import json
import os
import shlex
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.mesh import until
from tools.lab import lab as lab_module
from tools.lab import main as command
from tools.lab import network, processes, topology
from tools.lab.lab import Lab
from tools.lab.state import CHAIN, LabError
from tools.lab.topology import Link, Node, Topology

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]
NAME = f"t{os.getpid()}"
Make = Callable[..., Lab]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """A Lab of a test's own, with the stand-in; checked to have left nothing."""
    base = tmp_path_factory.mktemp("ml")
    monkeypatch.setenv("MESHLAB_DIR", str(base))
    fake = base / "program"
    command_line = shlex.join([sys.executable, str(Path(__file__).parent / "fake_daemon.py")])
    fake.write_text(f'#!/bin/sh\nexec {command_line} "$@"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(lab_module, "_program", lambda name: str(fake))
    made: list[Lab] = []

    def new(graph: Topology, **options: object) -> Lab:
        made.append(Lab(graph, name=NAME, **options))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for lab in made:
        lab.down()
    assert not list(network.NETNS_DIR.glob(f"ml-{NAME}-*"))


def everything_of(lab: Lab) -> list[processes.Process]:
    return [*lab.state.process_by_node.values(), *lab._strangers()]


def pids_of(lab: Lab) -> set[int]:
    return {process.pid for process in everything_of(lab)}


def test_a_lab_goes_up_and_leaves_nothing(make: Make) -> None:
    with make(topology.line(3)) as lab:
        assert lab.nodes == ["n1", "n2", "n3"]
        assert all(lab.is_running(node) for node in [*lab.nodes, CHAIN])
        links = json.loads(lab.exec("n2", ["ip", "-j", "link"]).stdout)
        assert sorted(link["ifname"] for link in links) == ["lo", "to-n1", "to-n3"]
        assert all("LOWER_UP" in link["flags"] for link in links)  # the state follows a moment later
        assert lab.unreachable("n1") == ["n2", "n3"]
        user = lab.popen("n1", ["sleep", "1000"])
        until("the process having entered the namespace", lambda: user.pid in pids_of(lab))
        alive = everything_of(lab)
        assert len(alive) >= 5
    assert not any(processes.is_alive(process) for process in alive)
    assert not lab.directory.exists()
    lab.down()  # a second time does no harm


def test_the_configuration_has_what_the_topology_says(make: Make) -> None:
    lab = make(Topology((Node("a", 5, {"payments": {"tick": 1.0}}), Node("b")), (Link("a", "b"),)))
    lab.directory.mkdir(parents=True)
    lab._write_config(lab.topology.nodes[0])
    text = (lab.path("a") / "config.toml").read_text()
    assert 'name = "to-b"' in text
    assert 'announce = ["10.77.0.1/32"]' in text
    assert "fee_msat_per_gb = 5\n" in text
    assert "[payments]\ntick = 1.0\n" in text


def test_a_killed_daemon_starts_again_and_only_then(make: Make) -> None:
    with make(topology.line(2), funds_sat=0) as lab:
        first = lab.state.process_by_node["n2"]
        with pytest.raises(LabError, match="n2 is running"):
            lab.start_node("n2")
        lab.kill_node("n2", signal.SIGKILL)
        assert not lab.is_running("n2")
        with pytest.raises(LabError, match="n2 is not running"):
            lab.kill_node("n2")
        again = Lab.find(NAME)  # as another meshlab command would
        again.start_node("n2")
        assert again.is_running("n2")
        assert again.state.process_by_node["n2"] != first
        again.down()


def test_when_a_daemon_fails_nothing_stays_and_its_words_are_shown(make: Make) -> None:
    nodes = (Node("good"), Node("bad", config={"node": {"log_level": "error"}}))
    lab = make(Topology(nodes, (Link("good", "bad"),)))
    with pytest.raises(LabError, match="was told to fail"):
        lab.up()
    assert network.existing(lab.state.namespaces) == []
    assert not any(processes.is_alive(process) for process in lab.state.process_by_node.values())
    assert lab.log("bad").exists()  # kept, for whoever wants to know why


@pytest.mark.parametrize("step", ["making", "starting the chain", "starting 2", "funding"])
def test_interrupted_anywhere_nothing_stays(make: Make, step: str) -> None:
    def interrupt(text: str) -> None:
        if text.startswith(step):
            raise KeyboardInterrupt

    lab = make(topology.line(2), progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        lab.up()
    assert network.existing(lab.state.namespaces) == []
    assert not any(processes.is_alive(process) for process in lab.state.process_by_node.values())


def test_after_a_crash_of_meshlab_another_one_cleans_up(make: Make) -> None:
    crashed = make(topology.line(2), funds_sat=0)
    crashed.up()
    forgotten = crashed.popen("n2", ["sleep", "1000"])  # in no record, as if the crash came before it was written
    until("the process having entered the namespace", lambda: forgotten.pid in pids_of(crashed))
    record = crashed.directory / "state.json"
    record.write_text(record.read_text().replace('"is_complete":true', '"is_complete":false'))
    Lab.find(NAME).down()
    assert forgotten.wait(60) == -signal.SIGTERM
    assert network.existing(crashed.state.namespaces) == []
    with pytest.raises(LabError, match="no lab"):
        Lab.find(NAME)


def test_a_second_lab_of_the_name_is_refused_and_the_first_unharmed(make: Make) -> None:
    with make(topology.line(1), funds_sat=0) as lab:
        with pytest.raises(LabError, match="is up already"):
            make(topology.line(1)).up()
        assert lab.is_running("n1")


def test_namespaces_of_somebody_else_are_refused(make: Make) -> None:
    lab = make(topology.line(1))
    network.create_namespaces([lab.namespace("n1")])
    with pytest.raises(LabError, match="no record of a lab"):
        lab.up()
    assert network.existing([lab.namespace("n1")]) == [lab.namespace("n1")]


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
def test_a_link_keeps_its_rate_and_drops_nothing(make: Make) -> None:
    lab = make(Topology((Node("a"), Node("b")), (Link("a", "b", "20mbit"),)), funds_sat=0)
    with lab:
        lab.exec("a", ["ip", "addr", "add", "192.0.2.1/30", "dev", "to-b"])
        lab.exec("b", ["ip", "addr", "add", "192.0.2.2/30", "dev", "to-a"])
        lab.exec("b", ["iperf3", "-s", "-1", "-D"])
        report = lab.exec("a", ["iperf3", "-c", "192.0.2.2", "-t", "3", "-J", "--connect-timeout", "3000"]).stdout
        rate = json.loads(report)["end"]["sum_received"]["bits_per_second"]
        queues = json.loads(lab.exec("a", ["tc", "-s", "-j", "qdisc", "show", "dev", "to-b"]).stdout)
        assert 1e6 < rate < 21e6  # a loaded machine may send less, never more
        assert sum(queue["drops"] for queue in queues) == 0
        assert "tbf" in {queue["kind"] for queue in queues}
        lab.set_rate("a", "b", None)
        assert "tbf" not in lab.exec("a", ["tc", "qdisc", "show", "dev", "to-b"]).stdout


def test_the_command_up_status_exec_and_down(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(["up", "diamond", "--name", NAME, "--fee", "5", "--fee", "n3=9", "--funds", "0"]) == 0
    try:
        capfd.readouterr()
        assert command.main(["status", "--name", NAME, "--json"]) == 0
        status = json.loads(capfd.readouterr().out)
        assert [node["fee_msat_per_gb"] for node in status["nodes"].values()] == [5, 5, 9, 5]
        assert status["complete"]
        assert command.main(["up", "line:2", "--name", NAME]) == 1
        assert command.main(["up", "line:two", "--name", NAME]) == 2
        assert command.main(["kill", "--name", NAME, "n9"]) == 1
        assert command.main(["status", "--name", NAME]) == 0
        assert capfd.readouterr().out.count(" runs ") == 4
    finally:
        assert command.main(["down", "--name", NAME]) == 0
    assert command.main(["status", "--name", NAME]) == 1
