"""Debian packages that are read and not installed: the kernel's source, and a kernel."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from tools.vm.common import Progress, VmError, output_of, require_commands, run_quietly

_SOURCE = re.compile(r"linux-source-(\d+)\.(\d+)\Z")
_UPDATE = "the package lists know none: sudo apt-get update, then try again"


def newest_kernel_source() -> tuple[str, str]:
    """Package and version, as apt's lists have them. Raises VmError."""
    names = [name for name in output_of(["apt-cache", "pkgnames", "linux-source-"]).split() if _SOURCE.match(name)]
    if not names:
        raise VmError(f"no linux-source package: {_UPDATE}")
    package = max(names, key=lambda name: [int(part) for part in name.rpartition("-")[2].split(".")])
    return package, _candidate(package)


def kernel_image() -> tuple[str, str]:
    """The package that linux-image-amd64 stands for, and its version. Raises VmError."""
    for line in output_of(["apt-cache", "depends", "linux-image-amd64"]).splitlines():
        kind, _, package = line.strip().partition(": ")
        if kind == "Depends" and package.startswith("linux-image-"):
            return package, _candidate(package)
    raise VmError(f"no linux-image-amd64 package: {_UPDATE}")


def _candidate(package: str) -> str:
    for line in output_of(["apt-cache", "policy", package]).splitlines():
        key, _, value = line.strip().partition(": ")
        if key == "Candidate" and value != "(none)":
            return value
    raise VmError(f"apt has no version of {package}: {_UPDATE}")


def refresh_lists(log: Path, progress: Progress) -> None:
    """Where we may: a fresh machine has none, and old ones name files that are gone."""
    if os.geteuid() == 0:
        progress("apt-get update")
        run_quietly(["apt-get", "update"], log, progress)


def unpack(package: str, version: str, into: Path, log: Path, progress: Progress) -> None:
    """Downloads the package and unpacks its files into the folder. Raises VmError."""
    require_commands({"apt-get": "apt", "dpkg-deb": "dpkg"}, "reading a Debian package")
    into.mkdir(parents=True, exist_ok=True)
    progress(f"downloading {package} {version}")
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    run_quietly(["apt-get", *sandbox, "download", f"{package}={version}"], log, progress, cwd=into)
    for archive in into.glob(f"{package}_*.deb"):
        run_quietly(["dpkg-deb", "-x", str(archive), str(into)], log, progress)
        archive.unlink()


def unpack_newest(find: Callable[[], tuple[str, str]], into: Path, log: Path, progress: Progress) -> tuple[str, str]:
    """What `find` names, and its version; with fresh lists where apt has none, or no longer that. Raises VmError."""
    try:
        package, version = find()
        unpack(package, version, into, log, progress)
    except VmError:
        refresh_lists(log, progress)
        package, version = find()
        unpack(package, version, into, log, progress)
    return package, version
