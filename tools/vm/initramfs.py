"""Writes the archive that a kernel unpacks as its first root: cpio in its "newc" form (the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat
from pathlib import PurePosixPath


class Archive:
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders: set[str] = set()
        self._count = 0

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._folders_of(name)
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """Symbolic."""
        self._folders_of(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _folders_of(self, name: str) -> None:
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            if str(parent) not in self._folders:
                self._folders.add(str(parent))
                self._entry(str(parent), stat.S_IFDIR | 0o755, b"")

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._count += 1
        path = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum
        numbers = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        self._parts += [_padded(header + path), _padded(data)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
