"""The table [chain] of the configuration: where blocks come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshd.config_kinds import absolute_path, choice, integer, key, optional_path, text

BACKENDS = choice(
    "kernel", "bitcoind", not_yet={"explorer": '"kernel" or "bitcoind" for now: explorer is not built yet (part 4)'}
)
NETWORKS = choice(
    "regtest", "signet", "test", not_yet={"main": "a network without real money: see docs/limits.md before any"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainConfig:
    """The Bitcoin chain."""

    backend: str = key(
        BACKENDS,
        "Where blocks come from: kernel is the embedded regtest chain of demo and tests, bitcoind a node of Bitcoin"
        " Core (24 or later, with txindex=1).",
        "kernel",
    )
    socket: Path = key(  # noqa: RUF009
        absolute_path(), "Of kernel: the Unix socket of the chain service.", Path("/run/meshd/chain.sock")
    )
    network: str = key(NETWORKS, "Which chain it is; all neighbours must name the same one.", "regtest")
    rpc_host: str = key(text(), "Of bitcoind: where its RPC server is.", "127.0.0.1")
    rpc_port: int = key(integer(1, 65535), "Of bitcoind: the port of it.", 18443)
    rpc_cookie: Path | None = key(  # noqa: RUF009
        optional_path(), "Of bitcoind: its cookie file, read whenever it is needed; empty: user and password.", None
    )
    rpc_user: str = key(text(pattern=r"[^\0\n:]*"), "Of bitcoind: who we are, without a cookie.", "")
    rpc_password_file: Path | None = key(  # noqa: RUF009
        optional_path(), "Of bitcoind: a file that holds the password.", None
    )
