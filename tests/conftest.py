"""Tests that need network namespaces skip, with the reason, where there can be none. Settings of hypothesis."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import HealthCheck, settings

# A loaded machine is no fault of the code. Where CI is set (.ci/run does) the examples are always the same: a change is
# judged by what it changes, and `tools/test` goes on looking for new ones.
settings.register_profile(
    "meshd", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("meshd")


def why_no_namespaces() -> str | None:
    """None: they work here. A container's root often may not make them."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"ml-probe-{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
        entered = subprocess.run(["ip", "netns", "exec", name, "true"], capture_output=True, text=True, check=False)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    except FileNotFoundError:
        return "network namespaces need iproute2"
    failed = made if made.returncode else entered
    return f"no network namespaces here: {failed.stderr.strip()}" if failed.returncode else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("namespaces") or item.get_closest_marker("lab")]
    if needing and (reason := why_no_namespaces()):
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=reason))
