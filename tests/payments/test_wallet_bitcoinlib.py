"""The wallet on the embedded chain."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from embit import bip32
from embit.networks import NETWORKS
from embit.script import p2wpkh

from payments.adapters.addresses import address_of, script_of
from payments.adapters.chain_index import inputs_of
from payments.adapters.kernel_chain import KernelChain
from payments.adapters.wallet_bitcoinlib import COIN_TYPES, MAX_INPUTS, BitcoinlibWallet
from payments.adapters.wallet_book import Book
from payments.adapters.wallet_notes import WalletNotes
from payments.adapters.wallet_process import BookProcess
from payments.channel_tx import (
    build_claim,
    build_refund,
    find_funding_output,
    funding_script_pubkey,
    parse_transaction,
)
from payments.fees import virtual_bytes
from payments.mutual_tx import check_splice, complete, foreign_input, sign_mutual, splice_outputs, stripped
from payments.ports import (
    ChainError,
    InsufficientFundsError,
    Outpoint,
    SignedTransaction,
    Utxo,
    WalletBalance,
    WalletError,
)
from tests.payments.chain_support import (
    CAPACITY,
    FEE_RATE,
    PAYEE,
    PAYEE_SCRIPT,
    PAYER,
    LocalChain,
    OpenChannel,
    balance,
    make_terms,
    open_channel,
    own_script,
)

SEED = bytes(range(32))


async def open_wallet(directory: Path, chain: LocalChain, seed: bytes = SEED) -> BitcoinlibWallet:
    """Its book in this process, which is quicker to start; `test_book_in_its_own_process` has the other."""
    return await BitcoinlibWallet.open(directory, chain, seed=seed, open_book=Book)


class Desk:
    """A wallet, its chain, and what a test does with them."""

    def __init__(self, directory: Path, chain: KernelChain, wallet: BitcoinlibWallet) -> None:
        self.directory = directory
        self.chain = chain
        self.wallet = wallet

    async def receive(self, *amounts: int, confirmed: bool = True) -> None:
        for amount in amounts:
            self.chain.faucet(await self.wallet.new_script_pubkey(), amount)
        if confirmed:
            self.chain.mine()

    async def pay(self, amount: int, name: str = "somebody") -> SignedTransaction:
        return await self.wallet.fund(own_script(name), amount, fee_rate=FEE_RATE)

    async def restart(self) -> None:
        await self.wallet.close()
        self.wallet = await open_wallet(self.directory, LocalChain(self.chain))


def with_wallet(place: Path, scenario: Callable[[Desk], Awaitable[None]]) -> None:
    async def main() -> None:
        wallet = await open_wallet(place / "wallet", LocalChain(chain))
        desk = Desk(place / "wallet", chain, wallet)
        try:
            await scenario(desk)
        finally:
            await desk.wallet.close()

    chain = KernelChain(place / "chain")
    try:
        trio.run(main)
    finally:
        chain.close()


def inputs(signed: SignedTransaction) -> set[Outpoint]:
    return set(inputs_of(parse_transaction(signed.raw)))


def test_funds_a_channel_and_later_sees_its_change(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(300_000)
        terms = make_terms(payer_change_script=await desk.wallet.new_script_pubkey())
        funding = await desk.wallet.fund(funding_script_pubkey(terms), CAPACITY, fee_rate=FEE_RATE)
        channel = OpenChannel(terms, Outpoint(funding.txid, find_funding_output(funding.raw, terms)))
        assert desk.chain.submit(funding.raw).accepted
        assert await desk.wallet.balance_sat() == 200_000 - funding.fee_sat
        desk.chain.mine()
        status = desk.chain.transaction(funding.txid)
        assert status is not None
        assert status.fee_sat == funding.fee_sat
        claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
        assert desk.chain.submit(claim.raw).accepted
        desk.chain.mine()
        assert await desk.wallet.balance_sat() == 260_000 - funding.fee_sat

    with_wallet(tmp_path, scenario)


def test_adds_money_to_a_splice_that_others_sign(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(300_000)
        channel = open_channel(desk.chain)
        new = replace(channel.terms, expiry_height=500)
        outputs = splice_outputs(new, paid_out_sat=40_000, payout_script=PAYEE_SCRIPT)
        foreign = foreign_input(channel.terms, channel.outpoint)
        signed = await desk.wallet.fund_splice(foreign, outputs, fee_rate=FEE_RATE)
        bare = stripped(signed.raw)
        funding = check_splice(bare, channel.outpoint, new, paid_out_sat=40_000, payout_script=PAYEE_SCRIPT)
        assert funding.txid == signed.txid
        ours, theirs = (sign_mutual(key, bare, channel.terms, channel.outpoint) for key in (PAYER, PAYEE))
        raw = complete(signed.raw, channel.terms, channel.outpoint, payer_signature=ours, payee_signature=theirs)
        assert signed.fee_sat >= virtual_bytes(raw) * FEE_RATE
        assert await desk.wallet.pending() == [signed]
        assert desk.chain.submit(raw).accepted
        desk.chain.mine()
        assert balance(desk.chain, PAYEE_SCRIPT) == 40_000
        assert await desk.wallet.pending() == []
        assert await desk.wallet.balance_sat() == 300_000 - 40_000 - signed.fee_sat

    with_wallet(tmp_path, scenario)


def test_refund_comes_back_to_the_wallet(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(300_000)
        change = await desk.wallet.new_script_pubkey()
        terms = make_terms(payer_change_script=change, expiry_height=desk.chain.tip().height + 2)
        funding = await desk.wallet.fund(funding_script_pubkey(terms), CAPACITY, fee_rate=FEE_RATE)
        outpoint = Outpoint(funding.txid, find_funding_output(funding.raw, terms))
        assert desk.chain.submit(funding.raw).accepted
        desk.chain.mine(3)
        refund = build_refund(terms, outpoint, payer_key=PAYER, fee_rate=FEE_RATE)
        assert desk.chain.submit(refund.raw).accepted
        desk.chain.mine()
        assert await desk.wallet.balance_sat() == 300_000 - funding.fee_sat - refund.fee_sat

    with_wallet(tmp_path, scenario)


def test_scripts_are_bip84_of_the_seed_and_never_twice(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        scripts = [await desk.wallet.new_script_pubkey() for _ in range(3)]
        await desk.restart()
        scripts += [await desk.wallet.new_script_pubkey() for _ in range(3)]
        assert len(set(scripts)) == 6
        branch = bip32.HDKey.from_seed(SEED).derive("m/84h/1h/0h/0")
        derived = [p2wpkh(branch.derive([index])).data for index in range(8)]
        assert set(scripts) <= set(derived)

    with_wallet(tmp_path, scenario)


def test_fee_is_the_rate_and_the_output_is_exact(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(50_000, 60_000, 70_000)
        for rate in (1.0, 3.7, 20.0):
            signed = await desk.wallet.fund(own_script("x"), 125_000, fee_rate=rate)
            transaction = parse_transaction(signed.raw)
            assert transaction.vout[0].value == 125_000
            spent = sum(desk.chain.output(outpoint).value_sat for outpoint in inputs(signed))  # type: ignore[union-attr]
            assert spent - sum(output.value for output in transaction.vout) == signed.fee_sat
            size = len(signed.raw) - 0.75 * sum(len(item.witness.serialize()) for item in transaction.vin) - 1.5
            assert size * rate <= signed.fee_sat <= (size + 8) * rate + 1
            await desk.wallet.release(signed.txid)
        assert desk.chain.submit(signed.raw).accepted

    with_wallet(tmp_path, scenario)


def test_pending_fundings_never_share_an_input(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(50_000, 50_000, 50_000)
        first, second = await desk.pay(20_000), await desk.pay(20_000)
        await desk.restart()
        third = await desk.pay(20_000)
        assert not inputs(first) & inputs(second)
        assert not (inputs(first) | inputs(second)) & inputs(third)
        with pytest.raises(InsufficientFundsError):
            await desk.pay(20_000)
        for funding in (first, second, third):
            assert desk.chain.submit(funding.raw).accepted

    with_wallet(tmp_path, scenario)


def test_concurrent_fundings_never_share_an_input(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(*[50_000] * 4)
        made: list[SignedTransaction] = []

        async def pay() -> None:
            made.append(await desk.pay(20_000))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(pay)
        assert len(set.union(*map(inputs, made))) == sum(len(inputs(each)) for each in made) == 4

    with_wallet(tmp_path, scenario)


def test_crash_between_funding_and_broadcast_loses_nothing(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(100_000)
        forgotten = await desk.pay(20_000)
        await desk.restart()
        assert await desk.wallet.pending() == [forgotten]
        assert await desk.wallet.balance_sat() == 100_000
        with pytest.raises(InsufficientFundsError):
            await desk.pay(20_000)
        await desk.wallet.release(forgotten.txid)
        assert desk.chain.submit((await desk.pay(20_000)).raw).accepted
        await desk.restart()
        assert [each.txid for each in await desk.wallet.pending()] != [forgotten.txid]

    with_wallet(tmp_path, scenario)


def test_release_frees_the_inputs_at_once_and_only_its_own(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(50_000, 50_000)
        kept, dropped = await desk.pay(20_000), await desk.pay(20_000)
        await desk.wallet.release(dropped.txid)
        await desk.wallet.release(bytes(32))
        again = await desk.pay(21_000)
        assert inputs(again) == inputs(dropped)
        assert {each.txid for each in await desk.wallet.pending()} == {kept.txid, again.txid}

    with_wallet(tmp_path, scenario)


def test_own_change_is_spent_unconfirmed_but_nothing_else(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(100_000)
        await desk.receive(500_000, confirmed=False)
        first = await desk.pay(20_000, "a")
        with pytest.raises(InsufficientFundsError):  # its change is not on the chain yet
            await desk.pay(20_000, "b")
        assert desk.chain.submit(first.raw).accepted
        second = await desk.pay(20_000, "b")
        assert {outpoint.txid for outpoint in inputs(second)} == {first.txid}
        assert desk.chain.submit(second.raw).accepted
        with pytest.raises(InsufficientFundsError):
            await desk.pay(400_000, "c")
        desk.chain.mine()
        assert await desk.wallet.pending() == []
        assert desk.chain.submit((await desk.pay(400_000, "c")).raw).accepted

    with_wallet(tmp_path, scenario)


def test_dust_change_goes_to_the_fee(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(20_000)
        signed = await desk.pay(20_000 - 111 * 2 - 100)
        assert len(parse_transaction(signed.raw).vout) == 1
        assert signed.fee_sat == 111 * 2 + 100
        assert desk.chain.submit(signed.raw).accepted

    with_wallet(tmp_path, scenario)


def test_many_small_outputs_are_no_burden(tmp_path: Path) -> None:
    """bitcoinlib's own selection would try 2^60 combinations here."""

    async def scenario(desk: Desk) -> None:
        script = await desk.wallet.new_script_pubkey()
        for _ in range(60):
            desk.chain.faucet(script, 1_000)
        desk.chain.mine()
        signed = await desk.wallet.fund(own_script("x"), 40_000, fee_rate=1.0)
        assert 40 < len(inputs(signed)) <= MAX_INPUTS
        assert desk.chain.submit(signed.raw).accepted

    with_wallet(tmp_path, scenario)


