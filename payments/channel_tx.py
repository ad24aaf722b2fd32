"""The transactions of a unidirectional payment channel: funding output, payment, claim, refund. Pure.

The funding output is P2WSH of (design section 8)

    IF <payee> CHECKSIGVERIFY ELSE <expiry> CHECKLOCKTIMEVERIFY DROP ENDIF <payer> CHECKSIG

A *payment* is the payer's signature, SIGHASH_SINGLE|ANYONECANPAY, over the funding input and its own change output. All
else is the payee's, who signs SIGHASH_ALL when it claims: fee, destination, batching and replacement. A payment of a
higher sum pays the payee more, so the payee keeps the last one, and an old one can cost the payer nothing.

What the payer's signature commits to and both ends therefore fix: version 2, sequence 0xfffffffd (no relative lock by
BIP68, replaceable by BIP125), locktime 0, and beside input i the output i = (capacity - paid, payer's change script).

Amounts are sat. Keys are 32 bytes secret, 33 bytes public. Hashes are in internal byte order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256

import coincurve
from coincurve._libsecp256k1 import lib  # type: ignore[import-not-found]
from coincurve.context import GLOBAL_CONTEXT
from coincurve.ecdsa import cdata_to_der, der_to_cdata
from embit.base import EmbitError
from embit.script import Script, Witness, p2wsh
from embit.transaction import SIGHASH, Transaction, TransactionInput, TransactionOutput

from payments.ports import Outpoint, SignedTransaction

# --- Specification constants ---
MAX_MONEY_SAT = 21_000_000 * 100_000_000
LOCKTIME_THRESHOLD = 500_000_000  # BIP65: below it a locktime is a height
SIGHASH_SINGLE_ANYONECANPAY = SIGHASH.SINGLE | SIGHASH.ANYONECANPAY  # 0x83, BIP143
TRANSACTION_VERSION = 2
CLAIM_SEQUENCE = 0xFFFFFFFD  # BIP125: replaceable. BIP68: bit 31 set, no relative lock
REFUND_SEQUENCE = 0xFFFFFFFD  # BIP65: anything but 0xffffffff, or CHECKLOCKTIMEVERIFY fails
CLAIM_LOCKTIME = 0
MAX_SCRIPT_PUBKEY_BYTES = 10_000
MAX_TRANSACTION_BYTES = 400_000  # Bitcoin Core's MAX_STANDARD_TX_WEIGHT, all of it witness

OP_1 = b"\x51"
OP_IF, OP_ELSE, OP_ENDIF, OP_DROP = b"\x63", b"\x67", b"\x68", b"\x75"
OP_CHECKSIG, OP_CHECKSIGVERIFY, OP_CHECKLOCKTIMEVERIFY = b"\xac", b"\xad", b"\xb1"

# --- Limits of our own ---
MIN_PAYER_CHANGE_SAT = 330  # the dust limit of P2WSH, the larger of the two scripts that a payer may name
MIN_EXPIRY_HEIGHT = 17  # below it MINIMALDATA wants another opcode than a push, and no channel expires there
MAX_BATCH = 200  # at 142 vB each below the standard 100,000 vB, and counts of one byte
MAX_FEE_RATE = 10_000.0  # sat/vB: more is a mistake, not a fee
_CACHED_CHANNELS = 1024  # whose keys and scripts are kept at hand: many more than one has neighbours that pay

# Weights: base bytes count four times, witness bytes once (BIP141).
_SIGNATURE_BYTES = 72  # at most 71 of DER with a low S, and the sighash byte
_OVERHEAD_WEIGHT = 4 * (4 + 1 + 1 + 4) + 2  # version, two counts, locktime; marker and flag
_INPUT_WEIGHT = 4 * (36 + 1 + 4)


class InvalidSignatureError(Exception):
    """A payment signature is not the payer's over exactly these terms, this outpoint and this sum."""


class UneconomicError(Exception):
    """The fee would eat the payment: what is left is below the dust limit."""


