"""WireGuard interfaces with one peer each: the kernel's own where it has them, else `wireguard-go` (Debian).

Both are made here and told the same; `wireguard-go` by the text protocol of its Unix socket
(https://www.wireguard.com/xplatform/), the kernel through pyroute2, in a worker thread, for it blocks.
"""

from __future__ import annotations

import base64
import errno
import os
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Protocol

import trio

from meshd.kernel.links import Links
from meshd.kernel.netlink import NetlinkError

PROGRAM = "wireguard-go"
_SOCKETS = Path("/var/run/wireguard")  # where the program puts NAME.sock, in whatever network namespace it is
_START_TIMEOUT = 5.0
_CALL_TIMEOUT = 5.0
_POLL_INTERVAL = 0.02
_MAX_REPLY = 65536
EVERYTHING = ("::/0", "0.0.0.0/0")

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
    """`handshake_at`: seconds since 1970 of the last handshake, 0 if there was none yet."""

    port: int
    handshake_at: int


class Device(Protocol):
    """One interface, with one peer that all its traffic goes to and comes from."""

    name: str

    async def configure(self, private_key: bytes, peer_key: bytes) -> None:
        """Replaces all that was configured; listens on a port that is free."""

    async def set_endpoint(self, peer_key: bytes, endpoint: Endpoint, *, keepalive: int) -> None: ...

    async def status(self) -> Status: ...


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

    async def configure(self, private_key: bytes, peer_key: bytes) -> None:
        await self._set(
            ("private_key", private_key.hex()),
            ("listen_port", "0"),
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
        return Status(int(values.get("listen_port", 0)), int(values.get("last_handshake_time_sec", 0)))

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
            raise WireGuardError(f"{self.name}: {PROGRAM} answered {text.strip()!r}")
        return text


class KernelDevice:
    def __init__(self, name: str) -> None:
        self.name = name

    async def configure(self, private_key: bytes, peer_key: bytes) -> None:
        peer = {"public_key": _base64(peer_key), "allowed_ips": list(EVERYTHING), "replace_allowed_ips": True}
        await _in_thread(self.name, private_key=_base64(private_key), peer=peer)

    async def set_endpoint(self, peer_key: bytes, endpoint: Endpoint, *, keepalive: int) -> None:
        address = f"{endpoint.address}%{endpoint.scope}" if endpoint.scope else str(endpoint.address)
        peer = {
            "public_key": _base64(peer_key),
            "endpoint_addr": address,
            "endpoint_port": endpoint.port,
            "persistent_keepalive": keepalive,
        }
        await _in_thread(self.name, peer=peer)

    async def status(self) -> Status:
        return await trio.to_thread.run_sync(_kernel_status, self.name)


def _base64(key: bytes) -> bytes:
    return base64.b64encode(key)


async def _in_thread(name: str, **settings: object) -> None:
    def apply() -> None:
        from pyroute2 import WireGuard  # noqa: PLC0415  a second of start-up that most nodes need not pay

        with WireGuard() as kernel:
            kernel.set(name, **settings)

    try:
        await trio.to_thread.run_sync(apply)
    except Exception as error:
        raise WireGuardError(f"{name}: {error}") from error


def _kernel_status(name: str) -> Status:
    from pyroute2 import WireGuard  # noqa: PLC0415

    try:
        with WireGuard() as kernel:
            info = kernel.info(name)[0]
    except Exception as error:
        raise WireGuardError(f"{name}: {error}") from error
    peers = info.get_attr("WGDEVICE_A_PEERS") or []
    handshake = peers[0].get_attr("WGPEER_A_LAST_HANDSHAKE_TIME") if peers else None
    return Status(info.get_attr("WGDEVICE_A_LISTEN_PORT"), handshake["tv_sec"] if handshake else 0)


async def _start_program(name: str) -> GoDevice:
    _socket_of(name).unlink(missing_ok=True)  # of one that was killed
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
    with trio.move_on_after(_START_TIMEOUT):
        while process.poll() is None:
            if _socket_of(name).exists():
                return GoDevice(name, process)
            await trio.sleep(_POLL_INTERVAL)
    if process.poll() is None:
        process.kill()
    raise WireGuardError(f"{PROGRAM} did not make {name} (exit code {process.wait()})")


def _socket_of(name: str) -> Path:
    return _SOCKETS / f"{name}.sock"
