"""Runs a command in the User-Mode Linux kernel of `uml_build`: a host's process that boots in a second."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO

from tools.vm import job, uml_build
from tools.vm.common import VmError
from tools.vm.job import Request, Time

INIT = Path(__file__).with_name("uml-init")
_TIME: dict[Time, list[str]] = {Time.REAL: [], Time.SKIP: ["time-travel"], Time.STILL: ["time-travel=inf-cpu"]}
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the guest's memory is a file, which had better not be on a disk


def run(request: Request, out: IO[str], err: IO[str]) -> int:
    """The command's exit code. Raises VmError."""
    kernel = uml_build.kernel()
    if reason := uml_build.why_not_here():
        raise VmError(reason)
    if kernel is None:
        raise VmError("no User-Mode Linux kernel: tools/vmlab build")
    with job.folder(request) as folder, (folder / "console").open("wb") as console:
        machine = subprocess.Popen(
            [str(kernel), *_parameters(request, folder)],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
            env={"PATH": job.PATH, "HOME": str(folder), "TMPDIR": _SHARED_MEMORY},
        )
        return job.follow(machine, folder, request, out, err)


def _parameters(request: Request, folder: Path) -> list[str]:
    words = [
        f"mem={request.memory_mb}M",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        f"init={INIT}",
        "quiet",
        "panic=-1",
        "con=null",
        "con0=null,fd:1",
        f"uml_dir={folder}",
        f"umid={folder.name}",
        "initcall_blacklist=jent_mod_init",  # measures the clock's jitter: for ever, where time stands still
        f"vmlab.job={folder}",
    ]
    if request.exchange is not None:
        words.append(f"vmlab.exchange={request.exchange}")
    words += _TIME[request.time]
    words += request.kernel_options
    for word in words:
        if len(word.split()) != 1:
            raise VmError(f"a kernel parameter cannot have spaces: '{word}'")
    return words