@dataclass(frozen=True, slots=True)
class ChannelTerms:
    """What both ends agree on before the payer funds. Raises ValueError if anything is out of bounds."""

    payer_pubkey: bytes
    payee_pubkey: bytes
    expiry_height: int  # the payer can take everything back in the block after this height
    capacity_sat: int
    payer_change_script: bytes  # P2WPKH or P2WSH

    def __hash__(self) -> int:
        """Of the key that differs from channel to channel: all fields would be hashed twice for each payment."""
        return hash(self.payer_pubkey)

    def __post_init__(self) -> None:
        _check_pubkey(self.payer_pubkey)
        _check_pubkey(self.payee_pubkey)
        if self.payer_pubkey == self.payee_pubkey:
            raise ValueError("payer and payee have the same key")
        if not MIN_EXPIRY_HEIGHT <= self.expiry_height < LOCKTIME_THRESHOLD:
            raise ValueError(f"expiry height {self.expiry_height} out of range")
        if not MIN_PAYER_CHANGE_SAT < self.capacity_sat <= MAX_MONEY_SAT:
            raise ValueError(f"capacity of {self.capacity_sat} sat out of range")
        if not _is_p2wpkh(self.payer_change_script) and not _is_p2wsh(self.payer_change_script):
            raise ValueError("the payer's change script is neither P2WPKH nor P2WSH")

    @property
    def max_paid_sat(self) -> int:
        """The dust reserve always stays the payer's, or its change output would make the claim non-standard."""
        return self.capacity_sat - MIN_PAYER_CHANGE_SAT


@dataclass(frozen=True, slots=True)
class Claim:
    """One channel in a claim: its last payment, and the payee's key that completes it."""

    terms: ChannelTerms
    outpoint: Outpoint
    paid_sat: int
    payment_signature: bytes
    payee_key: bytes = field(repr=False)


def public_key(secret: bytes) -> bytes:
    """33 bytes, compressed. Raises ValueError if `secret` is no key."""
    return _private_key(secret).public_key.format()


@lru_cache(maxsize=_CACHED_CHANNELS)
def channel_script(terms: ChannelTerms) -> bytes:
    """The witness script of the funding output."""
    return _script(terms.payee_pubkey, terms.expiry_height, terms.payer_pubkey)


def _script(payee_pubkey: bytes, expiry_height: int, payer_pubkey: bytes) -> bytes:
    return b"".join(
        (
            OP_IF,
            _push(payee_pubkey),
            OP_CHECKSIGVERIFY,
            OP_ELSE,
            _push(_script_number(expiry_height)),
            OP_CHECKLOCKTIMEVERIFY,
            OP_DROP,
            OP_ENDIF,
            _push(payer_pubkey),
            OP_CHECKSIG,
        )
    )


def funding_script_pubkey(terms: ChannelTerms) -> bytes:
    """P2WSH of `channel_script`: what the payer's wallet pays `capacity_sat` to."""
    script: bytes = p2wsh(Script(channel_script(terms))).data
    return script


def payment_digest(terms: ChannelTerms, outpoint: Outpoint, paid_sat: int) -> bytes:
    """BIP143 digest, SINGLE|ANYONECANPAY, of the funding input and the payer's change output. Raises ValueError.

    It holds at any place in a batch: ANYONECANPAY leaves out the other inputs, SINGLE the other outputs. Put together
    here, since every payment needs it twice and embit takes ten times as long; tests compare the two.
    """
    head, change_script = _payment_parts(terms, outpoint)
    change = _change_sat(terms, paid_sat).to_bytes(8, "little") + change_script
    return _double_sha256(head + _double_sha256(change) + _PAYMENT_TAIL)


_PAYMENT_TAIL = CLAIM_LOCKTIME.to_bytes(4, "little") + SIGHASH_SINGLE_ANYONECANPAY.to_bytes(4, "little")


@lru_cache(maxsize=_CACHED_CHANNELS)
def _payment_parts(terms: ChannelTerms, outpoint: Outpoint) -> tuple[bytes, bytes]:
    """What all payments on an output have in common: the preimage up to the hash of the change output, and the change
    script with its length. Raises ValueError."""
    _check_outpoint(outpoint)
    head = b"".join(
        (
            TRANSACTION_VERSION.to_bytes(4, "little"),
            bytes(64),  # hashPrevouts and hashSequence: left out
            outpoint.txid,
            outpoint.index.to_bytes(4, "little"),
            _push(channel_script(terms)),  # a compact size of one byte, as the script is short
            terms.capacity_sat.to_bytes(8, "little"),
            CLAIM_SEQUENCE.to_bytes(4, "little"),
        )
    )
    return head, _push(terms.payer_change_script)


