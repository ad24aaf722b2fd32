from __future__ import annotations

import pytest

from payments.ledger import Ledger
from payments.life import InvariantError
from payments.messages import Accounts
from payments.units import MAX_UNITS, UNITS_PER_MSAT, msat_to_sat, msat_to_units, units_to_msat
from payments.window import Window

W = 10_000


def ledger(**fields: int) -> Ledger:
    return Ledger(peer=b"p" * 32, window=Window(W, 0), **fields)


def accounts(billed: int = 0, accepted: int = 0, seen: int = 0) -> Accounts:
    return Accounts.of(
        billed_units=msat_to_units(billed), accepted_units=msat_to_units(accepted), seen_units=msat_to_units(seen)
    )


@pytest.mark.parametrize(
    ("units", "msat"),
    [(0, 0), (UNITS_PER_MSAT - 1, 0), (UNITS_PER_MSAT, 1), (-1, 0), (1 - UNITS_PER_MSAT, 0), (-UNITS_PER_MSAT, -1)],
)
def test_rounding_is_towards_nothing_owed(units: int, msat: int) -> None:
    assert units_to_msat(units) == msat


def test_one_sat_per_megabyte_is_a_million_msat_per_gigabyte() -> None:
    assert msat_to_sat(units_to_msat(1_000_000 * 1_000_000)) == 1


def test_a_bill_within_the_own_meter_is_accepted_and_payable() -> None:
    subject = ledger(owed_limit_units=msat_to_units(500))
    subject.hear(accounts(billed=400))
    assert subject.payable_msat == 400
    assert not subject.is_disputed


def test_a_bill_is_accepted_up_to_meter_and_window_and_no_further() -> None:
    subject = ledger(owed_limit_units=msat_to_units(500))
    subject.hear(accounts(billed=500 + W + 1))
    assert subject.payable_msat == 500 + W
    assert subject.is_disputed
    subject.hear(accounts(billed=10 * W))
    assert subject.payable_msat == 500 + W  # once


def test_a_bill_never_goes_back() -> None:
    subject = ledger(owed_limit_units=msat_to_units(500))
    subject.hear(accounts(billed=400))
    subject.hear(accounts(billed=300))
    assert subject.their_billed_units == subject.accepted_units == msat_to_units(400)


def test_what_is_accepted_is_not_taken_back_when_the_window_shrinks() -> None:
    subject = ledger()
    subject.hear(accounts(billed=W))
    subject.window = Window(1, 0)
    subject.accept()
    assert subject.accepted_units == msat_to_units(W)


def test_a_bill_that_they_admit_and_we_have_forgotten_is_ours() -> None:
    subject = ledger(billed_units=msat_to_units(10))
    subject.hear(accounts(accepted=11))
    assert subject.acknowledged_units == subject.billed_units == msat_to_units(11)
    subject.check()


def test_what_they_have_not_seen_is_held_back() -> None:
    subject = ledger(billed_units=msat_to_units(300), owed_limit_units=msat_to_units(1_000))
    subject.hear(accounts(billed=1_000, accepted=0, seen=0))
    assert subject.payable_msat == 700
    subject.hear(accounts(billed=1_000, accepted=200, seen=300))  # they have seen it, and refuse 100 of it
    assert subject.payable_msat == 800


def test_unpaid_is_the_bill_less_what_we_accept_and_what_was_paid() -> None:
    subject = ledger(billed_units=msat_to_units(1_000), owed_limit_units=msat_to_units(300))
    subject.hear(accounts(billed=300))
    subject.received_msat, subject.sent_msat = 250, 50
    assert subject.unpaid_msat == 1_000 - 300 - 250 + 50
    assert subject.payable_msat == 300 - 1_000 + 250 - 50


def test_expected_debt_needs_no_bill() -> None:
    assert ledger(owed_limit_units=msat_to_units(7), billed_units=msat_to_units(2)).expected_debt_msat == 5


def test_sums_saturate() -> None:
    subject = ledger(billed_units=MAX_UNITS - 1)
    subject.add_metered(earned_units=5, owed_limit_units=2**200)
    assert subject.billed_units == subject.owed_limit_units == MAX_UNITS
    subject.hear(Accounts.of(billed_units=MAX_UNITS, accepted_units=MAX_UNITS, seen_units=MAX_UNITS))
    subject.check()


def test_record_and_back() -> None:
    subject = ledger(billed_units=5, acknowledged_units=4, their_billed_units=3, accepted_units=2, owed_limit_units=1)
    subject.lost_meter_units = 6
    assert Ledger.from_record(subject.record()).record() == subject.record()


@pytest.mark.parametrize(
    "fields",
    [
        {"billed_units": 1, "acknowledged_units": 2},
        {"their_billed_units": 1, "accepted_units": 2},
        {"billed_units": MAX_UNITS + 1},
        {"sent_msat": -1},
    ],
)
def test_contradictions_are_faults_of_ours(fields: dict[str, int]) -> None:
    with pytest.raises(InvariantError):
        ledger(**fields).check()
