"""The explorer adapter over real HTTP against servers of the embedded chain: honest, lying, hanging, out of order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from payments.adapters.explorer import MAX_ANSWER, MAX_THREADS, EsploraChain, bitcoinlib_client, explorer_chain
from payments.adapters.kernel_chain import KernelChain
from payments.channel_tx import build_claim, build_refund
from payments.ports import BroadcastResult, Outpoint
from tests.payments.chain_support import FEE_RATE, PAYEE_SCRIPT, PAYER, PAYER_SCRIPT, fund, refused
from tests.payments.esplora import Esplora, Status


@asynccontextmanager
async def server(path: Path, timeout: float = 20.0) -> AsyncIterator[tuple[Esplora, EsploraChain]]:
    kernel = KernelChain(path / "chain")
    try:
        async with Esplora(kernel, scripts=[PAYEE_SCRIPT, PAYER_SCRIPT]).serving() as esplora:
            client = bitcoinlib_client(esplora.url, network="regtest", directory=path, timeout=timeout)
            yield esplora, EsploraChain(client, timeout=timeout, poll_interval=0.01)
    finally:
        kernel.close()


def run(path: Path, scenario: Callable[[Esplora, EsploraChain], Awaitable[None]], timeout: float = 20.0) -> None:
    async def main() -> None:
        async with server(path, timeout) as (esplora, chain):
            await scenario(esplora, chain)

    trio.run(main)


def test_a_channel_from_its_funding_to_its_claim_is_seen_as_the_chain_sees_it(tmp_path: Path) -> None:
    async def scenario(esplora: Esplora, chain: EsploraChain) -> None:
        kernel = esplora.chain
        assert await chain.tip() == kernel.tip()
        assert await chain.fee_rate() == 3.25
        channel = fund(kernel)

        async def compare() -> None:
            assert await chain.output(channel.outpoint) == kernel.output(channel.outpoint)
            status, expected = await chain.transaction(channel.outpoint.txid), kernel.transaction(channel.outpoint.txid)
            assert status is not None and expected is not None
            assert (status.raw, status.height) == (expected.raw, expected.height)

        await compare()  # in the pool
        kernel.mine(2)
        await compare()
        early = build_refund(channel.terms, channel.outpoint, payer_key=PAYER, fee_rate=FEE_RATE)
        assert await chain.broadcast(early.raw) == BroadcastResult(accepted=False, code="400")
        claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
        assert await chain.broadcast(claim.raw) == BroadcastResult(accepted=True)
        assert await chain.broadcast(claim.raw) == BroadcastResult(accepted=True)
        await compare()  # spent in the pool
        kernel.mine(3)
        await compare()  # spent in a block
        found = await chain.utxos([PAYEE_SCRIPT, PAYER_SCRIPT])
        expected = kernel.utxos([PAYEE_SCRIPT, PAYER_SCRIPT])
        assert sorted((u.outpoint.txid, u.value_sat, u.height) for u in found) == sorted(
            (u.outpoint.txid, u.value_sat, u.height) for u in expected
        )
        assert await chain.output(Outpoint(b"?" * 32, 0)) is None
        assert await chain.output(Outpoint(channel.outpoint.txid, 9)) is None

    run(tmp_path, scenario)


def test_a_reorganisation_is_a_new_tip_and_what_it_undid_is_in_the_pool(tmp_path: Path) -> None:
    async def scenario(esplora: Esplora, chain: EsploraChain) -> None:
        channel = fund(esplora.chain)
        esplora.chain.mine(1)
        tips = chain.tips()
        assert await anext(tips) == esplora.chain.tip()
        esplora.chain.fork(1, 2)
        assert await anext(tips) == esplora.chain.tip()
        await tips.aclose()  # type: ignore[attr-defined]
        seen = await chain.output(channel.outpoint)
        assert seen is not None and seen.height is None

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("blocks/tip/hash", lambda: "xyz"),
        ("blocks/tip/hash", lambda: b"\xff\xfe"),
        ("blocks/tip/hash", lambda: "7" * 64),
        ("block/", lambda: {"id": "0" * 64, "height": 5}),
        ("block/", lambda: {"id": 5}),
        ("block/", lambda: "["),
        ("block/", lambda: b"x" * (MAX_ANSWER + 1)),
        ("blocks/tip/hash", lambda: "[" * 100_000),
    ],
)
def test_nonsense_of_a_server_is_a_chain_error_and_nothing_else(
    tmp_path: Path, path: str, answer: Callable[[], Any]
) -> None:
    async def scenario(esplora: Esplora, chain: EsploraChain) -> None:
        esplora.answers[path] = answer
        await refused(chain.tip)

    run(tmp_path, scenario)


def test_lies_that_can_be_found_are_chain_errors(tmp_path: Path) -> None:
    async def scenario(esplora: Esplora, chain: EsploraChain) -> None:
        channel, other = fund(esplora.chain), fund(esplora.chain)
        esplora.chain.mine(1)
        name = channel.outpoint.txid[::-1].hex()
        found = esplora.chain.transaction(other.outpoint.txid)
        assert found is not None
        esplora.answers[f"tx/{name}/hex"] = found.raw.hex
        assert "another transaction" in await refused(lambda: chain.transaction(channel.outpoint.txid))
        del esplora.answers[f"tx/{name}/hex"]
        lie = {"spent": True, "txid": other.outpoint.txid[::-1].hex(), "vin": 0, "status": {"confirmed": False}}
        esplora.answers[f"tx/{name}/outspend"] = lambda: lie
        assert "does not spend" in await refused(lambda: chain.output(channel.outpoint))
        esplora.answers["fee-estimates"] = lambda: {"6": -1}
        assert "a fee of" in await refused(chain.fee_rate)
        esplora.answers["fee-estimates"] = lambda: {"6": 1e9}
        assert await chain.fee_rate() == 10_000.0

    run(tmp_path, scenario)


@pytest.mark.parametrize("status", [301, 401, 429, 500, 503])
def test_a_server_that_is_busy_or_broken_has_neither_refused_nor_denied_anything(tmp_path: Path, status: int) -> None:
    def busy() -> Any:
        raise Status(status)

    async def scenario(esplora: Esplora, chain: EsploraChain) -> None:
        channel = fund(esplora.chain)
        esplora.answers["tx"] = busy
        assert str(status) in await refused(lambda: chain.transaction(channel.outpoint.txid))
        raw = esplora.chain.transaction(channel.outpoint.txid)
        assert raw is not None
        await refused(lambda: chain.broadcast(raw.raw))

    run(tmp_path, scenario)


def test_a_server_that_hangs_keeps_a_few_threads_and_nobody_else(tmp_path: Path) -> None:
    async def scenario(esplora: Esplora, chain: EsploraChain) -> None:
        end = trio.Event()
        esplora.answers["blocks/tip/hash"] = lambda: end
        client = bitcoinlib_client(esplora.url, network="regtest", directory=tmp_path, timeout=60.0)
        hasty = EsploraChain(client, timeout=0.2)
        for _ in range(MAX_THREADS + 2):
            assert "no answer within" in await refused(hasty.tip)
        assert len(esplora.calls) <= MAX_THREADS  # the others did not get a thread
        assert await chain.fee_rate() == 3.25
        end.set()

    run(tmp_path, scenario)


def test_nobody_at_the_address_is_a_chain_error(tmp_path: Path) -> None:
    async def main() -> None:
        client = bitcoinlib_client("http://127.0.0.1:1/api", network="regtest", directory=tmp_path, timeout=5.0)
        await refused(EsploraChain(client).tip)

    trio.run(main)


def test_two_servers_must_agree_before_anything_counts(tmp_path: Path) -> None:
    """Lost at most: nothing, while one of the two is honest and not behind."""

    async def scenario(esplora: Esplora, chain: EsploraChain) -> None:
        async with Esplora(esplora.chain).serving() as second:
            both = explorer_chain([esplora.url, second.url], network="regtest", directory=tmp_path, is_real=False)
            channel = fund(esplora.chain)
            esplora.chain.mine(1)
            second.height_offset = 7
            assert (await both.tip()).height == esplora.chain.tip().height + 7  # claims begin early
            name = channel.outpoint.txid[::-1].hex()
            second.answers[f"tx/{name}/status"] = lambda: {"confirmed": False}
            seen = await both.output(channel.outpoint)
            assert seen is not None and seen.height is None  # credit waits
            second.answers.clear()
            second.height_offset = 0
            seen = await both.output(channel.outpoint)
            assert seen is not None and seen.height == (await both.tip()).height  # one confirmation

    run(tmp_path, scenario)


def test_one_server_alone_is_refused(tmp_path: Path) -> None:
    for urls in ([], ["http://a/api"], ["http://a/api", "http://a/api"]):
        with pytest.raises(ValueError, match="two or more"):
            explorer_chain(urls, network="regtest", directory=tmp_path)
