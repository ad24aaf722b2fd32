"""WireGuard interfaces with one peer each: the kernel's own where it has them, else `wireguard-go` (Debian).

Both are made here and told the same; `wireguard-go` by the text protocol of its Unix socket
(https://www.wireguard.com/xplatform/), the kernel by generic netlink (linux/wireguard.h). Not by pyroute2, which knows
no scope of an endpoint's address, and here all are link-local.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Protocol

import trio

from meshd.kernel.generic import GenericNetlink, nested
from meshd.kernel.links import Links
from meshd.kernel.netlink import NetlinkError, attribute, attributes

PROGRAM = "wireguard-go"
_SOCKETS = Path("/var/run/wireguard")  # where the program puts NAME.sock, in whatever network namespace it is
_START_TIMEOUT = 5.0
_CALL_TIMEOUT = 5.0
_END_TIMEOUT = 1.0
_POLL_INTERVAL = 0.02
_MAX_REPLY = 65536
EVERYTHING = ("::/0", "0.0.0.0/0")

_FAMILY = "wireguard"
_GET_DEVICE, _SET_DEVICE = 0, 1
_DEVICE_NAME, _DEVICE_KEY, _DEVICE_FLAGS, _DEVICE_PORT, _DEVICE_MARK, _DEVICE_PEERS = 2, 3, 5, 6, 7, 8
_PEER_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_KEEPALIVE, _PEER_HANDSHAKE = 1, 3, 4, 5, 6
_PEER_RECEIVED, _PEER_ALLOWED = 7, 9
_ALLOWED_FAMILY, _ALLOWED_ADDRESS, _ALLOWED_LENGTH = 1, 2, 3
_REPLACE_PEERS = 1
_REPLACE_ALLOWED, _UPDATE_ONLY = 2, 4
_PROBE = "mwprobe"

IPAddress = IPv4Address | IPv6Address


class WireGuardError(Exception):
    """The interface cannot be made or told; the message says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the peer's end is reached. `scope`: of a link-local address, the interface's index."""

    address: IPAddress
    port: int
    scope: int = 0

    def __str__(self) -> str:
        if isinstance(self.address, IPv4Address):
            return f"{self.address}:{self.port}"
        return f"[{self.address}%{self.scope}]:{self.port}" if self.scope else f"[{self.address}]:{self.port}"


@dataclass(frozen=True, slots=True)
class Status:
    """`port`: ours. `handshake_at`: seconds since 1970 of the last handshake, 0 if there was none yet.

    `received`: bytes that the peer, and nobody else, has sent. `endpoint`: where it was heard last, or is looked for.
    """

    port: int
    handshake_at: int
    received: int = 0
    endpoint: Endpoint | None = None


class Device(Protocol):
    """One interface, with one peer that all its traffic goes to and comes from."""

    name: str

    async def configure(self, private_key: bytes, peer_key: bytes, *, port: int = 0, mark: int = 0) -> None:
        """Replaces all that was configured. `port`: where to listen; 0: any that is free. `mark`: of what it sends."""

    async def set_endpoint(self, peer_key: bytes, endpoint: Endpoint, *, keepalive: int) -> None: ...

    async def status(self) -> Status: ...

    async def close(self) -> None:
        """After the interface was deleted: nothing of it remains."""


async def require(links: Links) -> None:
    """Raises WireGuardError where no tunnel can be made, and says what the operator can do."""
    if shutil.which(PROGRAM) is not None:
        return
    try:
        await links.add_wireguard(_PROBE)
    except NetlinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise WireGuardError(f"cannot make a WireGuard interface: {error}") from error
        raise WireGuardError(
            'tunnels are wanted (security = "wireguard" is the default of an [[interface]]), but this kernel has no '
            f"WireGuard, and {PROGRAM} is not installed: apt install {PROGRAM}, or, where everybody on the wire is "
            'trusted, write security = "none" in their [[interface]]'
        ) from None
    await links.delete(_PROBE)


async def make(name: str, links: Links) -> Device:
    """A new interface, not yet up. Raises WireGuardError."""
    try:
        await links.add_wireguard(name)
        return KernelDevice(name)
    except NetlinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise WireGuardError(f"cannot make {name}: {error}") from error
    return await _start_program(name)


class GoDevice:
    """An interface that a `wireguard-go` process serves. The process ends when the interface is deleted."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self._process = process

    async def configure(self, private_key: bytes, peer_key: bytes, *, port: int = 0, mark: int = 0) -> None:
        await self._set(
            ("private_key", private_key.hex()),
            ("listen_port", str(port)),
            ("fwmark", str(mark)),
            ("replace_peers", "true"),
            ("public_key", peer_key.hex()),
            ("replace_allowed_ips", "true"),
            *(("allowed_ip", prefix) for prefix in EVERYTHING),
        )

    async def set_endpoint(self, peer_key: bytes, endpoint: Endpoint, *, keepalive: int) -> None:
        await self._set(
            ("public_key", peer_key.hex()),
            ("update_only", "true"),
            ("endpoint", str(endpoint)),
            ("persistent_keepalive_interval", str(keepalive)),
        )

    async def status(self) -> Status:
        values = dict(line.partition("=")[::2] for line in (await self._call("get=1\n\n")).splitlines())
        try:
            return Status(
                int(values.get("listen_port", 0)),
                int(values.get("last_handshake_time_sec", 0)),
                int(values.get("rx_bytes", 0)),
                _read_endpoint(values["endpoint"]) if "endpoint" in values else None,
            )
        except ValueError as error:
            raise WireGuardError(f"{self.name}: {PROGRAM} does not make sense: {error}") from error

    async def close(self) -> None:
        try:
            with trio.move_on_after(_END_TIMEOUT):
                while self._process.poll() is None:
                    await trio.sleep(_POLL_INTERVAL)
        finally:
            _end(self._process)

    async def _set(self, *settings: tuple[str, str]) -> None:
        await self._call("".join(f"{key}={value}\n" for key, value in (("set", "1"), *settings)) + "\n")

    async def _call(self, request: str) -> str:
        if self._process.poll() is not None:
            raise WireGuardError(f"{self.name}: {PROGRAM} has ended")
        reply = b""
        try:
            with trio.fail_after(_CALL_TIMEOUT):
                stream = await trio.open_unix_socket(_socket_of(self.name))
                async with stream:
                    await stream.send_all(request.encode())
                    while not reply.endswith(b"\n\n") and len(reply) < _MAX_REPLY:
                        part = await stream.receive_some()
                        if not part:
                            break
                        reply += part
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            raise WireGuardError(f"{self.name}: {PROGRAM} does not answer: {error or 'too slow'}") from error
        text = reply.decode(errors="replace")
        if "errno=0\n" not in text:
            # Not the text itself: it may hold the private key.
            code = next((line for line in text.splitlines() if line.startswith("errno=")), "half an answer")
            raise WireGuardError(f"{self.name}: {PROGRAM} answered {code}")
        return text


