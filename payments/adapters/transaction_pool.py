"""The pool of the embedded chain: what waits for a block, and the policy that lets it in.

A small part of Bitcoin Core's policy, with its own reject codes: enough that what this pool takes a real node relays,
for the transactions that meshd makes. Scripts are judged by Bitcoin Core's code (`script_judge`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from embit.transaction import Transaction

from payments.adapters.chain_index import ChainIndex, IndexedOutput, inputs_of
from payments.adapters.script_judge import is_every_input_valid
from payments.channel_tx import LOCKTIME_THRESHOLD, MAX_MONEY_SAT, dust_limit, parse_transaction
from payments.ports import BroadcastResult, Outpoint

MIN_RELAY_FEE_RATE = 1.0  # sat/vB
MAX_STANDARD_WEIGHT = 400_000
COINBASE_MATURITY = 100
SEQUENCE_FINAL = 0xFFFFFFFF
# BIP68
SEQUENCE_LOCK_DISABLED = 1 << 31
SEQUENCE_LOCK_TIME = 1 << 22
SEQUENCE_LOCK_MASK = 0xFFFF

MAX_TRANSACTIONS = 5_000
MAX_REPLACED = 100  # BIP125 rule 5


class RefusedError(Exception):
    """The transaction cannot enter the pool. Its argument is Bitcoin Core's reject code."""


@dataclass(frozen=True, slots=True)
class PoolEntry:
    transaction: Transaction
    txid: bytes
    inputs: tuple[Outpoint, ...]
    fee_sat: int
    weight: int

    @property
    def virtual_bytes(self) -> int:
        return math.ceil(self.weight / 4)


@dataclass(slots=True)
class TransactionPool:
    """Insertion order is topological: a transaction enters only after those that it spends."""

    index: ChainIndex
    entries: dict[bytes, PoolEntry] = field(default_factory=dict)  # by txid
    spender: dict[Outpoint, bytes] = field(default_factory=dict)
    outputs: dict[Outpoint, IndexedOutput] = field(default_factory=dict)

    def submit(self, raw: bytes, next_height: int) -> BroadcastResult:
        """Judge `raw` for the block at `next_height`, and keep it if it is fit, in place of what it replaces."""
        try:
            transaction = parse_transaction(raw)
        except ValueError:
            return BroadcastResult(False, "TX decode failed")
        txid: bytes = transaction.hash()
        if txid in self.entries or txid in self.index.transactions:
            return BroadcastResult(True, "txn-already-known")
        try:
            entry, replaced = self._judge(transaction, txid, raw, next_height)
        except RefusedError as refusal:
            return BroadcastResult(False, str(refusal))
        for old in replaced:
            self.remove(old)
        self._insert(entry)
        return BroadcastResult(True)

    def output(self, outpoint: Outpoint) -> IndexedOutput | None:
        """In the best chain or here, spent or not."""
        return self.index.outputs.get(outpoint) or self.outputs.get(outpoint)

    def is_spent(self, outpoint: Outpoint) -> bool:
        return outpoint in self.index.spender or outpoint in self.spender

    def with_descendants(self, txid: bytes) -> list[bytes]:
        """`txid`, if it is here, and all that spend it, in order."""
        found = {txid}
        for entry in self.entries.values():
            if any(outpoint.txid in found for outpoint in entry.inputs):
                found.add(entry.txid)
        return [candidate for candidate in self.entries if candidate in found]

    def remove(self, txid: bytes) -> None:
        entry = self.entries.pop(txid, None)
        if entry is None:
            return
        for outpoint in entry.inputs:
            self.spender.pop(outpoint, None)
        for position in range(len(entry.transaction.vout)):
            self.outputs.pop(Outpoint(txid, position), None)

    def remove_confirmed(self) -> None:
        """After a block: drop what it contains and what it contradicts."""
        for entry in list(self.entries.values()):
            if entry.txid in self.index.transactions:
                self.remove(entry.txid)
        for entry in list(self.entries.values()):
            if any(outpoint in self.index.spender for outpoint in entry.inputs):
                for txid in self.with_descendants(entry.txid):
                    self.remove(txid)

    def _insert(self, entry: PoolEntry) -> None:
        self.entries[entry.txid] = entry
        for outpoint in entry.inputs:
            self.spender[outpoint] = entry.txid
        for position, output in enumerate(entry.transaction.vout):
            self.outputs[Outpoint(entry.txid, position)] = IndexedOutput(output.value, output.script_pubkey.data, None)

    def _judge(
        self, transaction: Transaction, txid: bytes, raw: bytes, next_height: int
    ) -> tuple[PoolEntry, list[bytes]]:
        inputs = tuple(inputs_of(transaction))
        weight = 3 * _stripped_bytes(transaction) + len(raw)
        _check_standard(transaction, inputs, weight)
        _check_locktime(transaction, next_height)
        spent = [self._spendable(outpoint, next_height) for outpoint in inputs]
        _check_sequence_locks(transaction, spent, next_height)
        fee_sat = sum(output.value_sat for output in spent) - sum(output.value for output in transaction.vout)
        if fee_sat < 0:
            raise RefusedError("bad-txns-in-belowout")
        entry = PoolEntry(transaction, txid, inputs, fee_sat, weight)
        if fee_sat < entry.virtual_bytes * MIN_RELAY_FEE_RATE:
            raise RefusedError("min relay fee not met")
        replaced = self._replaced_by(entry)
        if len(self.entries) - len(replaced) >= MAX_TRANSACTIONS:
            raise RefusedError("mempool full")
        _check_scripts(raw, spent)
        return entry, replaced

    def _spendable(self, outpoint: Outpoint, next_height: int) -> IndexedOutput:
        output = self.output(outpoint)
        if output is None or outpoint in self.index.spender:
            raise RefusedError("bad-txns-inputs-missingorspent")
        if output.coinbase and output.height is not None and next_height - output.height < COINBASE_MATURITY:
            raise RefusedError("bad-txns-premature-spend-of-coinbase")
        return output

    def _replaced_by(self, entry: PoolEntry) -> list[bytes]:
        """Whom `entry` would put out of the pool: BIP125 rules 2 to 5; as in Bitcoin Core 28, without signalling."""
        conflicts = {self.spender[outpoint] for outpoint in entry.inputs if outpoint in self.spender}
        replaced = list(dict.fromkeys(txid for conflict in conflicts for txid in self.with_descendants(conflict)))
        if not replaced:
            return []
        if len(replaced) > MAX_REPLACED:
            raise RefusedError("too many potential replacements")
        if any(outpoint.txid in replaced for outpoint in entry.inputs):
            raise RefusedError("bad-txns-spends-conflicting-tx")
        old = [self.entries[txid] for txid in replaced]
        least = sum(each.fee_sat for each in old) + entry.virtual_bytes * MIN_RELAY_FEE_RATE
        # Cross-multiplied: fee / vbytes of the new against each that it contradicts.
        is_cheaper = any(
            entry.fee_sat * self.entries[txid].virtual_bytes <= self.entries[txid].fee_sat * entry.virtual_bytes
            for txid in conflicts
        )
        if entry.fee_sat < least or is_cheaper:
            raise RefusedError("insufficient fee")
        return replaced


