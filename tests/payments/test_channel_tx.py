from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import coincurve
import pytest
from embit.script import Script
from embit.transaction import Transaction
from hypothesis import given
from hypothesis import strategies as st

from payments.channel_tx import (
    MIN_PAYER_CHANGE_SAT,
    InvalidSignatureError,
    UneconomicError,
    build_claim,
    build_refund,
    channel_script,
    claim_marginal_fee,
    dust_limit,
    find_funding_output,
    funding_script_pubkey,
    parse_transaction,
    payment_digest,
    public_key,
    sign_payment,
    verify_payment,
)
from payments.ports import Outpoint
from tests.payments.chain_support import (
    CAPACITY,
    PAYEE,
    PAYEE_SCRIPT,
    PAYER,
    PAYER_SCRIPT,
    OpenChannel,
    key,
    make_terms,
)

BIP143 = json.loads((Path(__file__).parent.parent / "vectors" / "bip143.json").read_text())
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
OUTPOINT = Outpoint(key("funding"), 1)
CHANNEL = OpenChannel(make_terms(), OUTPOINT)


def virtual_bytes(raw: bytes) -> int:
    transaction = parse_transaction(raw)
    for item in transaction.vin:
        item.witness.items.clear()
    return math.ceil((3 * len(transaction.serialize()) + len(raw)) / 4)


@pytest.mark.parametrize("case", BIP143["cases"], ids=lambda case: f"{case['example']}-{case['sighash_type']:#x}")
def test_embit_digests_as_bip143_says(case: dict[str, Any]) -> None:
    transaction = Transaction.parse(bytes.fromhex(case["unsigned_transaction"]))
    script_code = Script(bytes.fromhex(case["script_code"]))
    digest = transaction.sighash_segwit(case["input_index"], script_code, case["amount_sat"], case["sighash_type"])
    assert digest.hex() == case["sighash"]
    signature = coincurve.PrivateKey(bytes.fromhex(case["private_key"])).sign(digest, hasher=None)
    assert (signature + bytes((case["sighash_type"],))).hex() == case["signature"]


def test_vectors_hold_two_single_anyonecanpay_at_different_inputs() -> None:
    assert {case["input_index"] for case in BIP143["cases"] if case["sighash_type"] == 0x83} == {0, 1}


def test_script_is_that_of_the_design() -> None:
    terms = make_terms(expiry_height=500)
    payee, payer = public_key(PAYEE).hex(), public_key(PAYER).hex()
    assert channel_script(terms).hex() == f"6321{payee}ad6702f401b1756821{payer}ac"


@pytest.mark.parametrize(("height", "pushed"), [(17, "0111"), (127, "017f"), (128, "028000"), (32768, "03008000")])
def test_expiry_is_pushed_as_a_minimal_script_number(height: int, pushed: str) -> None:
    assert f"67{pushed}b1" in channel_script(make_terms(expiry_height=height)).hex()


@given(st.integers(0, CAPACITY - MIN_PAYER_CHANGE_SAT))
def test_every_sum_within_bounds_signs_and_verifies(paid_sat: int) -> None:
    signature = CHANNEL.pay(paid_sat)
    assert signature[-1] == 0x83
    verify_payment(CHANNEL.terms, OUTPOINT, paid_sat, signature)


def test_digest_is_that_of_any_place_in_a_batch() -> None:
    other = OpenChannel(make_terms(payer=key("other")), Outpoint(key("f2"), 0), key("other"))
    batch = [other.claim_of(5_000), CHANNEL.claim_of(7_000)]
    claim = build_claim(batch, destination=PAYEE_SCRIPT, fee_rate=1.0)
    transaction = parse_transaction(claim.raw)
    script_code = Script(channel_script(CHANNEL.terms))
    assert transaction.sighash_segwit(1, script_code, CAPACITY, 0x83) == payment_digest(CHANNEL.terms, OUTPOINT, 7_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"paid_sat": 1_001},
        {"paid_sat": 999},
        {"paid_sat": -1},
        {"paid_sat": CAPACITY - MIN_PAYER_CHANGE_SAT + 1},
        {"outpoint": Outpoint(OUTPOINT.txid, 0)},
        {"outpoint": Outpoint(key("another"), 1)},
        {"outpoint": Outpoint(b"short", 1)},
        {"terms": make_terms(payer_change_script=PAYEE_SCRIPT)},
        {"terms": make_terms(expiry_height=121)},
        {"terms": make_terms(capacity_sat=CAPACITY + 1)},
        {"terms": make_terms(payer=key("other"))},
    ],
)
def test_signature_holds_for_nothing_else(changes: dict[str, Any]) -> None:
    payment = {"terms": CHANNEL.terms, "outpoint": OUTPOINT, "paid_sat": 1_000, **changes}
    with pytest.raises(InvalidSignatureError):
        verify_payment(payment["terms"], payment["outpoint"], payment["paid_sat"], CHANNEL.pay(1_000))


