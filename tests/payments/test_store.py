from __future__ import annotations

import random
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from payments.adapters.store import LEFTOVER_LIFETIME, Store, StoreError
from payments.channel import Channel
from payments.channel_tx import MAX_MONEY_SAT, ChannelTerms, public_key
from payments.counts import CountReport, Traffic
from payments.ports import Outpoint
from payments.records import (
    ChannelRecord,
    ChannelState,
    CountsRecord,
    CreditRecord,
    Direction,
    EngineState,
    ForgottenChannel,
    HeightRecord,
    LedgerRecord,
    PaidRecord,
    Reading,
    Splice,
)
from payments.units import MAX_MSAT, MAX_UNITS

TERMS = ChannelTerms(
    payer_pubkey=public_key(b"\x01" * 32),
    payee_pubkey=public_key(b"\x02" * 32),
    expiry_height=2_000,
    capacity_sat=100_000,
    payer_change_script=b"\x00\x14" + bytes(20),
)
LEDGER = LedgerRecord(b"p" * 32, MAX_UNITS, 2**64, 2**63, 1, 0, 7, 10_000, 5)
SUSPENDED = structs.replace(LEDGER, peer=b"s" * 32, is_suspended=True)
COUNTS = CountsRecord(b"p" * 32, CountReport(1, 2, 3, 4, Traffic(5), 6, 7).pack(), b"signature", 2, 7, 1)
CREDIT = CreditRecord(b"p" * 32, MAX_MSAT, 3, 4, 2, b"r" * 64, 9, 1, b"s" * 64)
BARE = Channel(b"c" * 16, b"p" * 32, Direction.IN, ChannelState.OPENING, TERMS, 100).record()
FULL = ChannelRecord(
    channel_id=b"d" * 16,
    peer=b"p" * 32,
    direction=Direction.OUT,
    state=ChannelState.CLAIMING,
    terms=replace(TERMS, capacity_sat=MAX_MONEY_SAT),
    opened_height=101,
    funding=Outpoint(b"t" * 32, 7),
    funding_raw=b"raw",
    is_confirmed=True,
    cumulative_msat=MAX_MSAT - 330_000,
    signature=b"s" * 72,
    acknowledged_msat=3,
    spend_txid=b"u" * 32,
    spend_raw=b"spend",
)
SPLICED = replace(
    FULL,
    channel_id=b"e" * 16,
    state=ChannelState.SPLICING,
    payout_script=b"\x00\x14" + bytes(20),
    number=1,
    base_msat=1_000,
    splice=Splice(2, replace(TERMS, capacity_sat=MAX_MONEY_SAT), Outpoint(b"v" * 32, 1), 2_000, b"r", b"s", True),
)


def test_what_was_applied_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    store = Store.open(path)
    assert store.load() == EngineState()
    store.apply(
        [LEDGER, SUSPENDED, replace(COUNTS, standing=0), BARE, FULL, SPLICED, HeightRecord(102), COUNTS, CREDIT]
    )
    store.close()
    store = Store.open(path)
    assert store.load() == EngineState((LEDGER, SUSPENDED), (BARE, FULL, SPLICED), 102, (COUNTS,), (CREDIT,))
    store.close()


def test_a_later_row_replaces_an_earlier_one_and_a_forgotten_one_is_gone(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "payments.db")
    newer = replace(FULL, cumulative_msat=5)
    store.apply([FULL, newer, BARE])
    store.apply([ForgottenChannel(BARE.channel_id), structs.replace(LEDGER, lost_meter_units=9)])
    assert store.load() == EngineState((structs.replace(LEDGER, lost_meter_units=9),), (newer,), 0)
    store.close()


def test_a_payment_changes_its_row_and_one_without_a_row_is_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "payments.db")
    paid = PaidRecord(FULL.channel_id, FULL.cumulative_msat - 5, b"t" * 71, 4)
    store.apply([FULL, BARE])
    store.apply([paid])
    after = replace(FULL, cumulative_msat=paid.cumulative_msat, signature=b"t" * 71, acknowledged_msat=4)
    assert store.load().channels == (BARE, after)
    with pytest.raises(StoreError, match="no row"):
        store.apply([HeightRecord(9), structs.replace(paid, channel_id=b"?" * 16)])
    assert store.load() == EngineState(channels=(BARE, after))
    store.close()