def _stripped_bytes(transaction: Transaction) -> int:
    """The size without marker, flag and witnesses (BIP141)."""
    inputs = sum(36 + len(item.script_sig.serialize()) + 4 for item in transaction.vin)
    outputs = sum(len(output.serialize()) for output in transaction.vout)
    return 8 + _count_bytes(len(transaction.vin)) + inputs + _count_bytes(len(transaction.vout)) + outputs


def _count_bytes(count: int) -> int:
    return 1 if count < 253 else 3 if count < 65_536 else 5


def _check_standard(transaction: Transaction, inputs: tuple[Outpoint, ...], weight: int) -> None:
    if transaction.version not in (1, 2, 3):
        raise RefusedError("version")
    if weight > MAX_STANDARD_WEIGHT:
        raise RefusedError("tx-size")
    if len(set(inputs)) != len(inputs):
        raise RefusedError("bad-txns-inputs-duplicate")
    if any(outpoint.txid == bytes(32) for outpoint in inputs):
        raise RefusedError("coinbase")
    if any(not 0 <= output.value <= MAX_MONEY_SAT for output in transaction.vout):
        raise RefusedError("bad-txns-vout-toolarge")
    for output in transaction.vout:
        script: bytes = output.script_pubkey.data
        is_data = script[:1] == b"\x6a" and len(script) <= 83
        if not is_data and output.script_pubkey.script_type() is None:
            raise RefusedError("scriptpubkey")
        if not is_data and output.value < dust_limit(script):
            raise RefusedError("dust")


def _check_locktime(transaction: Transaction, next_height: int) -> None:
    """IsFinalTx. The time of our blocks is made up, so a lock by time is never over here."""
    locktime = transaction.locktime
    if locktime == 0 or all(item.sequence == SEQUENCE_FINAL for item in transaction.vin):
        return
    if locktime >= LOCKTIME_THRESHOLD or locktime >= next_height:
        raise RefusedError("non-final")


def _check_sequence_locks(transaction: Transaction, spent: list[IndexedOutput], next_height: int) -> None:
    """BIP68, by height; again, a lock by time is never over."""
    if transaction.version < 2:
        return
    for item, output in zip(transaction.vin, spent, strict=True):
        if item.sequence & SEQUENCE_LOCK_DISABLED:
            continue
        height = next_height if output.height is None else output.height
        if item.sequence & SEQUENCE_LOCK_TIME or height + (item.sequence & SEQUENCE_LOCK_MASK) > next_height:
            raise RefusedError("non-BIP68-final")


def _check_scripts(raw: bytes, spent: list[IndexedOutput]) -> None:
    if not is_every_input_valid(raw, [(each.script_pubkey, each.value_sat) for each in spent]):
        raise RefusedError("mandatory-script-verify-flag-failed")
