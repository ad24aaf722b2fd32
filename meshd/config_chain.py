"""The tables [chain] and [[backend]] of the configuration: where blocks come from, and whose wallet pays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshd.config_kinds import absolute_path, boolean, choice, integer, key, optional_path, text, urls

NETWORKS = ("regtest", "signet", "test", "testnet4", "main")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """A further source of blocks beside that of [chain]. With several, claims begin by the highest height that any of
    them tells, and what brings money counts when all have confirmed it. One table for each."""

    backend: str = key(
        choice("kernel", "bitcoind", "explorer"),
        "Where blocks come from: kernel is the embedded regtest chain of demo and tests, bitcoind a node of Bitcoin"
        " Core (24 or later, with txindex=1), explorer two or more servers with the Esplora HTTP API.",
        "kernel",
    )
    socket: Path = key(  # noqa: RUF009
        absolute_path(), "Of kernel: the Unix socket of the chain service.", Path("/run/meshd/chain.sock")
    )
    rpc_host: str = key(text(), "Of bitcoind: where its RPC server is.", "127.0.0.1")
    rpc_port: int = key(integer(1, 65535), "Of bitcoind: the port of it.", 18443)
    rpc_cookie: Path | None = key(  # noqa: RUF009
        optional_path(), "Of bitcoind: its cookie file, read whenever it is needed; empty: user and password.", None
    )
    rpc_user: str = key(text(pattern=r"[^\0\n:]*"), "Of bitcoind: who we are, without a cookie.", "")
    rpc_password_file: Path | None = key(  # noqa: RUF009
        optional_path(), "Of bitcoind: a file that holds the password.", None
    )
    explorers: tuple[str, ...] = key(
        urls(),
        "Of explorer: the servers, of different people. All must agree before anything counts. They learn our"
        " addresses; own servers do not tell.",
        (),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainConfig(BackendConfig):
    """The Bitcoin chain."""

    network: str = key(choice(*NETWORKS), "Which chain it is; all neighbours must name the same one.", "regtest")
    real_money: bool = key(
        boolean(), 'network = "main" is refused unless this is true. Read docs/threat-model.md first.', False
    )
    wallet: str = key(
        choice("own", "bitcoind"),
        "Whose wallet pays for channels: our own, from the node's secret, or one of the bitcoind above.",
        "own",
    )
    rpc_wallet: str = key(
        text(pattern=r"[^\0\n/]*"), 'Of wallet = "bitcoind": its name there; empty: the default one.', ""
    )
