"""Of the configuration file, and of what the daemon keeps on the disk."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from meshd.doctor.finding import Finding, World, error, ok, warning

_STATE_NEEDS = 50_000_000  # bytes


def configuration(world: World) -> Iterator[Finding]:
    if world.config_error is not None:
        if not world.config_path.exists():
            yield error(
                "configuration", f"there is no {world.config_path}", f"meshctl config init --output {world.config_path}"
            )
        else:
            yield error("configuration", world.config_error, f"edit {world.config_path}; then: meshctl config check")
        return
    config = world.config
    if not config.interfaces and not config.peers:
        yield error(
            "configuration",
            f"{world.config_path} names no interface and no peer: nobody can be a neighbour",
            'add an [[interface]] with the name of the radio or wire, such as name = "wlan0"',
        )
        return
    if any(interface.mac_keys for interface in config.interfaces) and _is_open_to_all(world.config_path):
        yield warning(
            "configuration",
            f"{world.config_path} has MAC keys in it and can be read by everybody",
            f"chmod o= {world.config_path}, or put the keys into files of their own (mac_keys with file)",
        )
        return
    yield ok("configuration", f"{world.config_path}: {len(config.interfaces)} interfaces, {len(config.peers)} peers")


def _is_open_to_all(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IROTH)


def state(world: World) -> Iterator[Finding]:
    directory = world.config.node.state_dir
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        room = os.statvfs(place)
        status = place.stat()
    except OSError as found:
        yield error("state", f"cannot look at {place}: {found.strerror}", "run meshctl doctor as root")
        return
    if room.f_flag & os.ST_RDONLY:
        yield error(
            "state",
            f"{place} is on a file system that is mounted read-only: no identity, no payment can be kept",
            f"mount -o remount,rw $(findmnt -no TARGET -T {place}); on a Raspberry Pi look for a worn SD card (dmesg)",
        )
    elif room.f_bavail * room.f_frsize < _STATE_NEEDS:
        yield error(
            "state",
            f"{place} has {room.f_bavail * room.f_frsize / 1e6:.0f} MB left: payments stop when they cannot be stored",
            f"make room on the file system of {place} (df -h {place}; journalctl --vacuum-size=100M)",
        )
    if place != directory:
        return
    if status.st_mode & 0o077:
        yield warning(
            "state",
            f"{directory} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}); the node's money is in it",
            f"chmod 700 {directory}",
        )
    yield from _identity(directory, status.st_uid)


def _identity(directory: Path, owner: int) -> Iterator[Finding]:
    path = directory / "identity"
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    except OSError as found:
        yield warning("state", f"cannot look at {path}: {found.strerror}", "run meshctl doctor as root")
        return
    if status.st_mode & 0o077:
        yield error(
            "state",
            f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}); meshd does not start with it",
            f"chmod 600 {path}",
        )
    if status.st_uid not in (0, owner) or (status.st_uid == 0 and owner != 0):
        name = _name(owner)
        yield error(
            "state",
            f"{path} belongs to {_name(status.st_uid)}, its directory to {name}: the daemon cannot read it",
            f"chown {name}: {path}",
        )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
