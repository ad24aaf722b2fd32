"""Large pages for the heap of a large run, on Linux.

Tables of a gigabyte are read here and there at every update, and with pages of 4 KiB most of that begins with a walk
through the page table. The interpreter takes its memory in pieces that are too small for the kernel to give large pages
at once, so they are put together now and then. Nothing depends on it: what the kernel refuses stays as it is.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

LARGE = 2 << 20  # bytes of a large page; of another size than the machine's it does no harm
_COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1
_MAPS = Path("/proc/self/maps")


def gather() -> None:
    """Put the small pages of this process's heap together into large ones."""
    try:
        advise = ctypes.CDLL(None).madvise
        maps = _MAPS.read_text()
    except (AttributeError, OSError, TypeError):
        return  # another system
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in heap(maps):
        first, last = -(-start // LARGE) * LARGE, end // LARGE * LARGE
        if first < last:
            advise(first, last - first, _COLLAPSE)


def heap(maps: str) -> list[tuple[int, int]]:
    """Where private memory without a file begins and ends, of the lines of /proc/PID/maps."""
    found = []
    for line in maps.splitlines():
        words = line.split()
        if words[1] == "rw-p" and (len(words) == 5 or words[5] == "[heap]"):
            start, end = words[0].split("-")
            found.append((int(start, 16), int(end, 16)))
    return found
