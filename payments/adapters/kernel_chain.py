"""An embedded regtest chain: blocks assembled here, judged by Bitcoin Core's own code (py-bitcoinkernel). Synchronous.

The only writer of its directory: Core's databases under `kernel/`, and `blocks.log`, every block that was accepted,
written before it counts. Core flushes its block index seldom, so after a crash the log is what brings the last blocks
back. The pool lives in memory: what was in it must be sent again, as every wallet does.

Time is made up: each block is one second after the one before. Nothing reads a clock: a fresh chain is always the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coincurve
import pbk
from embit.transaction import Transaction

from payments.adapters.chain_index import ChainIndex
from payments.adapters.p2wpkh import (
    INPUT_VBYTES,
    OVERHEAD_VBYTES,
    P2WPKH_BYTES,
    OwnedOutput,
    output_vbytes,
    p2wpkh_script,
    sign_p2wpkh,
)
from payments.adapters.regtest_block import BlockTemplate, assemble_block, block_hash, block_timestamp
from payments.adapters.transaction_pool import COINBASE_MATURITY, PoolEntry, TransactionPool
from payments.channel_tx import MAX_MONEY_SAT, dust_limit, parse_transaction
from payments.ports import BroadcastResult, ChainTip, Outpoint, OutputStatus, TransactionStatus, Utxo

PREMINED_BLOCKS = 110  # ten mature coinbases of 50 BTC for the faucet
FAUCET_KEY = hashlib.sha256(b"meshd regtest faucet").digest()  # worthless, and the same everywhere
FAUCET_FEE_RATE = 2
FAUCET_MAX_INPUTS = 50
FEE_RATE = 2.0  # sat/vB: regtest has no market; above the relay minimum so that rounding never falls below it
MAX_BLOCK_WEIGHT = 3_900_000  # of 4,000,000 (BIP141): the coinbase needs some
_LENGTH_BYTES = 4


class KernelChainError(Exception):
    """The chain cannot go on: directory in use, disk full, an empty block refused; or the faucet cannot pay."""


@dataclass(slots=True)
class _LastVerdict:
    """What Core said of the block it judged last."""

    reason: str = ""


class KernelChain:
    """Not thread-safe: one call at a time. Close it, or the last blocks are replayed at the next start."""

    def __init__(self, datadir: Path) -> None:
        """Opens the chain in `datadir`, or makes one of PREMINED_BLOCKS there. Raises KernelChainError."""
        datadir.mkdir(parents=True, exist_ok=True)
        self._verdict = _LastVerdict()
        self._manager = _open_manager(datadir / "kernel", self._verdict)
        self._chain = self._manager.get_active_chain()
        self._log_path = datadir / "blocks.log"
        self._faucet_script = p2wpkh_script(coincurve.PrivateKey(FAUCET_KEY).public_key.format())
        self._logged_blocks = self._replay_log()
        self._log = self._log_path.open("ab")
        self._index = ChainIndex()
        self._pool = TransactionPool(self._index)
        self._rebuild_index()
        if self._chain.height == 0:
            self.mine(PREMINED_BLOCKS)

    def close(self) -> None:
        """Flushes Core's databases."""
        self._log.close()
        self._manager.__exit__(None, None, None)

    # --- Queries ---

    def tip(self) -> ChainTip:
        height = self._chain.height
        return ChainTip(height, self._hash_at(height))

    def fee_rate(self) -> float:
        return FEE_RATE

    @property
    def pool_size(self) -> int:
        return len(self._pool.entries)

    def transaction(self, txid: bytes) -> TransactionStatus | None:
        entry = self._pool.entries.get(txid)
        if entry is not None:
            return TransactionStatus(entry.transaction.serialize(), None, entry.fee_sat)
        known = self._index.transactions.get(txid)
        if known is None:
            return None
        return TransactionStatus(known.transaction.serialize(), known.height, known.fee_sat)

    def output(self, outpoint: Outpoint) -> OutputStatus | None:
        output = self._pool.output(outpoint)
        if output is None:
            return None
        spent_height = None
        spent_by = self._index.spender.get(outpoint)
        if spent_by is not None:
            spent_height = self._index.transactions[spent_by].height
        else:
            spent_by = self._pool.spender.get(outpoint)
        return OutputStatus(output.value_sat, output.script_pubkey, output.height, spent_by, spent_height)

    def utxos(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]:
        """Unspent in the chain and in the pool, the pool's own outputs included."""
        wanted = set(script_pubkeys)
        confirmed = [outpoint for script in wanted for outpoint in self._index.unspent_by_script.get(script, ())]
        pooled = [outpoint for outpoint, output in self._pool.outputs.items() if output.script_pubkey in wanted]
        found = []
        for outpoint in confirmed + pooled:
            output = self._pool.output(outpoint)
            if output is not None and not self._pool.is_spent(outpoint):
                found.append(Utxo(outpoint, output.value_sat, output.script_pubkey, output.height, output.coinbase))
        return found

    # --- Changes ---

    def submit(self, raw: bytes) -> BroadcastResult:
        """Into the pool, if standard and valid for the next block."""
        return self._pool.submit(raw, self._chain.height + 1)

    def mine(self, count: int = 1, reward_script: bytes | None = None) -> None:
        """`count` blocks, each with what fits of the pool. The reward goes to the faucet unless told."""
        for _ in range(count):
            self._mine_one(self._faucet_script if reward_script is None else reward_script)

    def force_into_block(self, raw: bytes) -> BroadcastResult:
        """For tests: a block with `raw` alone, unseen by the pool's policy, so that consensus itself is the judge."""
        transaction = parse_transaction(raw)
        accepted = self._extend([transaction], 0, self._faucet_script)
        return BroadcastResult(accepted, "" if accepted else self._verdict.reason)

    def fork(self, depth: int, length: int) -> None:
        """For tests: `length` empty blocks on the block `depth` below the tip. Raises KernelChainError.

        If that is the longer chain, what was in the blocks above returns to the pool, as far as it is still valid.
        """
        height = self._chain.height - depth
        returning = [
            transaction
            for each in range(height + 1, self._chain.height + 1)
            for transaction in self._transactions_at(each)[1:]
        ] + [entry.transaction for entry in self._pool.entries.values()]
        previous, timestamp = self._hash_at(height), self._timestamp_at(height)
        for each in range(height + 1, height + length + 1):
            timestamp += 1
            block = assemble_block(
                BlockTemplate(previous, each, timestamp, self._faucet_script, 0, [], self._extra_nonce())
            )
            if not self._process(block):
                raise KernelChainError(f"fork refused: {self._verdict.reason}")
            previous = block_hash(block)
        self._rebuild_index()
        for transaction in returning:
            self.submit(transaction.serialize())

    def faucet(self, script_pubkey: bytes, amount_sat: int) -> bytes:
        """The txid, in the pool, of a transaction that pays `amount_sat` from mined coins. Raises KernelChainError."""
        if not dust_limit(script_pubkey) <= amount_sat <= MAX_MONEY_SAT:
            raise KernelChainError(f"the faucet cannot pay {amount_sat} sat")
        vbytes = OVERHEAD_VBYTES + output_vbytes(script_pubkey) + output_vbytes(bytes(P2WPKH_BYTES))
        chosen: list[OwnedOutput] = []
        over = -amount_sat - FAUCET_FEE_RATE * vbytes
        for utxo in self._faucet_utxos():
            if over >= dust_limit(self._faucet_script) or len(chosen) == FAUCET_MAX_INPUTS:
                break
            chosen.append(OwnedOutput(utxo.outpoint, utxo.value_sat, FAUCET_KEY))
            over += utxo.value_sat - FAUCET_FEE_RATE * INPUT_VBYTES
        if over < dust_limit(self._faucet_script):
            raise KernelChainError("the faucet is empty")
        signed = sign_p2wpkh(chosen, [(script_pubkey, amount_sat), (self._faucet_script, over)])
        result = self.submit(signed.raw)
        if not result.accepted:
            raise KernelChainError(f"the faucet's transaction was refused: {result.code}")
        return signed.txid

    def _faucet_utxos(self) -> list[Utxo]:
        next_height = self._chain.height + 1
        spendable = [
            utxo
            for utxo in self.utxos([self._faucet_script])
            if not utxo.coinbase or (utxo.height is not None and next_height - utxo.height >= COINBASE_MATURITY)
        ]
        return sorted(spendable, key=lambda utxo: (-utxo.value_sat, utxo.outpoint.txid))

    # --- Blocks ---

    def _mine_one(self, reward_script: bytes) -> None:
        chosen = self._choose()
        if self._mine_entries(chosen, reward_script):
            return
        # Core refused what the pool let in. One block each finds out which; those go, and all that spend them.
        for entry in chosen:
            if entry.txid in self._pool.entries and not self._mine_entries([entry], reward_script):
                for txid in self._pool.with_descendants(entry.txid):
                    self._pool.remove(txid)
        if not self._mine_entries([], reward_script):
            raise KernelChainError(f"an empty block was refused: {self._verdict.reason}")

    def _choose(self) -> list[PoolEntry]:
        """First come, first served, which is topological order; what no longer fits waits, with all that came after."""
        chosen, weight = [], 0
        for entry in self._pool.entries.values():
            weight += entry.weight
            if weight > MAX_BLOCK_WEIGHT:
                break
            chosen.append(entry)
        return chosen

    def _mine_entries(self, entries: Sequence[PoolEntry], reward_script: bytes) -> bool:
        fees_sat = sum(entry.fee_sat for entry in entries)
        return self._extend([entry.transaction for entry in entries], fees_sat, reward_script)

    def _extend(self, transactions: Sequence[Transaction], fees_sat: int, reward_script: bytes) -> bool:
        height = self._chain.height
        template = BlockTemplate(
            previous_hash=self._hash_at(height),
            height=height + 1,
            timestamp=self._timestamp_at(height) + 1,
            reward_script=reward_script,
            fees_sat=fees_sat,
            transactions=transactions,
            extra_nonce=self._extra_nonce(),
        )
        if not self._process(assemble_block(template)):
            return False
        self._index.connect(self._transactions_at(height + 1), height + 1)
        self._pool.remove_confirmed()
        return True

    def _extra_nonce(self) -> bytes:
        """Different for every block that ever got in, forks included."""
        return self._logged_blocks.to_bytes(4, "little")

    def _process(self, block: bytes) -> bool:
        """Whether Core took the block. Then it is logged; a crash in between loses a block that nobody has seen."""
        if not _is_accepted(self._manager, self._verdict, block):
            return False
        self._log.write(len(block).to_bytes(_LENGTH_BYTES, "little") + block)
        self._log.flush()
        self._logged_blocks += 1
        return True

    def _replay_log(self) -> int:
        """Hands Core the blocks that its index lost in a crash, cuts off a torn last record, and counts the rest."""
        count, end = 0, 0
        for block, end in _read_log(self._log_path):  # noqa: B007
            count += 1
            if pbk.BlockHash(block_hash(block)) not in self._manager.block_tree_entries:
                _is_accepted(self._manager, self._verdict, block)
        if self._log_path.exists() and self._log_path.stat().st_size != end:
            os.truncate(self._log_path, end)
        return count

    def _rebuild_index(self) -> None:
        self._index = ChainIndex()
        self._pool = TransactionPool(self._index)
        for height in range(1, self._chain.height + 1):
            self._index.connect(self._transactions_at(height), height)

    def _entry_at(self, height: int) -> Any:
        return self._chain.block_tree_entries[height]

    def _hash_at(self, height: int) -> bytes:
        return bytes(self._entry_at(height).block_hash)

    def _timestamp_at(self, height: int) -> int:
        return block_timestamp(bytes(self._entry_at(height).block_header))

    def _transactions_at(self, height: int) -> list[Transaction]:
        block = self._manager.blocks[self._entry_at(height)]
        return [Transaction.parse(bytes(transaction)) for transaction in block.transactions]


