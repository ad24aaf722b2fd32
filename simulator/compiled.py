"""The exact fidelity as machine code: the daemon's own sources through mypyc, which is a part of mypy.

`meshsim compile` does it once (a minute or two of CPU time, and a C compiler), into a folder of `~/.cache/meshsim` that
is named by a digest of the sources: a changed source is never run from an old compilation. From then on `meshsim run`
uses it; MESHSIM_JIT=0 in the environment keeps it from that. Traces are the same, and so is the code: nothing is
written twice.

This module imports nothing of the project, since it decides where that is imported from.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OFF = "MESHSIM_JIT"
VERBS = ("run",)  # numba, which the others use, wants the sources
PACKAGES = ("routing", "simulator", "payments")
MODULES = ("hops", "network", "oracle", "run", "trace")  # of the simulator, beside all of routing
_ROOT = Path(__file__).resolve().parent.parent
_MARK = "complete"
# Of one number. (A tuple as a Final stays unset in mypy 2.4.)
_CONSTANT = re.compile(r"^(_?[A-Z][A-Z0-9_]+) = (?=(?:-?[\d.]|float\(|\()[^,<\n#]*(?:#.*)?$)", re.MULTILINE)
_ACYCLIC = ("Update", "Source", "InstallRoute", "RouteChange")
_IMPORTS = "from typing import Final\nfrom mypy_extensions import mypyc_attr\n"
_FUTURE = "from __future__ import annotations\n"
_FLAGS = "-fno-semantic-interposition"  # nobody replaces our functions: so they may call each other directly
_SETTINGS = "[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n"


class CompileError(Exception):
    """The message has the last lines of what the compiler said."""


def folder() -> Path:
    """Where the compilation of these sources belongs, by this interpreter."""
    state = hashlib.blake2b(sys.version.encode(), digest_size=12)
    for path in (Path(__file__), *_sources()):
        state.update(path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "meshsim" / f"exact-{state.hexdigest()}"


def is_built() -> bool:
    return (folder() / _MARK).exists()


def activate(arguments: list[str]) -> bool:
    """Before anything of routing is imported: take it from the compilation, if there is one and it may be used."""
    is_wanted = bool(arguments) and arguments[0] in VERBS and os.environ.get(OFF) != "0"
    # A recording says what its classes have, by annotations, which are not left in machine code.
    is_wanted = is_wanted and not any(argument.startswith("--rec") for argument in arguments)
    if not is_wanted or "routing" in sys.modules or not is_built():
        return False
    sys.path.insert(0, str(folder()))
    sys.modules["simulator"].__path__.insert(0, str(folder() / "simulator"))
    return True


def is_active() -> bool:
    """Whether this process runs machine code."""
    found = sys.modules.get("routing.speaker")
    return found is not None and str(found.__file__).endswith(".so")


def build() -> Path:
    """Raises CompileError, OSError."""
    target = folder()
    if is_built():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        place = Path(temporary) / "tree"
        for package in PACKAGES:
            shutil.copytree(_ROOT / package, place / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for path in [place / source.relative_to(_ROOT) for source in _sources()]:
            path.write_text(_prepared(path.read_text("utf-8")), "utf-8")
        (place / "mypy.ini").write_text(_SETTINGS)
        command = [sys.executable, "-m", "mypyc", *(str(path.relative_to(_ROOT)) for path in _sources())]
        flags = os.environ | {"CFLAGS": f"{os.environ.get('CFLAGS', '')} {_FLAGS}"}
        done = subprocess.run(command, cwd=place, env=flags, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError("\n".join((done.stdout + done.stderr).splitlines()[-15:]))
        for unwanted in (place / "build", place / "payments", place / ".mypy_cache"):
            shutil.rmtree(unwanted, ignore_errors=True)
        for path in list((place / "simulator").rglob("*")):
            if path.is_file() and path.suffix != ".so":
                path.unlink()
        (place / _MARK).touch()
        try:
            place.rename(target)
        except OSError:
            if not is_built():  # another process was quicker
                raise
    return target


def _prepared(text: str) -> str:
    """A module as mypyc makes the most of it; what it does stays the same.

    Constants are told to be such, so that no dictionary is asked for them. Constructors of dataclasses are written out:
    else the interpreter runs them. And what is frozen is so for mypy alone, which has proved that nothing is assigned
    there: at run time it would cost a call for each field of each object. The search for circles passes over those that
    there are millions of, and that hold nothing but numbers, octets and addresses.
    """
    lines = text.splitlines(keepends=True)
    for item in reversed([item for item in ast.parse(text).body if isinstance(item, ast.ClassDef)]):
        constructor = _constructor(item)
        if constructor:
            lines.insert(item.end_lineno or 0, constructor)
        if constructor and item.name in _ACYCLIC:
            lines.insert(item.decorator_list[0].lineno - 1, "@mypyc_attr(acyclic=True)\n")
    text = "".join(lines).replace("@dataclass(frozen=True", "@dataclass(unsafe_hash=True")
    text = text.replace(_FUTURE, _FUTURE + _IMPORTS, 1)
    return _CONSTANT.sub(r"\1: Final = ", text)


def _constructor(item: ast.ClassDef) -> str:
    """Nothing for what is no dataclass, or not of the simplest kind."""
    is_dataclass = any(ast.unparse(decorator).startswith("dataclass(") for decorator in item.decorator_list)
    methods = {part.name for part in item.body if isinstance(part, ast.FunctionDef)}
    fields = [part for part in item.body if isinstance(part, ast.AnnAssign)]
    if not is_dataclass or not fields or item.bases or methods & {"__init__", "__post_init__"}:
        return ""
    arguments, body = "", ""
    for part in fields:
        name, factory = ast.unparse(part.target), _factory(part)
        if factory is None:
            arguments += f", {ast.unparse(part)}"
            body += f"        self.{name} = {name}\n"
        elif factory:
            arguments += f", {name}: {ast.unparse(part.annotation)} | None = None"
            body += f"        self.{name} = {factory}() if {name} is None else {name}\n"
        else:
            return ""
    return f"\n    def __init__(self{arguments}) -> None:\n{body}"


def _factory(part: ast.AnnAssign) -> str | None:
    """Of a field, its default's; None if it has none, nothing if it is one that has no name."""
    if not (isinstance(part.value, ast.Call) and ast.unparse(part.value.func) == "field"):
        return None
    factories = [word.value for word in part.value.keywords if word.arg == "default_factory"]
    return factories[0].id if len(part.value.keywords) == 1 and factories and isinstance(factories[0], ast.Name) else ""


def _sources() -> list[Path]:
    modules = [_ROOT / "simulator" / f"{name}.py" for name in MODULES]
    return [*sorted((_ROOT / "routing").glob("*.py")), *modules]
