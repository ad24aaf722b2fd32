"""The chain over its socket: server and client in one loop on the real chain, then the program itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from payments.adapters import chain_protocol, chaind
from payments.adapters.chain_client import KernelChainClient
from payments.adapters.kernel_chain import PREMINED_BLOCKS, KernelChain
from payments.channel_tx import build_claim, build_refund, funding_script_pubkey
from payments.ports import ChainError, Outpoint
from tests.payments.chain_support import (
    CAPACITY,
    FEE_RATE,
    PAYEE_SCRIPT,
    PAYER,
    PAYER_SCRIPT,
    OpenChannel,
    make_terms,
    own_script,
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Unix socket paths are short; pytest's may not be."""
    link = Path(f"/tmp/meshd-chain-test-{os.getpid()}")  # noqa: S108
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path)
    yield link
    link.unlink()


@asynccontextmanager
async def running_server(place: Path, chain: KernelChain) -> AsyncIterator[Path]:
    socket_path = place / "chain.socket"
    server = chaind.ChainServer(chain)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve_client, [chaind.listen(socket_path)])
        yield socket_path
        nursery.cancel_scope.cancel()


def with_server(place: Path, scenario: Callable[[Path], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(120):
            async with running_server(place, chain) as socket_path:
                await scenario(socket_path)

    chain = KernelChain(place / "data")
    try:
        trio.run(main)
    finally:
        chain.close()


async def exchange(stream: trio.SocketStream, line: bytes) -> bytes:
    """Everything the server says until it closes, or to the end of one line."""
    await stream.send_all(line)
    answer = b""
    while not answer.endswith(b"\n"):
        chunk = await stream.receive_some()
        if not chunk:
            break
        answer += chunk
    return answer


# --- Client and server ---


def test_channel_over_the_socket(place: Path) -> None:
    async def scenario(socket_path: Path) -> None:
        client = KernelChainClient(socket_path)
        terms = make_terms()
        txid = await client.faucet(funding_script_pubkey(terms), CAPACITY)
        channel = OpenChannel(terms, Outpoint(txid, 0))
        funding = await client.transaction(txid)
        assert funding is not None
        assert funding.height is None
        await client.mine()
        early = build_refund(terms, channel.outpoint, payer_key=PAYER, fee_rate=FEE_RATE)
        assert not (await client.broadcast(early.raw)).accepted
        claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=await client.fee_rate())
        assert (await client.broadcast(claim.raw)).accepted
        tip = await client.mine(3)
        assert tip == await client.tip()
        assert tip.height == PREMINED_BLOCKS + 4
        spent = await client.output(channel.outpoint)
        assert spent is not None
        assert (spent.spent_by, spent.spent_height) == (claim.txid, PREMINED_BLOCKS + 2)
        assert {(utxo.script_pubkey, utxo.value_sat) for utxo in await client.utxos([PAYEE_SCRIPT, PAYER_SCRIPT])} == {
            (PAYEE_SCRIPT, 40_000 - claim.fee_sat),
            (PAYER_SCRIPT, CAPACITY - 40_000),
        }
        client.close()

    with_server(place, scenario)


def test_what_is_not_there_is_none(place: Path) -> None:
    async def scenario(socket_path: Path) -> None:
        client = KernelChainClient(socket_path)
        assert await client.transaction(bytes(32)) is None
        assert await client.output(Outpoint(bytes(32), 0)) is None
        assert await client.utxos([]) == []
        assert await client.utxos([own_script(str(n)) for n in range(chain_protocol.MAX_SCRIPTS + 1)]) == []
        client.close()

    with_server(place, scenario)


def test_refusals_of_the_server_are_chain_errors(place: Path) -> None:
    async def scenario(socket_path: Path) -> None:
        client = KernelChainClient(socket_path)
        for call in (
            partial(client.faucet, PAYEE_SCRIPT, 1),
            partial(client.faucet, PAYEE_SCRIPT, -1),
            partial(client.mine, 0),
            partial(client.mine, 10**9),
            partial(client.transaction, b"short"),
            partial(client.broadcast, bytes(500_000)),
        ):
            with pytest.raises(ChainError):
                await call()
        assert (await client.tip()).height == PREMINED_BLOCKS
        client.close()

    with_server(place, scenario)


def test_subscribers_see_each_tip(place: Path) -> None:
    async def scenario(socket_path: Path) -> None:
        client = KernelChainClient(socket_path)
        tips, others = client.tips(), client.tips()
        assert (await anext(tips)).height == (await anext(others)).height == PREMINED_BLOCKS
        for height in range(PREMINED_BLOCKS + 1, PREMINED_BLOCKS + 4):
            mined = await client.mine()
            assert mined.height == height
            assert await anext(tips) == await anext(others) == mined
        client.close()
        for each in (tips, others):
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(each)

    with_server(place, scenario)


def test_cancelled_request_does_not_confuse_the_next(place: Path) -> None:
    async def scenario(socket_path: Path) -> None:
        client = KernelChainClient(socket_path)
        await client.tip()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.mine, 200)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert isinstance(await client.fee_rate(), float)
        client.close()

    with_server(place, scenario)