class KernelDevice:
    def __init__(self, name: str) -> None:
        self.name = name

    async def configure(self, private_key: bytes, peer_key: bytes, *, port: int = 0, mark: int = 0) -> None:
        await self._ask(_SET_DEVICE, configuration(self.name, private_key, peer_key, port=port, mark=mark))

    async def set_endpoint(self, peer_key: bytes, endpoint: Endpoint, *, keepalive: int) -> None:
        await self._ask(_SET_DEVICE, peer_endpoint(self.name, peer_key, endpoint, keepalive=keepalive))

    async def status(self) -> Status:
        return read_status(await self._ask(_GET_DEVICE, attribute(_DEVICE_NAME, self.name.encode() + b"\0")))

    async def close(self) -> None:
        """The kernel has done it."""

    async def _ask(self, command: int, payload: bytes) -> list[bytes]:
        try:
            with GenericNetlink(_FAMILY) as kernel:
                if command == _GET_DEVICE:
                    return await kernel.dump(command, payload)
                await kernel.request(command, payload)
                return []
        except (NetlinkError, OSError) as error:
            raise WireGuardError(f"{self.name}: {error}") from error


def configuration(name: str, private_key: bytes, peer_key: bytes, *, port: int = 0, mark: int = 0) -> bytes:
    """The attributes that replace all, with one peer for everything."""
    allowed = b""
    for family, size in ((socket.AF_INET6, 16), (socket.AF_INET, 4)):
        allowed += nested(
            0,
            attribute(_ALLOWED_FAMILY, struct.pack("=H", family))
            + attribute(_ALLOWED_ADDRESS, bytes(size))
            + attribute(_ALLOWED_LENGTH, b"\0"),
        )
    peer = attribute(_PEER_KEY, peer_key) + attribute(_PEER_FLAGS, struct.pack("=I", _REPLACE_ALLOWED))
    return (
        attribute(_DEVICE_NAME, name.encode() + b"\0")
        + attribute(_DEVICE_FLAGS, struct.pack("=I", _REPLACE_PEERS))
        + attribute(_DEVICE_KEY, private_key)
        + attribute(_DEVICE_PORT, struct.pack("=H", port))
        + attribute(_DEVICE_MARK, struct.pack("=I", mark))
        + nested(_DEVICE_PEERS, nested(0, peer + nested(_PEER_ALLOWED, allowed)))
    )


