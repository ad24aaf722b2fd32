"""Of the interfaces that neighbours are to be reached over."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from meshd.config import InterfaceConfig
from meshd.doctor.finding import Finding, World, error, ok, skipped, warning
from meshd.kernel import NetlinkError
from meshd.kernel.nl80211 import Nl80211, Radio, RadioType

MTU_MIN = 1280  # IPv6
WIREGUARD_OVERHEAD = 80  # with IPv6 outside
_MESH_TYPES = (RadioType.IBSS, RadioType.MESH_POINT)


def interfaces(world: World) -> Iterator[Finding]:
    found = world.links
    if not found:
        yield skipped("interfaces", "`ip -json address` gives nothing: apt install iproute2")
        return
    for wanted in world.config.interfaces:
        if wanted.name not in found:
            near = ", ".join(sorted(name for name in found if name != "lo")) or "none"
            yield error(
                "interfaces",
                f"there is no interface {wanted.name}; there are: {near}",
                f"correct name in [[interface]] of {world.config_path}; or plug it in, or make it",
            )
            continue
        faults = list(_faults(world, wanted))
        yield from faults or [ok("interfaces", f"{wanted.name} is up")]


def _faults(world: World, wanted: InterfaceConfig) -> Iterator[Finding]:
    name, link = wanted.name, world.links[wanted.name]
    flags, mtu = link.get("flags", []), link.get("mtu", 0)
    if "UP" not in flags:
        yield error("interfaces", f"{name} is down", f"ip link set {name} up")
    elif "NO-CARRIER" in flags:
        yield error("interfaces", f"{name} has no carrier: no cable, or no radio network", f"ip link show {name}")
    if world.read(f"sys/net/ipv6/conf/{name}/disable_ipv6") == "1":
        yield error(
            "interfaces",
            f"IPv6 is switched off on {name}; all of the mesh speaks it",
            f"sysctl -w net.ipv6.conf.{name}.disable_ipv6=0",
        )
    elif "UP" in flags and "NO-CARRIER" not in flags and not _has_link_local(link):
        yield error(
            "interfaces",
            f"{name} has no IPv6 link-local address",
            f"ip link set {name} down; ip link set {name} addrgenmode eui64; ip link set {name} up",
        )
    needed = MTU_MIN + (WIREGUARD_OVERHEAD if wanted.security == "wireguard" else 0)
    if mtu < needed:
        yield error(
            "interfaces",
            f"{name} has an MTU of {mtu}: IPv6 needs {MTU_MIN}"
            + (f", and a tunnel {WIREGUARD_OVERHEAD} more" if needed > MTU_MIN else ""),
            f"ip link set {name} mtu {max(needed, 1500)}",
        )
    if "master" in link:
        yield warning(
            "interfaces",
            f"{name} is part of {link['master']}, which takes its packets",
            f"ip link set {name} nomaster; or name {link['master']} in [[interface]]",
        )


def _has_link_local(link: dict[str, object]) -> bool:
    addresses = link.get("addr_info", [])
    return isinstance(addresses, list) and any(
        row.get("family") == "inet6" and row.get("scope") == "link" and not row.get("tentative") for row in addresses
    )


def radios(world: World) -> Iterator[Finding]:
    try:
        found = trio.run(_all_radios)
    except (NetlinkError, OSError) as problem:
        yield skipped("radios", f"the kernel does not tell: {problem}")
        return
    yield from judge_radios(world, {radio.name: radio for radio in found.values()})


async def _all_radios() -> dict[int, Radio]:
    wireless = Nl80211()
    try:
        return await wireless.radios()
    finally:
        wireless.close()


def judge_radios(world: World, radio_by_name: dict[str, Radio]) -> Iterator[Finding]:
    for wanted in world.config.interfaces:
        radio = radio_by_name.get(wanted.name)
        if radio is None:
            continue
        if radio.type not in _MESH_TYPES:
            kind = radio.type.name.lower().replace("_", " ")
            yield error(
                "radios",
                f"{wanted.name} is in mode {kind}, in which neighbours do not hear each other",
                f"meshd radio setup {wanted.name} --type ibss --network NAME --channel 1 --cell 02:ca:fe:ca:ca:40",
            )
        elif radio.frequency is None:
            yield error(
                "radios",
                f"{wanted.name} is in no network: it is on no channel",
                f"meshd radio setup {wanted.name} --type ... --network NAME --channel 1",
            )
        if wanted.kind.value != "wireless":
            yield warning(
                "radios",
                f'{wanted.name} is a radio, and has kind = "{wanted.kind.value}": a lossy link would look good',
                'kind = "wireless" in its [[interface]]',
            )


def sysctls(world: World) -> Iterator[Finding]:
    """meshd sets them when it starts, and puts them back at its end: somebody else has changed them since."""
    if not world.is_running:
        path = world.proc / "sys/net/ipv6/conf/all/forwarding"
        if not path.exists():
            yield error("sysctls", "this kernel has no IPv6", "remove ipv6.disable=1 from the kernel's command line")
        else:
            yield skipped("sysctls", "forwarding is switched on by the daemon, which does not run")
        return
    for family in ("ipv6", "ipv4"):
        if world.read(f"sys/net/{family}/conf/all/forwarding") == "0":
            yield error(
                "sysctls",
                f"forwarding of {family} has been switched off since meshd started: nothing is carried",
                f"sysctl -w net.{family}.conf.all.forwarding=1, and look for what sets it in /etc/sysctl.d",
            )
    for name in ("all", *(interface.name for interface in world.config.interfaces)):
        if world.read(f"sys/net/ipv4/conf/{name}/rp_filter") == "1":
            yield error(
                "sysctls",
                f"rp_filter is strict on {name}: IPv4 packets that take another way back are dropped",
                f"sysctl -w net.ipv4.conf.{name}.rp_filter=0, and look for what sets it in /etc/sysctl.d",
            )
