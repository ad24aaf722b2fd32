"""What the embedded chain knows of outputs and transactions, by outpoint, txid and script. Rebuilt from the blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from embit.transaction import Transaction

from payments.ports import Outpoint


@dataclass(frozen=True, slots=True)
class IndexedOutput:
    value_sat: int
    script_pubkey: bytes
    height: int | None  # None: in the pool
    coinbase: bool = False


@dataclass(frozen=True, slots=True)
class IndexedTransaction:
    transaction: Transaction
    height: int
    fee_sat: int


@dataclass(slots=True)
class ChainIndex:
    """Of the blocks of the best chain, spent outputs included."""

    outputs: dict[Outpoint, IndexedOutput] = field(default_factory=dict)
    spender: dict[Outpoint, bytes] = field(default_factory=dict)  # txid
    transactions: dict[bytes, IndexedTransaction] = field(default_factory=dict)  # by txid
    unspent_by_script: dict[bytes, dict[Outpoint, None]] = field(default_factory=dict)

    def connect(self, transactions: Iterable[Transaction], height: int) -> None:
        """A block that the kernel has accepted on top of those already here. Its first transaction is the coinbase."""
        for position, transaction in enumerate(transactions):
            self._add(transaction, height, coinbase=position == 0)

    def unspent(self, outpoint: Outpoint) -> IndexedOutput | None:
        return None if outpoint in self.spender else self.outputs.get(outpoint)

    def _add(self, transaction: Transaction, height: int, *, coinbase: bool) -> None:
        txid: bytes = transaction.hash()
        paid_out = 0
        for index, output in enumerate(transaction.vout):
            outpoint = Outpoint(txid, index)
            script: bytes = output.script_pubkey.data
            self.outputs[outpoint] = IndexedOutput(output.value, script, height, coinbase)
            self.unspent_by_script.setdefault(script, {})[outpoint] = None
            paid_out += output.value
        paid_in = paid_out if coinbase else sum(self._spend(outpoint, txid) for outpoint in inputs_of(transaction))
        self.transactions[txid] = IndexedTransaction(transaction, height, paid_in - paid_out)

    def _spend(self, outpoint: Outpoint, txid: bytes) -> int:
        output = self.outputs[outpoint]
        self.spender[outpoint] = txid
        unspent = self.unspent_by_script[output.script_pubkey]
        del unspent[outpoint]
        if not unspent:
            del self.unspent_by_script[output.script_pubkey]
        return output.value_sat


def inputs_of(transaction: Transaction) -> list[Outpoint]:
    return [Outpoint(item.txid[::-1], item.vout) for item in transaction.vin]
