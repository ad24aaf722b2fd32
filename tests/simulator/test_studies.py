"""docs/simulator.md: its commands print what it says they print, and what it says of them is in what they print.

`python -m tests.simulator.test_studies` writes their output into the page anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from simulator import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "simulator.md"
TOLERANCE = 0.02
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w.]*\w)")
# Of the machine, or of every change of the protocol: not compared.
VOLATILE = ("simulated", "trace", "packets, messages", "scenario")


@dataclass
class Command:
    words: list[str]
    wanted: list[str]


@dataclass
class Study:
    title: str
    commands: list[Command]
    prose: str


def studies(page: str) -> Iterator[Study]:
    for part in page.split("\n## ")[1:]:
        commands: list[Command] = []
        for line in (line for block in BLOCK.findall(part) for line in block.splitlines()):
            if line.startswith("$ "):
                commands.append(Command(shlex.split(line[2:]), []))
            else:
                commands[-1].wanted.append(line)
        yield Study(part.partition("\n")[0], commands, BLOCK.sub("", part))


def run(command: Command) -> list[str]:
    """What it prints on the screen; progress and warnings go elsewhere."""
    assert command.words[0] == "meshsim"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        status = main.main(command.words[1:])
    assert status == 0, f"{command.words}: {status}"
    return [shortened(line) for line in said.getvalue().splitlines()]


def shortened(line: str) -> str:
    name = next((name for name in VOLATILE if line.startswith(name)), None)
    return line if name is None else f"{name:<24}..."


def is_same(wanted: str, printed: str) -> bool:
    """The same words, and the same figures within the tolerance."""
    if NUMBER.sub("#", wanted) != NUMBER.sub("#", printed):
        return False
    pairs = zip(map(float, NUMBER.findall(wanted)), map(float, NUMBER.findall(printed)), strict=True)
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) for a, b in pairs)


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """A folder in which the page's file names mean what they mean in the repository."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "simulator").symlink_to(ROOT / "simulator")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


STUDIES = list(studies(PAGE.read_text()))


def test_there_are_four() -> None:
    assert len(STUDIES) == 4
    assert all(study.commands[0].wanted for study in STUDIES)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.title)
def test_a_study_is_what_its_commands_print(study: Study) -> None:
    printed: list[str] = []
    with workplace():
        for command in study.commands:
            now = run(command)
            printed += now
            assert len(now) == len(command.wanted), "\n".join(now)
            for wanted, line in zip(command.wanted, now, strict=True):
                assert is_same(wanted, line), f"the page has\n{wanted}\nand it is\n{line}"
    figures = {float(number) for line in printed for number in NUMBER.findall(line)}
    for claim in re.findall(r"\*\*([^*]+)\*\*", study.prose):
        (number,) = NUMBER.findall(claim)
        near = [figure for figure in figures if is_same(number, str(figure)) or float(number) == figure]
        assert near, f"{claim} is in nothing that is printed"


def test_the_comparison_can_fail() -> None:
    assert is_same("node 7    12.5 sat", "node 7    12.6 sat")
    assert not is_same("node 7    12.5 sat", "node 7    13.5 sat")
    assert not is_same("node 7    12.5 sat", "knot 7    12.5 sat")
    assert not is_same("a 1 2", "a 1")


def update(page: str) -> str:
    """The page, with what its commands print now."""

    def renewed(found: re.Match[str]) -> str:
        lines = []
        for line in (line for line in found[1].splitlines() if line.startswith("$ ")):
            lines += [line, *run(Command(shlex.split(line[2:]), []))]
        return "```console\n" + "\n".join(lines) + "\n```"

    with workplace():
        return BLOCK.sub(renewed, page)


if __name__ == "__main__":
    PAGE.write_text(update(PAGE.read_text()))
    sys.exit(0)