def sign_payment(payer_key: bytes, terms: ChannelTerms, outpoint: Outpoint, paid_sat: int) -> bytes:
    """The payer's signature (DER, low S, sighash byte 0x83) that pays `paid_sat` in all. Raises ValueError."""
    key = _private_key(payer_key, terms.payer_pubkey)
    return _sign(key, payment_digest(terms, outpoint, paid_sat), SIGHASH_SINGLE_ANYONECANPAY)


def verify_payment(terms: ChannelTerms, outpoint: Outpoint, paid_sat: int, signature: bytes) -> None:
    """Raises InvalidSignatureError, and nothing else, unless the payee could claim exactly `paid_sat` with it.

    Stricter than ECDSA: encoding (BIP66), low S and sighash byte must be what Bitcoin relays, or the claim would not
    get into a block although the signature is the payer's.
    """
    if not 9 <= len(signature) <= _SIGNATURE_BYTES or signature[-1] != SIGHASH_SINGLE_ANYONECANPAY:
        raise InvalidSignatureError("not a SINGLE|ANYONECANPAY signature")
    der = signature[:-1]
    try:
        digest = payment_digest(terms, outpoint, paid_sat)
        parsed = der_to_cdata(der)
        canonical = cdata_to_der(parsed) == der
        # libsecp256k1 refuses a high S. coincurve's `verify` would parse the signature once more.
        key = _public_key(terms.payer_pubkey).public_key
        valid = lib.secp256k1_ecdsa_verify(GLOBAL_CONTEXT.ctx, parsed, digest, key) == 1
    except ValueError as error:
        raise InvalidSignatureError(str(error)) from error
    if not canonical or not valid:
        raise InvalidSignatureError("not the payer's signature over this payment")


def build_claim(claims: Sequence[Claim], *, destination: bytes, fee_rate: float) -> SignedTransaction:
    """One transaction that claims all of `claims` for the payee: input i beside payer's change i, then one output with
    the payee's sum less the fee (`fee_rate` in sat/vB). A second one with a higher rate replaces it (BIP125).

    Raises UneconomicError when the payee's output would be below its dust limit (leave channels out, or wait),
    InvalidSignatureError when a payment signature is bad, ValueError when an argument is.
    """
    _check_destination(destination)
    if not 1 <= len(claims) <= MAX_BATCH:
        raise ValueError(f"{len(claims)} channels in one claim")
    if len({claim.outpoint for claim in claims}) != len(claims):
        raise ValueError("a channel is claimed twice")
    for claim in claims:
        verify_payment(claim.terms, claim.outpoint, claim.paid_sat, claim.payment_signature)
    weight = _OVERHEAD_WEIGHT + _output_weight(destination)
    fee_sat = _fee(weight + sum(_claim_weight(claim.terms) for claim in claims), fee_rate)
    payee_sat = sum(claim.paid_sat for claim in claims) - fee_sat
    if payee_sat < dust_limit(destination):
        raise UneconomicError(f"{payee_sat} sat would be left of the claim")
    transaction = Transaction(
        TRANSACTION_VERSION,
        [_input(claim.outpoint, CLAIM_SEQUENCE) for claim in claims],
        [_payer_change(claim.terms, claim.paid_sat) for claim in claims]
        + [TransactionOutput(payee_sat, Script(destination))],
        CLAIM_LOCKTIME,
    )
    for index, claim in enumerate(claims):
        key = _private_key(claim.payee_key, claim.terms.payee_pubkey)
        payee_signature = _sign(key, _digest(transaction, index, claim.terms, SIGHASH.ALL), SIGHASH.ALL)
        # The 1 chooses the IF branch; MINIMALIF wants exactly 0x01.
        transaction.vin[index].witness = Witness(
            [claim.payment_signature, payee_signature, b"\x01", channel_script(claim.terms)]
        )
    return _signed(transaction, fee_sat)


def claim_marginal_fee(fee_rate: float) -> int:
    """What one more channel in a batch costs at most, sat: a claim below it is not worth its bytes."""
    largest = _claim_weight_of(script_bytes=80, change_script_bytes=34)
    return _fee(largest, fee_rate)


def claim_fee(fee_rate: float) -> int:
    """What the claim of one channel alone costs at most, sat."""
    weight = _OVERHEAD_WEIGHT + _claim_weight_of(script_bytes=80, change_script_bytes=34)
    return _fee(weight + _output_weight(bytes(34)), fee_rate)


