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
from payments.adapters.wallet_bitcoind import BitcoindWallet
from payments.channel_tx import build_refund, find_funding_output, funding_script_pubkey, parse_transaction
from payments.ports import (
    ChainError,
    InsufficientFundsError,
    Outpoint,
    SignedTransaction,
    WalletBalance,
    WalletError,
)
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
async def running(command: list[str], config: RpcConfig, *, is_killed: bool = False) -> AsyncIterator[BitcoindChain]:
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
        process.kill() if is_killed else process.terminate()
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


def test_the_wallet_of_a_real_node_funds_pays_sweeps_and_sets_aside_over_a_kill(tmp_path: Path) -> None:
    """With its own wallet on a key store of descriptors. The node is killed by SIGKILL in between, and loses blocks."""
    command, config = core(tmp_path / "node")
    (tmp_path / "node").mkdir()

    async def opened(chain: BitcoindChain) -> BitcoindWallet:
        directory = tmp_path / "wallet"
        return await BitcoindWallet.open(config, "meshd test", directory=directory, chain=chain, network="regtest")

    async def first() -> SignedTransaction:
        async with running(command, config, is_killed=True) as chain:
            rpc = Rpc(config)
            with pytest.raises(WalletError, match="meshd test"):
                await opened(chain)
            await rpc.call(dict[str, Any], "createwallet", "meshd test")
            wallet = await opened(chain)
            own = await wallet.address("for blocks")
            await rpc.call(list[str], "generatetoaddress", 101, own)
            assert await wallet.balance() == WalletBalance(50 * 10**8, 0)
            terms = make_terms(payer_change_script=await wallet.new_script_pubkey())
            funding = await wallet.fund(funding_script_pubkey(terms), terms.capacity_sat, fee_rate=3.0)
            find_funding_output(funding.raw, terms)
            assert 0.6 * 3.0 * len(funding.raw) <= funding.fee_sat <= 0.75 * 3.0 * len(funding.raw)
            with pytest.raises(InsufficientFundsError):  # the only coin is set aside
                await wallet.fund(PAYEE_SCRIPT, 10_000, fee_rate=3.0)
            await wallet.release(funding.txid)
            await chain.utxos([PAYEE_SCRIPT])  # Core writes its state down for that
            funding = await wallet.fund(funding_script_pubkey(terms), terms.capacity_sat, fee_rate=3.0)
            await rpc.call(list[str], "generatetoaddress", 3, own)
            assert (await chain.tip()).height == 104
            return funding

    async def second(funding: SignedTransaction) -> None:
        async with running(command, config) as chain:
            rpc = Rpc(config)
            assert (await chain.tip()).height == 101  # lower than it was: the payment core keeps 104
            wallet = await opened(chain)
            assert [each.txid for each in await wallet.pending()] == [funding.txid]
            with pytest.raises(InsufficientFundsError):  # still
                await wallet.fund(PAYEE_SCRIPT, 10_000, fee_rate=3.0)
            assert (await chain.broadcast(funding.raw)).accepted
            assert (await chain.broadcast(funding.raw)).accepted
            await rpc.call(list[str], "generatetoaddress", 1, await wallet.address())
            assert await wallet.pending() == []
            sent = await wallet.send(PAYEE_SCRIPT, 20_000, fee_rate=2.0, label="rent")
            assert (await chain.broadcast(sent.raw)).accepted
            assert [each.txid for each in await wallet.sent()] == [sent.txid]
            await rpc.call(list[str], "generatetoaddress", 100, await wallet.address())
            assert await wallet.sent() == []
            swept = await wallet.sweep({sent.txid}, await wallet.new_script_pubkey(), fee_rate=2.0)
            assert [bytes(i.txid)[::-1] for i in parse_transaction(swept.raw).vin] == [sent.txid]
            assert (await chain.broadcast(swept.raw)).accepted
            whole = await wallet.sweep(None, PAYEE_SCRIPT, fee_rate=2.0)
            assert len(parse_transaction(whole.raw).vout) == 1
            assert (await wallet.labels())[sent.txid[::-1].hex()] == "rent"

    trio.run(second, trio.run(first))
