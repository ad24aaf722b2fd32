"""Spending P2WPKH outputs of our own: sizes, and BIP143 signatures with embit and coincurve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import coincurve
from embit.hashes import hash160
from embit.script import Script, Witness
from embit.transaction import SIGHASH, Transaction, TransactionInput, TransactionOutput

from payments.ports import ForeignInput, Outpoint, SignedTransaction

REPLACEABLE_SEQUENCE = 0xFFFFFFFD  # BIP125
P2WPKH_BYTES = 22

# Virtual bytes, rounded up; a signature of ours has at most 72 bytes.
OVERHEAD_VBYTES = 11
INPUT_VBYTES = 69


@dataclass(frozen=True, slots=True)
class OwnedOutput:
    outpoint: Outpoint
    value_sat: int
    secret: bytes = field(repr=False)


def p2wpkh_script(pubkey: bytes) -> bytes:
    return b"\x00\x14" + bytes(hash160(pubkey))


def output_vbytes(script_pubkey: bytes) -> int:
    return 8 + (1 if len(script_pubkey) < 253 else 3) + len(script_pubkey)


def sign_p2wpkh(
    inputs: Sequence[OwnedOutput], outputs: Sequence[tuple[bytes, int]], foreign: ForeignInput | None = None
) -> SignedTransaction:
    """Spends `foreign`, left without a witness, and all `inputs` to `outputs` (script, sat); what is over is the fee.
    Raises ValueError if it is negative."""
    spent = [] if foreign is None else [(foreign.outpoint, foreign.sequence, foreign.value_sat)]
    spent += [(item.outpoint, REPLACEABLE_SEQUENCE, item.value_sat) for item in inputs]
    fee_sat = sum(value for _, _, value in spent) - sum(value for _, value in outputs)
    if fee_sat < 0:
        raise ValueError("the outputs exceed the inputs")
    transaction = Transaction(
        2,
        [TransactionInput(outpoint.txid[::-1], outpoint.index, sequence=sequence) for outpoint, sequence, _ in spent],
        [TransactionOutput(value, Script(script)) for script, value in outputs],
        0,
    )
    for index, item in enumerate(inputs, start=len(spent) - len(inputs)):
        key = coincurve.PrivateKey(item.secret)
        pubkey = key.public_key.format()
        # BIP143: the script code of P2WPKH is that of P2PKH.
        script_code = Script(b"\x76\xa9\x14" + bytes(hash160(pubkey)) + b"\x88\xac")
        digest = transaction.sighash_segwit(index, script_code, item.value_sat, SIGHASH.ALL)
        signature = key.sign(digest, hasher=None) + bytes((SIGHASH.ALL,))
        transaction.vin[index].witness = Witness([signature, pubkey])
    return SignedTransaction(transaction.serialize(), transaction.hash(), fee_sat)
