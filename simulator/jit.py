"""numba where it is there: plain functions are compiled as they are, or run as they are.

Kernels and what they call are written once, as plain functions on scalars and numpy arrays. `compiled(kernel, helpers)`
is the machine code of `kernel`, for which `helpers`, functions that it calls, need no decorator; among them are those
of `routing.rules`, so that the compiled engine has the daemon's own rules. None of them allocates anything, and a slice
of an array is an object: so they need no reference counts, which would take half of the time. Without numba, or with
MESHSIM_JIT=0 in the environment, it is `kernel` itself: the results are the same, it takes some hundred times as long.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from routing.rules import seqno_add

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
OFF = "MESHSIM_JIT"


def is_available() -> bool:
    return os.environ.get(OFF) != "0" and _numba() is not None


def version() -> str | None:
    """Of numba; None: kernels are interpreted."""
    return str(_numba().__version__) if is_available() else None


def functions(*modules: ModuleType) -> tuple[Callable[..., Any], ...]:
    """All that are defined in these modules, to be named as helpers."""
    return tuple(
        function
        for module in modules
        for _, function in sorted(inspect.getmembers(module, inspect.isfunction))
        if function.__module__ == module.__name__
    )


def compiled(kernel: Kernel, helpers: Sequence[Callable[..., Any]] = ()) -> Kernel:
    """`helpers`: in any order, but all that are called, by `kernel` or by each other."""
    if not is_available():
        return kernel
    machine_code: Kernel = _compile(kernel, tuple(helpers))
    return machine_code


@cache
def _numba() -> Any:
    try:
        import numba  # noqa: PLC0415 - takes a second; most runs of meshsim do without
        import numba.extending  # noqa: PLC0415
    except ImportError:
        return None
    return numba


@cache
def _options() -> dict[str, bool]:
    """Without numba's runtime: no reference counts. Nobody promises that the option stays: used if it is there."""
    options = {"_nrt": False}
    try:
        _numba().njit(**options)(seqno_add)
    except KeyError:
        return {}
    return options


@cache
def _register(helper: Callable[..., Any]) -> None:
    _numba().extending.register_jitable(**_options())(helper)


@cache
def _compile(kernel: Any, helpers: tuple[Callable[..., Any], ...]) -> Any:
    numba = _numba()
    for helper in helpers:
        _register(helper)
    # numba's cache sees a change of the kernel's own file only: so its folder is named by all the sources.
    sources = sorted({inspect.getsourcefile(function) or "" for function in (kernel, *helpers)})
    state = hashlib.blake2b(f"{numba.__version__} {sys.version}".encode(), digest_size=12)
    for source in sources:
        state.update(Path(source).read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(Path(home) / "meshsim" / state.hexdigest())
    try:
        return numba.njit(cache=True, nogil=True, **_options())(kernel)
    except RuntimeError:  # there is no place to write to
        return numba.njit(nogil=True, **_options())(kernel)
    finally:
        numba.config.CACHE_DIR = before
