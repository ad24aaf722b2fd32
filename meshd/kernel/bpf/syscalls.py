"""The bpf system call (bpf(2)), as far as the fast lane needs it: maps, programs, and finding both again.

File descriptors are owned by whoever gets them. Everything raises OSError as the kernel says it; ENOSYS where there is
no such system call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Collection
from typing import Any

_SYSCALL_BY_MACHINE = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _PROG_LOAD = 0, 5
_PROG_FD_BY_ID, _MAP_FD_BY_ID, _INFO_BY_FD = 13, 14, 15
_ARRAY, _U32_SIZE = 2, 4
_MMAPABLE = 1 << 10
_SCHED_CLS = 3
_ATTR_SIZE = 128
_LOG_SIZE = 1 << 16
_MAX_MAPS = 16
_PROG_INFO = struct.Struct("=IIQIIQQQIIQ16s")  # type, id, tag, two sizes, two pointers, time, user, maps, map ids, name
_MAP_INFO = struct.Struct("=IIIIII16s")  # type, id, sizes of key and value, entries, flags, name

_libc = ctypes.CDLL(None, use_errno=True)


def create_array(name: str, *, value_size: int, entries: int) -> int:
    """A map whose values are one after the other, to be mapped into memory."""
    attr = struct.pack("=IIIIIII16s", _ARRAY, _U32_SIZE, value_size, entries, _MMAPABLE, 0, 0, name.encode())
    return _bpf(_MAP_CREATE, attr)


def load_program(instructions: bytes, name: str, *, licence: str) -> int:
    """For tc. What the verifier has against it is in the text of the error."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    terms = ctypes.create_string_buffer(licence.encode())
    log = ctypes.create_string_buffer(_LOG_SIZE)
    fields = (_SCHED_CLS, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(terms))
    try:
        return _bpf(_PROG_LOAD, struct.pack("=IIQQIIQII16s", *fields, 0, 0, 0, 0, 0, name.encode()))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
    with_log = struct.pack("=IIQQIIQII16s", *fields, 1, _LOG_SIZE, ctypes.addressof(log), 0, 0, name.encode())
    try:
        return _bpf(_PROG_LOAD, with_log)
    except OSError as error:
        said = log.value.decode(errors="replace").strip().splitlines()[-2:]
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: {'; '.join(said)}") from None


def program_by_id(number: int) -> int:
    """Needs CAP_SYS_ADMIN."""
    return _bpf(_PROG_FD_BY_ID, struct.pack("=III", number, 0, 0))


def map_by_id(number: int) -> int:
    """Needs CAP_SYS_ADMIN."""
    return _bpf(_MAP_FD_BY_ID, struct.pack("=III", number, 0, 0))


def map_ids(program_fd: int) -> list[int]:
    """Of the maps that the program uses."""
    ids = (ctypes.c_uint32 * _MAX_MAPS)()
    count = _program_info(program_fd, ctypes.addressof(ids))[9]
    return list(ids[: min(count, _MAX_MAPS)])


def is_program(program_fd: int, names: Collection[str]) -> bool:
    """Whether it is for tc, and is called so."""
    kind, *_, name = _program_info(program_fd, 0)
    return kind == _SCHED_CLS and name.rstrip(b"\0").decode(errors="replace") in names


def _program_info(program_fd: int, ids_at: int) -> tuple[Any, ...]:
    info = bytearray(_PROG_INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, _MAX_MAPS if ids_at else 0, ids_at, b""))
    _info(program_fd, info)
    return _PROG_INFO.unpack(info)


def is_array(map_fd: int, name: str, *, value_size: int, entries: int) -> bool:
    """Whether it is one that `create_array` has made so."""
    info = bytearray(_MAP_INFO.size)
    _info(map_fd, info)
    kind, _, *shape, found = _MAP_INFO.unpack(info)
    is_alike = (kind, *shape) == (_ARRAY, _U32_SIZE, value_size, entries, _MMAPABLE)
    return is_alike and found.rstrip(b"\0") == name.encode()


def _info(fd: int, info: bytearray) -> None:
    buffer = (ctypes.c_char * len(info)).from_buffer(info)
    _bpf(_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), ctypes.addressof(buffer)))


def _bpf(command: int, attr: bytes) -> int:
    # Of programs of 64 bits: in one of 32 on the same machine, the number is that of another call.
    number = _SYSCALL_BY_MACHINE.get(platform.machine()) if struct.calcsize("P") == 8 else None
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = ctypes.create_string_buffer(attr, _ATTR_SIZE)
    result = int(_libc.syscall(number, command, buffer, len(attr)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
