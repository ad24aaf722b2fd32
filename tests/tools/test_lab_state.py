"""Where labs keep their files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.lab.state import base_dir, own_base


def test_a_base_of_its_own_goes_unless_a_lab_has_kept_logs_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESHLAB_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with own_base("mine-"):
        empty = base_dir()
        assert empty.is_dir()
    assert not empty.exists()
    with own_base("mine-"):
        kept = base_dir()
        (kept / "log").touch()
    assert (kept / "log").exists()
    assert "MESHLAB_DIR" not in os.environ
    monkeypatch.setenv("MESHLAB_DIR", "/named")
    with own_base("mine-"):
        assert base_dir() == Path("/named")
