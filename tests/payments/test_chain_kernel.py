"""Channels on the embedded chain: what Bitcoin Core's consensus code, and our pool before it, accept and refuse."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import coincurve
import pytest
from embit.script import Script, Witness
from embit.transaction import SIGHASH, Transaction, TransactionOutput

from payments.adapters.kernel_chain import PREMINED_BLOCKS, KernelChain, KernelChainError
from payments.adapters.p2wpkh import OwnedOutput, sign_p2wpkh
from payments.channel_tx import build_claim, build_refund, channel_script, parse_transaction
from payments.ports import ChainTip, Outpoint, SignedTransaction
from tests.payments.chain_support import (
    CAPACITY,
    FEE_RATE,
    PAYEE,
    PAYEE_SCRIPT,
    PAYER,
    PAYER_SCRIPT,
    OpenChannel,
    balance,
    key,
    make_terms,
    open_channel,
    own_script,
)


@pytest.fixture(scope="module")
def premined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datadir = tmp_path_factory.mktemp("premined")
    KernelChain(datadir).close()
    return datadir


@pytest.fixture
def datadir(tmp_path: Path, premined: Path) -> Path:
    return Path(shutil.copytree(premined, tmp_path / "chain"))


@pytest.fixture
def chain(datadir: Path) -> Iterator[KernelChain]:
    chain = KernelChain(datadir)
    yield chain
    chain.close()


def refused_everywhere(chain: KernelChain, raw: bytes) -> bool:
    """By the pool, and by consensus in a block that the pool has not seen."""
    height = chain.tip().height
    by_pool, by_consensus = chain.submit(raw), chain.force_into_block(raw)
    assert chain.tip().height == height + by_consensus.accepted
    return not by_pool.accepted and not by_consensus.accepted


def own_coin(chain: KernelChain, name: str, amount_sat: int) -> OwnedOutput:
    txid = chain.faucet(own_script(name), amount_sat)
    return OwnedOutput(Outpoint(txid, 0), amount_sat, key(name))


def claim_with(
    channel: OpenChannel, payment: bytes, change: TransactionOutput, paid_sat: int, edit: Callable[[Transaction], None]
) -> bytes:
    """A claim as a dishonest payee would make it: its own signature is good over whatever it likes."""
    honest = build_claim([channel.claim_of(paid_sat)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    transaction = parse_transaction(honest.raw)
    transaction.vout[0] = change
    edit(transaction)
    script = channel_script(channel.terms)
    digest = transaction.sighash_segwit(0, Script(script), CAPACITY, SIGHASH.ALL)
    payee_signature = coincurve.PrivateKey(PAYEE).sign(digest, hasher=None) + b"\x01"
    transaction.vin[0].witness = Witness([payment, payee_signature, b"\x01", script])
    raw: bytes = transaction.serialize()
    return raw


# --- The life of a channel ---


def test_fund_pay_claim(chain: KernelChain) -> None:
    channel = open_channel(chain)
    status = chain.output(channel.outpoint)
    assert status is not None
    assert (status.value_sat, status.height, status.spent_by) == (CAPACITY, chain.tip().height, None)
    for paid_sat in (1_000, 20_000, 40_000):
        channel.pay(paid_sat)
    claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    assert chain.submit(claim.raw).accepted
    chain.mine()
    assert balance(chain, PAYEE_SCRIPT) == 40_000 - claim.fee_sat
    assert balance(chain, PAYER_SCRIPT) == CAPACITY - 40_000
    spent = chain.output(channel.outpoint)
    assert spent is not None
    assert (spent.spent_by, spent.spent_height) == (claim.txid, chain.tip().height)
    mined = chain.transaction(claim.txid)
    assert mined is not None
    assert (mined.raw, mined.height, mined.fee_sat) == (claim.raw, chain.tip().height, claim.fee_sat)


def test_consensus_takes_an_honest_claim(chain: KernelChain) -> None:
    """So that its refusals below are refusals of what is wrong, not of how we assemble blocks."""
    channel = open_channel(chain)
    claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    assert chain.force_into_block(claim.raw).accepted


def test_batch_claims_several_channels_of_several_payers(chain: KernelChain) -> None:
    payers = [key(f"payer {n}") for n in range(5)]
    channels = [
        open_channel(chain, make_terms(payer=payer, payer_change_script=own_script(f"change {n}")), payer)
        for n, payer in enumerate(payers)
    ]
    claims = [channel.claim_of(10_000 * (n + 1)) for n, channel in enumerate(channels)]
    batch = build_claim(claims, destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    assert chain.submit(batch.raw).accepted
    chain.mine()
    assert balance(chain, PAYEE_SCRIPT) == 150_000 - batch.fee_sat
    assert [balance(chain, own_script(f"change {n}")) for n in range(5)] == [
        CAPACITY - 10_000 * (n + 1) for n in range(5)
    ]


def test_refund_only_above_expiry(chain: KernelChain) -> None:
    expiry = PREMINED_BLOCKS + 5
    channel = open_channel(chain, make_terms(expiry_height=expiry))
    refund = build_refund(channel.terms, channel.outpoint, payer_key=PAYER, fee_rate=FEE_RATE)
    while chain.tip().height < expiry:
        assert chain.submit(refund.raw).code == "non-final"
        assert not chain.force_into_block(refund.raw).accepted
        chain.mine()
    assert chain.submit(refund.raw).accepted
    chain.mine()
    mined = chain.transaction(refund.txid)
    assert mined is not None
    assert mined.height == expiry + 1
    assert balance(chain, PAYER_SCRIPT) == CAPACITY - refund.fee_sat


def test_refund_that_hides_its_locktime_is_refused(chain: KernelChain) -> None:
    """Final by its own locktime, so that only CHECKLOCKTIMEVERIFY stands in the way."""
    channel = open_channel(chain, make_terms(expiry_height=1_000))
    lying = dataclasses.replace(channel.terms, expiry_height=chain.tip().height)
    transaction = parse_transaction(build_refund(lying, channel.outpoint, payer_key=PAYER, fee_rate=FEE_RATE).raw)
    script = channel_script(channel.terms)
    digest = transaction.sighash_segwit(0, Script(script), CAPACITY, SIGHASH.ALL)
    signature = coincurve.PrivateKey(PAYER).sign(digest, hasher=None) + b"\x01"
    transaction.vin[0].witness = Witness([signature, b"", script])
    assert refused_everywhere(chain, transaction.serialize())


def test_payee_can_still_claim_after_expiry(chain: KernelChain) -> None:
    channel = open_channel(chain, make_terms(expiry_height=PREMINED_BLOCKS + 2))
    chain.mine(5)
    claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    assert chain.submit(claim.raw).accepted


# --- What a payee may not do ---


def test_payment_does_not_pay_another_sum(chain: KernelChain) -> None:
    channel = open_channel(chain)
    more = TransactionOutput(CAPACITY - 20_000, Script(PAYER_SCRIPT))
    assert refused_everywhere(chain, claim_with(channel, channel.pay(10_000), more, 20_000, lambda _: None))


def test_payee_cannot_move_the_payers_change(chain: KernelChain) -> None:
    channel = open_channel(chain)
    change = TransactionOutput(CAPACITY - 10_000, Script(PAYER_SCRIPT))

    def swap(transaction: Transaction) -> None:
        transaction.vout.reverse()

    stolen = TransactionOutput(CAPACITY - 10_000, Script(PAYEE_SCRIPT))
    for raw in (
        claim_with(channel, channel.pay(10_000), stolen, 10_000, lambda _: None),
        claim_with(channel, channel.pay(10_000), change, 10_000, swap),
    ):
        assert refused_everywhere(chain, raw)


def test_payment_is_good_for_its_own_outpoint_only(chain: KernelChain) -> None:
    first, second = open_channel(chain), open_channel(chain)
    change = TransactionOutput(CAPACITY - 10_000, Script(PAYER_SCRIPT))
    assert refused_everywhere(chain, claim_with(second, first.pay(10_000), change, 10_000, lambda _: None))


def test_payment_with_another_locktime_or_sequence_is_refused(chain: KernelChain) -> None:
    channel = open_channel(chain)
    change = TransactionOutput(CAPACITY - 10_000, Script(PAYER_SCRIPT))

    def lock(transaction: Transaction) -> None:
        transaction.locktime = 1

    def finalise(transaction: Transaction) -> None:
        transaction.vin[0].sequence = 0xFFFFFFFF

    for edit in (lock, finalise):
        assert refused_everywhere(chain, claim_with(channel, channel.pay(10_000), change, 10_000, edit))


def test_payer_cannot_take_back_alone_before_expiry(chain: KernelChain) -> None:
    channel = open_channel(chain)
    claim = parse_transaction(build_claim([channel.claim_of(10_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE).raw)
    script = channel_script(channel.terms)
    payment = channel.pay(10_000)
    claim.vin[0].witness = Witness([payment, payment, b"\x01", script])
    assert refused_everywhere(chain, claim.serialize())


def test_an_old_payment_still_claims_and_costs_the_payer_nothing(chain: KernelChain) -> None:
    channel = open_channel(chain)
    channel.pay(40_000)
    old = build_claim([channel.claim_of(10_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    assert chain.submit(old.raw).accepted
    chain.mine()
    assert balance(chain, PAYER_SCRIPT) == CAPACITY - 10_000


# --- The pool ---


def test_known_transaction_is_accepted_again(chain: KernelChain) -> None:
    channel = open_channel(chain)
    claim = build_claim([channel.claim_of(10_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    for _ in range(2):
        assert chain.submit(claim.raw).accepted
    chain.mine()
    assert chain.submit(claim.raw).accepted
    assert chain.pool_size == 0


def test_replacement_needs_more_fee_and_puts_out_descendants(chain: KernelChain) -> None:
    channel = open_channel(chain)
    slow, same, fast = (
        build_claim([channel.claim_of(50_000)], destination=destination, fee_rate=rate)
        for destination, rate in [(own_script("d1"), 2.0), (own_script("d2"), 2.0), (own_script("d3"), 6.0)]
    )
    assert chain.submit(slow.raw).accepted
    received = OwnedOutput(Outpoint(slow.txid, 1), 50_000 - slow.fee_sat, key("d1"))
    child = sign_p2wpkh([received], [(PAYEE_SCRIPT, received.value_sat - 200)])
    assert chain.submit(child.raw).accepted
    assert chain.submit(same.raw).code == "insufficient fee"
    assert chain.submit(fast.raw).accepted
    assert chain.pool_size == 1
    assert chain.transaction(slow.txid) is chain.transaction(child.txid) is None
    chain.mine()
    assert balance(chain, own_script("d3")) == 50_000 - fast.fee_sat
    assert chain.submit(slow.raw).code == "bad-txns-inputs-missingorspent"


def spend_to(coin: OwnedOutput, *outputs: tuple[bytes, int]) -> SignedTransaction:
    return sign_p2wpkh([coin], list(outputs))


def test_policy_refusals(chain: KernelChain) -> None:
    coin = own_coin(chain, "coin", 10_000)
    for outputs, code in [
        ([(PAYEE_SCRIPT, 10_000 - 100)], "min relay fee not met"),
        ([(PAYEE_SCRIPT, 293)], "dust"),
        ([(b"\x51\x52\x53", 9_000)], "scriptpubkey"),
    ]:
        assert chain.submit(spend_to(coin, *outputs).raw).code == code
    assert chain.submit(spend_to(coin, (PAYEE_SCRIPT, 9_000)).raw).accepted
    missing = dataclasses.replace(coin, outpoint=Outpoint(key("nothing"), 0))
    assert chain.submit(spend_to(missing, (PAYEE_SCRIPT, 9_000)).raw).code == "bad-txns-inputs-missingorspent"
    for junk in (b"", b"\x00" * 50, b"\xff" * 1_000):
        assert chain.submit(junk).code == "TX decode failed"


def test_value_is_conserved(chain: KernelChain) -> None:
    coin = own_coin(chain, "coin", 10_000)
    pretended = dataclasses.replace(coin, value_sat=20_000)
    assert chain.submit(spend_to(pretended, (PAYEE_SCRIPT, 15_000)).raw).code == "bad-txns-in-belowout"


def test_relative_lock_is_waited_for(chain: KernelChain) -> None:
    coin = own_coin(chain, "coin", 10_000)
    chain.mine()
    transaction = parse_transaction(spend_to(coin, (PAYEE_SCRIPT, 9_000)).raw)
    transaction.vin[0].sequence = 3
    key_of_coin = coincurve.PrivateKey(coin.secret)
    code = Script(b"\x76\xa9\x14" + own_script("coin")[2:] + b"\x88\xac")
    digest = transaction.sighash_segwit(0, code, coin.value_sat, SIGHASH.ALL)
    transaction.vin[0].witness = Witness(
        [key_of_coin.sign(digest, hasher=None) + b"\x01", key_of_coin.public_key.format()]
    )
    raw = transaction.serialize()
    for _ in range(2):
        assert chain.submit(raw).code == "non-BIP68-final"
        assert not chain.force_into_block(raw).accepted
        chain.mine()
    assert chain.submit(raw).accepted
    chain.mine()
    assert balance(chain, PAYEE_SCRIPT) == 9_000


def test_immature_coinbase_is_refused(chain: KernelChain) -> None:
    chain.mine(1, own_script("miner"))
    (utxo,) = chain.utxos([own_script("miner")])
    assert utxo.coinbase
    coin = OwnedOutput(utxo.outpoint, utxo.value_sat, key("miner"))
    spend = spend_to(coin, (PAYEE_SCRIPT, utxo.value_sat - 1_000))
    assert chain.submit(spend.raw).code == "bad-txns-premature-spend-of-coinbase"
    assert not chain.force_into_block(spend.raw).accepted
    chain.mine(99)
    assert chain.submit(spend.raw).accepted


def test_block_that_core_refuses_costs_only_the_culprit(chain: KernelChain, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = open_channel(chain, make_terms(expiry_height=1_000))
    early = build_refund(channel.terms, channel.outpoint, payer_key=PAYER, fee_rate=FEE_RATE)
    monkeypatch.setattr("payments.adapters.transaction_pool._check_locktime", lambda *_: None)
    good = own_coin(chain, "good", 10_000).outpoint
    assert chain.submit(early.raw).accepted
    assert chain.pool_size == 2
    chain.mine()
    assert chain.pool_size == 0
    assert chain.transaction(early.txid) is None
    mined = chain.transaction(good.txid)
    assert mined is not None
    assert mined.height is not None


# --- The chain ---


def test_fresh_chains_are_the_same(chain: KernelChain, tmp_path: Path) -> None:
    other = KernelChain(tmp_path / "other")
    assert other.tip() == chain.tip()
    assert chain.tip().height == PREMINED_BLOCKS
    other.close()


def test_restart_keeps_the_chain(datadir: Path) -> None:
    chain = KernelChain(datadir)
    channel = open_channel(chain)
    claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    assert chain.submit(claim.raw).accepted
    chain.mine(3)
    before = chain.tip(), chain.output(channel.outpoint), chain.transaction(claim.txid), chain.utxos([PAYEE_SCRIPT])
    chain.close()
    chain = KernelChain(datadir)
    after = chain.tip(), chain.output(channel.outpoint), chain.transaction(claim.txid), chain.utxos([PAYEE_SCRIPT])
    assert after == before
    chain.mine()
    chain.close()


def crash_after_mining(datadir: Path, blocks: int) -> ChainTip:
    program = (
        "import os, sys; from pathlib import Path; from payments.adapters.kernel_chain import KernelChain\n"
        f"chain = KernelChain(Path({str(datadir)!r})); chain.mine({blocks})\n"
        "print(chain.tip().block_hash.hex(), flush=True); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == -9
    return ChainTip(PREMINED_BLOCKS + blocks, bytes.fromhex(run.stdout.strip()))


def test_kill_loses_no_block(datadir: Path) -> None:
    tip = crash_after_mining(datadir, 7)
    chain = KernelChain(datadir)
    assert chain.tip() == tip
    chain.close()


def test_torn_record_is_cut_off(datadir: Path) -> None:
    tip = crash_after_mining(datadir, 7)
    log = datadir / "blocks.log"
    log.write_bytes(log.read_bytes()[:-10])
    chain = KernelChain(datadir)
    assert chain.tip().height == tip.height - 1
    chain.mine(3)
    last = chain.tip()
    chain.close()
    chain = KernelChain(datadir)
    assert chain.tip() == last
    chain.close()


def test_reorganisation_returns_transactions_to_the_pool(chain: KernelChain) -> None:
    channel = open_channel(chain)
    claim = build_claim([channel.claim_of(40_000)], destination=PAYEE_SCRIPT, fee_rate=FEE_RATE)
    assert chain.submit(claim.raw).accepted
    chain.mine()
    height = chain.tip().height
    chain.fork(depth=1, length=2)
    assert chain.tip().height == height + 1
    pooled = chain.transaction(claim.txid)
    assert pooled is not None
    assert pooled.height is None
    chain.mine()
    mined = chain.transaction(claim.txid)
    assert mined is not None
    assert mined.height == height + 2


def test_shorter_fork_changes_nothing(chain: KernelChain) -> None:
    chain.mine(3)
    tip = chain.tip()
    chain.fork(depth=3, length=2)
    assert chain.tip() == tip


def test_directory_in_use_is_an_error(chain: KernelChain, datadir: Path) -> None:
    with pytest.raises(KernelChainError):
        KernelChain(datadir)


@pytest.mark.parametrize("amount_sat", [-1, 0, 293, 10**15])
def test_faucet_bounds(chain: KernelChain, amount_sat: int) -> None:
    with pytest.raises(KernelChainError):
        chain.faucet(PAYEE_SCRIPT, amount_sat)


def test_faucet_pays_many_in_one_block(chain: KernelChain) -> None:
    for n in range(40):
        chain.faucet(own_script(f"client {n}"), 1_000_000)
    chain.mine()
    assert all(balance(chain, own_script(f"client {n}")) == 1_000_000 for n in range(40))
