"""Would consensus let this transaction spend that channel? Our own predicate, to be asked before anything is broadcast.

It knows the one script that channels have and the rules that bear on its inputs: BIP16 and 141 (witness), 143
(digests, of any sighash type), 66 (encoding), 65 (expiry), 68 and 113 (locks). It knows consensus, not policy: a
signature with a high S, an undefined sighash type or a superfluous true value on the stack is judged as a block would
be. What it does not know is money: whether the outputs are worth no more than all inputs is for who knows those.

`tests/payments/test_consensus.py` compares it with Bitcoin Core's code over thousands of mutated transactions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import coincurve
from coincurve.ecdsa import cdata_to_der, der_to_cdata
from embit.transaction import SIGHASH, Transaction

from payments.channel_tx import LOCKTIME_THRESHOLD, MAX_MONEY_SAT, ChannelTerms, channel_script, parse_transaction
from payments.ports import Outpoint

SEQUENCE_FINAL = 0xFFFFFFFF
_LOCK_DISABLED = 1 << 31  # BIP68
_LOCK_BY_TIME = 1 << 22
_LOCK_MASK = 0xFFFF
_LOCK_GRANULARITY = 9  # of times: 512 s
_MAX_ELEMENT_BYTES = 520
_SIGHASH_MASK = 0x1F
_CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@dataclass(frozen=True, slots=True)
class Moment:
    """The next block, and the coin that is to be spent in it. Times are medians (BIP113), seconds."""

    height: int
    median_time: int
    coin_height: int
    coin_median_time: int  # of the block before the coin's


class InvalidSpendError(Exception):
    """No block could have this transaction, as far as the channel's input is concerned."""


def check_spend(raw: bytes, terms: ChannelTerms, outpoint: Outpoint, moment: Moment) -> None:
    """Raises InvalidSpendError."""
    try:
        transaction = parse_transaction(raw)
    except ValueError as error:
        raise InvalidSpendError(str(error)) from error
    spent = [(bytes(item.txid)[::-1], item.vout) for item in transaction.vin]
    found = [index for index, each in enumerate(spent) if each == (outpoint.txid, outpoint.index)]
    if len(found) != 1 or len(set(spent)) != len(spent):
        raise InvalidSpendError("it does not spend the output once")
    values = [int(output.value) for output in transaction.vout]
    if any(not 0 <= value <= MAX_MONEY_SAT for value in values) or sum(values) > MAX_MONEY_SAT:
        raise InvalidSpendError("more money than there is")
    index = found[0]
    _check_locks(transaction, index, moment)
    item = transaction.vin[index]
    if item.script_sig.data:
        raise InvalidSpendError("a script beside the witness")
    _run_script(transaction, index, terms, list(item.witness.items))


def _check_locks(transaction: Transaction, index: int, moment: Moment) -> None:
    """Of the whole transaction, and of the channel's input."""
    locktime = transaction.locktime
    limit = moment.height if locktime < LOCKTIME_THRESHOLD else moment.median_time
    if locktime >= max(limit, 1) and any(item.sequence != SEQUENCE_FINAL for item in transaction.vin):
        raise InvalidSpendError("locked")
    sequence = transaction.vin[index].sequence
    # Versions are signed in Core until 28, unsigned from then on: none of ours is above 2^31.
    if transaction.version < 2 or sequence & _LOCK_DISABLED:
        return
    if sequence & _LOCK_BY_TIME:
        is_early = moment.median_time < moment.coin_median_time + ((sequence & _LOCK_MASK) << _LOCK_GRANULARITY)
    else:
        is_early = moment.height < moment.coin_height + (sequence & _LOCK_MASK)
    if is_early:
        raise InvalidSpendError("locked for a while after the coin")


def _run_script(transaction: Transaction, index: int, terms: ChannelTerms, items: list[bytes]) -> None:
    """IF <payee> CHECKSIGVERIFY ELSE <expiry> CHECKLOCKTIMEVERIFY DROP ENDIF <payer> CHECKSIG; a true value is left."""
    script = channel_script(terms)
    if not items or items[-1] != script:
        raise InvalidSpendError("another script")
    stack = items[:-1]
    if any(len(item) > _MAX_ELEMENT_BYTES for item in stack):
        raise InvalidSpendError("a large item")
    if not stack:
        raise InvalidSpendError("nothing to choose a branch by")
    if _is_true(stack.pop()):
        if not stack or not _is_signed(transaction, index, terms, terms.payee_pubkey, stack.pop()):
            raise InvalidSpendError("the payee has not signed")
    else:
        _check_expiry(transaction, index, terms)
    if not stack or not _is_signed(transaction, index, terms, terms.payer_pubkey, stack.pop()):
        raise InvalidSpendError("the payer has not signed")
    if stack:
        raise InvalidSpendError("something is left on the stack")


