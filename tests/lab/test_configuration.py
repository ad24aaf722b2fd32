"""What a person sees who makes a mistake: one line that says what and where, and the documented exit code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.mesh import Mesh, running
from tools.lab.topology import line

pytestmark = pytest.mark.lab
NODE = "n1"
MESHD = str(Path(sys.executable).parent / "meshd")
# No right but that of the owner of the files: the checkout may be where nobody else can read it.
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@pytest.fixture(scope="module")
def mesh(lab_base: Path) -> Iterator[Mesh]:
    with running("config", line(2)) as made:
        yield made


def _configuration(mesh: Mesh, tmp_path: Path, *, extra: str = "") -> Path:
    """That of another node, in a directory of its own, without interfaces."""
    file = tmp_path / "meshd.toml"
    file.write_text(
        f'[node]\nstate_dir = "{tmp_path}/state"\ncontrol_socket = "{tmp_path}/control.sock"\n'
        f'[chain]\nsocket = "{mesh.lab.chain_socket}"\n{extra}'
    )
    return file


def _assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[routing]\nhelo_interval = 4.0\n", ("helo_interval", "hello_interval")),
        ("[prices]\nfee_msat_per_gb = 1\n", ("prices", "price")),
        ("[price]\nfee_msat_per_gb = -1\n", ("fee_msat_per_gb", "-1")),
        ('[[interface]]\nname = "wlan0"\nsecurty = "none"\n', ("securty", "security")),
    ],
)
def test_check_names_the_mistake_and_what_was_meant(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "meshd.toml"
    file.write_text(text)
    for command in ("check", "run", "clean"):
        done = subprocess.run([MESHD, command, "--config", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        _assert_one_line(done, str(file), *words)


def test_a_second_daemon_is_refused_and_does_the_first_no_harm(mesh: Mesh, tmp_path: Path) -> None:
    """It would take over, and at its end remove, what the first one has in the kernel."""
    file = _configuration(mesh, tmp_path)
    rules = "ip rule; ip -6 rule; nft -s -t list ruleset; ip route show table all; ip -6 route show table all; ip addr"
    before = mesh.lab.exec(NODE, ["sh", "-c", rules]).stdout
    for command in ("run", "clean"):
        done = mesh.lab.exec(NODE, [MESHD, command, "--config", str(file)], check=False)
        assert done.returncode == 1
        _assert_one_line(done, "another meshd")
        assert mesh.lab.exec(NODE, ["sh", "-c", rules]).stdout == before
    assert mesh.lab.unreachable(NODE) == []


@pytest.mark.parametrize("key", ["port", "session_port"])
def test_a_port_in_use_is_named_and_nothing_stays(mesh: Mesh, tmp_path: Path, key: str) -> None:
    table, kind = ("routing", "SOCK_DGRAM") if key == "port" else ("payments", "SOCK_STREAM")
    file = _configuration(mesh, tmp_path, extra=f"[{table}]\n{key} = 7123\n")
    program = (
        "import socket, subprocess, sys;"
        f"taken = socket.socket(socket.AF_INET6, socket.{kind}); taken.bind(('::', 7123));"
        f"{kind == 'SOCK_STREAM'} and taken.listen();"
        "sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    )
    # In a namespace of its own (unshare): the node's has its daemon.
    argv = ["unshare", "--net", sys.executable, "-c", program, MESHD, "run", "--config", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    _assert_one_line(done, "7123", "in use")


def test_missing_rights_are_said_in_one_line(mesh: Mesh, tmp_path: Path) -> None:
    argv = ["unshare", "--net", *POWERLESS, MESHD, "run", "--config", str(_configuration(mesh, tmp_path))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    _assert_one_line(done, "ermi")  # permission denied, operation not permitted
