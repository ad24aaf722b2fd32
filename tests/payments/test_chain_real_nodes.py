"""The bitcoind adapter against real nodes, where there are any: transport, codes and shapes.

- `BITCOIND`, or a bitcoind on PATH: Bitcoin Core.
- `MESHD_BCOIN`: a directory in which npm has installed bcoin 1.0.2, whose RPC is close to Core's. It takes invalid
  transactions into its pool, so it never judges any. In an empty directory, with this package.json, `npm install`:
  {"dependencies": {"bcoin": "1.0.2"}, "overrides": {"leveldown": "6.1.1"}}
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from embit.networks import NETWORKS
from embit.script import Script

from payments.adapters.bitcoind import BitcoindChain
from payments.adapters.bitcoind_rpc import Rpc, RpcConfig
from payments.channel_tx import build_refund, parse_transaction
from payments.ports import ChainError, Outpoint
from tests.payments.chain_support import FEE_RATE, PAYEE_SCRIPT, PAYER, make_terms

START_TIMEOUT = 120.0
PASSWORD = "for-this-test-alone"  # noqa: S105


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def core(directory: Path) -> tuple[list[str], RpcConfig]:
    program = os.environ.get("BITCOIND") or shutil.which("bitcoind")
    if program is None:
        pytest.skip("no bitcoind: neither BITCOIND nor one on PATH")
    port = free_port()
    options = ["-regtest", f"-datadir={directory}", "-txindex=1", "-listen=0", "-server=1", f"-rpcport={port}"]
    return [program, *options], RpcConfig(port, cookie=directory / "regtest" / ".cookie")


def bcoin(directory: Path) -> tuple[list[str], RpcConfig]:
    place = os.environ.get("MESHD_BCOIN")
    if place is None:
        pytest.skip("MESHD_BCOIN is not set: see this file")
    port = free_port()
    program = ["node", f"{place}/node_modules/bcoin/bin/node", "--network=regtest", f"--prefix={directory}"]
    options = ["--memory=true", "--index-tx=true", "--no-wallet=true", "--listen=false", f"--http-port={port}"]
    return [*program, *options, f"--api-key={PASSWORD}"], RpcConfig(port, user="x", password=PASSWORD)


@asynccontextmanager
async def running(command: list[str], config: RpcConfig) -> AsyncIterator[BitcoindChain]:
    chain = BitcoindChain(config, network="regtest", poll_interval=0.1)
    process = await trio.lowlevel.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with trio.fail_after(START_TIMEOUT):
            while True:
                try:
                    await chain.tip()
                    break
                except ChainError:
                    assert process.poll() is None, "the node has ended"
                    await trio.sleep(0.2)
        yield chain
    finally:
        process.terminate()
        with trio.move_on_after(30, shield=True):
            await process.wait()
        if process.poll() is None:
            process.kill()


@pytest.mark.parametrize("kind", [core, bcoin])
def test_a_real_node_is_understood(kind: Any, tmp_path: Path) -> None:
    command, config = kind(tmp_path)
    prefix = {"bech32": "rb"} if kind is bcoin else {}  # where the two differ
    address = Script(PAYEE_SCRIPT).address(NETWORKS["regtest"] | prefix)

    async def scenario() -> None:
        async with running(command, config) as chain:
            rpc = Rpc(config)
            assert (await chain.tip()).height == 0
            tips = chain.tips()
            assert (await tips.__anext__()).height == 0
            hashes = await rpc.call(list[str], "generatetoaddress", 2, address)
            tip = await chain.tip()
            assert tip.height == 2 and tip.block_hash == bytes.fromhex(hashes[-1])[::-1]
            assert await tips.__anext__() == tip
            await tips.aclose()  # type: ignore[attr-defined]

            block = await rpc.call(dict[str, Any], "getblock", hashes[0], True)
            coinbase = bytes.fromhex(block["tx"][0])[::-1]
            status = await chain.transaction(coinbase)
            assert status is not None and status.height == 1
            outputs = parse_transaction(status.raw).vout
            index = next(n for n, output in enumerate(outputs) if output.script_pubkey.data == PAYEE_SCRIPT)
            seen = await chain.output(Outpoint(coinbase, index))
            assert seen is not None
            assert (seen.value_sat, seen.script_pubkey, seen.height, seen.spent_by) == (
                int(outputs[index].value),
                PAYEE_SCRIPT,
                1,
                None,
            )
            assert 1.0 <= await chain.fee_rate() <= 10_000.0
            if kind is core:  # bcoin does not judge, and has another code for what it does not know
                assert await chain.transaction(b"?" * 32) is None
                assert await chain.output(Outpoint(b"?" * 32, 0)) is None
                early = build_refund(make_terms(), Outpoint(coinbase, index), payer_key=PAYER, fee_rate=FEE_RATE)
                assert not (await chain.broadcast(early.raw)).accepted
                (found,) = [u for u in await chain.utxos([PAYEE_SCRIPT]) if u.outpoint.txid == coinbase]
                assert found.value_sat == seen.value_sat
        with pytest.raises(ChainError):
            await chain.tip()

    trio.run(scenario)