def test_high_s_is_refused_although_it_is_the_payers() -> None:
    signature = CHANNEL.pay(1_000)
    r_bytes = signature[3]
    r, s = signature[4 : 4 + r_bytes], int.from_bytes(signature[6 + r_bytes : -1], "big")
    high = (CURVE_ORDER - s).to_bytes(33, "big")
    der = b"\x02" + bytes((len(r),)) + r + b"\x02\x21" + high
    with pytest.raises(InvalidSignatureError):
        verify_payment(CHANNEL.terms, OUTPOINT, 1_000, b"\x30" + bytes((len(der),)) + der + b"\x83")


@pytest.mark.parametrize("sighash", [0x01, 0x03, 0x81, 0x82])
def test_other_sighash_is_refused(sighash: int) -> None:
    with pytest.raises(InvalidSignatureError):
        verify_payment(CHANNEL.terms, OUTPOINT, 1_000, CHANNEL.pay(1_000)[:-1] + bytes((sighash,)))


@given(st.binary(max_size=100))
def test_junk_raises_only_the_declared_error(junk: bytes) -> None:
    with pytest.raises(InvalidSignatureError):
        verify_payment(CHANNEL.terms, OUTPOINT, 1_000, junk + b"\x83")


@given(st.integers(0, 70), st.integers(1, 255))
def test_one_altered_byte_is_refused(position: int, difference: int) -> None:
    signature = bytearray(CHANNEL.pay(1_000))
    signature[position % len(signature)] ^= difference
    with pytest.raises(InvalidSignatureError):
        verify_payment(CHANNEL.terms, OUTPOINT, 1_000, bytes(signature))


@pytest.mark.parametrize(
    "changes",
    [
        {"payer_pubkey": bytes(33)},
        {"payee_pubkey": public_key(PAYEE)[:-1]},
        {"payee_pubkey": coincurve.PrivateKey(PAYEE).public_key.format(compressed=False)},
        {"payee_pubkey": public_key(PAYER)},
        {"expiry_height": 16},
        {"expiry_height": 500_000_000},
        {"capacity_sat": MIN_PAYER_CHANGE_SAT},
        {"capacity_sat": 21_000_000 * 10**8 + 1},
        {"payer_change_script": b"\x76\xa9\x14" + bytes(20) + b"\x88\xac"},
        {"payer_change_script": b""},
    ],
)
def test_terms_out_of_bounds_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(make_terms(), **changes)


def test_keys_must_be_those_of_the_terms() -> None:
    with pytest.raises(ValueError, match="not the one"):
        sign_payment(PAYEE, CHANNEL.terms, OUTPOINT, 1)
    with pytest.raises(ValueError, match="32 bytes"):
        sign_payment(PAYER[:31], CHANNEL.terms, OUTPOINT, 1)
    wrong = dataclasses.replace(CHANNEL.claim_of(10_000), payee_key=PAYER)
    with pytest.raises(ValueError, match="not the one"):
        build_claim([wrong], destination=PAYEE_SCRIPT, fee_rate=1.0)


def test_keys_do_not_appear_in_a_claims_repr() -> None:
    assert "payee_key" not in repr(CHANNEL.claim_of(10_000))


@given(
    st.integers(1, 12),
    st.integers(2_000, CAPACITY - MIN_PAYER_CHANGE_SAT),
    st.floats(0.1, 5.0),
    st.sampled_from([PAYER_SCRIPT, b"\x00\x20" + bytes(32)]),
)
def test_claim_conserves_money_and_pays_its_rate(count: int, paid_sat: int, fee_rate: float, change: bytes) -> None:
    terms = make_terms(payer_change_script=change)
    channels = [OpenChannel(terms, Outpoint(key(f"f{n}"), n)) for n in range(count)]
    claim = build_claim([each.claim_of(paid_sat) for each in channels], destination=PAYEE_SCRIPT, fee_rate=fee_rate)
    transaction = parse_transaction(claim.raw)
    assert sum(output.value for output in transaction.vout) + claim.fee_sat == count * CAPACITY
    assert claim.txid == transaction.hash()
    assert transaction.vout[-1].value == count * paid_sat - claim.fee_sat
    # Never below the rate; above it by no more than shorter signatures account for.
    size = virtual_bytes(claim.raw)
    assert size * fee_rate <= claim.fee_sat <= (size + 2 * count + 1) * fee_rate + 1


def test_batch_is_cheaper_by_what_a_claim_has_once() -> None:
    channels = [OpenChannel(make_terms(), Outpoint(key(f"f{n}"), 0)) for n in range(20)]
    alone = build_claim([channels[0].claim_of(50_000)], destination=PAYEE_SCRIPT, fee_rate=1.0)
    batch = build_claim([each.claim_of(50_000) for each in channels], destination=PAYEE_SCRIPT, fee_rate=1.0)
    assert batch.fee_sat <= alone.fee_sat + 19 * claim_marginal_fee(1.0)
    assert batch.fee_sat < 20 * alone.fee_sat


