"""Socket filters: the kernel leaves out what nobody here wants to hear, so that it wakes nobody up.

The programs are of the old BPF, which needs no right (Documentation/networking/filter.rst).
"""

from __future__ import annotations

import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module lacks it
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, k
_LOAD_BYTE = 0x30  # BPF_LD | BPF_B | BPF_ABS
_JUMP_IF_SET = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K: so many bytes are kept
_ALL = 0xFFFFFFFF


def has_bits(offset: int, mask: int) -> bytes:
    """A program that lets through what has one of the bits of `mask` in its byte at `offset`; nothing shorter."""
    instructions = ((_LOAD_BYTE, 0, 0, offset), (_JUMP_IF_SET, 0, 1, mask), (_RETURN, 0, 0, _ALL), (_RETURN, 0, 0, 0))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


def attach(to: socket.socket, program: bytes) -> None:
    """From now on; what is in the socket's buffer stays there. Raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", count, ctypes.addressof(instructions)))
