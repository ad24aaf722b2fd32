"""Where the labs keep their files, and what their daemons said when a test has failed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.lab.mesh import Mesh

LOG_LINES = 40


@pytest.fixture(scope="session", autouse=True)
def lab_base() -> Iterator[Path]:
    """Short, as a Unix socket's path has at most 107 bytes."""
    base = Path(tempfile.mkdtemp(prefix="meshlab-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MESHLAB_DIR", str(base))
        yield base
    if not any(base.iterdir()):  # a lab that did not come up has left its logs
        shutil.rmtree(base)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for mesh in {value for value in item.funcargs.values() if isinstance(value, Mesh)}:
            for node in mesh.lab.nodes:
                lines = mesh.lab.log(node).read_text(errors="replace").splitlines()
                report.sections.append((f"log of {node}", "\n".join(lines[-LOG_LINES:])))
    return report