def build_refund(
    terms: ChannelTerms, outpoint: Outpoint, *, payer_key: bytes, destination: bytes | None = None, fee_rate: float
) -> SignedTransaction:
    """The payer takes all of it back. Consensus lets it into a block only above `expiry_height` (BIP65).

    `destination` is the payer's change script unless given. Raises UneconomicError, ValueError.
    """
    target = terms.payer_change_script if destination is None else destination
    _check_destination(target)
    key = _private_key(payer_key, terms.payer_pubkey)
    script = channel_script(terms)
    weight = _OVERHEAD_WEIGHT + _INPUT_WEIGHT + _output_weight(target)
    weight += 1 + (1 + _SIGNATURE_BYTES) + 1 + (1 + len(script))
    fee_sat = _fee(weight, fee_rate)
    if terms.capacity_sat - fee_sat < dust_limit(target):
        raise UneconomicError(f"{terms.capacity_sat - fee_sat} sat would be left of the refund")
    transaction = Transaction(
        TRANSACTION_VERSION,
        [_input(outpoint, REFUND_SEQUENCE)],
        [TransactionOutput(terms.capacity_sat - fee_sat, Script(target))],
        terms.expiry_height,
    )
    signature = _sign(key, _digest(transaction, 0, terms, SIGHASH.ALL), SIGHASH.ALL)
    transaction.vin[0].witness = Witness([signature, b"", script])
    return _signed(transaction, fee_sat)


def find_funding_output(raw: bytes, terms: ChannelTerms) -> int:
    """The index of the output of `raw` that funds `terms`: its script and its exact capacity.

    Raises ValueError if `raw` is no transaction, or has no such output, or more than one.
    """
    script = funding_script_pubkey(terms)
    found = [
        index
        for index, output in enumerate(parse_transaction(raw).vout)
        if output.script_pubkey.data == script and output.value == terms.capacity_sat
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} outputs fund the channel")
    return found[0]


def find_expiry(
    terms: ChannelTerms, script_pubkey: bytes, capacity_sat: int, heights: Iterable[int]
) -> ChannelTerms | None:
    """The terms with the same keys, and an expiry among `heights`, that an output of this script and value funds."""
    if not _is_p2wsh(script_pubkey) or not MIN_PAYER_CHANGE_SAT < capacity_sat <= MAX_MONEY_SAT:
        return None
    for height in heights:
        if MIN_EXPIRY_HEIGHT <= height < LOCKTIME_THRESHOLD:
            script = _script(terms.payee_pubkey, height, terms.payer_pubkey)
            if sha256(script).digest() == script_pubkey[2:]:
                return replace(terms, expiry_height=height, capacity_sat=capacity_sat)
    return None


def parse_transaction(raw: bytes) -> Transaction:
    """Strict and bounded: raises ValueError unless `raw` is one transaction in its one serialization (BIP144)."""
    if not 10 <= len(raw) <= MAX_TRANSACTION_BYTES:
        raise ValueError(f"a transaction of {len(raw)} bytes")
    try:
        transaction = Transaction.parse(raw)
        same = transaction.serialize() == raw
    except (EmbitError, ValueError, OverflowError, RuntimeError, IndexError) as error:
        raise ValueError(f"no transaction: {error}") from error
    # embit reads short witness items and zero inputs without complaint.
    if not same or not transaction.vin or not transaction.vout:
        raise ValueError("no transaction")
    return transaction


