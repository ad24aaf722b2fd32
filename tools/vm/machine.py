"""Which kernels are there, and `run`: a command in one of them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import IO

from tools.vm import qemu, uml, uml_build
from tools.vm.common import VmError
from tools.vm.job import Request


class Backend(StrEnum):
    AUTO = "auto"  # User-Mode Linux where its kernel is built, else QEMU
    UML = "uml"
    QEMU = "qemu"


def kernel(backend: Backend) -> Path | None:
    """Where the backend's kernel is, if it is ready to run here."""
    if backend is Backend.UML:
        return uml_build.kernel() if uml_build.why_not_here() is None else None
    return qemu.kernel() if qemu.why_not_here() is None else None


def choose(backend: Backend = Backend.AUTO) -> Backend:
    """What `auto` stands for now. Raises VmError where there is no kernel."""
    if backend is not Backend.AUTO:
        return backend
    for candidate in (Backend.UML, Backend.QEMU):
        if kernel(candidate) is not None:
            return candidate
    raise VmError("no kernel is ready: tools/vmlab build (User-Mode Linux), or tools/vmlab build --backend qemu")


def run(
    request: Request, backend: Backend = Backend.AUTO, *, out: IO[str] | None = None, err: IO[str] | None = None
) -> int:
    """The command's exit code; what it writes goes to `out` and `err` as it comes (default: our own).

    Raises VmError: no such kernel, or the machine ended without an exit code; VmTimeoutError: it took too long.
    """
    runner = uml.run if choose(backend) is Backend.UML else qemu.run
    if request.exchange is not None:
        request.exchange.mkdir(parents=True, exist_ok=True)
    return runner(request, out or sys.stdout, err or sys.stderr)
