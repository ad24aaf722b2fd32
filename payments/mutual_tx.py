"""Transactions that both ends of a channel sign: the splice, and the close together. Pure.

Both spend the funding output by its first branch with two signatures of SIGHASH_ALL, so that neither end can change
anything any more; the payer proposes them, pays their fee, and is the one to complete and broadcast them. The payee
signs nothing that pays it less than what it could claim.

A *splice* pays out to the payee what was paid in whole sat, and puts the rest, with what the payer's wallet adds, into
a new funding output with another expiry. Until it has its confirmations the payer signs payments for both outputs: of
the two, one exists.

Amounts are sat; `raw` of a proposal is without witnesses, since they do not change its id (BIP141).
"""

from __future__ import annotations

import math

import coincurve
from coincurve.ecdsa import cdata_to_der, der_to_cdata
from embit.script import Script, Witness
from embit.transaction import SIGHASH, Transaction, TransactionInput, TransactionOutput

from payments.channel_tx import (
    CLAIM_SEQUENCE,
    MAX_FEE_RATE,
    SIGHASH_SINGLE_ANYONECANPAY,
    TRANSACTION_VERSION,
    ChannelTerms,
    InvalidSignatureError,
    UneconomicError,
    channel_script,
    dust_limit,
    funding_script_pubkey,
    parse_transaction,
)
from payments.ports import ForeignInput, Outpoint, SignedTransaction

LOCKTIME = 0
_OVERHEAD_WEIGHT = 4 * (4 + 1 + 1 + 4) + 2
_SIGNATURE_BYTES = 72
_WITNESS_ITEMS = 4


class SpliceError(ValueError):
    """A proposed splice is not what its message says, or pays the payee less than it has."""


def input_vbytes(terms: ChannelTerms) -> int:
    """Of the channel's input with its witness, rounded up."""
    witness = 1 + 2 * (1 + _SIGNATURE_BYTES) + 2 + 1 + len(channel_script(terms))
    return math.ceil((4 * (36 + 1 + 4) + witness) / 4)


def fee(terms: ChannelTerms, outputs: tuple[tuple[bytes, int], ...], fee_rate: float) -> int:
    """Of a transaction that spends the channel alone, sat, rounded up. Raises ValueError."""
    if not 0.0 < fee_rate <= MAX_FEE_RATE:
        raise ValueError(f"a fee rate of {fee_rate} sat/vB")
    vbytes = math.ceil(_OVERHEAD_WEIGHT / 4) + input_vbytes(terms)
    return math.ceil((vbytes + sum(9 + len(script) for script, _ in outputs)) * fee_rate)


def foreign_input(terms: ChannelTerms, outpoint: Outpoint) -> ForeignInput:
    """The channel's output, for a wallet that adds to it."""
    return ForeignInput(outpoint, terms.capacity_sat, input_vbytes(terms), CLAIM_SEQUENCE)


def payout(payout_script: bytes, paid_sat: int) -> tuple[tuple[bytes, int], ...]:
    """The payee's output; none for what is below the dust limit, which it could not claim either."""
    return ((payout_script, paid_sat),) if paid_sat >= dust_limit(payout_script) else ()


def build_close(
    terms: ChannelTerms, outpoint: Outpoint, *, paid_sat: int, payout_script: bytes, fee_sat: int
) -> SignedTransaction:
    """The transaction that closes it together, unsigned: both ends make the same from the same figures.

    Raises UneconomicError when the fee leaves less than the dust limit of the payer's rest, ValueError.
    """
    if not 0 <= paid_sat <= terms.max_paid_sat or fee_sat < 0:
        raise ValueError(f"{paid_sat} sat paid out of {terms.capacity_sat}, fee {fee_sat}")
    rest_sat = terms.capacity_sat - paid_sat - fee_sat
    if rest_sat < dust_limit(terms.payer_change_script):
        raise UneconomicError(f"{rest_sat} sat would be left of the close")
    outputs = ((terms.payer_change_script, rest_sat), *payout(payout_script, paid_sat))
    return _unsigned(outpoint, outputs, fee_sat)


def build_splice(
    outpoint: Outpoint, new: ChannelTerms, *, paid_out_sat: int, payout_script: bytes, fee_sat: int
) -> SignedTransaction:
    """A splice without money of a wallet: the new capacity is the old one less what is paid out and the fee."""
    outputs = splice_outputs(new, paid_out_sat=paid_out_sat, payout_script=payout_script)
    return _unsigned(outpoint, outputs, fee_sat)


def splice_outputs(new: ChannelTerms, *, paid_out_sat: int, payout_script: bytes) -> tuple[tuple[bytes, int], ...]:
    return ((funding_script_pubkey(new), new.capacity_sat), *payout(payout_script, paid_out_sat))