def peer_endpoint(name: str, peer_key: bytes, endpoint: Endpoint, *, keepalive: int) -> bytes:
    """The attributes that move the far end of a peer that is there."""
    if isinstance(endpoint.address, IPv4Address):
        head = struct.pack("=H", socket.AF_INET) + struct.pack("!H", endpoint.port)
        address = head + endpoint.address.packed + bytes(8)  # struct sockaddr_in
    else:
        head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", endpoint.port, 0)
        address = head + endpoint.address.packed + struct.pack("=I", endpoint.scope)  # struct sockaddr_in6
    peer = (
        attribute(_PEER_KEY, peer_key)
        + attribute(_PEER_FLAGS, struct.pack("=I", _UPDATE_ONLY))
        + attribute(_PEER_ENDPOINT, address)
        + attribute(_PEER_KEEPALIVE, struct.pack("=H", keepalive))
    )
    return attribute(_DEVICE_NAME, name.encode() + b"\0") + nested(_DEVICE_PEERS, nested(0, peer))


def read_status(answers: list[bytes]) -> Status:
    port = handshake_at = received = 0
    endpoint = None
    for data in answers:
        for kind, start, end in attributes(data, 0, len(data)):
            if kind == _DEVICE_PORT and end - start == 2:
                (port,) = struct.unpack_from("=H", data, start)
            elif kind == _DEVICE_PEERS:
                for _, peer, peer_end in attributes(data, start, end):
                    for what, value, value_end in attributes(data, peer, peer_end):
                        if what == _PEER_HANDSHAKE and value_end - value >= 8:  # struct __kernel_timespec
                            (handshake_at,) = struct.unpack_from("=q", data, value)
                        elif what == _PEER_RECEIVED and value_end - value == 8:
                            (received,) = struct.unpack_from("=Q", data, value)
                        elif what == _PEER_ENDPOINT:
                            endpoint = _socket_address(data[value:value_end])
    return Status(port, handshake_at, received, endpoint)


def _socket_address(data: bytes) -> Endpoint | None:
    """struct sockaddr_in or sockaddr_in6; None: neither."""
    family = int.from_bytes(data[:2], sys.byteorder)
    port = int.from_bytes(data[2:4], "big")
    if family == socket.AF_INET and len(data) >= 8:
        return Endpoint(IPv4Address(data[4:8]), port)
    if family == socket.AF_INET6 and len(data) >= 28:
        return Endpoint(IPv6Address(data[8:24]), port, int.from_bytes(data[24:28], sys.byteorder))
    return None


def _read_endpoint(text: str) -> Endpoint:
    """As `Endpoint.__str__` writes it; wireguard-go may name the interface of the scope. Raises ValueError."""
    host, _, port = text.rpartition(":")
    address, _, scope = host.strip("[]").partition("%")
    try:
        index = int(scope or 0) if scope.isdecimal() or not scope else socket.if_nametoindex(scope)
    except OSError:
        index = 0
    return Endpoint(ip_address(address), int(port), index)


async def _start_program(name: str) -> GoDevice:
    await _wait_for_predecessor(_socket_of(name))
    try:
        # A session of its own: it carries on when the daemon is killed, as the kernel's routes do.
        process = subprocess.Popen(
            [PROGRAM, "--foreground", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"LOG_LEVEL": "silent"},
        )
    except FileNotFoundError:
        raise WireGuardError(
            f"this kernel has no WireGuard, and {PROGRAM} is not installed (Debian package {PROGRAM})"
        ) from None
    except OSError as error:
        raise WireGuardError(f"cannot start {PROGRAM}: {error.strerror}") from error
    try:
        with trio.move_on_after(_START_TIMEOUT):
            while process.poll() is None:
                if _socket_of(name).exists():
                    return GoDevice(name, process)
                await trio.sleep(_POLL_INTERVAL)
    except BaseException:
        _end(process)  # else it would make an interface that nobody knows of
        raise
    _end(process)
    raise WireGuardError(f"{PROGRAM} did not make {name} (exit code {process.returncode})")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its interface goes with it. Nothing is left of it, not even a zombie."""
    if process.poll() is None:
        process.kill()
        process.wait()


async def _wait_for_predecessor(path: Path) -> None:
    """One whose interface has just been deleted removes its socket when it ends: that must not be the next one's."""
    with trio.move_on_after(_END_TIMEOUT):
        while _is_served(path):
            await trio.sleep(_POLL_INTERVAL)
    path.unlink(missing_ok=True)  # of one that was killed


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def _socket_of(name: str) -> Path:
    return _SOCKETS / f"{name}.sock"
