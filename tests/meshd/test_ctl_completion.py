"""Completion of meshctl's command lines, by the shells themselves."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from meshd.ctl.commands import COMMANDS
from meshd.ctl.main import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, shell: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        assert all(word in script for word in command.words.split())
    path = tmp_path / "script"
    path.write_text(script)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here to read it")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_bash_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for line, wanted in (("meshctl pr", "price"), ("meshctl price s", "show"), ("meshctl status --wa", "--watch")):
        words = " ".join(f"'{word}'" for word in line.split())
        last = len(line.split()) - 1
        ask = f"\nCOMP_WORDS=({words}); COMP_CWORD={last}; _shtab_meshctl; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True)
        assert wanted in done.stdout.split(), done


def test_fish_completes_commands_and_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("no fish here to complete with")
    assert main(["completion", "fish"]) == 0
    path = tmp_path / "meshctl.fish"
    path.write_text(capsys.readouterr().out)
    for line, wanted in (("meshctl pr", "price"), ("meshctl price s", "show"), ("meshctl status --wa", "--watch")):
        command = ["fish", "--no-config", "-c", f"source {path}; complete -C '{line}'"]
        home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=home)
        assert wanted in [offered.partition("\t")[0] for offered in done.stdout.splitlines()], done


def test_zsh_completes_what_is_typed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """At a terminal, with the script where its first lines say."""
    if shutil.which("zsh") is None:
        pytest.skip("no zsh here to complete with")
    assert main(["completion", "zsh"]) == 0
    (tmp_path / "_meshctl").write_text(capsys.readouterr().out)
    start = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D; PS1='rea''dy '\n"
    (tmp_path / ".zshrc").write_text(start + 'meshctl() { print "asked: $*." }\n')
    leader, terminal = os.openpty()
    home = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "PATH": os.environ["PATH"], "TERM": "dumb"}
    with subprocess.Popen(["zsh", "-i"], stdin=terminal, stdout=terminal, stderr=terminal, env=home) as shell:
        os.close(terminal)
        _read_until(leader, b"ready ")
        os.write(leader, b"meshctl price sh\t\n")
        _read_until(leader, b"asked: price show.")
        os.write(leader, b"meshctl status --wat\t\n")
        _read_until(leader, b"asked: status --watch")
        os.close(leader)
        shell.kill()


def _read_until(terminal: int, wanted: bytes) -> None:
    said = b""
    while wanted not in said:
        readable, _, _ = select.select([terminal], [], [], 60.0)
        assert readable, said
        said += os.read(terminal, 4096)
