"""Compiles the fast lane's C into the instructions that the daemon loads: a Raspberry Pi has no clang, and needs none.

The result is JSON: for each program its instructions in hexadecimal, eight bytes each, and the numbers of those that
load the address of the map `places`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BPF = Path(__file__).resolve().parents[2] / "meshd" / "kernel" / "bpf"
SOURCE, RESULT = _BPF / "lane.c", _BPF / "lane.json"
_COMPILERS = ("clang-14", "clang", "clang-19", "clang-16")
_SECTIONS = ("link", "tunnel")
_RELOCATIONS = 9  # SHT_REL
_INSTRUCTION = 8
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, link, info, alignment, entry size


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    link: int
    info: int
    body: bytes


def compiler() -> str | None:
    """The first that is installed; versions may differ in what they make of it, so the oldest of Debian comes first."""
    return next((path for name in _COMPILERS if (path := shutil.which(name))), None)


def compile_lane(clang: str) -> str:
    """The text of lane.json. Raises CalledProcessError."""
    headers = f"/usr/include/{platform.machine()}-linux-gnu"
    with tempfile.TemporaryDirectory(prefix="mk-lane-") as directory:
        target = Path(directory) / "lane.o"
        argv = [clang, "-O2", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v2", "-I", headers, "-c", str(SOURCE)]
        subprocess.run([*argv, "-o", str(target)], check=True)
        sections = list(_sections(target.read_bytes()))
    programs = {
        f"from_{section.name}": {
            "places": sorted(_loads(sections, number)),
            "code": [section.body[at : at + 64].hex() for at in range(0, len(section.body), 64)],
        }
        for number, section in enumerate(sections)
        if section.name in _SECTIONS
    }
    return json.dumps(programs, indent=1) + "\n"


def _sections(elf: bytes) -> Iterator[_Section]:
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [_SECTION.unpack_from(elf, start + number * size) for number in range(count)]
    names = headers[names_at][4]
    for name, kind, _, _, offset, length, link, info, _, _ in headers:
        end = elf.index(b"\0", names + name)
        yield _Section(elf[names + name : end].decode(), kind, link, info, elf[offset : offset + length])


def _loads(sections: list[_Section], of: int) -> Iterator[int]:
    for section in sections:
        if section.kind == _RELOCATIONS and section.info == of:
            for offset, _ in struct.iter_unpack("<QQ", section.body):
                yield offset // _INSTRUCTION


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/lane", description=__doc__.partition("\n")[0])
    parser.parse_args()
    clang = compiler()
    if clang is None:
        sys.exit("no clang: apt-get install clang-14")
    RESULT.write_text(compile_lane(clang))


if __name__ == "__main__":
    main()
