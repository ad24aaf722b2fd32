"""The ports of the payment core: what it needs from a chain and from a wallet.

Adapters live in `payments.adapters`. All calls are async, may take long, and raise only `ChainError` or `WalletError`.
Amounts are sat (int) here, and only here; everywhere else money is msat. Hashes are in internal byte order, 32 bytes;
reversed hex only at the edges (JSON, logs).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


class ChainError(Exception):
    """The chain backend could not be reached, timed out, or answered nonsense. Nothing is known; try again later."""


class WalletError(Exception):
    """The wallet cannot do it (funds, key, file)."""


class InsufficientFundsError(WalletError):
    """Not enough confirmed money for the amount and the fee."""


@dataclass(frozen=True, slots=True)
class Outpoint:
    txid: bytes  # 32 bytes, internal order
    index: int

    def __hash__(self) -> int:
        return hash(self.txid) ^ self.index  # no tuple made: each payment looks for what belongs to an output, twice


@dataclass(frozen=True, slots=True)
class ChainTip:
    height: int
    block_hash: bytes


@dataclass(frozen=True, slots=True)
class BroadcastResult:
    """Accepted for a block, or why not. `code` is the backend's own word for logs, never to decide on."""

    accepted: bool
    code: str = ""


@dataclass(frozen=True, slots=True)
class TransactionStatus:
    """height None: known, not in a block. fee_sat None: the backend does not know the inputs."""

    raw: bytes
    height: int | None
    fee_sat: int | None


@dataclass(frozen=True, slots=True)
class OutputStatus:
    """An output that exists in the best chain or in the pool, and who spends it, if anybody."""

    value_sat: int
    script_pubkey: bytes
    height: int | None
    spent_by: bytes | None = None
    spent_height: int | None = None


@dataclass(frozen=True, slots=True)
class Utxo:
    outpoint: Outpoint
    value_sat: int
    script_pubkey: bytes
    height: int | None  # None: unconfirmed
    coinbase: bool = False


class ChainPort(Protocol):
    async def tip(self) -> ChainTip: ...

    async def fee_rate(self) -> float:
        """sat per virtual byte that should confirm within a few blocks."""

    async def broadcast(self, raw: bytes) -> BroadcastResult:
        """Sending again what is already known is accepted."""

    async def transaction(self, txid: bytes) -> TransactionStatus | None: ...

    async def output(self, outpoint: Outpoint) -> OutputStatus | None: ...

    async def utxos(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]: ...

    def tips(self) -> AsyncIterator[ChainTip]:
        """The tip now, then each new one, reorganisations included. Ends with ChainError when the backend goes away."""


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    raw: bytes  # with witnesses
    txid: bytes
    fee_sat: int


@dataclass(frozen=True, slots=True)
class ForeignInput:
    """An output that is not the wallet's alone, to be spent beside its own: others sign for it."""

    outpoint: Outpoint
    value_sat: int
    vbytes: int  # of the input with its witness: what its fee is for
    sequence: int


@dataclass(frozen=True, slots=True)
class WalletBalance:
    """Of our own, channels not included; `unconfirmed_sat` is beside `confirmed_sat`."""

    confirmed_sat: int
    unconfirmed_sat: int


class WalletPort(Protocol):
    async def balance_sat(self) -> int:
        """Confirmed and unconfirmed money of our own, channels not included."""

    async def balance(self) -> WalletBalance: ...

    async def address(self, label: str = "") -> str:
        """A fresh one, to be paid to."""

    async def send(
        self, script_pubkey: bytes, amount_sat: int, *, fee_rate: float, label: str = ""
    ) -> SignedTransaction:
        """As `fund`, for a payment of the operator: in `sent` instead of `pending`, until a block has it."""

    async def sweep(
        self, txids: Collection[bytes] | None, script_pubkey: bytes, *, fee_rate: float, label: str = ""
    ) -> SignedTransaction:
        """As `send`, of all confirmed outputs of ours in these transactions, or of all; the fee is taken from them."""

    async def sent(self) -> list[SignedTransaction]:
        """To be broadcast again until a block has them."""

    async def labels(self) -> dict[str, str]:
        """By address, or by txid in reversed hex."""

    async def label(self, key: str, text: str) -> None: ...

    async def new_script_pubkey(self) -> bytes:
        """A fresh P2WPKH output script of ours, for change of a claim or a refund."""

    async def fund(self, script_pubkey: bytes, amount_sat: int, *, fee_rate: float) -> SignedTransaction:
        """A signed, not yet broadcast, transaction that pays `amount_sat` to `script_pubkey`. Its inputs are set aside
        until it is seen on the chain or released."""

    async def fund_splice(
        self, foreign: ForeignInput, outputs: Sequence[tuple[bytes, int]], *, fee_rate: float
    ) -> SignedTransaction:
        """As `fund`: a transaction of version 2 and locktime 0 that spends `foreign` as its first input, and as many of
        our own as it takes, to `outputs` (script, sat) and change. The witness of the first input is left empty: its
        signers come later, and the id stays. At least one input is ours."""

    async def release(self, txid: bytes) -> None:
        """The transaction of that id will never be broadcast: its inputs are free again."""

    async def pending(self) -> list[SignedTransaction]:
        """What `fund` has signed that is neither in a block nor released."""