def test_nonsense_is_refused(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        for amount, rate in [(0, 1.0), (-5, 1.0), (293, 1.0), (10**16, 1.0), (20_000, 0.0), (20_000, float("nan"))]:
            with pytest.raises(WalletError):
                await desk.wallet.fund(own_script("x"), amount, fee_rate=rate)

    with_wallet(tmp_path, scenario)


@pytest.mark.parametrize("network", sorted(COIN_TYPES))
def test_a_wallet_is_there_on_every_network(tmp_path: Path, network: str) -> None:
    """The same key twice: the second time the book is compared with it."""

    async def main() -> None:
        for _ in range(2):
            wallet = await BitcoinlibWallet.open(tmp_path, chain, seed=SEED, network=network, open_book=Book)
            await wallet.new_script_pubkey()
            await wallet.close()

    node = KernelChain(tmp_path / "chain")
    chain = LocalChain(node)
    try:
        trio.run(main)
    finally:
        node.close()


def test_another_seed_or_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        chain = LocalChain(desk.chain)
        for seed in (bytes(32), b"short", bytes(65)):
            with pytest.raises(WalletError):
                await open_wallet(desk.directory, chain, seed)
        with pytest.raises(WalletError):
            await BitcoinlibWallet.open(desk.directory, chain, seed=SEED, network="dogecoin")
        (desk.directory / "fundings.json").write_text('[{"raw": "00", "fee_sat": 1}]')
        with pytest.raises(WalletError):
            await open_wallet(desk.directory, chain)
        (desk.directory / "fundings.json").write_text("[]")

    with_wallet(tmp_path, scenario)


def test_lost_directory_is_recovered_from_the_seed(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(100_000)
        for _ in range(20):
            await desk.wallet.new_script_pubkey()
        await desk.receive(50_000)
        payment = await desk.pay(30_000)
        assert desk.chain.submit(payment.raw).accepted
        desk.chain.mine()
        balance = await desk.wallet.balance_sat()
        used = await desk.wallet.new_script_pubkey()
        await desk.wallet.close()
        shutil.rmtree(desk.directory)
        desk.wallet = await open_wallet(desk.directory, LocalChain(desk.chain))
        assert await desk.wallet.balance_sat() == balance == 120_000 - payment.fee_sat
        assert await desk.wallet.new_script_pubkey() == used  # which never had money

    with_wallet(tmp_path, scenario)


class BrokenChain(LocalChain):
    async def utxos(self, script_pubkeys: object) -> list[Utxo]:
        raise ChainError("gone")


def test_chain_that_is_away_is_a_chain_error_and_recovery_is_made_up_for(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ChainError):
            await open_wallet(tmp_path / "wallet", BrokenChain(chain))
        first_script = p2wpkh(bip32.HDKey.from_seed(SEED).derive("m/84h/1h/0h/0/7")).data
        chain.faucet(first_script, 10_000)
        wallet = await open_wallet(tmp_path / "wallet", LocalChain(chain))
        assert await wallet.balance_sat() == 10_000
        await wallet.close()

    chain = KernelChain(tmp_path / "chain")
    trio.run(main)
    chain.close()


def test_book_in_its_own_process_ends_when_idle_and_comes_back(tmp_path: Path) -> None:
    books: list[BookProcess] = []

    def open_book(directory: Path, network: str, public_key: str) -> BookProcess:
        books.append(BookProcess(directory, network, public_key, idle_timeout=0.01))
        return books[-1]

    async def main() -> None:
        wallet = await BitcoinlibWallet.open(tmp_path / "wallet", LocalChain(chain), seed=SEED, open_book=open_book)
        chain.faucet(await wallet.new_script_pubkey(), 10_000)
        chain.mine()
        while books[0].is_running:
            await trio.sleep(0.01)
        assert await wallet.balance_sat() == 10_000
        await wallet.close()
        assert not books[0].is_running
        with pytest.raises(WalletError, match="another seed"):
            await BitcoinlibWallet.open(tmp_path / "wallet", LocalChain(chain), seed=bytes(32))
        in_here = await open_wallet(tmp_path / "wallet", LocalChain(chain))
        assert await in_here.balance_sat() == 10_000
        await in_here.close()

    chain = KernelChain(tmp_path / "chain")
    trio.run(main)
    chain.close()


@pytest.mark.parametrize("signal_number", [signal.SIGSTOP, signal.SIGKILL])
def test_book_in_a_process_that_does_not_answer_is_given_up(tmp_path: Path, signal_number: int) -> None:
    key = bip32.HDKey.from_seed(SEED).derive("m/84h/1h/0h").to_public().to_base58(NETWORKS["main"]["zpub"])
    before = set(_children())
    book = BookProcess(tmp_path, "regtest", key, answer_timeout=30.0)
    (child,) = set(_children()) - before
    book.answer_timeout = 0.05
    os.kill(child, signal_number)
    with pytest.raises(WalletError, match="has ended"):
        book.balance_sat()
    assert not book.is_running
    book.answer_timeout = 30.0
    assert book.balance_sat() == 0  # a new process, the same book
    (child,) = set(_children()) - before
    book.answer_timeout = 0.05
    os.kill(child, signal_number)
    with pytest.raises(WalletError, match="has ended"):
        book.update_outputs([{"value": 1}] * 20_000)  # more than the pipe holds
    assert not book.is_running


def _children() -> list[int]:
    return [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


PROGRAM = """
import sys, trio
from pathlib import Path
from payments.adapters.kernel_chain import KernelChain
from payments.adapters.wallet_bitcoinlib import BitcoinlibWallet
from tests.payments.chain_support import LocalChain
chain = KernelChain(Path(sys.argv[1]) / "chain")
async def main():
    wallet = await BitcoinlibWallet.open(Path(sys.argv[1]) / "wallet", LocalChain(chain), seed=bytes(32))
    await wallet.close()
trio.run(main)
chain.close()
"""


def test_nothing_is_written_to_home_and_no_secret_to_disk(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "BCL_DATA_DIR"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env={**environment, "HOME": str(home)}, check=True, timeout=120
    )
    assert list(home.iterdir()) == []
    root = bip32.HDKey.from_seed(bytes(32))
    account = root.derive("m/84h/1h/0h")
    stored = (tmp_path / "wallet" / "wallet.sqlite").read_bytes()
    assert account.get_public_key().sec() in stored
    for secret in (root.secret, account.secret, account.derive("m/0/0").secret):
        assert secret not in stored
        assert secret.hex().encode() not in stored
    assert b"zprv" not in stored
    assert (tmp_path / "wallet").stat().st_mode & 0o077 == 0


def test_a_payment_of_the_operator_is_labelled_and_waits_for_its_block_over_a_restart(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(300_000)
        address = await desk.wallet.address("from the shop")
        assert (await desk.wallet.labels())[address] == "from the shop"
        desk.chain.faucet(script_of(address, "regtest"), 50_000)
        assert await desk.wallet.balance() == WalletBalance(300_000, 50_000)
        signed = await desk.wallet.send(own_script("x"), 100_000, fee_rate=FEE_RATE, label="rent")
        assert await desk.wallet.pending() == []  # no channel waits for it, and it is not to be released
        await desk.restart()
        assert [each.txid for each in await desk.wallet.sent()] == [signed.txid]
        assert (await desk.wallet.labels())[signed.txid[::-1].hex()] == "rent"
        with pytest.raises(InsufficientFundsError):  # its inputs are set aside
            await desk.pay(290_000)
        assert desk.chain.submit(signed.raw).accepted
        desk.chain.mine()
        assert await desk.wallet.sent() == []
        assert await desk.wallet.balance() == WalletBalance(250_000 - signed.fee_sat, 0)

    with_wallet(tmp_path, scenario)


def test_what_channels_left_is_swept_into_one_output(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(10_000, 20_000, 30_000)
        utxos = desk.chain.utxos(desk.wallet._keys.scripts())
        small = {utxo.outpoint.txid for utxo in utxos if utxo.value_sat < 25_000}
        own = await desk.wallet.new_script_pubkey()
        swept = await desk.wallet.sweep(small, own, fee_rate=FEE_RATE)
        assert len(inputs(swept)) == 2
        assert desk.chain.submit(swept.raw).accepted
        desk.chain.mine()
        assert sorted(utxo.value_sat for utxo in desk.chain.utxos([own])) == [30_000 - swept.fee_sat]
        whole = await desk.wallet.sweep(None, own_script("elsewhere"), fee_rate=FEE_RATE)
        assert desk.chain.submit(whole.raw).accepted
        desk.chain.mine()
        assert await desk.wallet.balance_sat() == 0
        with pytest.raises(InsufficientFundsError, match="0 outputs to sweep"):
            await desk.wallet.sweep(None, own, fee_rate=FEE_RATE)

    with_wallet(tmp_path, scenario)


def test_a_payment_whose_label_is_refused_sets_nothing_aside(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.receive(300_000)
        for pay in (desk.wallet.send(own_script("x"), 100_000, fee_rate=FEE_RATE, label="x" * 201), sweep_of(desk)):
            with pytest.raises(WalletError, match="a label has"):
                await pay
        assert await desk.wallet.pending() == []

    def sweep_of(desk: Desk) -> Awaitable[SignedTransaction]:
        return desk.wallet.sweep(None, own_script("x"), fee_rate=FEE_RATE, label="\n")

    with_wallet(tmp_path, scenario)


def test_labels_are_bounded_and_can_be_taken_away(tmp_path: Path) -> None:
    book = WalletNotes(tmp_path / "notes.json")
    book.label("a", "text")
    for text in ("x" * 201, "line\nline"):
        with pytest.raises(WalletError, match="a label has"):
            book.label("a", text)
    assert WalletNotes(tmp_path / "notes.json").labels == {"a": "text"}
    book.label("a", "")
    assert WalletNotes(tmp_path / "notes.json").labels == {}
    (tmp_path / "notes.json").write_bytes(b"{")
    with pytest.raises(WalletError, match="damaged"):
        WalletNotes(tmp_path / "notes.json")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "bcrt1q",
        "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx",
        "2N3oefVeg6stiTb5Kh3ozCSkaqmx91FDbsm?",
        "\x00",
        "bcrt1" + "q" * 99,
    ],
)
def test_what_is_no_address_of_the_network_is_refused(address: str) -> None:
    with pytest.raises(WalletError, match="not an address"):
        script_of(address, "regtest")


@pytest.mark.parametrize("network", ["main", "test", "testnet4", "signet", "regtest"])
def test_addresses_and_scripts_are_each_others_inverse(network: str) -> None:
    for script in (
        own_script("a"),
        b"\x00\x20" + bytes(32),
        b"\x51\x20" + bytes(range(32)),
        b"\xa9\x14" + bytes(20) + b"\x87",
    ):
        assert script_of(address_of(script, network), network) == script
