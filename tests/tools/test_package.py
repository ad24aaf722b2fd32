"""The Debian package: what can be checked at once, and, where it is asked for, the whole of it in a fresh Debian."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from meshd import __version__
from tests.tools.tutorial_tree import steps
from tools.packager import main as packager

TREE = Path(__file__).parent / "package_tree.sh"
TUTORIAL_TREE = Path(__file__).parent / "tutorial_tree.py"
TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"
PACKAGES = "python3,nftables,iproute2,passwd,wireguard-go"
ASKED = "MESHD_TEST_PACKAGE"


def _unit() -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string((packager.DEBIAN / "meshd.service").read_text())
    return unit


def test_the_service_has_two_capabilities_and_its_own_user() -> None:
    service = _unit()["Service"]
    assert service["User"] == "meshd"
    assert set(service["CapabilityBoundingSet"].split()) == {"CAP_NET_ADMIN", "CAP_NET_RAW"}
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"]
    assert (service["Type"], service["StateDirectoryMode"], service["ProtectSystem"]) == ("notify", "0700", "strict")


def test_what_a_killed_daemon_has_counted_is_left_to_the_next_one() -> None:
    service = _unit()["Service"]
    assert service["Restart"] == "on-failure"
    assert not {"ExecStop", "ExecStopPost", "ExecStartPre"} & set(service)  # nothing cleans before it has read


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "meshd.service"
    text = (packager.DEBIAN / "meshd.service").read_text()
    unit.write_text(text.replace("/usr/bin/meshd", sys.executable))  # it looks whether the program is there
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "meshd.service" in line]
    assert not said, said


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_the_maintainer_scripts_are_shell(script: str) -> None:
    subprocess.run(["sh", "-n", str(packager.DEBIAN / script)], check=True)


def test_the_tree_has_both_pythons_and_readable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = []

    def install(target: Path, wheels: Path, *, python: str, architecture: str) -> None:
        target.mkdir(parents=True)
        (target / "library.py").touch(mode=0o600)
        installed.append((python, architecture))

    monkeypatch.setattr(packager, "install_libraries", install)
    packager.lay_out(tmp_path, tmp_path, architecture="arm64")
    assert installed == [("3.11", "arm64"), ("3.13", "arm64")]
    for program in packager.PROGRAMS:
        script = tmp_path / "usr/bin" / program
        assert script.stat().st_mode & 0o777 == 0o755
        compile(script.read_text(), str(script), "exec")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)
    assert "# " in (tmp_path / "usr/share/doc/meshd/meshd.toml.example").read_text()
    assert all("doctor" in (tmp_path / path).read_text() for path in packager.COMPLETIONS.values())
    assert (tmp_path / "usr/share/doc/meshd/reference/schemas/meshctl-status.schema.json").exists()


def test_a_wheel_for_one_machine_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packager, "_run", lambda *_, **__: None)
    (tmp_path / "embit-1-cp311-cp311-linux_x86_64.whl").touch()
    with pytest.raises(packager.PackageError, match="one kind of machine"):
        packager.build_wheels(tmp_path)


def test_a_step_that_fails_is_named(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packager, "_pip", lambda *_: ["sh", "-c", "echo no such index >&2; exit 1"])
    assert packager.main(["--directory", "/tmp"]) == 1  # noqa: S108 - nothing gets so far as to be written
    assert "the wheel of meshd: no such index" in capfd.readouterr().err


needs_a_tree = [
    pytest.mark.skipif(not os.environ.get(ASKED), reason=f"minutes of downloads and debootstrap: set {ASKED}=1"),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("debootstrap") is None, reason="needs root and debootstrap"),
]


def _in_a_tree(tmp_path: Path, packages: str, program: list[str], *arguments: str) -> str:
    """What the program says of a package that was built just now, and a fresh Debian 12 with these packages."""
    tree = tmp_path / "debian"
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(tree)], check=True)
    package = packager.build("amd64", tmp_path)
    command = ["unshare", "--mount", *program, str(package), str(tree), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("packages", [pytest.param(PACKAGES, marks=needs_a_tree)])
def test_it_is_installed_runs_and_leaves_nothing_in_a_fresh_debian(tmp_path: Path, packages: str) -> None:
    said = _in_a_tree(tmp_path, packages, ["bash", str(TREE)], f"pk{os.getpid()}")
    assert f"meshd {__version__}" in said
    assert said.splitlines()[-1] == "nothing is left"


@pytest.mark.parametrize("packages", [pytest.param(f"{PACKAGES},sudo,curl,iputils-ping", marks=needs_a_tree)])
def test_the_tutorial_is_true_on_three_fresh_debians(tmp_path: Path, packages: str) -> None:
    program = [sys.executable, str(TUTORIAL_TREE), str(TUTORIAL)]
    said = _in_a_tree(tmp_path, packages, program, str(tmp_path), f"tu{os.getpid()}")
    assert said.splitlines()[-1] == "the page is true"


def test_every_command_of_the_tutorial_says_where() -> None:
    page = TUTORIAL.read_text()
    found = list(steps(page))
    assert len(found) > 20
    assert page.count("```sh") == page.count('```sh title="On ')
    assert {node for nodes, _ in found for node in nodes} == {"ada", "ben", "cay"}
