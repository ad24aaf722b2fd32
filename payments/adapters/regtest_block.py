"""Assembles a regtest block: coinbase, merkle roots, proof of work. Whether it is valid, Bitcoin Core's code says."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from embit.hashes import double_sha256
from embit.script import Script, Witness
from embit.transaction import Transaction, TransactionInput, TransactionOutput

REGTEST_BITS = 0x207FFFFF  # half of all hashes will do; regtest never retargets
REGTEST_TARGET = 0x7FFFFF << (8 * (0x20 - 3))
BLOCK_VERSION = 0x20000000  # BIP9
INITIAL_SUBSIDY_SAT = 50 * 100_000_000
REGTEST_HALVING_INTERVAL = 150
WITNESS_COMMITMENT_PREFIX = bytes.fromhex("6a24aa21a9ed")  # BIP141
WITNESS_RESERVED_VALUE = bytes(32)


@dataclass(frozen=True, slots=True)
class BlockTemplate:
    previous_hash: bytes  # internal order
    height: int
    timestamp: int  # of the block, Unix seconds
    reward_script: bytes
    fees_sat: int
    transactions: Sequence[Transaction]
    extra_nonce: bytes  # tells blocks apart that are otherwise the same


def subsidy(height: int) -> int:
    halvings = height // REGTEST_HALVING_INTERVAL
    return INITIAL_SUBSIDY_SAT >> halvings if halvings < 64 else 0


def assemble_block(template: BlockTemplate) -> bytes:
    """The serialized block, its proof of work done."""
    coinbase = _coinbase(template)
    transactions = [coinbase, *template.transactions]
    root = _merkle_root([transaction.hash() for transaction in transactions])
    prefix = struct.pack("<I", BLOCK_VERSION) + template.previous_hash + root
    prefix += struct.pack("<II", template.timestamp, REGTEST_BITS)
    body = b"".join(transaction.serialize() for transaction in transactions)
    return _solve(prefix) + _compact(len(transactions)) + body


def block_hash(block: bytes) -> bytes:
    """Internal order."""
    digest: bytes = double_sha256(block[:80])
    return digest


def block_timestamp(header: bytes) -> int:
    return int.from_bytes(header[68:72], "little")


def _coinbase(template: BlockTemplate) -> Transaction:
    """BIP34 height in the input script, BIP141 commitment to the witnesses in the last output."""
    witness_root = _merkle_root(
        [bytes(32)] + [double_sha256(transaction.serialize()) for transaction in template.transactions]
    )
    commitment = WITNESS_COMMITMENT_PREFIX + double_sha256(witness_root + WITNESS_RESERVED_VALUE)
    script_sig = Script(_push_height(template.height) + bytes((len(template.extra_nonce),)) + template.extra_nonce)
    reward = subsidy(template.height) + template.fees_sat
    return Transaction(
        2,
        [TransactionInput(bytes(32), 0xFFFFFFFF, script_sig, 0xFFFFFFFF, Witness([WITNESS_RESERVED_VALUE]))],
        [TransactionOutput(reward, Script(template.reward_script)), TransactionOutput(0, Script(commitment))],
    )


def _push_height(height: int) -> bytes:
    """As `CScript() << height` does: BIP34 compares the bytes."""
    if height <= 16:
        return bytes((0x50 + height,))
    number = height.to_bytes(height.bit_length() // 8 + 1, "little")
    return bytes((len(number),)) + number


def _merkle_root(hashes: list[bytes]) -> bytes:
    while len(hashes) > 1:
        if len(hashes) % 2:
            hashes = [*hashes, hashes[-1]]
        hashes = [double_sha256(hashes[i] + hashes[i + 1]) for i in range(0, len(hashes), 2)]
    return hashes[0]


def _solve(prefix: bytes) -> bytes:
    nonce = 0
    while True:
        header = prefix + struct.pack("<I", nonce)
        if int.from_bytes(double_sha256(header), "little") <= REGTEST_TARGET:
            return header
        nonce += 1


def _compact(number: int) -> bytes:
    return bytes((number,)) if number < 253 else b"\xfd" + struct.pack("<H", number)
