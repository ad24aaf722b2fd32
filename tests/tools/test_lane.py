"""The instructions of the fast lane that are in the repository are those of the source beside them."""

from __future__ import annotations

import json
import shutil

import pytest

from tools.bpf.main import RESULT, compile_lane

_COMPILER = "clang-14"  # of Debian 12; another may make other instructions of the same source


@pytest.mark.skipif(shutil.which(_COMPILER) is None, reason=f"{_COMPILER} is not installed")
def test_the_committed_instructions_are_what_the_source_compiles_to() -> None:
    assert compile_lane(_COMPILER) == RESULT.read_text()


def test_each_program_finds_its_table() -> None:
    programs = json.loads(RESULT.read_text())
    assert sorted(programs) == ["from_link", "from_tunnel"]
    for program in programs.values():
        code = bytes.fromhex("".join(program["code"]))
        assert program["places"]
        for number in program["places"]:
            assert code[number * 8] == 0x18  # loads 64 bits: the place of the map's address