def _is_true(item: bytes) -> bool:
    """Zero of either sign is false."""
    return any(item[:-1]) or item[-1:] not in (b"", b"\x00", b"\x80")


def _check_expiry(transaction: Transaction, index: int, terms: ChannelTerms) -> None:
    """BIP65."""
    if transaction.locktime >= LOCKTIME_THRESHOLD or transaction.locktime < terms.expiry_height:
        raise InvalidSpendError("before the expiry")
    if transaction.vin[index].sequence == SEQUENCE_FINAL:
        raise InvalidSpendError("a final input knows no locktime")


def _is_signed(transaction: Transaction, index: int, terms: ChannelTerms, pubkey: bytes, signature: bytes) -> bool:
    """Raises InvalidSpendError for what is not even encoded as a signature (BIP66)."""
    if not signature:
        return False
    if not _is_strict_der(signature[:-1]):
        raise InvalidSpendError("not a signature")
    r, s = _numbers(signature[:-1])
    if not 0 < r < _CURVE_ORDER or not 0 < s < _CURVE_ORDER:
        return False
    try:
        low = cdata_to_der(der_to_cdata(_der(r, min(s, _CURVE_ORDER - s))))
        digest = spend_digest(transaction, index, terms, signature[-1])
        return coincurve.PublicKey(pubkey).verify(low, digest, hasher=None)
    except ValueError:
        return False


def _is_strict_der(der: bytes) -> bool:
    """BIP66, without the sighash byte: 30 len 02 lenR R 02 lenS S, positive numbers of no more bytes than they need."""
    if not 8 <= len(der) <= 72 or der[0] != 0x30 or der[1] != len(der) - 2:
        return False
    r_bytes = der[3]
    if 5 + r_bytes >= len(der) or der[5 + r_bytes] + r_bytes + 6 != len(der):
        return False
    first, second = der[4 : 4 + r_bytes], der[6 + r_bytes :]
    return der[2] == der[4 + r_bytes] == 0x02 and all(_is_minimal_positive(each) for each in (first, second))


def _is_minimal_positive(number: bytes) -> bool:
    if not number or number[0] & 0x80:
        return False
    return not (len(number) > 1 and number[0] == 0 and not number[1] & 0x80)


def _numbers(der: bytes) -> tuple[int, int]:
    r_bytes = der[3]
    return int.from_bytes(der[4 : 4 + r_bytes], "big"), int.from_bytes(der[6 + r_bytes :], "big")


def _der(r: int, s: int) -> bytes:
    parts = b"".join(
        b"\x02" + bytes((len(each),)) + each for each in (n.to_bytes(n.bit_length() // 8 + 1, "big") for n in (r, s))
    )
    return b"\x30" + bytes((len(parts),)) + parts


def spend_digest(transaction: Transaction, index: int, terms: ChannelTerms, sighash: int) -> bytes:
    """BIP143, for any type, defined or not: what is not NONE or SINGLE commits to all outputs."""
    kind, is_alone = sighash & _SIGHASH_MASK, bool(sighash & SIGHASH.ANYONECANPAY)
    prevouts = sequences = outputs = bytes(32)
    if not is_alone:
        prevouts = _hash(b"".join(bytes(t.txid)[::-1] + t.vout.to_bytes(4, "little") for t in transaction.vin))
        if kind not in (SIGHASH.NONE, SIGHASH.SINGLE):
            sequences = _hash(b"".join(t.sequence.to_bytes(4, "little") for t in transaction.vin))
    if kind not in (SIGHASH.NONE, SIGHASH.SINGLE):
        outputs = _hash(b"".join(output.serialize() for output in transaction.vout))
    elif kind == SIGHASH.SINGLE and index < len(transaction.vout):
        outputs = _hash(transaction.vout[index].serialize())
    item, script = transaction.vin[index], channel_script(terms)
    parts = (
        (transaction.version & 0xFFFFFFFF).to_bytes(4, "little"),
        prevouts,
        sequences,
        bytes(item.txid)[::-1] + item.vout.to_bytes(4, "little"),
        bytes((len(script),)) + script,
        terms.capacity_sat.to_bytes(8, "little"),
        item.sequence.to_bytes(4, "little"),
        outputs,
        transaction.locktime.to_bytes(4, "little"),
        sighash.to_bytes(4, "little"),
    )
    return _hash(b"".join(parts))


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(data).digest()).digest()