def test_client_outlives_its_server(place: Path) -> None:
    async def main() -> None:
        client = KernelChainClient(place / "chain.socket")
        with pytest.raises(ChainError):
            await client.tip()
        for _ in range(2):
            async with running_server(place, chain):
                assert (await client.tip()).height == PREMINED_BLOCKS
                tips = client.tips()
                await anext(tips)
            with pytest.raises(ChainError):
                await anext(tips)

            (place / "chain.socket").unlink()
            with pytest.raises(ChainError):
                await client.tip()

    chain = KernelChain(place / "data")
    trio.run(main)
    chain.close()


# --- Hostile clients ---

GARBAGE = [
    b"\n",
    b"nonsense\n",
    b"\xff\xfe\x00\n",
    b"[]\n",
    b'{"id":1,"method":"shutdown"}\n',
    b'{"id":-1,"method":"tip"}\n',
    b'{"id":1,"method":"tip","extra":1}\n',
    b'{"id":1,"method":"broadcast","raw":"abc"}\n',
    b'{"id":1,"method":"broadcast","raw":5}\n',
    b'{"id":1,"method":"output","txid":"00","index":0}\n',
    b'{"id":1,"method":"mine","count":99999999}\n',
    b'{"id":1,"method":"faucet","script":"00","amount_sat":1e400}\n',
    b"[" * 100_000 + b"\n",
]


