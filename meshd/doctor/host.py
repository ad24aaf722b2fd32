"""Of the machine: its clock, what we may do, nftables, WireGuard, the firewall, and who else uses our ports."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meshd.config import Config
from meshd.doctor.finding import Finding, World, error, ok, skipped, warning

RELEASED_AT = datetime(2026, 1, 1, tzinfo=UTC)  # no clock that is right says an earlier time
_CAP_NET_ADMIN, _CAP_NET_RAW = 12, 13
_OUR_TABLES = re.compile(r"meshd")
_STA_UNSYNC = 0x0040
_APT_NFT = "apt install nftables"


def clock(world: World) -> Iterator[Finding]:
    now = datetime.fromtimestamp(world.now(), UTC)
    if now < RELEASED_AT:
        yield error(
            "clock",
            f"the clock says {now:%Y-%m-%d %H:%M}, which is past: neighbours refuse beacons of another time, and "
            "channels' ends are misjudged",
            "date --set '...' once, then timedatectl set-ntp true; a Raspberry Pi has no clock of its own: add one, or "
            "let it reach a time server before meshd starts",
        )
        return
    synchronised = _is_synchronised()
    if synchronised is None:
        yield skipped("clock", f"it says {now:%Y-%m-%d %H:%M}; whether it is kept right is not known")
    elif not synchronised:
        yield warning(
            "clock",
            f"it says {now:%Y-%m-%d %H:%M} UTC, and nothing keeps it right",
            "timedatectl set-ntp true (or apt install chrony)",
        )


def _is_synchronised() -> bool | None:
    """As adjtimex(2) tells without changing anything; None: it does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct timex: modes (0: only look), ...; status is the 6th long
    if libc.adjtimex(buffer) < 0:
        return None
    longs = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_long))
    return not ctypes.c_int(longs[5]).value & _STA_UNSYNC


def permissions(world: World) -> Iterator[Finding]:
    """Of whoever asks; the daemon of the package has its own from systemd."""
    status = world.read("thread-self/status") or ""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    capabilities = int(found[1], 16) if found else 0
    missing = [
        name
        for name, bit in (("CAP_NET_ADMIN", _CAP_NET_ADMIN), ("CAP_NET_RAW", _CAP_NET_RAW))
        if not capabilities >> bit & 1
    ]
    if missing:
        yield warning(
            "permissions",
            f"this user has no {' and no '.join(missing)}: some checks cannot be made, and meshd cannot set routes or "
            "rules as this user",
            "sudo meshctl doctor; run the daemon by systemctl start meshd, or as root",
        )


def nftables(world: World) -> Iterator[Finding]:
    if shutil.which("nft") is None:
        yield error("nftables", "nft is not installed: nothing can be metered", _APT_NFT)
        return
    done = world.run("nft", "list", "tables")
    if done is None or done.returncode:
        words = (
            "no answer" if done is None else done.stderr.strip().splitlines()[0] if done.stderr.strip() else "failed"
        )
        if "not permitted" in words or "denied" in words:
            yield error(
                "nftables",
                f"no permission for nftables ({words})",
                "sudo meshctl doctor; in a container give it CAP_NET_ADMIN (--cap-add NET_ADMIN)",
            )
        else:
            yield error(
                "nftables", f"the kernel has no nftables ({words})", "modprobe nf_tables; or a kernel that has it"
            )


def wireguard(world: World) -> Iterator[Finding]:
    config = world.config
    if not config.peers and all(interface.security == "none" for interface in config.interfaces):
        yield ok("wireguard", "no tunnels are wanted")
        return
    has_program = shutil.which("wireguard-go") is not None
    if _kernel_has_wireguard(world):
        return
    if not has_program:
        yield error(
            "wireguard",
            "tunnels are wanted, but this kernel has no WireGuard, and wireguard-go is not installed",
            'apt install wireguard-go; or, where all on the wire are trusted, security = "none" in the [[interface]]',
        )
    elif not Path("/dev/net/tun").exists():
        yield error("wireguard", "wireguard-go has no /dev/net/tun", "modprobe tun")
    else:
        yield ok("wireguard", "by wireguard-go: this kernel has no WireGuard of its own")


def _kernel_has_wireguard(world: World) -> bool:
    if Path("/sys/module/wireguard").exists():
        return True
    release = world.read("sys/kernel/osrelease") or ""
    builtin, modules = (Path(f"/lib/modules/{release}/modules.{kind}") for kind in ("builtin", "dep"))
    return any(path.exists() and "wireguard.ko" in path.read_text(errors="replace") for path in (builtin, modules))


