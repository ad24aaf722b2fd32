"""What several of these tests are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meshd.played_daemon import Daemon, running


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """The one that meshctl asks."""
    path = tmp_path / "s"
    monkeypatch.setenv("MESHD_SOCKET", str(path))
    with running(path) as made:
        yield made
