"""What we change of the machine's settings, and how it was before: sysctls, offloads, addresses, interfaces of ours.

It is written to a file before it is changed, so that the next start can put it back if we are killed. A record of
another boot or of another network namespace is about settings that no longer exist, and is ignored.
"""

from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import msgspec
import trio

from meshd.kernel import ethtool
from meshd.kernel.links import Links
from meshd.kernel.netlink import NetlinkError

_SYSCTL = Path("/proc/sys/net")
_V4 = "ipv4/conf"
_V6 = "ipv6/conf"

# On an interface of the mesh. Redirects would tell senders to go round us; packets take another way back than they
# came, and an interface without IPv4 address fails every reverse path filter; routes come from the speaker only.
# Without accept_local, policy rules make the kernel look up the source of each IPv4 packet as well, a cost that nothing
# is gained by: that nobody sends us our own addresses is seen to by `nft`, for what is for ourselves.
_INTERFACE_SYSCTLS = {
    f"{_V4}/{{}}/rp_filter": "0",
    f"{_V4}/{{}}/accept_local": "1",
    f"{_V4}/{{}}/send_redirects": "0",
    f"{_V6}/{{}}/accept_ra": "0",
}
# The value for `all` is combined with the interface's own by maximum or by OR.
_GLOBAL_SYSCTLS = {f"{_V4}/all/rp_filter": "0", f"{_V4}/all/send_redirects": "0"}


class _Interface(msgspec.Struct):
    index: int
    sysctls: dict[str, str] = {}
    offloads: dict[str, int] = {}
    gso_max_segments: int = 0


class _Record(msgspec.Struct):
    boot_id: str
    namespace: str
    sysctls: dict[str, str] = {}
    interfaces: dict[str, _Interface] = {}
    addresses: list[tuple[str, str]] = []
    devices: list[str] = []


class Changes:
    def __init__(self, path: Path, links: Links) -> None:
        self._path = path
        self._links = links
        self._record = _Record(*_here())

    async def enable_forwarding(self) -> None:
        """IPv4 and IPv6. Interfaces that got their default route by router advertisements keep getting it."""
        forwarding = [f"{base}/{name}/forwarding" for base in (_V6, _V4) for name in _configurations(base)]
        advertised = [path for name in _configurations(_V6) if _read(path := f"{_V6}/{name}/accept_ra") == "1"]
        # `all` comes first: to write it changes the others, also when it is put back.
        before = [*forwarding, f"{_V4}/all/accept_redirects", *_GLOBAL_SYSCTLS, *advertised]
        self._record.sysctls = {path: value for path in before if (value := _read(path)) is not None}
        self._save()
        for path in advertised:
            _write(path, "2")  # accept also while forwarding
        for path in (f"{_V6}/all/forwarding", f"{_V4}/all/forwarding"):
            _write(path, "1")
        for path, value in _GLOBAL_SYSCTLS.items():
            _write(path, value)

    async def prepare_interface(self, interface: str) -> None:
        """Offloads off, so that both ends count the same bytes; sysctls as the mesh needs them. Idempotent."""
        index = (await self._links.get(interface)).index
        known = self._record.interfaces.get(interface)
        if known is None or known.index != index:
            sysctls = {p: v for t in _INTERFACE_SYSCTLS if (v := _read(p := t.format(interface))) is not None}
            offloads = ethtool.read_offloads(interface)
            segments = await self._links.gso_max_segments(interface)
            self._record.interfaces[interface] = _Interface(index, sysctls, offloads, segments)
            self._save()
        for template, value in _INTERFACE_SYSCTLS.items():
            _write(template.format(interface), value)
        ethtool.set_offloads(interface, dict.fromkeys(self._record.interfaces[interface].offloads, 0))
        await self._links.set_gso_max_segments(interface, 1)

    async def restore_interface(self, interface: str) -> None:
        """As it was before. No error if it is gone."""
        record = self._record.interfaces.get(interface)
        if record is None:
            return
        try:
            if (await self._links.get(interface)).index == record.index:
                for path, value in record.sysctls.items():
                    _write(path, value)
                ethtool.set_offloads(interface, record.offloads)
                await self._links.set_gso_max_segments(interface, record.gso_max_segments)
        except (NetlinkError, OSError):
            # It may go away at any moment, and its settings with it.
            if interface in await self._links.all():
                raise
        del self._record.interfaces[interface]
        self._save()

    async def add_address(self, interface: str, address: IPv4Address | IPv6Address) -> None:
        """An address that was there before us stays there after us."""
        entry = (interface, str(address))
        if entry in self._record.addresses:
            return
        self._record.addresses.append(entry)
        self._save()
        added = False
        try:
            with trio.CancelScope(shield=True):  # else nobody would know whether it is ours to remove
                added = await self._links.add_address(interface, address)
        finally:
            if not added:
                self._record.addresses.remove(entry)
                self._save()

    async def remove_address(self, interface: str, address: IPv4Address | IPv6Address) -> None:
        entry = (interface, str(address))
        if entry in self._record.addresses:
            await self._links.remove_address(interface, address)
            self._record.addresses.remove(entry)
            self._save()

    def record_device(self, name: str) -> None:
        """Before it is made: an interface of our own, to be deleted in the end, whoever is there to do it."""
        if name not in self._record.devices:
            self._record.devices.append(name)
            self._save()

    async def delete_device(self, name: str) -> None:
        """With all that it has. No error if it is gone."""
        await self._links.delete(name)
        if name in self._record.devices:
            self._record.devices.remove(name)
            self._record.interfaces.pop(name, None)
            self._save()

    async def restore(self) -> None:
        """Put everything back, whether this process or a killed one has changed it, and delete the record."""
        record = self._load()
        if record is None:
            return
        self._record = record
        for device in list(record.devices):
            await self.delete_device(device)
        for interface, address in list(record.addresses):
            await self.remove_address(interface, ip_address(address))
        for interface in list(record.interfaces):
            await self.restore_interface(interface)
        for path, value in record.sysctls.items():
            _write(path, value)
        self._record = _Record(*_here())
        self._path.unlink(missing_ok=True)

    def _load(self) -> _Record | None:
        try:
            record = msgspec.json.decode(self._path.read_bytes(), type=_Record)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return record if (record.boot_id, record.namespace) == _here() else None

    def _save(self) -> None:
        temporary = self._path.with_name(self._path.name + ".new")
        temporary.write_bytes(msgspec.json.encode(self._record))
        temporary.replace(self._path)


def _here() -> tuple[str, str]:
    """What a record is valid for: this boot and this network namespace."""
    namespace = os.stat("/proc/self/ns/net")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot_id, f"{namespace.st_dev}:{namespace.st_ino}"


def _configurations(base: str) -> list[str]:
    """The names under net/ipv4/conf or net/ipv6/conf; `all` and `default` first."""
    names = sorted(os.listdir(_SYSCTL / base))
    return [*(n for n in names if n in ("all", "default")), *(n for n in names if n not in ("all", "default"))]


def _read(path: str) -> str | None:
    try:
        return (_SYSCTL / path).read_text().strip()
    except FileNotFoundError:
        return None


def _write(path: str, value: str) -> None:
    """Only where it differs: writing `forwarding` of `all` has side effects. No error if the interface is gone."""
    if _read(path) not in (None, value):
        with suppress(FileNotFoundError):
            (_SYSCTL / path).write_text(value)