def firewall(world: World) -> Iterator[Finding]:
    done = world.run("nft", "--json", "list", "ruleset")
    if done is None or done.returncode:
        yield skipped("firewall", "its rules cannot be read; sudo meshctl doctor")
        return
    objects = json.loads(done.stdout)["nftables"]
    rules = [item["rule"] for item in objects if "rule" in item]
    for chain in (item["chain"] for item in objects if "chain" in item):
        if _OUR_TABLES.match(chain["table"]) or chain.get("hook") not in ("input", "forward"):
            continue
        of_chain = [rule for rule in rules if all(rule[key] == chain[of] for key, of in _CHAIN_KEYS)]
        yield from _judge(world.config, chain, of_chain)


_CHAIN_KEYS = (("family", "family"), ("table", "table"), ("chain", "name"))


def _judge(config: Config, chain: dict[str, Any], rules: list[dict[str, Any]]) -> Iterator[Finding]:
    where = f"{chain['family']} {chain['table']} {chain['name']}"
    if chain["family"] not in ("inet", "ip6", "ip"):
        return
    drops = chain.get("policy") == "drop"
    texts = [json.dumps(rule["expr"]) for rule in rules]
    if chain["hook"] == "forward":
        if drops and not any('"accept"' in text and '"dport"' not in text and "ct" not in text for text in texts):
            yield error(
                "firewall",
                f"the chain {where} drops what is to be forwarded: nothing can be carried",
                f'nft add rule {where} iifname "{_first_name(config)}" accept (and oifname); Docker sets such a policy',
            )
        return
    if chain["family"] == "ip":
        return  # routing, sessions and beacons are IPv6
    for port, what in _udp_ports(config):
        dropped = any('"drop"' in text and _names_port(text, port) for text in texts)
        accepted = any('"accept"' in text and _names_port(text, port) for text in texts)
        if dropped or (drops and not accepted):
            yield error(
                "firewall",
                f"the chain {where} drops UDP port {port} ({what}): no neighbour is heard",
                f"nft insert rule {where} udp dport {port} accept",
            )


def _names_port(text: str, port: int) -> bool:
    return '"dport"' in text and re.search(rf"\b{port}\b", text) is not None


def _first_name(config: Config) -> str:
    return config.interfaces[0].name if config.interfaces else "wlan0"


def _udp_ports(config: Config) -> Iterator[tuple[int, str]]:
    if any(interface.security == "none" for interface in config.interfaces):
        yield config.routing.port, "Babel"
    if any(interface.security == "wireguard" for interface in config.interfaces):
        yield config.discovery.port, "beacons"


def ports(world: World) -> Iterator[Finding]:
    """Who else has them. Another daemon of Babel takes our neighbours' packets, and sets routes of its own."""
    config = world.config
    wanted = [
        ("udp", config.routing.port, "Babel"),
        ("udp", config.discovery.port, "beacons"),
        ("tcp", config.payments.session_port, "payment sessions"),
    ]
    if config.node.metrics_port:
        wanted.append(("tcp", config.node.metrics_port, "metrics"))
    for protocol, port, what in wanted:
        for inode in _holders(world, protocol, port):
            name = _process_of(world, inode)
            if name is not None and (name.startswith("meshd") or (name.startswith("python") and world.is_running)):
                continue
            if name is None and world.is_running:
                continue  # our own, most likely: who asks may not look into others' processes
            shown = "another program" if name is None else name
            yield error(
                "ports",
                f"{shown} has {protocol.upper()} port {port}, which is for {what}",
                f"systemctl stop {shown}; systemctl disable {shown}"
                if name in ("babeld", "bird", "frr")
                else f"end it (ss -lp 'sport = {port}'), or give ours another port in {world.config_path}",
            )


def _holders(world: World, protocol: str, port: int) -> list[str]:
    """Inodes of the sockets on the port."""
    found = []
    for name in (protocol, f"{protocol}6"):
        for line in (world.read(f"thread-self/net/{name}") or "").splitlines()[1:]:
            fields = line.split()
            is_listening = protocol == "udp" or fields[3] == "0A"
            if is_listening and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(fields[9])
    return found


def _process_of(world: World, inode: str) -> str | None:
    wanted = f"socket:[{inode}]"
    for path in world.proc.glob("[0-9]*/fd/*"):
        try:
            if str(path.readlink()) == wanted:
                return (path.parent.parent / "comm").read_text().strip()
        except OSError:
            continue
    return None
