"""A User-Mode Linux kernel, built once from Debian's linux-source package and kept."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

from tools.vm import packages
from tools.vm.common import Progress, VmError, cache, exclusive, require_commands, run_quietly

CONFIG = Path(__file__).with_name("uml.config")
_ARCHITECTURE = ["ARCH=um", "SUBARCH=x86_64"]
_TOOLS = {
    "gcc": "build-essential",
    "make": "build-essential",
    "ld": "build-essential",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
}
_WANTED = re.compile(r"^(CONFIG_\w+)=y$", re.MULTILINE)


def _digest() -> str:
    """Of the options, not of what is said about them."""
    options = sorted(line for line in CONFIG.read_text().splitlines() if line.startswith("CONFIG_"))
    return hashlib.blake2b("\n".join(options).encode(), digest_size=4).hexdigest()


def kernel() -> Path | None:
    """The newest one that was built with this configuration, of whatever source version."""
    built = cache().glob(f"uml-*-{_digest()}/linux")
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


def why_not_here() -> str | None:
    """None: this machine can run such a kernel."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"User-Mode Linux runs on x86_64 Linux only, not on {platform.system()} {platform.machine()}"
    return None


def build(progress: Progress, *, again: bool = False, jobs: int = 0) -> Path:
    """The kernel of the newest source that apt knows; about seven minutes on two cores unless it is there already.
    `jobs`: 0 for one a core. Raises VmError."""
    if reason := why_not_here():
        raise VmError(reason)
    require_commands(_TOOLS, "building the kernel")
    with exclusive("uml", progress):
        if (found := kernel()) is not None and not again:
            return found
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache()) as work:
            return _build(Path(work), progress, jobs or os.cpu_count() or 1)


def _build(work: Path, progress: Progress, jobs: int) -> Path:
    log = work / "log"
    package, version = packages.unpack_newest(packages.newest_kernel_source, work, log, progress)
    progress("unpacking the source")
    run_quietly(["tar", "-xf", str(work / "usr" / "src" / f"{package}.tar.xz")], log, progress, cwd=work)
    make = ["make", "-s", "-C", str(work / package), f"O={work / 'out'}", *_ARCHITECTURE]
    run_quietly([*make, f"KCONFIG_ALLCONFIG={CONFIG}", "allnoconfig"], log, progress)
    refused = unset_options((work / "out" / ".config").read_text())
    if refused:
        raise VmError(f"{package} {version} does not take {', '.join(refused)} of {CONFIG}")
    progress(f"building, {jobs} at a time; about 14 CPU minutes in all")
    make.remove("-s")  # what it compiles is what shows its progress
    run_quietly([*make, f"-j{jobs}", "linux"], log, progress)
    finished = work / "finished"
    finished.mkdir()
    run_quietly(["strip", "-o", str(finished / "linux"), str(work / "out" / "linux")], log, progress)
    shutil.copy(work / "out" / ".config", finished / "config")
    target = cache() / f"uml-{version}-{_digest()}"
    shutil.rmtree(target, ignore_errors=True)
    finished.rename(target)
    progress(f"built {target / 'linux'}")
    return target / "linux"


def unset_options(made: str) -> list[str]:
    """Options of ours that the kernel's own rules have turned off."""
    there = set(_WANTED.findall(made))
    return [option for option in _WANTED.findall(CONFIG.read_text()) if option not in there]
