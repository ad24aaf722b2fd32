"""tools/vm without a machine: what is chosen, what is written for the guest, what is said when something is missing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.vm import common, job, machine, main, packages, qemu, uml, uml_build
from tools.vm.common import VmError
from tools.vm.initramfs import Archive
from tools.vm.machine import Backend


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MESHD_VMLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(uml_build, "why_not_here", lambda: None)
    monkeypatch.setattr(qemu, "why_not_here", lambda: None)
    return tmp_path


def built(cache: Path, source: str, program: str = "exit 0") -> Path:
    """A kernel that is a shell script."""
    kernel = cache / f"uml-{source}-{uml_build._digest()}" / "linux"
    kernel.parent.mkdir()
    kernel.write_text(f"#!/bin/sh\n{program}\n")
    kernel.chmod(0o755)
    return kernel


def test_the_newest_kernel_of_this_configuration_is_taken(empty_cache: Path) -> None:
    assert uml_build.kernel() is None
    old, new = built(empty_cache, "6.1-1"), built(empty_cache, "6.12-1")
    other = empty_cache / "uml-6.13-1-00000000" / "linux"
    other.parent.mkdir()
    other.touch()
    os.utime(old, (1, 1))
    os.utime(new, (2, 2))
    assert uml_build.kernel() == new


def test_auto_is_user_mode_linux_then_qemu_then_an_error(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VmError, match="tools/vmlab build"):
        machine.choose()
    monkeypatch.setattr(qemu, "kernel", lambda: empty_cache)
    assert machine.choose() is Backend.QEMU
    built(empty_cache, "6.12-1")
    assert machine.choose() is Backend.UML
    assert machine.choose(Backend.QEMU) is Backend.QEMU


def test_comments_do_not_change_the_configuration_and_options_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    text = uml_build.CONFIG.read_text()
    for number, content in enumerate((text, "# more words\n" + text, text + "CONFIG_MORE=y\n")):
        file = tmp_path / str(number)
        file.write_text(content)
        monkeypatch.setattr(uml_build, "CONFIG", file)
        digests.append(uml_build._digest())
    assert digests[0] == digests[1] != digests[2]


def test_options_that_the_kernel_refused_are_named() -> None:
    made = uml_build.CONFIG.read_text().replace("CONFIG_WIREGUARD=y", "# CONFIG_WIREGUARD is not set")
    assert uml_build.unset_options(made) == ["CONFIG_WIREGUARD"]


def test_the_newest_source_is_by_number_not_by_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    def apt(argv: list[str]) -> str:
        if argv[1] == "pkgnames":
            return "linux-source\nlinux-source-6.1\nlinux-source-6.12\nlinux-source-6.9\n"
        return f"{argv[2]}:\n  Installed: (none)\n  Candidate: 6.12.1-1\n"

    monkeypatch.setattr(packages, "output_of", apt)
    assert packages.newest_kernel_source() == ("linux-source-6.12", "6.12.1-1")
    monkeypatch.setattr(packages, "output_of", lambda argv: "")
    with pytest.raises(VmError, match="apt-get update"):
        packages.newest_kernel_source()


def test_what_is_not_installed_is_named_by_package() -> None:
    with pytest.raises(VmError, match=r"apt-get install a-package$"):
        common.require_commands({"sh": "dash", "no-such-command-at-all": "a-package"}, "this")


def test_an_archive_has_the_files_where_they_belong() -> None:
    archive = Archive()
    archive.file("bin/program", b"12345", 0o755)
    archive.link("bin/sh", "program")
    data = archive.finish()
    found = {}
    while data:
        size, length, mode = int(data[54:62], 16), int(data[94:102], 16), int(data[14:22], 16)
        name = data[110 : 110 + length - 1].decode()
        start = (110 + length + 3) // 4 * 4
        found[name] = (oct(mode), data[start : start + size])
        data = data[start + (size + 3) // 4 * 4 :]
    assert found == {
        "bin": ("0o40755", b""),
        "bin/program": ("0o100755", b"12345"),
        "bin/sh": ("0o120777", b"program"),
        "TRAILER!!!": ("0o0", b""),
    }


def fake_guest(text: str) -> str:
    """A kernel that runs `text` with `$job` being the job's folder."""
    return f"for word; do case $word in vmlab.job=*) job=${{word#*=}};; esac; done\n{text}"


def test_output_and_exit_code_are_the_commands(empty_cache: Path) -> None:
    built(empty_cache, "6.12-1", fake_guest("echo out > $job/stdout; echo err > $job/stderr; echo 7 > $job/status"))
    out, err = io.StringIO(), io.StringIO()
    assert machine.run(job.Request(["true"]), out=out, err=err) == 7
    assert (out.getvalue(), err.getvalue()) == ("out\n", "err\n")


def test_a_machine_that_dies_is_told_with_its_last_words(empty_cache: Path) -> None:
    built(empty_cache, "6.12-1", "echo Kernel panic")
    with pytest.raises(VmError, match="Kernel panic"):
        machine.run(job.Request(["true"]))


def test_a_machine_that_takes_too_long_is_ended(empty_cache: Path) -> None:
    built(empty_cache, "6.12-1", "exec sleep 1000")
    with pytest.raises(job.VmTimeoutError):
        machine.run(job.Request(["true"], timeout=0.1))


def test_a_machine_is_ended_when_nobody_waits_any_more(empty_cache: Path) -> None:
    built(empty_cache, "6.12-1", "exec sleep 1000")
    request = job.Request(["true"])
    request.cancelled.set()
    with pytest.raises(VmError, match="before its end"):
        machine.run(request)


def test_the_guest_is_told_command_folder_and_variables(tmp_path: Path) -> None:
    request = job.Request(["sh", "-c", 'echo "$PWD $COLOUR"; exit 5'], cwd=tmp_path, environment={"COLOUR": "a 'b'"})
    with job.folder(request) as folder:
        lines = (folder / "run").read_text().replace(job.GUEST_JOB, str(folder)).splitlines()
        script = "\n".join(line for line in lines if not line.startswith(("hostname", "exec", "sync")))
        subprocess.run(["sh", "-c", script], check=True)
        assert (folder / "stdout").read_text() == f"{tmp_path} a 'b'\n"
        assert (folder / "status").read_text() == "5\n"
    assert not folder.exists()


def test_a_kernel_parameter_with_a_space_is_refused(empty_cache: Path) -> None:
    built(empty_cache, "6.12-1")
    with pytest.raises(VmError, match="spaces"):
        uml.run(job.Request(["true"], exchange=Path("/a b")), sys.stdout, sys.stderr)


def test_exit_codes_of_the_command(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["run", "--", "true"]) == 125
    assert "tools/vmlab build" in capsys.readouterr().err
    assert main.main(["status"]) == 1
    built(empty_cache, "6.12-1", fake_guest("echo 3 > $job/status"))
    assert main.main(["run", "--", "true"]) == 3
    assert main.main(["run", "--env", "NOTHING", "--", "true"]) == 2
    assert main.main(["status"]) == 0
    built(empty_cache, "6.13-1", "exec sleep 1000")
    assert main.main(["run", "--timeout", "0.1", "--", "true"]) == 124
