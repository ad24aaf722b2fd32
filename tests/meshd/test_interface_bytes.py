"""/proc/net/dev, as Linux writes it."""

from __future__ import annotations

from pathlib import Path

from meshd.kernel.interface_bytes import read_interface_bytes

_TEXT = """\
Inter-|   Receive                              |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier
    lo: 1000       10    0    0    0     0          0         0     1000      10    0    0    0     0
mw12345678901: 18446744073709551615 7 0 0 0 0 0 0 99 1 0 0 0 0 0 0
eth0:1: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0
 short: 1 2
"""


def test_received_and_sent_are_told_apart_by_name(tmp_path: Path) -> None:
    file = tmp_path / "dev"
    file.write_text(_TEXT)
    found = read_interface_bytes(file)
    assert found == {"lo": (1000, 1000), "mw12345678901": (2**64 - 1, 99), "eth0:1": (5, 6)}


def test_this_machine_has_a_loopback_interface() -> None:
    assert "lo" in read_interface_bytes()