def test_a_round_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "payments.db")
    with pytest.raises(StoreError):
        store.apply([LEDGER, HeightRecord(None)])  # type: ignore[arg-type]
    assert store.load() == EngineState()
    store.apply([HeightRecord(1)])  # and it goes on
    assert store.load().height == 1
    store.close()


def test_durable_settings(tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    store = Store.open(path)
    pragma = {
        name: store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    }
    assert pragma == {"journal_mode": "wal", "synchronous": 2}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.close()


def test_survives_a_process_that_never_closed(tmp_path: Path) -> None:
    """The write-ahead log alone has the last commit: copy the files as a crash leaves them."""
    store = Store.open(tmp_path / "payments.db")
    store.apply([LEDGER])
    for name in ("payments.db", "payments.db-wal"):
        (tmp_path / f"copy-{name}").write_bytes((tmp_path / name).read_bytes())
    store.close()
    copy = Store.open(tmp_path / "copy-payments.db")
    assert copy.load().ledgers == (LEDGER,)
    copy.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "payments.db")
    with pytest.raises(StoreError, match="locked"):
        Store.open(tmp_path / "payments.db")
    store.close()


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    Store.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="version 99"):
        Store.open(path)


def test_a_database_of_the_first_version_keeps_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    store = Store.open(path)
    store.apply([LEDGER], {b"flow": Reading(10, 5)})
    store.close()
    connection = sqlite3.connect(path)
    connection.executescript(
        "ALTER TABLE reading DROP COLUMN price_msat_per_gb; ALTER TABLE ledger DROP COLUMN is_suspended;"
        " DROP TABLE counts; DROP TABLE credit; DROP TABLE kept; ALTER TABLE channel DROP COLUMN payout_script;"
        " ALTER TABLE channel DROP COLUMN number;"
        " ALTER TABLE channel DROP COLUMN base_msat; ALTER TABLE channel DROP COLUMN splice; PRAGMA user_version = 1;"
        " ALTER TABLE reading DROP COLUMN counter; DROP TABLE leftover;"
    )
    connection.close()
    for _ in range(2):  # brought up to date, then found to be so
        store = Store.open(path)
        assert store.load().ledgers == (LEDGER,)
        store.close()
    copy = tmp_path / "payments.db.version-1"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    connection = sqlite3.connect(copy)
    assert connection.execute("SELECT * FROM reading").fetchall() == [(b"flow", 10)]
    connection.close()
    store = Store.open(path)
    assert store.readings() == {b"flow": Reading(10, 0)}
    store.close()


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    store = Store.open(path)
    store.apply([replace(FULL, channel_id=bytes([i]) * 16, funding_raw=bytes(3000)) for i in range(50)])
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(content)
    with pytest.raises(StoreError):
        Store.open(path)


