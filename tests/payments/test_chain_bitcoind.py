"""The bitcoind adapter: it says what the embedded chain says itself, and nothing when a node talks nonsense."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from payments.adapters import bitcoind
from payments.adapters.bitcoind import BitcoindChain
from payments.adapters.bitcoind_rpc import RpcConfig
from payments.adapters.kernel_chain import KernelChain
from payments.channel_tx import build_claim, build_refund
from payments.ports import BroadcastResult, Outpoint
from tests.payments.chain_support import FEE_RATE, PAYEE_SCRIPT, PAYER, PAYER_SCRIPT, fund, make_terms, refused
from tests.payments.fake_bitcoind import FakeBitcoind, Refusal, Verbatim


@asynccontextmanager
async def node(path: Path, **changes: Any) -> AsyncIterator[tuple[FakeBitcoind, BitcoindChain]]:
    kernel = KernelChain(path / "chain")
    try:
        async with FakeBitcoind(kernel).serving() as fake:
            config = {"port": fake.port, "user": "user", "password": "password", **changes}
            yield fake, BitcoindChain(RpcConfig(**config), network="regtest", poll_interval=0.01)
    finally:
        kernel.close()


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_channel_from_its_funding_to_its_claim_is_seen_as_the_chain_sees_it(tmp_path: Path, is_chunked: bool) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as (fake, chain):
            fake.is_chunked = is_chunked
            kernel = fake.chain
            assert await chain.tip() == kernel.tip()
            channel = fund(kernel)

            async def compare() -> None:
                assert await chain.output(channel.outpoint) == kernel.output(channel.outpoint)
                status, expected = (
                    await chain.transaction(channel.outpoint.txid),
                    kernel.transaction(channel.outpoint.txid),
                )
                assert status is not None and expected is not None
                assert (status.raw, status.height) == (expected.raw, expected.height)

            await compare()  # in the pool
            kernel.mine(2)
            await compare()
            early = build_refund(channel.terms, channel.outpoint, payer_key=PAYER, fee_rate=FEE_RATE)
            assert (await chain.broadcast(early.raw)).accepted is False
            claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
            assert await chain.broadcast(claim.raw) == BroadcastResult(accepted=True)
            await compare()  # spent in the pool
            kernel.mine(3)
            await compare()  # spent in a block
            found = await chain.utxos([PAYEE_SCRIPT, PAYER_SCRIPT])
            assert sorted(u.value_sat for u in found) == sorted(
                u.value_sat for u in kernel.utxos([PAYEE_SCRIPT, PAYER_SCRIPT])
            )
            assert await chain.output(Outpoint(b"?" * 32, 0)) is None
            assert await chain.output(Outpoint(channel.outpoint.txid, 9)) is None
            assert await chain.utxos([]) == []

    trio.run(scenario)


def test_what_a_reorganisation_undoes_is_not_remembered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as (fake, chain):
            channel = fund(fake.chain)
            fake.chain.mine(2)
            claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
            await chain.broadcast(claim.raw)
            fake.chain.mine(1)
            seen = await chain.output(channel.outpoint)
            assert seen is not None and seen.spent_height == fake.chain.tip().height
            async with chain_tips(chain) as tips:
                assert await tips.__anext__() == fake.chain.tip()
                fake.chain.fork(1, 2)
                assert await tips.__anext__() == fake.chain.tip()
            seen = await chain.output(channel.outpoint)
            assert seen == fake.chain.output(channel.outpoint)
            assert seen is not None and seen.spent_by == claim.txid and seen.spent_height is None
            fake.chain.mine(1)
            seen = await chain.output(channel.outpoint)
            assert seen is not None and seen.spent_height == fake.chain.tip().height

    trio.run(scenario)


@asynccontextmanager
async def chain_tips(chain: BitcoindChain) -> AsyncIterator[Any]:
    tips = chain.tips()
    try:
        yield tips
    finally:
        await tips.aclose()  # type: ignore[attr-defined]


def test_a_long_search_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as (fake, chain):
            channel = fund(fake.chain)
            fake.chain.mine(7)
            claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
            await chain.broadcast(claim.raw)
            fake.chain.mine(1)
            monkeypatch.setattr(bitcoind, "MAX_SCAN", 3)
            for _ in range(2):
                assert "not found up to height" in await refused(lambda: chain.output(channel.outpoint))
            seen = await chain.output(channel.outpoint)
            assert seen is not None and seen.spent_by == claim.txid
            assert fake.calls.count("getblock") == 8  # none of them twice

    trio.run(scenario)


def test_fee_rates_are_estimated_bounded_and_never_missing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as (fake, chain):
            assert await chain.fee_rate() == 2.0
            for feerate, expected in ((0.00012345, 12.345), (5.0, 10_000.0), (0.0000001, 1.0)):
                fake.answers["estimatesmartfee"] = lambda _, rate=feerate: {"feerate": rate}
                assert await chain.fee_rate() == pytest.approx(expected)
            fake.answers["estimatesmartfee"] = lambda _: {"feerate": -1}
            fake.answers["getmempoolinfo"] = lambda: {"mempoolminfee": 0.0005}
            assert await chain.fee_rate() == pytest.approx(50.0)

    trio.run(scenario)


def test_what_is_there_already_is_accepted_by_code_and_state_and_not_by_text(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as (fake, chain):
            raw = fake.chain.transaction(fund(fake.chain).outpoint.txid).raw  # type: ignore[union-attr]
            stranger = build_refund(make_terms(), Outpoint(b"9" * 32, 0), payer_key=PAYER, fee_rate=FEE_RATE).raw
            cases = [(-27, stranger, True), (-26, raw, True), (-26, stranger, False), (-25, stranger, False)]
            for code, sent, is_accepted in cases:

                def refuse(_: str, code: int = code) -> str:
                    raise Refusal(code, "txn-already-in-mempool")

                fake.answers["sendrawtransaction"] = refuse
                assert await chain.broadcast(sent) == BroadcastResult(is_accepted, str(code))

            def warm_up(_: str) -> str:
                raise Refusal(-28, "Loading block index")

            fake.answers["sendrawtransaction"] = warm_up
            assert "-28" in await refused(lambda: chain.broadcast(raw))
            fake.answers["sendrawtransaction"] = lambda _: "00" * 32
            await refused(lambda: chain.broadcast(raw))

    trio.run(scenario)


OK = "HTTP/1.1 200 OK\r\n"


NONSENSE: list[Any] = [
    None,
    [],
    "text",
    {"chain": "main", "blocks": 1, "bestblockhash": "00" * 32},
    {"chain": "regtest", "blocks": -1, "bestblockhash": "00" * 32},
    {"chain": "regtest", "blocks": 10**9, "bestblockhash": "00" * 32},
    {"chain": "regtest", "blocks": 1, "bestblockhash": "zz" * 32},
    {"chain": "regtest", "blocks": 1.5, "bestblockhash": "00" * 32},
    Verbatim(""),
    Verbatim("nonsense\r\n\r\n"),
    Verbatim("HTTP/1.1 abc\r\n\r\n{}"),
    Verbatim("HTTP/1.1 503 Busy\r\nContent-Length: 25\r\n\r\nWork queue depth exceeded"),
    Verbatim(OK + "Content-Length: 100\r\n\r\n{}"),
    Verbatim(OK + "Content-Length: many\r\n\r\n{}"),
    Verbatim(OK + "Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    Verbatim(OK + "Transfer-Encoding: chunked\r\n\r\nff\r\n{}"),
    Verbatim(OK + "X: " + "y" * 100_000),
    Verbatim(OK + "\r\n" + '{"result": ' + "[" * 100_000),
    Verbatim(OK + "\r\n" + '{"error": {"code": "x"}}'),
]


def test_nonsense_of_a_node_is_a_chain_error_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as (fake, chain):
            for answer in NONSENSE:
                fake.answers["getblockchaininfo"] = lambda answer=answer: answer
                assert await refused(chain.tip), answer
                del fake.answers["getblockchaininfo"]
                await chain.tip()

    trio.run(scenario)


def test_lies_about_outputs_and_transactions_are_chain_errors(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as (fake, chain):
            channel = fund(fake.chain)
            fake.chain.mine(1)
            other = fake.chain.transaction(fake.chain.faucet(PAYEE_SCRIPT, 10_000))
            assert other is not None
            for lie in ({"hex": other.raw.hex()}, {"hex": "00"}, {"hex": ""}):
                fake.answers["getrawtransaction"] = lambda *_, lie=lie: lie
                await refused(lambda: chain.transaction(channel.outpoint.txid))
            honest = fake.gettxout(channel.outpoint.txid[::-1].hex(), channel.outpoint.index, True)
            for value in (-0.1, 0.000000001, 21_000_001, "x", None):
                fake.answers["gettxout"] = lambda *_, value=value: honest | {"value": value}
                await refused(lambda: chain.output(channel.outpoint))
            fake.answers["scantxoutset"] = lambda *_: fake.scantxoutset(
                "start", [f"raw({fake.chain._faucet_script.hex()})"]
            )
            await refused(lambda: chain.utxos([PAYEE_SCRIPT]))
            fake.answers["scantxoutset"] = lambda *_: {"success": False, "unspents": []}
            await refused(lambda: chain.utxos([PAYEE_SCRIPT]))

    trio.run(scenario)


def test_a_node_that_never_answers_holds_us_up_for_a_while_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path, timeout=0.05) as (fake, chain):
            fake.answers["getblockchaininfo"] = trio.Event
            assert "no answer" in await refused(chain.tip)

    trio.run(scenario)


def test_a_cookie_is_read_anew_when_the_node_has_a_new_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        cookie = tmp_path / ".cookie"
        async with node(tmp_path, cookie=cookie) as (fake, chain):
            assert "no cookie" in await refused(chain.tip)
            cookie.write_text("__cookie__:wrong\n")
            assert "refuses" in await refused(chain.tip)
            fake.authorization = "__cookie__:right"
            cookie.write_text("__cookie__:right\n")
            await chain.tip()
        assert "no node" in await refused(chain.tip)

    trio.run(scenario)
