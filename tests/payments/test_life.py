"""The table of a channel's life, its picture in the specification, and what no step may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from msgspec import structs

from payments import life
from payments.channel import Channel
from payments.channel_tx import ChannelTerms, public_key
from payments.life import (
    TABLE,
    Cause,
    InvariantError,
    check_channel_step,
    check_ledger_step,
    check_payment_step,
    next_state,
)
from payments.ports import Outpoint
from payments.records import ChannelRecord, ChannelState, Direction, LedgerRecord, PaidRecord, Splice

TERMS = ChannelTerms(public_key(b"\x01" * 32), public_key(b"\x02" * 32), 2_000, 10_000, b"\x00\x14" + bytes(20))
SPECIFICATION = Path(__file__).parents[2] / "docs" / "spec" / "channel.md"


def record(direction: Direction = Direction.OUT, state: ChannelState = ChannelState.OPEN) -> ChannelRecord:
    channel = Channel(b"c" * 16, b"p" * 32, direction, state, TERMS, 100, funding=Outpoint(b"f" * 32, 3))
    channel.cumulative_msat, channel.acknowledged_msat, channel.signature = 9_000, 7_000, b"s"
    channel.is_confirmed = True
    channel.splice = Splice(1, TERMS, Outpoint(b"g" * 32, 0), 0, b"raw", b"s", is_signed=True)
    return channel.record()


@pytest.mark.parametrize(("direction", "old", "cause"), list(product(Direction, ChannelState, Cause)))
def test_a_channel_moves_by_the_table_and_not_otherwise(direction: Direction, old: ChannelState, cause: Cause) -> None:
    channel = Channel.from_record(replace(record(direction, old), acknowledged_msat=0))
    if (old, cause) in TABLE[direction]:
        channel.move(cause)
        assert channel.state is next_state(direction, old, cause) is TABLE[direction][old, cause]
    else:
        with pytest.raises(InvariantError):
            channel.move(cause)
        assert channel.state is old


def test_closed_is_final_every_state_can_get_there_and_every_cause_occurs() -> None:
    for table in TABLE.values():
        states = {old for old, _ in table} | set(table.values())
        assert ChannelState.CLOSED not in {old for old, _ in table}
        reached = {ChannelState.CLOSED}
        while new := {old for (old, _), to in table.items() if to in reached} - reached:
            reached |= new
        assert reached == states
    assert {cause for table in TABLE.values() for _, cause in table} == set(Cause)


@pytest.mark.parametrize("text", [life.markdown(), life.diagram()])
def test_the_specification_shows_the_table(text: str) -> None:
    """`python -c "from payments import life; print(life.markdown()); print(life.diagram())"` makes it anew."""
    assert text in SPECIFICATION.read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"peer": b"q" * 32},
        {"terms": replace(TERMS, capacity_sat=9_999)},
        {"direction": Direction.IN},
        {"state": ChannelState.OPENING},
        {"funding": Outpoint(b"f" * 32, 4)},
        {"funding": None},
        {"payout_script": b"x"},
        {"number": -1},
        {"number": 1, "base_msat": -1_000},
        {"number": 1, "terms": replace(TERMS, payer_change_script=b"\x00\x14" + b"x" * 20)},
        {"base_msat": 1_000},
        {"splice": None},
        {"is_confirmed": False},
        {"cumulative_msat": 8_999},
        {"acknowledged_msat": 6_999},
        {"signature": None},
        {"state": ChannelState.CLOSED, "cumulative_msat": 6_999},
    ],
)
def test_what_no_step_of_a_channel_does(changes: dict[str, object]) -> None:
    before = record()
    check_channel_step(before, before)
    with pytest.raises(InvariantError):
        check_channel_step(before, replace(before, **changes))  # type: ignore[arg-type]


def test_a_payment_that_never_arrived_is_taken_back_only_when_the_chain_shows_it() -> None:
    before = record(state=ChannelState.CLAIMING)
    check_channel_step(before, replace(before, state=ChannelState.CLOSED, cumulative_msat=7_000))
    with pytest.raises(InvariantError):
        check_channel_step(before, replace(before, state=ChannelState.CLOSING, cumulative_msat=7_000))
    closed = replace(before, state=ChannelState.CLOSED)
    with pytest.raises(InvariantError):
        check_channel_step(closed, replace(closed, cumulative_msat=9_001))


def _is_refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except InvariantError:
        return True
    return False


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("state", [ChannelState.OPEN, ChannelState.CLAIMING, ChannelState.CLOSED])
def test_a_payment_is_checked_as_the_whole_row_would_be(direction: Direction, state: ChannelState) -> None:
    before = record(direction, state)
    first = PaidRecord(before.channel_id, before.cumulative_msat, before.signature, before.acknowledged_msat)
    verdicts = []
    for cumulative_msat, acknowledged_msat, signature in product(
        (8_999, 9_000, 9_001), (6_999, 7_000), (b"s", b"t", None)
    ):
        paid = PaidRecord(before.channel_id, cumulative_msat, signature, acknowledged_msat)
        after = replace(before, **structs.asdict(paid))
        verdicts.append(_is_refused(lambda paid=paid: check_payment_step(state, first, paid)))  # type: ignore[misc]
        assert verdicts[-1] == _is_refused(lambda after=after: check_channel_step(before, after))  # type: ignore[misc]
    assert verdicts.count(False) == (1 if state is ChannelState.CLOSED else 4)


def test_what_is_written_of_a_payment_is_the_payment() -> None:
    channel = Channel.from_record(replace(record(), splice=None))
    channel.cumulative_msat, channel.signature = 9_500, b"t"
    assert channel.write() == PaidRecord(channel.channel_id, 9_500, b"t", 7_000)
    channel.refusals += 1  # in no row
    channel.acknowledged_msat = 9_500
    assert channel.write() == PaidRecord(channel.channel_id, 9_500, b"t", 9_500)
    channel.spend_txid = b"u" * 32
    assert channel.write() == channel.record()
    channel.cumulative_msat = 9_499
    channel.acknowledged_msat = 9_499
    with pytest.raises(InvariantError):
        channel.write()
    fresh = Channel.from_elsewhere(record())
    assert fresh.write() == record()


def test_a_splice_takes_the_place_of_the_output_and_an_unsigned_one_may_be_withdrawn() -> None:
    before = record(state=ChannelState.SPLICING)
    assert before.splice is not None
    after = replace(
        before, funding=before.splice.funding, terms=replace(TERMS, capacity_sat=1_000), number=1, splice=None
    )
    check_channel_step(before, after)
    unsigned = replace(before, splice=replace(before.splice, is_signed=False))
    check_channel_step(unsigned, replace(unsigned, state=ChannelState.OPEN, splice=None))
    with pytest.raises(InvariantError):
        check_channel_step(before, replace(before, state=ChannelState.OPEN, splice=None))


def test_no_debt_goes_back() -> None:
    before = LedgerRecord(b"p" * 32, 5, 4, 7, 6, 9, 3, 10_000, 5)
    check_ledger_step(before, structs.replace(before, window_msat=1, window_progress_msat=0, billed_units=6))
    for name in ("billed", "acknowledged", "their_billed", "accepted", "owed_limit", "lost_meter"):
        field = f"{name}_units"
        with pytest.raises(InvariantError):
            check_ledger_step(before, structs.replace(before, **{field: getattr(before, field) - 1}))
