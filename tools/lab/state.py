"""What a lab makes, on disk before it is made: a later command, or one after a crash, finds and removes all of it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tools.lab.network import PREFIX
from tools.lab.processes import Process
from tools.lab.topology import Link

LAB_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,15}\Z")
CHAIN = "-chain"  # no node's name begins with a dash


class LabError(Exception):
    """The lab cannot do it; the message says why and what would help."""


class State(msgspec.Struct):
    name: str
    created_at: float  # seconds since 1970
    address_by_node: dict[str, str]
    fee_by_node: dict[str, int]
    links: list[Link]
    process_by_node: dict[str, Process] = {}  # CHAIN for the chain
    is_complete: bool = False  # False: `up` is at work, or did not get to its end

    def namespace(self, node: str) -> str:
        return f"{PREFIX}{self.name}-{node}"

    @property
    def namespaces(self) -> list[str]:
        return [self.namespace(node) for node in (*self.address_by_node, CHAIN)]


def base_dir() -> Path:
    """Where labs keep their files: short, as a Unix socket's path has at most 107 bytes."""
    return Path(os.environ.get("MESHLAB_DIR", "/run/meshlab"))


@contextmanager
def own_base(prefix: str) -> Iterator[None]:
    """Labs keep their files in a directory of their own, unless MESHLAB_DIR names one; it goes, but not with logs in it
    that a lab has kept."""
    if "MESHLAB_DIR" in os.environ:
        yield
        return
    base = os.environ["MESHLAB_DIR"] = tempfile.mkdtemp(prefix=prefix)
    try:
        yield
    finally:
        del os.environ["MESHLAB_DIR"]
        if not os.listdir(base):
            os.rmdir(base)


def directory(name: str) -> Path:
    if not LAB_NAME.match(name):
        raise LabError(f"'{name}' is not a lab name: up to 16 of a-z, 0-9 and -, not - first")
    return base_dir() / name


def _file(name: str) -> Path:
    return directory(name) / "state.json"


def create(state: State) -> None:
    """Fails when a lab of that name is there, whole or half. Files of one that failed, kept for its logs, give way."""
    if not _file(state.name).exists():
        shutil.rmtree(directory(state.name), ignore_errors=True)
    directory(state.name).mkdir(parents=True, exist_ok=True)
    try:
        with _file(state.name).open("xb") as file:
            file.write(msgspec.json.encode(state))
    except FileExistsError as error:
        raise LabError(f"lab '{state.name}' is up already: meshlab down --name {state.name}") from error


def save(state: State) -> None:
    temporary = _file(state.name).with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(state))
    temporary.replace(_file(state.name))


def read(name: str) -> State:
    try:
        return msgspec.json.decode(_file(name).read_bytes(), type=State)
    except FileNotFoundError as error:
        raise LabError(f"no lab '{name}' is up; there are: {', '.join(names()) or 'none'}") from error
    except msgspec.DecodeError as error:
        raise LabError(f"{_file(name)} is damaged: {error}") from error


def names() -> list[str]:
    return sorted(path.parent.name for path in base_dir().glob("*/state.json"))