def check_splice(
    raw: bytes, outpoint: Outpoint, new: ChannelTerms, *, paid_out_sat: int, payout_script: bytes
) -> Outpoint:
    """The new funding output of a proposal without witnesses. Raises SpliceError unless it spends `outpoint`, funds
    `new` once, and pays out exactly what it says."""
    try:
        transaction = parse_transaction(raw)
    except ValueError as error:
        raise SpliceError(str(error)) from error
    if transaction.version != TRANSACTION_VERSION or transaction.locktime != LOCKTIME or transaction.is_segwit:
        raise SpliceError("not a splice as agreed on")
    if any(item.sequence != CLAIM_SEQUENCE for item in transaction.vin):
        raise SpliceError("an input that is final or locked")  # it could not be replaced, or not be mined
    _input_index(transaction, outpoint)
    script = funding_script_pubkey(new)
    found = [i for i, o in enumerate(transaction.vout) if o.script_pubkey.data == script]
    if len(found) != 1 or transaction.vout[found[0]].value != new.capacity_sat:
        raise SpliceError("it does not fund the channel")
    paid = [o.value for o in transaction.vout if o.script_pubkey.data == payout_script]
    if paid_out_sat and (paid_out_sat < dust_limit(payout_script) or paid != [paid_out_sat]):
        raise SpliceError("it does not pay out what it says")
    return Outpoint(transaction.hash(), found[0])


def sign_mutual(key: bytes, raw: bytes, terms: ChannelTerms, outpoint: Outpoint) -> bytes:
    """SIGHASH_ALL for the channel's input. Raises ValueError."""
    signature: bytes = coincurve.PrivateKey(key).sign(_digest(raw, terms, outpoint), hasher=None)
    return signature + bytes((SIGHASH.ALL,))


def verify_mutual(pubkey: bytes, signature: bytes, raw: bytes, terms: ChannelTerms, outpoint: Outpoint) -> None:
    """Raises InvalidSignatureError, and nothing else; as strict as `verify_payment`."""
    if not 9 <= len(signature) <= _SIGNATURE_BYTES or signature[-1] != SIGHASH.ALL:
        raise InvalidSignatureError("not a signature of the whole transaction")
    der = signature[:-1]
    try:
        canonical = cdata_to_der(der_to_cdata(der)) == der
        valid = coincurve.PublicKey(pubkey).verify(der, _digest(raw, terms, outpoint), hasher=None)
    except ValueError as error:
        raise InvalidSignatureError(str(error)) from error
    if not canonical or not valid:
        raise InvalidSignatureError("not the peer's signature of this transaction")


def complete(
    raw: bytes, terms: ChannelTerms, outpoint: Outpoint, *, payer_signature: bytes, payee_signature: bytes
) -> bytes:
    """`raw` with the witness of the channel's input; those of other inputs stay. Raises ValueError."""
    transaction = parse_transaction(raw)
    index = _input_index(transaction, outpoint)
    script = channel_script(terms)
    transaction.vin[index].witness = Witness([payer_signature, payee_signature, b"\x01", script])
    completed: bytes = transaction.serialize()
    return completed


def stripped(raw: bytes) -> bytes:
    """Without witnesses. Raises ValueError."""
    transaction = parse_transaction(raw)
    for item in transaction.vin:
        item.witness = Witness([])
    bare: bytes = transaction.serialize()
    return bare


def is_payment_claim(raw: bytes, outpoint: Outpoint) -> bool:
    """Whether `raw` spends `outpoint` with a payment's signature, not with one of SIGHASH_ALL. Raises ValueError."""
    transaction = parse_transaction(raw)
    items = transaction.vin[_input_index(transaction, outpoint)].witness.items
    return len(items) == _WITNESS_ITEMS and items[0][-1:] == bytes((SIGHASH_SINGLE_ANYONECANPAY,))


def paid_to(raw: bytes, script: bytes) -> int:
    """Sat. Raises ValueError."""
    return sum(int(o.value) for o in parse_transaction(raw).vout if o.script_pubkey.data == script)


def _unsigned(outpoint: Outpoint, outputs: tuple[tuple[bytes, int], ...], fee_sat: int) -> SignedTransaction:
    transaction = Transaction(
        TRANSACTION_VERSION,
        [TransactionInput(outpoint.txid[::-1], outpoint.index, sequence=CLAIM_SEQUENCE)],
        [TransactionOutput(value, Script(script)) for script, value in outputs],
        LOCKTIME,
    )
    return SignedTransaction(transaction.serialize(), transaction.hash(), fee_sat)


def _input_index(transaction: Transaction, outpoint: Outpoint) -> int:
    found = [
        i for i, t in enumerate(transaction.vin) if (bytes(t.txid)[::-1], t.vout) == (outpoint.txid, outpoint.index)
    ]
    if len(found) != 1:
        raise SpliceError("it does not spend the channel")
    return found[0]


def _digest(raw: bytes, terms: ChannelTerms, outpoint: Outpoint) -> bytes:
    transaction = parse_transaction(raw)
    index = _input_index(transaction, outpoint)
    script = Script(channel_script(terms))
    digest: bytes = transaction.sighash_segwit(index, script, terms.capacity_sat, SIGHASH.ALL)
    return digest
