"""Channels on the embedded chain, for the tests of transactions, chain and wallet."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import pytest

from payments.adapters.kernel_chain import KernelChain
from payments.adapters.p2wpkh import p2wpkh_script
from payments.channel_tx import (
    ChannelTerms,
    Claim,
    funding_script_pubkey,
    public_key,
    sign_payment,
)
from payments.ports import BroadcastResult, ChainError, ChainTip, Outpoint, OutputStatus, TransactionStatus, Utxo

FEE_RATE = 2.0
CAPACITY = 100_000


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def own_script(name: str) -> bytes:
    return p2wpkh_script(public_key(key(name)))


PAYER, PAYEE = key("payer"), key("payee")
PAYER_SCRIPT, PAYEE_SCRIPT = own_script("payer's change"), own_script("payee's destination")


def make_terms(expiry_height: int = 120, payer: bytes = PAYER, **changes: object) -> ChannelTerms:
    values = {
        "payer_pubkey": public_key(payer),
        "payee_pubkey": public_key(PAYEE),
        "expiry_height": expiry_height,
        "capacity_sat": CAPACITY,
        "payer_change_script": PAYER_SCRIPT,
    }
    return ChannelTerms(**{**values, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class OpenChannel:
    terms: ChannelTerms
    outpoint: Outpoint
    payer: bytes = PAYER

    def pay(self, paid_sat: int) -> bytes:
        return sign_payment(self.payer, self.terms, self.outpoint, paid_sat)

    def claim_of(self, paid_sat: int) -> Claim:
        return Claim(self.terms, self.outpoint, paid_sat, self.pay(paid_sat), PAYEE)


def open_channel(chain: KernelChain, terms: ChannelTerms | None = None, payer: bytes = PAYER) -> OpenChannel:
    """Funded by the faucet, in a block."""
    terms = terms or make_terms(payer=payer)
    txid = chain.faucet(funding_script_pubkey(terms), terms.capacity_sat)
    chain.mine()
    return OpenChannel(terms, Outpoint(txid, 0), payer)


def fund(chain: KernelChain) -> OpenChannel:
    """Funded by the faucet, in the pool."""
    terms = make_terms(expiry_height=chain.tip().height + 20)
    script = funding_script_pubkey(terms)
    txid = chain.faucet(script, terms.capacity_sat)
    outpoints = [Outpoint(txid, index) for index in range(2)]
    return OpenChannel(terms, next(o for o in outpoints if chain.output(o).script_pubkey == script))  # type: ignore[union-attr]


async def refused(call: Callable[[], Awaitable[object]]) -> str:
    """The words of the ChainError that it must raise."""
    with pytest.raises(ChainError) as caught:
        await call()
    return str(caught.value)


def balance(chain: KernelChain, script: bytes) -> int:
    return sum(utxo.value_sat for utxo in chain.utxos([script]))


class LocalChain:
    """ChainPort on a KernelChain in the same process."""

    def __init__(self, chain: KernelChain) -> None:
        self.kernel = chain

    async def tip(self) -> ChainTip:
        return self.kernel.tip()

    async def fee_rate(self) -> float:
        return self.kernel.fee_rate()

    async def broadcast(self, raw: bytes) -> BroadcastResult:
        return self.kernel.submit(raw)

    async def transaction(self, txid: bytes) -> TransactionStatus | None:
        return self.kernel.transaction(txid)

    async def output(self, outpoint: Outpoint) -> OutputStatus | None:
        return self.kernel.output(outpoint)

    async def utxos(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]:
        return self.kernel.utxos(script_pubkeys)

    def tips(self) -> AsyncIterator[ChainTip]:
        raise NotImplementedError("no test of the wallet follows the tips")
