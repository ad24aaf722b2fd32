"""The import rules (ARCHITECTURE.md) and the size rule (CONTRIBUTING.md), checked on the syntax tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OWN = ("routing", "payments", "meshd", "simulator", "tools", "tests")

# Clocks, sockets, files, tasks and hidden randomness: an engine gets `now` and its random source as arguments.
IO = frozenset(
    [
        "trio",
        "socket",
        "time",
        "logging",
        "asyncio",
        "anyio",
        "select",
        "selectors",
        "threading",
        "multiprocessing",
        "concurrent",
        "subprocess",
        "signal",
        "datetime",
        "os",
        "io",
        "pathlib",
        "shutil",
        "tempfile",
        "sqlite3",
        "ssl",
        "http",
        "urllib",
        "requests",
        "pyroute2",
        "secrets",
    ]
)

# Heavy or restrictively licensed: path patterns of the files that may import them.
RESTRICTED = {
    "bitcoinlib": ("payments/adapters/wallet_*.py", "payments/adapters/explorer*.py"),
    "pbk": ("payments/adapters/*",),
    "scapy": ("tools/*", "tests/*"),
    "networkx": ("simulator/*", "tests/*", "tools/*"),
    "matplotlib": ("simulator/*", "tools/*"),
    "numba": ("simulator/*",),
}

# Our packages that the files of each package may import besides their own.
ALLOWED: dict[str, frozenset[str]] = {
    "routing": frozenset(),
    "payments": frozenset(),
    "meshd": frozenset({"routing", "payments"}),
    "simulator": frozenset({"routing", "payments"}),
    "tools": frozenset({"routing", "payments", "meshd"}),
    "tests": frozenset({"routing", "payments", "meshd", "simulator", "tools"}),
}

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 70
LONG = "# long: "  # followed by the reason; on the line above the function, or in the first ten lines of the file


def python_files() -> list[str]:
    """Paths relative to the root, scripts without a suffix included."""
    found = []
    for path in sorted(p for package in OWN for p in (ROOT / package).rglob("*") if p.is_file()):
        if path.suffix == ".py" or (not path.suffix and path.read_bytes()[:64].split(b"\n")[0].endswith(b"python3")):
            found.append(path.relative_to(ROOT).as_posix())
    return found


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, inside functions and TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "."  # relative: may leave the package unseen, so absolute only


def broken_rule(path: str, module: str) -> str | None:
    package, _, _ = path.partition("/")
    top, _, _ = module.partition(".")
    if module == ".":
        return "relative import; write the absolute name"
    if top in OWN and top != package and top not in ALLOWED[package]:
        return f"{package} must not import {top}"
    is_adapter = path.startswith("payments/adapters/")
    if package in ("routing", "payments") and not is_adapter and top in IO:
        return f"{package} is pure: no {top}"
    if package == "payments" and not is_adapter and module.startswith("payments.adapters"):
        return "the payment core must not know its adapters"
    if top in RESTRICTED and not any(fnmatch(path, pattern) for pattern in RESTRICTED[top]):
        return f"{top} may be imported only in {', '.join(RESTRICTED[top])}"
    return None


def import_faults(path: str, source: str) -> list[str]:
    found = ((line, broken_rule(path, module)) for line, module in imports(ast.parse(source)))
    return [f"{path}:{line}: {rule}" for line, rule in found if rule]


def size_faults(path: str, source: str) -> list[str]:
    lines = source.splitlines()
    faults = []
    if len(lines) > MAX_FILE_LINES and not any(LONG in line for line in lines[:10]):
        faults.append(f"{path}: {len(lines)} lines, {MAX_FILE_LINES} at most")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if length > MAX_FUNCTION_LINES and not (first > 1 and LONG in lines[first - 2]):
            faults.append(f"{path}:{node.lineno}: {node.name} has {length} lines, {MAX_FUNCTION_LINES} at most")
    return faults


def test_import_rules_hold() -> None:
    files = python_files()
    assert len(files) > 10
    assert [fault for path in files for fault in import_faults(path, (ROOT / path).read_text())] == []


def test_files_and_functions_are_short() -> None:
    assert [fault for path in python_files() for fault in size_faults(path, (ROOT / path).read_text())] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("routing/speaker.py", "import time"),
        ("routing/speaker.py", "def late():\n    from socket import AF_INET6"),
        ("routing/speaker.py", "from payments import ledger"),
        ("routing/speaker.py", "from . import codec"),
        ("payments/ledger.py", "import routing.rules"),
        ("payments/ledger.py", "import trio.abc"),
        ("payments/ledger.py", "from payments.adapters import kernel"),
        ("payments/adapters/kernel.py", "import meshd"),
        ("payments/adapters/kernel.py", "import bitcoinlib"),
        ("payments/adapters/wallet_hd.py", "from meshd.config import Config"),
        ("meshd/main.py", "import simulator.network"),
        ("meshd/main.py", "from tools.lab import lab"),
        ("meshd/main.py", "import networkx as nx"),
        ("simulator/network.py", "from meshd import units"),
        ("tools/lab/lab.py", "from tests import helpers"),
        ("tests/meshd/test_main.py", "import bitcoinlib.wallets"),
    ],
)
def test_the_checker_sees_a_forbidden_import(path: str, source: str) -> None:
    assert import_faults(path, source) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("routing/speaker.py", "from random import Random\nfrom routing.tlv import Tlv"),
        ("payments/adapters/kernel.py", "import pbk, trio, socket"),
        ("payments/adapters/wallet_hd.py", "from bitcoinlib.wallets import Wallet"),
        ("simulator/network.py", "import networkx\nfrom routing.speaker import Speaker"),
        ("meshd/main.py", "import trio\nfrom payments.adapters import kernel"),
    ],
)
def test_the_checker_lets_the_rest_pass(path: str, source: str) -> None:
    assert import_faults(path, source) == []


def test_the_checker_sees_what_is_too_long() -> None:
    long_function = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert len(size_faults("meshd/a.py", long_function)) == 1
    assert size_faults("meshd/a.py", f"{LONG}a table\n{long_function}") == []
    assert size_faults("meshd/a.py", "x = 1\n" * MAX_FILE_LINES) == []
    assert len(size_faults("meshd/a.py", "x = 1\n" * (MAX_FILE_LINES + 1))) == 1


@pytest.mark.parametrize("package", ["meshd", "meshd.main", "meshd.ctl.main", "routing", "payments"])
def test_a_router_loads_nothing_heavy(package: str) -> None:
    """A router with 256 MB neither pays for the tools' libraries nor needs them installed."""
    heavy = [*RESTRICTED, "asyncio", "sqlalchemy", "requests", "numpy", "pyroute2.ndb", "unittest"]
    script = f"import sys, {package}\nprint([m for m in {sorted(heavy)} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if package == "meshd.main" and not (ROOT / "meshd/main.py").exists():
        pytest.skip("meshd/main.py is not written yet")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
