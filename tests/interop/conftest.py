"""What the daemons of a mixed mesh said, when a test has failed."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

LOG_LINES = 30


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    directory = item.funcargs.get("tmp_path") if isinstance(item, pytest.Function) else None
    if report.failed and isinstance(directory, Path):
        for log in sorted(path for path in directory.glob("*/*log") if path.is_file()):
            lines = log.read_text(errors="replace").splitlines()
            report.sections.append((f"{log.parent.name}: {log.name}", "\n".join(lines[-LOG_LINES:])))
    return report
