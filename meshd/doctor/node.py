"""Of the running daemon, its neighbours, the chain and the wallet."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

from meshd.config_chain import BackendConfig
from meshd.ctl.client import CallError
from meshd.doctor.finding import Finding, World, error, ok, skipped, warning
from routing.authentication import Drop

_CONNECT_TIMEOUT = 5.0


def daemon(world: World) -> Iterator[Finding]:
    status = world.status
    if not isinstance(status, CallError):
        yield ok("daemon", f"{status['name']} runs, {status['version']}, {status['address']}")
        for interface in status["interfaces"]:
            if not interface["up"]:
                yield error(
                    "daemon",
                    f"the daemon does not use {interface['name']}",
                    f"see what stands above of {interface['name']}; it is taken up by itself when it is there",
                )
        return
    path = world.socket_path
    if status.word == "denied":
        yield error(
            "daemon",
            f"this user may not open the control socket {path}",
            "sudo meshctl doctor; or join the group that may: sudo usermod -aG meshd $USER, and log in again",
        )
    elif status.word == "timeout":
        yield error("daemon", f"the daemon does not answer on {path}", "systemctl restart meshd; journalctl -u meshd")
    elif os.path.lexists(path):
        yield error(
            "daemon",
            f"the daemon has died: {path} is there, and nobody answers",
            "systemctl restart meshd; journalctl -u meshd",
        )
    else:
        yield error("daemon", f"the daemon does not run: there is no {path}", "systemctl start meshd")


def neighbours(world: World) -> Iterator[Finding]:
    status = world.status
    if isinstance(status, CallError):
        yield skipped("neighbours", "the daemon does not say")
        return
    rows: Any = world.ask("neighbours")
    if isinstance(rows, CallError):
        yield skipped("neighbours", f"the daemon does not say: {rows}")
        return
    counters: dict[str, int] = status["counters"]
    refused = sum(counters.get(drop.value, 0) for drop in (Drop.NO_MAC, Drop.WRONG_MAC))
    if refused:
        yield warning(
            "neighbours",
            f"{refused} packets had another MAC key than ours, or none",
            "give all nodes of the wire the same mac_keys; meshctl reload reads them anew",
        )
    if not rows:
        yield warning(
            "neighbours",
            "nobody is heard",
            "is another node in range, on the same channel and network, with the same security in its [[interface]]?",
        )
        return
    for row in rows:
        if row["cost"] >= 65535:
            yield warning(
                "neighbours",
                f"{row['link_local']} on {row['under']} is heard, and does not hear us",
                "compare the firewalls and antennas of both",
            )
        if row["state"] != "open":
            yield warning(
                "neighbours",
                f"{row['address'] or row['link_local']} is held to the free tier: it owes more than its window",
                "meshctl ledger; it is carried again when it has paid",
            )
    if len(rows) and all(row["state"] == "open" and row["cost"] < 65535 for row in rows):
        yield ok("neighbours", f"{len(rows)} in reach")


def chain(world: World) -> Iterator[Finding]:
    config = world.config
    if not config.payments.enabled:
        yield ok("chain", "payments are off")
        return
    if not config.needs_chain:
        yield ok("chain", "no debt is settled on it")
        return
    found = [_unreachable(backend) for backend in (config.chain, *config.backends)]
    reason = None if None in found else found[0]
    if reason is not None:
        what = "is meshd-chain running?" if config.chain.backend == "kernel" else "is bitcoind running, and its RPC on?"
        yield error(
            "chain",
            f"the chain's backend cannot be reached: {reason}. No channel can be opened, claimed or refunded",
            f"{what} See [chain] in {world.config_path}",
        )
        return
    status = world.status
    if not isinstance(status, CallError) and not status["chain"]["connected"]:
        yield error(
            "chain",
            f"something listens where {config.chain.backend} should, and does not answer the daemon",
            "journalctl -u meshd; wrong network, cookie or password in [chain]?",
        )


def _unreachable(config: BackendConfig) -> str | None:
    """Why nobody listens where the configuration says; None: somebody does, or it is not said where."""
    try:
        if config.backend == "kernel":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_CONNECT_TIMEOUT)
                probe.connect(str(config.socket))
        elif config.backend == "bitcoind":
            socket.create_connection((config.rpc_host, config.rpc_port), _CONNECT_TIMEOUT).close()
    except OSError as found:
        where = config.socket if config.backend == "kernel" else f"{config.rpc_host}:{config.rpc_port}"
        return f"{where}: {found.strerror or found}"
    return None


def wallet(world: World) -> Iterator[Finding]:
    status = world.status
    if not world.config.payments.enabled:
        yield ok("wallet", "payments are off")
        return
    if not world.config.needs_chain:
        yield ok("wallet", "no debt is settled on a chain")
        return
    if isinstance(status, CallError):
        yield skipped("wallet", "the daemon does not say")
        return
    balance = status["wallet"]["balance_sat"]
    if not status["paying"]:
        yield warning("wallet", "payments are held by the operator", "meshctl pay resume")
    if balance is None:
        yield warning(
            "wallet",
            "it does not say what is in it",
            "is the chain in reach, and meshd[wallet] installed? meshctl logs",
        )
    elif balance < world.config.payments.channel_capacity_sat:
        need = world.config.payments.channel_capacity_sat
        yield warning(
            "wallet",
            f"{balance} sat, which is not enough for a channel ({need} sat): this node can be paid, and cannot pay",
            "send some to the address that meshctl wallet address shows, or lower channel_capacity_sat",
        )
    else:
        yield ok("wallet", f"{balance} sat")
