"""Machine code of the exact fidelity: when it is used. tools/bench/simulator shows that the traces are the same."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulator import compiled, main, preflight

WHERE = """
import sys
from simulator import compiled
compiled.activate(sys.argv[1:])
import routing.rules
print(routing.rules.__file__)
"""


def where(home: Path, *arguments: str, jit: str = "1") -> Path:
    environment = {"XDG_CACHE_HOME": str(home), "MESHSIM_JIT": jit}
    done = subprocess.run(
        [sys.executable, "-c", WHERE, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def test_a_complete_compilation_is_used_by_run_unless_it_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = compiled.folder()
    assert place.is_relative_to(tmp_path)
    shutil.copytree(Path(preflight.__file__).parents[1] / "routing", place / "routing")
    assert not where(tmp_path, "run").is_relative_to(place), "it is not complete"
    (place / "complete").touch()
    assert where(tmp_path, "run").is_relative_to(place)
    assert not where(tmp_path, "batch").is_relative_to(place), "numba needs the sources"
    assert not where(tmp_path, "run", jit="0").is_relative_to(place)
    assert not where(tmp_path, "run", "--record", "0:file").is_relative_to(place)


def test_a_changed_source_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled.folder()
    changed = tmp_path / "changed.py"
    changed.write_text("1")
    monkeypatch.setattr(compiled, "_sources", lambda: [changed])
    assert compiled.folder() != before


def test_what_exceeds_the_allowed_memory_is_refused_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["run", "--topology", "grid:20x20", "--max-memory", "100M"]) == 2
    assert "--max-memory" in capsys.readouterr().err
    assert main.main(["run", "--topology", "grid:2x2", "--max-memory", "1G"]) == 0


def test_the_end_of_a_run_is_estimated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(main.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("simulator.run.PROGRESS_EVENTS", 50)
    assert main.main(["run", "--topology", "grid:3x3", "--quiet", "1"]) == 0
    assert "s to go" in capsys.readouterr().err


PLAIN = '''"""A module."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

LIMIT = 3


@dataclass(frozen=True, slots=True)
class Update:
    metric: int
    router_id: bytes
    price: int | None = LIMIT


@dataclass(slots=True)
class Table:
    updates: list[Update] = field(default_factory=list)
    best: Update | None = None


@dataclass(slots=True)
class Tables:
    first: Table = field(default_factory=lambda: Table([]))
'''


def test_what_is_made_ready_for_the_compiler_means_the_same(tmp_path: Path) -> None:
    text = compiled._prepared(PLAIN)
    assert "LIMIT: Final = 3" in text
    (tmp_path / "ready.py").write_text(text)
    names: dict[str, Any] = runpy.run_path(str(tmp_path / "ready.py"))
    update = names["Update"]
    assert "__init__" in text and repr(update(1, b"a")).endswith("Update(metric=1, router_id=b'a', price=3)")
    assert update(1, b"a", price=4) == names["replace"](update(1, b"a"), price=4) != update(1, b"a")
    assert hash(update(1, b"a")) == hash(update(1, b"a"))
    table = names["Table"]
    one, other = table(), table([1], best=2)
    assert one.updates == [] and one.updates is not table().updates and other.updates == [1]
    assert text.count("def __init__") == 2, "of a field without a plain default the dataclass itself takes care"
    assert names["Tables"]().first == table()