def dust_limit(script_pubkey: bytes) -> int:
    """The least value of an output that Bitcoin Core relays (GetDustThreshold at its default of 3 sat/vB), sat."""
    is_witness_program = 4 <= len(script_pubkey) <= 42 and (script_pubkey[0] == 0 or 0x51 <= script_pubkey[0] <= 0x60)
    spending_bytes = 67 if is_witness_program else 148
    return 3 * (_output_weight(script_pubkey) // 4 + spending_bytes)


def _check_pubkey(pubkey: bytes) -> None:
    """Only a compressed point on the curve: anything else makes the output unspendable."""
    if len(pubkey) != 33:
        raise ValueError("a public key has 33 bytes")
    _public_key(pubkey)


@lru_cache(maxsize=_CACHED_CHANNELS)
def _public_key(pubkey: bytes) -> coincurve.PublicKey:
    """To find its point takes a third of the time of a verification."""
    return coincurve.PublicKey(pubkey)


def _check_destination(script_pubkey: bytes) -> None:
    if not 1 <= len(script_pubkey) <= MAX_SCRIPT_PUBKEY_BYTES:
        raise ValueError(f"an output script of {len(script_pubkey)} bytes")


def _is_p2wpkh(script_pubkey: bytes) -> bool:
    return len(script_pubkey) == 22 and script_pubkey[:2] == b"\x00\x14"


def _is_p2wsh(script_pubkey: bytes) -> bool:
    return len(script_pubkey) == 34 and script_pubkey[:2] == b"\x00\x20"


def _push(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def _script_number(number: int) -> bytes:
    """Minimal little endian with a sign bit; never negative here."""
    return number.to_bytes(number.bit_length() // 8 + 1, "little")


def _private_key(secret: bytes, expected_pubkey: bytes | None = None) -> coincurve.PrivateKey:
    key, pubkey = _key_pair(secret)
    if expected_pubkey not in (None, pubkey):
        raise ValueError("the key is not the one that the channel names")
    return key


@lru_cache(maxsize=_CACHED_CHANNELS)
def _key_pair(secret: bytes) -> tuple[coincurve.PrivateKey, bytes]:
    """To find its public key takes longer than a signature. No secret more than the node's seed is in memory."""
    if len(secret) != 32:  # coincurve would pad a shorter one
        raise ValueError("a secret key has 32 bytes")
    key = coincurve.PrivateKey(secret)
    return key, key.public_key.format()


def _double_sha256(data: bytes) -> bytes:
    return sha256(sha256(data).digest()).digest()


def _sign(key: coincurve.PrivateKey, digest: bytes, sighash: int) -> bytes:
    return key.sign(digest, hasher=None) + bytes((sighash,))


def _input(outpoint: Outpoint, sequence: int) -> TransactionInput:
    _check_outpoint(outpoint)
    return TransactionInput(outpoint.txid[::-1], outpoint.index, sequence=sequence)  # embit wants the reversed one


def _check_outpoint(outpoint: Outpoint) -> None:
    if len(outpoint.txid) != 32 or not 0 <= outpoint.index < 0xFFFFFFFF:
        raise ValueError("no outpoint")


def _payer_change(terms: ChannelTerms, paid_sat: int) -> TransactionOutput:
    return TransactionOutput(_change_sat(terms, paid_sat), Script(terms.payer_change_script))


def _change_sat(terms: ChannelTerms, paid_sat: int) -> int:
    if not 0 <= paid_sat <= terms.max_paid_sat:
        raise ValueError(f"{paid_sat} sat paid out of {terms.capacity_sat}")
    return terms.capacity_sat - paid_sat


def _digest(transaction: Transaction, index: int, terms: ChannelTerms, sighash: int) -> bytes:
    script_code = Script(channel_script(terms))
    digest: bytes = transaction.sighash_segwit(index, script_code, terms.capacity_sat, sighash)
    return digest


def _signed(transaction: Transaction, fee_sat: int) -> SignedTransaction:
    return SignedTransaction(raw=transaction.serialize(), txid=transaction.hash(), fee_sat=fee_sat)


def _fee(weight: int, fee_rate: float) -> int:
    """Rounded up, and for the largest signatures: never below the rate that was asked for."""
    if not 0.0 < fee_rate <= MAX_FEE_RATE:  # NaN fails too
        raise ValueError(f"a fee rate of {fee_rate} sat/vB")
    return math.ceil(math.ceil(weight / 4) * fee_rate)


def _output_weight(script_pubkey: bytes) -> int:
    return 4 * (8 + (1 if len(script_pubkey) < 253 else 3) + len(script_pubkey))


def _claim_weight(terms: ChannelTerms) -> int:
    return _claim_weight_of(len(channel_script(terms)), len(terms.payer_change_script))


def _claim_weight_of(script_bytes: int, change_script_bytes: int) -> int:
    """An input with its witness (count, two signatures, branch, script) and the payer's change output beside it."""
    witness = 1 + 2 * (1 + _SIGNATURE_BYTES) + 2 + 1 + script_bytes
    return _INPUT_WEIGHT + witness + 4 * (8 + 1 + change_script_bytes)