@pytest.mark.parametrize("line", GARBAGE, ids=lambda line: repr(line[:40]))
def test_garbage_ends_only_its_own_connection(served: Path, line: bytes) -> None:
    async def scenario() -> None:
        stream = await trio.open_unix_socket(str(served))
        async with stream:
            answer = json.loads(await exchange(stream, line))
            assert "error" in answer
            assert await stream.receive_some() == b""
        client = KernelChainClient(served)
        assert (await client.tip()).height == PREMINED_BLOCKS
        client.close()

    trio.run(scenario)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server in a thread of its own, shared by the tests that cannot harm it."""
    place = tmp_path_factory.mktemp("served")
    link = Path(f"/tmp/meshd-chain-served-{os.getpid()}")  # noqa: S108
    link.symlink_to(place)
    ready, token = threading.Event(), []

    async def main() -> None:
        chain = KernelChain(place / "data")
        async with running_server(link, chain):
            stop = trio.Event()
            token.extend([trio.lowlevel.current_trio_token(), stop])
            ready.set()
            await stop.wait()
        chain.close()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(20)
    yield link / "chain.socket"
    token[0].run_sync_soon(token[1].set)
    thread.join()
    link.unlink()


def test_endless_line_is_cut_off(served: Path) -> None:
    async def scenario() -> None:
        stream = await trio.open_unix_socket(str(served))
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                for _ in range(200):
                    await stream.send_all(b"x" * 65_536)

    trio.run(scenario)


def test_stalled_clients_stall_nobody(served: Path) -> None:
    async def scenario() -> None:
        stalled = [await trio.open_unix_socket(str(served)) for _ in range(20)]
        for stream in stalled[:10]:
            await stream.send_all(b'{"id":1,"method":"ti')
        for stream in stalled[10:]:
            # Asks and asks, and reads no answer.
            with trio.move_on_after(0.05):
                while True:
                    await stream.send_all(b'{"id":1,"method":"tip"}\n' * 1_000)
        client = KernelChainClient(served)
        with trio.fail_after(60):
            for _ in range(20):
                await client.tip()
        client.close()
        for stream in stalled:
            await trio.aclose_forcefully(stream)

    trio.run(scenario)


# --- Hostile servers ---

TIP = '{"height":1,"block_hash":"' + "00" * 32 + '"}'
LIES = [
    b"nonsense\n",
    b"{}\n",
    b'{"id":2}\n',
    b'{"id":2,"result":null}\n',
    b'{"id":2,"result":{"height":-1,"block_hash":"' + b"00" * 32 + b'"}}\n',
    b'{"id":2,"result":{"height":1,"block_hash":"zz"}}\n',
    b'{"id":2,"result":{"height":1e99,"block_hash":""}}\n',
    b'{"id":3,"result":' + TIP.encode() + b"}\n",
    b'{"id":2,"error":"no"}\n',
    b"\xff\n",
    b"",
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: repr(lie[:40]))
def test_nonsense_from_the_server_is_a_chain_error(place: Path, lie: bytes) -> None:
    async def liar(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(lie)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, liar, [chaind.listen(place / "s")])
            client = KernelChainClient(place / "s")
            with pytest.raises(ChainError):
                await client.tip()
            client.close()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_another_transaction_than_asked_for_is_a_chain_error(place: Path) -> None:
    async def scenario(socket_path: Path) -> None:
        client = KernelChainClient(socket_path)
        txid = await client.faucet(PAYEE_SCRIPT, 10_000)
        status = await client.transaction(txid)
        assert status is not None

        async def liar(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            result = {"raw": status.raw.hex(), "height": None, "fee_sat": 1}
            await stream.send_all(json.dumps({"id": 2, "result": result}).encode() + b"\n")
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, liar, [chaind.listen(place / "liar")])
            deceived = KernelChainClient(place / "liar")
            with pytest.raises(ChainError):
                await deceived.transaction(bytes(32))
            deceived.close()
            nursery.cancel_scope.cancel()
        client.close()

    with_server(place, scenario)


def test_silent_server_times_out(place: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, lambda stream: trio.sleep_forever(), [chaind.listen(place / "s")])
            client = KernelChainClient(place / "s")
            for waiting in (client.tip, client.tips().__anext__):
                with pytest.raises(ChainError):
                    await waiting()
            client.close()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))


# --- The program ---


def test_program_serves_mines_and_ends_cleanly(place: Path) -> None:
    socket_path = place / "chain.socket"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(socket_path))
    stale.close()
    arguments = ["--socket", str(socket_path), "--datadir", str(place / "data")]
    arguments += ["--block-interval", "60", "--mine-on-transaction"]
    with subprocess.Popen(
        [sys.executable, "-m", "payments.adapters.chaind", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600

        async def scenario() -> None:
            client = KernelChainClient(socket_path)
            tips = client.tips()
            assert (await anext(tips)).height == PREMINED_BLOCKS
            txid = await client.faucet(PAYEE_SCRIPT, 10_000)
            with trio.fail_after(60):
                assert (await anext(tips)).height == PREMINED_BLOCKS + 1
            status = await client.transaction(txid)
            assert status is not None
            assert status.height == PREMINED_BLOCKS + 1
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(60), pytest.raises(ChainError):
                await anext(tips)
            client.close()

        trio.run(scenario)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
    assert not socket_path.exists()
    chain = KernelChain(place / "data")
    assert chain.tip().height == PREMINED_BLOCKS + 1
    chain.close()


def test_second_program_on_the_same_directory_says_why_it_ends(place: Path) -> None:
    chain = KernelChain(place / "data")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "payments.adapters.chaind",
            "--socket",
            str(place / "s"),
            "--datadir",
            str(place / "data"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    chain.close()
    assert run.returncode == 1
    assert "cannot open the chain" in run.stderr