def test_claim_that_the_fee_would_eat() -> None:
    with pytest.raises(UneconomicError):
        build_claim([CHANNEL.claim_of(450)], destination=PAYEE_SCRIPT, fee_rate=1.0)
    least = build_claim([CHANNEL.claim_of(10_000)], destination=PAYEE_SCRIPT, fee_rate=1.0).fee_sat + 294
    built = build_claim([CHANNEL.claim_of(least)], destination=PAYEE_SCRIPT, fee_rate=1.0)
    assert parse_transaction(built.raw).vout[-1].value == dust_limit(PAYEE_SCRIPT) == 294
    with pytest.raises(UneconomicError):
        build_claim([CHANNEL.claim_of(least - 1)], destination=PAYEE_SCRIPT, fee_rate=1.0)


def test_claim_refuses_bad_arguments() -> None:
    claim = CHANNEL.claim_of(10_000)
    stale = dataclasses.replace(claim, paid_sat=10_001)
    with pytest.raises(InvalidSignatureError):
        build_claim(
            [claim, dataclasses.replace(stale, outpoint=Outpoint(key("f2"), 0))], destination=b"\x51", fee_rate=1.0
        )
    for claims, destination, fee_rate in [
        ([], PAYEE_SCRIPT, 1.0),
        ([claim, claim], PAYEE_SCRIPT, 1.0),
        ([claim], b"", 1.0),
        ([claim], PAYEE_SCRIPT, 0.0),
        ([claim], PAYEE_SCRIPT, math.nan),
        ([claim], PAYEE_SCRIPT, math.inf),
    ]:
        with pytest.raises(ValueError):
            build_claim(claims, destination=destination, fee_rate=fee_rate)


def test_refund_takes_all_back_after_expiry() -> None:
    refund = build_refund(CHANNEL.terms, OUTPOINT, payer_key=PAYER, fee_rate=1.5)
    transaction = parse_transaction(refund.raw)
    assert transaction.locktime == CHANNEL.terms.expiry_height
    assert transaction.vin[0].sequence < 0xFFFFFFFF
    assert [(each.value, each.script_pubkey.data) for each in transaction.vout] == [
        (CAPACITY - refund.fee_sat, PAYER_SCRIPT)
    ]
    assert virtual_bytes(refund.raw) * 1.5 <= refund.fee_sat
    elsewhere = build_refund(CHANNEL.terms, OUTPOINT, payer_key=PAYER, destination=PAYEE_SCRIPT, fee_rate=1.5)
    assert parse_transaction(elsewhere.raw).vout[0].script_pubkey.data == PAYEE_SCRIPT


def test_refund_that_the_fee_would_eat() -> None:
    with pytest.raises(UneconomicError):
        build_refund(CHANNEL.terms, OUTPOINT, payer_key=PAYER, fee_rate=1_000.0)


def funding_with(outputs: list[tuple[int, bytes]]) -> bytes:
    transaction = Transaction.parse(build_refund(CHANNEL.terms, OUTPOINT, payer_key=PAYER, fee_rate=1.0).raw)
    template = transaction.vout[0]
    transaction.vout = [type(template)(value, Script(script)) for value, script in outputs]
    raw: bytes = transaction.serialize()
    return raw


def test_funding_output_is_found_by_script_and_exact_capacity() -> None:
    script = funding_script_pubkey(CHANNEL.terms)
    raw = funding_with([(CAPACITY, PAYER_SCRIPT), (CAPACITY - 1, script), (CAPACITY, script)])
    assert find_funding_output(raw, CHANNEL.terms) == 2
    for outputs in ([(CAPACITY - 1, script)], [(CAPACITY, PAYER_SCRIPT)], [(CAPACITY, script)] * 2):
        with pytest.raises(ValueError):
            find_funding_output(funding_with(outputs), CHANNEL.terms)


@given(st.binary(max_size=300))
def test_junk_is_no_transaction(junk: bytes) -> None:
    with pytest.raises(ValueError):
        parse_transaction(junk)


@given(st.integers(0, 400), st.binary(max_size=4))
def test_altered_transaction_parses_to_itself_or_not_at_all(position: int, replacement: bytes) -> None:
    raw = CLAIM_RAW[:position] + replacement + CLAIM_RAW[position + len(replacement) :]
    try:
        parsed = parse_transaction(raw)
    except ValueError:
        return
    assert parsed.serialize() == raw


@pytest.mark.parametrize("cut", [1, 5, 60, 200])
def test_truncated_transaction_is_refused(cut: int) -> None:
    with pytest.raises(ValueError):
        parse_transaction(CLAIM_RAW[:-cut])


@pytest.mark.parametrize(
    ("script", "limit"),
    [
        (b"\x00\x14" + bytes(20), 294),
        (b"\x00\x20" + bytes(32), 330),
        (b"\x51\x20" + bytes(32), 330),
        (b"\x76\xa9\x14" + bytes(20) + b"\x88\xac", 546),
        (b"\xa9\x14" + bytes(20) + b"\x87", 540),
    ],
)
def test_dust_limits_are_bitcoin_cores(script: bytes, limit: int) -> None:
    assert dust_limit(script) == limit


CLAIM_RAW = build_claim([CHANNEL.claim_of(10_000)], destination=PAYEE_SCRIPT, fee_rate=1.0).raw