def _open_manager(directory: Path, verdict: _LastVerdict) -> Any:
    directory.mkdir(parents=True, exist_ok=True)

    def block_checked(_user_data: object, _block: Any, state: Any) -> None:
        verdict.reason = "" if state.validation_mode == pbk.ValidationMode.VALID else state.block_validation_result.name

    try:
        context = pbk.make_context(pbk.ChainType.REGTEST, pbk.ValidationInterfaceCallbacks(block_checked=block_checked))
        options = pbk.ChainstateManagerOptions(context, str(directory), str(directory / "blocks"))
        options.set_worker_threads_num(0)
        return pbk.ChainstateManager(options)
    except (RuntimeError, pbk.KernelException) as error:
        raise KernelChainError(f"cannot open the chain in {directory}: {error}") from error


def _is_accepted(manager: Any, verdict: _LastVerdict, block: bytes) -> bool:
    """process_block says whether a block could be stored; the callback, whether it is valid where it was connected."""
    verdict.reason = ""
    try:
        manager.process_block(pbk.Block(block))
    except pbk.ProcessBlockException:
        verdict.reason = verdict.reason or "REFUSED"
    except RuntimeError:  # not even a block
        verdict.reason = "DESERIALIZATION"
    return not verdict.reason


def _read_log(path: Path) -> Iterator[tuple[bytes, int]]:
    """Whole records, each with the offset of its end."""
    if not path.exists():
        return
    with path.open("rb") as log:
        while True:
            size = int.from_bytes(log.read(_LENGTH_BYTES), "little")
            block = log.read(size)
            if size == 0 or len(block) < size:
                return
            yield block, log.tell()
