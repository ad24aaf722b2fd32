"""What each interface has received and sent, as the kernel counts it anyway: one file, however many interfaces.

To read it takes a small part of what a reading of the meter takes, and says whether that is worth while.
"""

from __future__ import annotations

from pathlib import Path

_FILE = Path("/proc/net/dev")
_HEADER_LINES = 2
_RECEIVED, _SENT = 0, 8  # of the columns after the name, in bytes

BytesByInterface = dict[str, tuple[int, int]]


def read_interface_bytes(path: Path = _FILE) -> BytesByInterface:
    """(received, sent) by name, of this network namespace. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        text = file.read().decode(errors="replace")
    found: BytesByInterface = {}
    for line in text.splitlines()[_HEADER_LINES:]:
        name, _, rest = line.rpartition(":")
        columns = rest.split()
        if len(columns) > _SENT:
            found[name.strip()] = int(columns[_RECEIVED]), int(columns[_SENT])
    return found
