import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.lab import processes, state, toml_text
from tools.lab.processes import Process
from tools.lab.state import LabError, State

# Says when it is ready, so that no test has to wait by the clock.
READY = "import signal, sys; {0}; print('ready', flush=True); signal.pause()"


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    script = READY.format(getattr(request, "param", "pass"))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield started
        started.kill()


def identified(child: subprocess.Popen[bytes]) -> Process:
    found = processes.identify(child.pid)
    assert found is not None
    return found


def test_a_process_is_identified_by_more_than_its_pid(child: subprocess.Popen[bytes]) -> None:
    found = identified(child)
    assert found.command.startswith(sys.executable)
    assert processes.is_alive(found)
    assert not processes.is_alive(Process(found.pid, found.started_ticks + 1, found.command))


def test_a_reused_pid_is_not_signalled(child: subprocess.Popen[bytes]) -> None:
    found = identified(child)
    other = Process(found.pid, found.started_ticks - 1, found.command)
    assert not processes.send_signal(other, signal.SIGKILL)
    assert processes.stop([other]) == []
    assert child.poll() is None


def test_a_process_that_ends_when_asked_is_not_killed(child: subprocess.Popen[bytes]) -> None:
    assert processes.stop([identified(child)]) == []
    assert child.wait() == -signal.SIGTERM


@pytest.mark.parametrize("child", ["signal.signal(signal.SIGTERM, signal.SIG_IGN)"], indirect=True)
def test_a_stubborn_process_is_killed(child: subprocess.Popen[bytes]) -> None:
    found = identified(child)
    assert processes.stop([found], timeout=0.1) == [found]
    assert child.wait() == -signal.SIGKILL


def test_a_zombie_counts_as_gone(child: subprocess.Popen[bytes]) -> None:
    found = identified(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    assert processes.identify(child.pid) is None
    assert not processes.is_alive(found)
    assert processes.wait_gone(found, 60.0)


def some_state(name: str = "t") -> State:
    process = Process(1, 2, "meshd run")
    return State(name, time.time(), {"n1": "10.77.0.1"}, {"n1": 5}, [], {"n1": process})


def test_a_lab_is_recorded_once_and_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESHLAB_DIR", str(tmp_path))
    recorded = some_state()
    state.create(recorded)
    with pytest.raises(LabError, match="is up already"):
        state.create(recorded)
    recorded.is_complete = True
    state.save(recorded)
    assert state.read("t") == recorded
    assert state.names() == ["t"]
    assert recorded.namespaces == ["ml-t-n1", "ml-t--chain"]


def test_a_lab_that_is_not_there_or_damaged_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESHLAB_DIR", str(tmp_path))
    with pytest.raises(LabError, match="no lab 't' is up; there are: none"):
        state.read("t")
    state.create(some_state())
    (tmp_path / "t" / "state.json").write_text("{")
    with pytest.raises(LabError, match="damaged"):
        state.read("t")


@pytest.mark.parametrize("name", ["", "../x", "A", "-x", "a" * 17])
def test_a_lab_name_cannot_leave_its_directory(name: str) -> None:
    with pytest.raises(LabError, match="not a lab name"):
        state.directory(name)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(0, 1e9) | texts
keys = st.text("abcxyz_", min_size=1, max_size=8)
tables = st.dictionaries(keys, scalars | st.lists(texts, max_size=3), max_size=4)


@given(st.dictionaries(keys, tables | st.lists(tables, min_size=1, max_size=3), max_size=4))
def test_written_toml_reads_back(document: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text.dump(document)) == document