def test_no_database_at_all(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to look at; " * 20)
    with pytest.raises(StoreError):
        Store.open(tmp_path / "text")
    with pytest.raises(StoreError):
        Store.open(tmp_path / "missing" / "payments.db")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET their_billed_units = zeroblob(16)",
        "UPDATE channel SET capacity_sat = 330",
        "UPDATE channel SET signature = NULL",
        "UPDATE channel SET state = 'dreaming'",
        "UPDATE channel SET payer_pubkey = x'02'",
        "UPDATE counts SET standing = 9",
        "UPDATE channel SET base_msat = 6000",
        "UPDATE channel SET splice = x'00'",
        "UPDATE channel SET state = 'splicing'",
        "UPDATE counts SET body = x'00'",
    ],
)
def test_a_row_that_contradicts_itself_is_refused_with_advice(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "payments.db"
    store = Store.open(path)
    store.apply([LEDGER, COUNTS, replace(FULL, cumulative_msat=5_000)])
    store.load()
    store.close()
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    store = Store.open(path)
    with pytest.raises(StoreError, match="Do not delete it"):
        store.load()
    store.close()


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    for version in (0, 2):
        path = tmp_path / f"other-{version}"
        connection = sqlite3.connect(path)
        connection.executescript(f"CREATE TABLE wallet (id INTEGER); PRAGMA user_version = {version};")
        connection.close()
        with pytest.raises(StoreError, match="not a database of payments"):
            Store.open(path)


def test_a_torn_log_loses_the_last_rounds_whole(tmp_path: Path) -> None:
    """As after a power loss in the middle of a write: whatever of the log is there, what is read was once true."""
    path = tmp_path / "payments.db"
    store = Store.open(path)
    rounds = [[replace(FULL, cumulative_msat=n * 1000, acknowledged_msat=0), HeightRecord(n)] for n in range(1, 8)]
    for changes in rounds:
        store.apply(changes)
    log = path.with_name("payments.db-wal").read_bytes()
    rng, seen = random.Random(1), set()
    for number in range(60):
        torn = tmp_path / f"torn-{number}"
        torn.write_bytes(path.read_bytes())
        torn.with_name(torn.name + "-wal").write_bytes(log[: rng.randrange(len(log) + 1)])
        again = Store.open(torn)
        state = again.load()
        again.close()
        seen.add(state.height)
        assert [c.cumulative_msat for c in state.channels] == ([state.height * 1000] if state.height else [])
    store.close()
    assert len(seen) > 4


def reopened(store: Store, path: Path) -> Store:
    store.close()
    return Store.open(path)


def test_readings_are_written_with_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "payments.sqlite"
    store = Store.open(path)
    store.apply([LEDGER], {b"flow 1": Reading(10, 5), b"flow 2": Reading(2**62, 2**32 - 2, 2**63 - 1)})
    store.apply([], {b"flow 1": Reading(11, 6)})
    with pytest.raises(StoreError):
        store.apply([HeightRecord(None)], {b"flow 1": Reading(99, 7)})  # type: ignore[arg-type]
    for _ in range(2):
        store = reopened(store, path)
        assert store.readings() == {b"flow 1": Reading(11, 6), b"flow 2": Reading(2**62, 2**32 - 2, 2**63 - 1)}
    store.close()


def test_what_a_dead_daemon_counted_is_kept_until_the_rows_that_bill_it_are_written(tmp_path: Path) -> None:
    path = tmp_path / "payments.sqlite"
    store = Store.open(path)
    store.apply([LEDGER], {b"flow 1": Reading(10, 5), b"done": Reading(7, 5), b"anew": Reading(9, 5)})
    assert store.keep_leftover({b"flow 1": 30, b"flow 2": 4, b"done": 7, b"anew": 3}, now=1000.5) == 0
    for _ in range(2):  # killed, before and after its counters were removed from the kernel
        store = reopened(store, path)
        assert store.leftover() == {b"flow 1": 30, b"flow 2": 4, b"anew": 3}
        store.keep_leftover({b"flow 1": 30}, now=2000)
    with pytest.raises(StoreError):
        store.apply([HeightRecord(None)], {b"flow 1": Reading(30, 5)})  # type: ignore[arg-type]
    assert b"flow 1" in store.leftover()
    store.apply([], {b"another": Reading(1, 1, counter=3)}, [3])
    assert store.readings()[b"flow 1"] == Reading(10, 5)  # says at which price it is billed
    store.apply([LEDGER], {b"flow 1": Reading(30, 5)})
    store.apply([], {b"flow 2": Reading(4, 5)})
    store = reopened(store, path)
    assert store.leftover() == {b"anew": 3}
    store.close()


def test_readings_of_counters_that_are_no_more_are_forgotten_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payments.adapters.store.NEW_READINGS", 8)
    path = tmp_path / "payments.sqlite"
    store = Store.open(path)
    store.apply([], {b"idle": Reading(1, 1, counter=1)})
    for number in range(9):
        assert store.has_many_readings is (number == 8)
        store.apply([], {b"flow %d" % number: Reading(number, 1, counter=number % 3)})
    store = reopened(store, path)
    assert store.has_many_readings
    store.apply([], {b"last": Reading(1, 1, counter=2**62)}, {1, 2**62})
    assert not store.has_many_readings
    assert set(store.readings()) == {b"idle", b"flow 1", b"flow 4", b"flow 7", b"last"}
    store.close()


def test_what_is_kept_is_bounded_and_how_much_is_forgotten_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payments.adapters.store.MAX_LEFTOVER", 3)
    store = Store.open(tmp_path / "payments.sqlite")
    assert store.keep_leftover({b"a": 1, b"b": 1}, now=0) == 0
    assert store.keep_leftover({b"c": 1, b"d": 1, b"e": 1}, now=1) == 2
    assert set(store.leftover()) == {b"c", b"d", b"e"}
    assert store.keep_leftover({b"e": 2, b"f": 1}, now=1 + LEFTOVER_LIFETIME) == 1
    assert store.keep_leftover({}, now=2 + LEFTOVER_LIFETIME) == 2
    assert store.leftover() == {b"f": 1}
    store.close()
