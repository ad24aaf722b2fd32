"""A node's own wallet as WalletPort, against what a real one answered.

Tests cannot count on a Bitcoin node, so its answers are kept: tests/vectors/bitcoind-wallet.json is the conversation of
`scenario` with Bitcoin Knots 29.4.3 (Debian sid), as `python -m tests.payments.test_wallet_bitcoind BITCOIND` records
it. Replayed, each request must be the one that was recorded. `test_chain_real_nodes.py` has the same
wallet with a node that runs, where there is one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from embit.psbt import PSBT

from payments.adapters.bitcoind_rpc import Rpc, RpcConfig, RpcError
from payments.adapters.chain_index import inputs_of
from payments.adapters.wallet_bitcoind import BitcoindWallet
from payments.channel_tx import find_funding_output, funding_script_pubkey, parse_transaction
from payments.ports import (
    ChainError,
    ChainPort,
    ForeignInput,
    InsufficientFundsError,
    Outpoint,
    SignedTransaction,
    TransactionStatus,
    WalletBalance,
    WalletError,
)
from tests.payments.chain_support import CAPACITY, PAYEE_SCRIPT, make_terms, own_script
from tests.payments.http import HttpRequest, listening

VECTORS = Path(__file__).parents[1] / "vectors" / "bitcoind-wallet.json"
NAME = "meshd test"
RATE = 3.0
Mine = Callable[[list[SignedTransaction]], Awaitable[None]]


class Blocks:
    """As much of a chain as the wallet asks for: which transactions are in a block."""

    def __init__(self) -> None:
        self.mined: set[bytes] = set()

    async def transaction(self, txid: bytes) -> TransactionStatus | None:
        return TransactionStatus(b"", 1, None) if txid in self.mined else None

    def port(self) -> ChainPort:
        return cast("ChainPort", self)


async def opened(config: RpcConfig, directory: Path, blocks: Blocks) -> BitcoindWallet:
    return await BitcoindWallet.open(config, NAME, directory=directory, chain=blocks.port(), network="regtest")


async def scenario(config: RpcConfig, directory: Path, blocks: Blocks, mine: Mine) -> None:
    """With one mature coin of 50 bitcoins."""
    with pytest.raises(WalletError, match="no such wallet"):
        await BitcoindWallet.open(config, "no such wallet", directory=directory, chain=blocks.port(), network="regtest")
    wallet = await opened(config, directory, blocks)
    assert await wallet.balance() == WalletBalance(50 * 10**8, 0)
    terms = make_terms(payer_change_script=await wallet.new_script_pubkey())
    funding = await wallet.fund(funding_script_pubkey(terms), CAPACITY, fee_rate=RATE)
    outpoint = Outpoint(funding.txid, find_funding_output(funding.raw, terms))
    assert 0.6 * RATE * len(funding.raw) <= funding.fee_sat <= 0.75 * RATE * len(funding.raw)
    with pytest.raises(InsufficientFundsError):  # the only coin is set aside
        await wallet.fund(PAYEE_SCRIPT, 10_000, fee_rate=RATE)
    wallet = await opened(config, directory, blocks)  # and stays so over a restart of ours
    assert [each.txid for each in await wallet.pending()] == [funding.txid]
    await wallet.release(funding.txid)
    assert await wallet.pending() == []
    again = await wallet.fund(funding_script_pubkey(terms), CAPACITY, fee_rate=RATE)
    outpoint = Outpoint(again.txid, find_funding_output(again.raw, terms))
    await mine([again])
    assert await wallet.pending() == []

    foreign = ForeignInput(outpoint, CAPACITY, 80, 0xFFFFFFFD)
    outputs = [(own_script("payee"), 60_000), (funding_script_pubkey(terms), 150_000)]
    splice = await wallet.fund_splice(foreign, outputs, fee_rate=RATE)
    transaction = parse_transaction(splice.raw)
    assert inputs_of(transaction)[0] == outpoint and len(transaction.vin) == 2
    assert not transaction.vin[0].witness.items and transaction.vin[1].witness.items
    assert [(o.script_pubkey.data, o.value) for o in transaction.vout[:2]] == outputs
    await wallet.release(splice.txid)

    sent = await wallet.send(PAYEE_SCRIPT, 20_000, fee_rate=2.0, label="rent")
    assert [each.txid for each in await wallet.sent()] == [sent.txid]
    assert await wallet.pending() == []
    assert (await wallet.labels())[sent.txid[::-1].hex()] == "rent"
    await mine([sent])
    assert await wallet.sent() == []
    swept = await wallet.sweep({sent.txid}, await wallet.new_script_pubkey(), fee_rate=2.0)
    assert [o.txid for o in inputs_of(parse_transaction(swept.raw))] == [sent.txid]
    assert len(parse_transaction(swept.raw).vout) == 1
    with pytest.raises(InsufficientFundsError, match="no outputs to sweep"):
        await wallet.sweep({b"?" * 32}, PAYEE_SCRIPT, fee_rate=2.0)
    for rate in (0.0, float("nan"), 1e9):
        with pytest.raises(WalletError, match="a fee rate of"):
            await wallet.fund(PAYEE_SCRIPT, 10_000, fee_rate=rate)


@asynccontextmanager
async def serving(answer: Callable[[str, bytes], Awaitable[bytes]]) -> AsyncIterator[int]:
    """HTTP on a port of its own: path and body in, body out."""

    async def serve(stream: trio.SocketStream, request: HttpRequest) -> None:
        reply = await answer(request.path, request.body)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(reply), reply))

    async with listening(serve) as port:
        yield port


def replayed(directory: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """`change`: what a test puts into an answer."""
    conversation = json.loads(VECTORS.read_text("utf-8"))["conversation"]
    left = iter(conversation)

    async def answer(path: str, body: bytes) -> bytes:
        expected, request = next(left), json.loads(body)
        assert [path, request["method"], request["params"]] == expected["request"]
        change(expected)
        return json.dumps(expected["answer"]).encode()

    async def main() -> None:
        blocks = Blocks()

        async def mine(transactions: list[SignedTransaction]) -> None:
            blocks.mined |= {each.txid for each in transactions}

        async with serving(answer) as port:
            await scenario(RpcConfig(port, user="u", password="p"), directory, blocks, mine)  # noqa: S106

    trio.run(main)
    assert next(left, None) is None


def test_a_real_wallet_funds_splices_pays_and_sweeps(tmp_path: Path) -> None:
    replayed(tmp_path)


@pytest.mark.parametrize(
    ("method", "result", "error"),
    [
        ("getbalances", {"mine": {"trusted": 0.000000001, "untrusted_pending": 0}}, ChainError),
        ("getbalances", {"mine": {}}, ChainError),
        ("getwalletinfo", {"private_keys_enabled": False}, WalletError),
        ("getnewaddress", "2N3oefVeg6stiTb5Kh3ozCSkaqmx91FDbsm", WalletError),
        ("getnewaddress", "", WalletError),
        ("walletprocesspsbt", {"psbt": "cHNidP8=", "complete": True}, WalletError),
        ("walletprocesspsbt", {"psbt": "nonsense"}, WalletError),
    ],
)
def test_nonsense_of_the_node_is_an_error_of_the_wallet(
    tmp_path: Path, method: str, result: Any, error: type[Exception]
) -> None:
    def change(entry: dict[str, Any]) -> None:
        if entry["request"][1] == method:
            entry["answer"] = {"result": result, "error": None, "id": "meshd"}

    with pytest.raises(BaseExceptionGroup) as caught:
        replayed(tmp_path, change)
    assert caught.group_contains(error)


@pytest.mark.parametrize("refusal", [None, {"code": -35, "message": "already loaded"}])
def test_a_node_that_was_restarted_is_told_to_load_the_wallet_again(tmp_path: Path, refusal: Any) -> None:
    """Also if another call of ours does so at the same time."""
    asked: list[str] = []
    loaded = {NAME}

    async def answer(path: str, body: bytes) -> bytes:
        method, params = (json.loads(body)[name] for name in ("method", "params"))
        asked.append(method)
        error, result = None, None
        if method == "loadwallet":
            loaded.update(params)
            error = refusal
        elif method == "listwallets":
            result = sorted(loaded)
        elif not loaded:
            error = {"code": -18, "message": "Requested wallet does not exist or is not loaded"}
        else:
            result = {"mine": {"trusted": 1, "untrusted_pending": 0}} if method == "getbalances" else {}
        return json.dumps({"result": result, "error": error, "id": "meshd"}).encode()

    async def main() -> None:
        async with serving(answer) as port:
            wallet = await opened(RpcConfig(port, user="u", password="p"), tmp_path, Blocks())  # noqa: S106
            loaded.clear()
            assert await wallet.balance() == WalletBalance(10**8, 0)

    trio.run(main)
    assert asked == ["listwallets", "getwalletinfo", "getbalances", "loadwallet", "getbalances"]


def test_what_the_node_locked_for_a_transaction_that_it_does_not_sign_is_unlocked(tmp_path: Path) -> None:
    """An encrypted wallet, say: each attempt would lock another coin."""
    conversation = json.loads(VECTORS.read_text("utf-8"))["conversation"]
    created = next(e["answer"]["result"] for e in conversation if e["request"][1] == "walletcreatefundedpsbt")
    asked: list[tuple[str, Any]] = []

    async def answer(path: str, body: bytes) -> bytes:
        method, params = (json.loads(body)[name] for name in ("method", "params"))
        asked.append((method, params))
        results = {"listwallets": [NAME], "getwalletinfo": {}, "walletcreatefundedpsbt": created, "lockunspent": True}
        error = None if method in results else {"code": -13, "message": "Please enter the wallet passphrase"}
        return json.dumps({"result": results.get(method), "error": error, "id": "meshd"}).encode()

    async def main() -> None:
        async with serving(answer) as port:
            wallet = await opened(RpcConfig(port, user="u", password="p"), tmp_path, Blocks())  # noqa: S106
            with pytest.raises(WalletError, match="passphrase"):
                await wallet.fund(PAYEE_SCRIPT, CAPACITY, fee_rate=RATE)

    trio.run(main)
    spent = PSBT.from_base64(created["psbt"]).tx.vin
    assert asked[-1] == ("lockunspent", [True, [{"txid": bytes(spent[0].txid).hex(), "vout": spent[0].vout}]])


async def record(program: str, place: Path) -> list[dict[str, Any]]:
    """Of a node on a chain of its own."""
    conversation: list[dict[str, Any]] = []
    options = ["-regtest", f"-datadir={place}", "-listen=0", "-server=1", "-rpcport=28555", "-fallbackfee=0.00002"]
    process = await trio.lowlevel.open_process([program, *options], stdout=subprocess.DEVNULL)
    direct = RpcConfig(28555, cookie=place / "regtest" / ".cookie")
    node, blocks = Rpc(direct), Blocks()
    while True:
        try:
            await node.call(Any, "getblockcount")
            break
        except (ChainError, RpcError):
            await trio.sleep(0.2)
    await node.call(Any, "createwallet", NAME)
    own = Rpc(replace(direct, path=f"/wallet/{NAME.replace(' ', '%20')}"))
    first = await own.call(str, "getnewaddress", "", "bech32")
    await node.call(Any, "generatetoaddress", 1, first)
    elsewhere = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"
    await node.call(Any, "generatetoaddress", 100, elsewhere)

    async def mine(transactions: list[SignedTransaction]) -> None:
        for each in transactions:
            await node.call(str, "sendrawtransaction", each.raw.hex())
            blocks.mined.add(each.txid)
        await node.call(Any, "generatetoaddress", 1, elsewhere)

    async def answer(path: str, body: bytes) -> bytes:
        request = json.loads(body)
        reply = await Rpc(replace(direct, path=path))._post(body)
        parsed = json.loads(reply)
        conversation.append({"request": [path, request["method"], request["params"]], "answer": parsed})
        return reply

    try:
        async with serving(answer) as port:
            await scenario(RpcConfig(port), place / "ours", blocks, mine)
    finally:
        process.terminate()
        await process.wait()
    return conversation


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = trio.run(record, sys.argv[1], Path(place))
    source = "Bitcoin Knots 29.4.3.knots20260508, package bitcoin-knots of Debian sid, regtest, fresh descriptor wallet"
    VECTORS.write_text(json.dumps({"source": source, "conversation": found}, indent=1) + "\n", "utf-8")
