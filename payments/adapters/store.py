"""The payment engine's rows in SQLite. Blocking: the daemon runs it in a worker thread, one call at a time.

Write-ahead log and synchronous=FULL: when `apply` returns, the changes are on the disk (SQLite documentation, "pragma
synchronous"). All changes of a call are one transaction; the daemon puts a whole round into one call, since a commit
costs milliseconds and a row microseconds. No secrets are in it: channel keys derive from the node's seed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import astuple, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from payments.agreement import CountBook
from payments.channel import Channel
from payments.channel_tx import ChannelTerms
from payments.counts import CountsError
from payments.credit import CreditLine
from payments.ledger import Ledger
from payments.life import InvariantError
from payments.ports import Outpoint
from payments.records import (
    Change,
    ChannelRecord,
    ChannelState,
    CountsRecord,
    CreditRecord,
    Direction,
    EngineState,
    ForgottenChannel,
    HeightRecord,
    KeptRecord,
    LedgerRecord,
    PaidRecord,
    Reading,
    Splice,
)

SCHEMA_VERSION = 8
NEW_READINGS = 25_000  # after so many, those of counters that are no more are forgotten: flows come and go
MAX_LEFTOVER = 1_000_000  # more than the kernel keeps counters for, so that it takes several crashes
LEFTOVER_LIFETIME = 7 * 86400  # seconds; the neighbour has not come back
UNITS_BYTES = 16  # debts outgrow SQLite's 64-bit integers

_COUNTS_TABLE = """
CREATE TABLE counts (
  peer BLOB PRIMARY KEY,
  body BLOB NOT NULL,
  signature BLOB NOT NULL,
  standing INTEGER NOT NULL,
  suspicion INTEGER NOT NULL,
  suspensions INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

_CREDIT_TABLE = """
CREATE TABLE credit (
  peer BLOB PRIMARY KEY,
  paid_msat INTEGER NOT NULL,
  redeemed_msat INTEGER NOT NULL,
  acknowledged_paid_msat INTEGER NOT NULL,
  acknowledged_redeemed_msat INTEGER NOT NULL,
  receipt BLOB NOT NULL,
  their_paid_msat INTEGER NOT NULL,
  their_redeemed_msat INTEGER NOT NULL,
  their_signature BLOB NOT NULL
) STRICT, WITHOUT ROWID;
"""

_KEPT_TABLE = """
CREATE TABLE kept (
  peer BLOB PRIMARY KEY,
  body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
"""

_LEFTOVER_TABLE = """
CREATE TABLE leftover (
  flow BLOB NOT NULL UNIQUE,
  bytes INTEGER NOT NULL,
  kept_at INTEGER NOT NULL
) STRICT;
"""

# Money in msat fits: there are 2.1 * 10^18 msat, and 9.2 * 10^18 fit.
_SCHEMA = (
    """
CREATE TABLE ledger (
  peer BLOB PRIMARY KEY,
  billed_units BLOB NOT NULL,
  acknowledged_units BLOB NOT NULL,
  their_billed_units BLOB NOT NULL,
  accepted_units BLOB NOT NULL,
  owed_limit_units BLOB NOT NULL,
  lost_meter_units BLOB NOT NULL,
  window_msat INTEGER NOT NULL,
  window_progress_msat INTEGER NOT NULL,
  is_suspended INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE channel (
  channel_id BLOB PRIMARY KEY,
  peer BLOB NOT NULL,
  direction TEXT NOT NULL,
  state TEXT NOT NULL,
  payer_pubkey BLOB NOT NULL,
  payee_pubkey BLOB NOT NULL,
  expiry_height INTEGER NOT NULL,
  capacity_sat INTEGER NOT NULL,
  payer_change_script BLOB NOT NULL,
  opened_height INTEGER NOT NULL,
  funding_txid BLOB,
  funding_index INTEGER,
  funding_raw BLOB,
  is_confirmed INTEGER NOT NULL,
  cumulative_msat INTEGER NOT NULL,
  signature BLOB,
  acknowledged_msat INTEGER NOT NULL,
  spend_txid BLOB,
  spend_raw BLOB,
  payout_script BLOB NOT NULL DEFAULT x'',
  number INTEGER NOT NULL DEFAULT 0,
  base_msat INTEGER NOT NULL DEFAULT 0,
  splice BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE chain (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  height INTEGER NOT NULL
) STRICT;
INSERT INTO chain VALUES (1, 0);
CREATE TABLE reading (
  flow BLOB NOT NULL UNIQUE,
  bytes INTEGER NOT NULL,
  price_msat_per_gb INTEGER NOT NULL,
  counter INTEGER NOT NULL DEFAULT 0
) STRICT;
"""
    + _COUNTS_TABLE
    + _CREDIT_TABLE
    + _KEPT_TABLE
    + _LEFTOVER_TABLE
)

# By the version that each step leads away from.
_MIGRATIONS = {
    # What was billed at which price is not known of old readings; a free one bills nobody too much.
    1: "ALTER TABLE reading ADD COLUMN price_msat_per_gb INTEGER NOT NULL DEFAULT 0;",
    2: "ALTER TABLE ledger ADD COLUMN is_suspended INTEGER NOT NULL DEFAULT 0;",
    3: _COUNTS_TABLE,
    4: _CREDIT_TABLE,
    # An empty payout script: what was agreed on then cannot be spliced, nor closed together.
    5: """
ALTER TABLE channel ADD COLUMN payout_script BLOB NOT NULL DEFAULT x'';
ALTER TABLE channel ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channel ADD COLUMN base_msat INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channel ADD COLUMN splice BLOB;
""",
    6: _KEPT_TABLE,
    7: "ALTER TABLE reading ADD COLUMN counter INTEGER NOT NULL DEFAULT 0;" + _LEFTOVER_TABLE,
}

_CHANNEL_COLUMNS = (
    "channel_id, peer, direction, state, payer_pubkey, payee_pubkey, expiry_height, capacity_sat, payer_change_script,"
    " opened_height, funding_txid, funding_index, funding_raw, is_confirmed, cumulative_msat, signature,"
    " acknowledged_msat, spend_txid, spend_raw, payout_script, number, base_msat, splice"
)
_LEDGER_COLUMNS = (
    "peer, billed_units, acknowledged_units, their_billed_units, accepted_units, owed_limit_units, lost_meter_units,"
    " window_msat, window_progress_msat, is_suspended"
)
_PUT_CHANNEL = f"INSERT OR REPLACE INTO channel ({_CHANNEL_COLUMNS}) VALUES ({', '.join('?' * 23)})"  # noqa: S608
_PUT_LEDGER = f"INSERT OR REPLACE INTO ledger ({_LEDGER_COLUMNS}) VALUES ({', '.join('?' * 10)})"  # noqa: S608

_PUT_PAID = "UPDATE channel SET cumulative_msat = ?, signature = ?, acknowledged_msat = ? WHERE channel_id = ?"

_COUNTS_COLUMNS = "peer, body, signature, standing, suspicion, suspensions"
_PUT_COUNTS = f"INSERT OR REPLACE INTO counts ({_COUNTS_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608

_CREDIT_COLUMNS = (
    "peer, paid_msat, redeemed_msat, acknowledged_paid_msat, acknowledged_redeemed_msat, receipt, their_paid_msat,"
    " their_redeemed_msat, their_signature"
)
_PUT_CREDIT = f"INSERT OR REPLACE INTO credit ({_CREDIT_COLUMNS}) VALUES ({', '.join('?' * 9)})"  # noqa: S608

# `json_each`: a list of any length in one parameter. What is not billed yet is billed by its last reading's price.
_FORGET_READINGS = """
DELETE FROM reading WHERE counter NOT IN (SELECT value FROM json_each(?)) AND flow NOT IN (SELECT flow FROM leftover)
"""
_PUT_LEFTOVER = """
INSERT INTO leftover VALUES (?, ?, ?) ON CONFLICT (flow) DO UPDATE SET bytes = max(bytes, excluded.bytes)
"""
_FORGET_BILLED = """
DELETE FROM leftover WHERE EXISTS
(SELECT 1 FROM reading WHERE reading.flow = leftover.flow AND reading.bytes = leftover.bytes)
"""
_FORGET_OLDEST = "DELETE FROM leftover WHERE rowid <= (SELECT rowid FROM leftover ORDER BY rowid DESC LIMIT 1 OFFSET ?)"

# What a database of the first version has.
_TABLES = {"ledger", "channel", "chain", "reading"}
_ADVICE = (
    "Do not delete it: it holds what neighbours have paid and what is in channels. Restore a copy, however old; "
    "neighbours bring it up to date"
)


class StoreError(Exception):
    """The database cannot be opened, is damaged, of another version, in use, or could not be written."""


class Store:
    """Open with `Store.open`, end with `close`. One process at a time may have it open."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Raises sqlite3.Error."""
        self._connection = connection
        self._new_readings = int(connection.execute("SELECT COUNT(*) FROM reading").fetchone()[0])
        self._leftover = {flow for (flow,) in connection.execute("SELECT flow FROM leftover")}

    @classmethod
    def open(cls, path: Path) -> Store:
        """Creates it if missing (mode 0600), checks it, brings it up to date; a copy as it was before stays beside it.
        Raises StoreError. May be called, and the store used, from changing threads, one at a time."""
        try:
            path.touch(mode=0o600)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: {error}") from error
        try:
            _prepare(connection, path)
            return cls(connection)
        except (OSError, sqlite3.Error, StoreError) as error:
            connection.close()
            raise StoreError(f"{path}: {error}. {_ADVICE}") from error

    def close(self) -> None:
        self._connection.close()

    @property
    def has_many_readings(self) -> bool:
        """It is time to say which counters there still are (`apply`)."""
        return self._new_readings > NEW_READINGS

    def apply(
        self,
        changes: Iterable[Change],
        readings: Mapping[bytes, Reading] = MappingProxyType({}),
        counters: Collection[int] | None = None,
    ) -> None:
        """All or nothing, in this order, on the disk when it returns. Raises StoreError; then nothing was written.

        `readings`: how far the counter of each flow (the caller's name for it) had come when it was last billed, and
        the price; what the ledger rows of the same call say is then true of exactly so much traffic.
        `counters`: the numbers of those that still exist; readings of others are forgotten.
        """
        billed: list[bytes] = []
        with self._transaction() as connection:
            for kind, group in groupby(changes, type):
                statement, row_of = _WRITTEN[kind]
                rows = list(map(row_of, group))
                written = connection.executemany(statement, rows).rowcount
                if kind is PaidRecord and written != len(rows):
                    raise StoreError("a payment through a channel that has no row")
            flows = ((flow, *reading) for flow, reading in readings.items())
            connection.executemany("INSERT OR REPLACE INTO reading VALUES (?, ?, ?, ?)", flows)
            if self._leftover:
                billed = [flow for flow in readings if flow in self._leftover]
                connection.executemany("DELETE FROM leftover WHERE flow = ?", ((flow,) for flow in billed))
            if counters is not None:
                connection.execute(_FORGET_READINGS, (json.dumps(list(counters)),))
        self._leftover.difference_update(billed)
        self._new_readings = 0 if counters is not None else self._new_readings + len(readings)

    def readings(self) -> dict[bytes, Reading]:
        """Of this run and of those before, as far as they are not forgotten. Raises StoreError."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT flow, bytes, price_msat_per_gb, counter FROM reading")
            return {flow: Reading(*reading) for flow, *reading in rows}

    def keep_leftover(self, bytes_by_flow: Mapping[bytes, int], *, now: float) -> int:
        """How far the counters had come that a killed daemon has left, before they go. Kept until a reading says that a
        flow is billed. How many were forgotten, as too many or too old. `now`: seconds since 1970. Raises StoreError.
        """
        with self._transaction() as connection:
            rows = ((flow, size, int(now)) for flow, size in bytes_by_flow.items())
            connection.executemany(_PUT_LEFTOVER, rows)
            connection.execute(_FORGET_BILLED)
            forgotten: int = connection.execute(_FORGET_OLDEST, (MAX_LEFTOVER,)).rowcount
            too_old = "DELETE FROM leftover WHERE kept_at < ?"
            forgotten += connection.execute(too_old, (int(now) - LEFTOVER_LIFETIME,)).rowcount
            self._leftover = {flow for (flow,) in connection.execute("SELECT flow FROM leftover")}
        return forgotten

    def leftover(self) -> dict[bytes, int]:
        """What was kept and is not billed yet. Raises StoreError."""
        with self._transaction() as connection:
            return dict(connection.execute("SELECT flow, bytes FROM leftover").fetchall())

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error

    def load(self) -> EngineState:
        """Raises StoreError if a row is not what was written, or contradicts itself."""
        try:
            with closing(self._connection.cursor()) as cursor:
                cursor.execute(f"SELECT {_LEDGER_COLUMNS} FROM ledger ORDER BY peer")  # noqa: S608 - constants
                ledgers = tuple(_ledger_of(row) for row in cursor)
                cursor.execute(f"SELECT {_CHANNEL_COLUMNS} FROM channel ORDER BY opened_height, channel_id")  # noqa: S608
                channels = tuple(_channel_of(row) for row in cursor)
                cursor.execute(f"SELECT {_COUNTS_COLUMNS} FROM counts ORDER BY peer")  # noqa: S608
                counts = tuple(CountsRecord(*row) for row in cursor)
                cursor.execute(f"SELECT {_CREDIT_COLUMNS} FROM credit ORDER BY peer")  # noqa: S608
                credits_ = tuple(CreditRecord(*row) for row in cursor)
                cursor.execute("SELECT peer, body FROM kept ORDER BY peer")
                kept = tuple(KeptRecord(*row) for row in cursor)
                (height,) = cursor.execute("SELECT height FROM chain").fetchone()
            for ledger in ledgers:
                Ledger.from_record(ledger).check()
            for channel in channels:
                Channel.from_record(channel).check()
            for credit in credits_:
                CreditLine.from_record(credit).check()
            for record in counts:
                CountBook(0).restore(record)
        except (sqlite3.Error, msgspec.MsgspecError, ValueError, TypeError, InvariantError, CountsError) as error:
            raise StoreError(f"a damaged row: {error}. {_ADVICE}") from error
        return EngineState(ledgers, channels, height, counts, credits_, kept)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
    if problems != ["ok"]:
        raise StoreError(f"damaged: {problems[0]}")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and (version == 0 or not tables >= _TABLES):
        raise StoreError("not a database of payments")
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version in _MIGRATIONS:
        _keep_copy(connection, path.with_name(f"{path.name}.version-{version}"))
        for step in range(version, SCHEMA_VERSION):
            connection.executescript(f"BEGIN IMMEDIATE; {_MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")
    elif version != SCHEMA_VERSION:
        raise StoreError(f"schema version {version}, this program knows {SCHEMA_VERSION}")


def _keep_copy(connection: sqlite3.Connection, path: Path) -> None:
    """Whole, in one file, for whoever goes back to the older program before anything new was paid."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)  # SQLite fills an empty file
    connection.execute("VACUUM INTO ?", (str(path),))


Value = bytes | bytearray | int | str | None


def _pack(units: int) -> bytearray:
    """A bytearray, as `_ledger_row` says."""
    return bytearray(units.to_bytes(UNITS_BYTES, "big"))


def _unpack(units: bytes) -> int:
    return int.from_bytes(units, "big")


def _ledger_row(record: LedgerRecord) -> tuple[Value, ...]:
    """What every payment writes is in bytearrays: for each parameter that is bytes, Python's sqlite3 looks for an
    adapter, which takes longer than to write it."""
    return (
        bytearray(record.peer),
        _pack(record.billed_units),
        _pack(record.acknowledged_units),
        _pack(record.their_billed_units),
        _pack(record.accepted_units),
        _pack(record.owed_limit_units),
        _pack(record.lost_meter_units),
        record.window_msat,
        record.window_progress_msat,
        int(record.is_suspended),
    )


def _ledger_of(row: tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes, int, int, int]) -> LedgerRecord:
    peer, billed, acknowledged, their_billed, accepted, owed_limit, lost_meter, *rest = row
    window_msat, window_progress_msat, is_suspended = rest
    return LedgerRecord(
        peer=peer,
        billed_units=_unpack(billed),
        acknowledged_units=_unpack(acknowledged),
        their_billed_units=_unpack(their_billed),
        accepted_units=_unpack(accepted),
        owed_limit_units=_unpack(owed_limit),
        lost_meter_units=_unpack(lost_meter),
        window_msat=window_msat,
        window_progress_msat=window_progress_msat,
        is_suspended=bool(is_suspended),
    )


def _channel_row(record: ChannelRecord) -> tuple[Value, ...]:
    terms, funding = record.terms, record.funding
    return (
        record.channel_id,
        record.peer,
        record.direction.value,
        record.state.value,
        terms.payer_pubkey,
        terms.payee_pubkey,
        terms.expiry_height,
        terms.capacity_sat,
        terms.payer_change_script,
        record.opened_height,
        None if funding is None else funding.txid,
        None if funding is None else funding.index,
        record.funding_raw,
        int(record.is_confirmed),
        record.cumulative_msat,
        record.signature,
        record.acknowledged_msat,
        record.spend_txid,
        record.spend_raw,
        record.payout_script,
        record.number,
        record.base_msat,
        None if record.splice is None else _splice_row(record.splice),
    )


def _splice_row(splice: Splice) -> bytes:
    terms, funding = splice.terms, splice.funding
    new = (splice.number, terms.expiry_height, terms.capacity_sat, funding.txid, funding.index, splice.base_msat)
    return msgspec.msgpack.encode((*new, splice.raw, splice.signature, splice.is_signed))


def _splice_of(row: bytes | None, terms: ChannelTerms) -> Splice | None:
    """Keys and change script are those of the channel."""
    if row is None:
        return None
    decoded = msgspec.msgpack.decode(row, type=tuple[int, int, int, bytes, int, int, bytes, bytes, bool])
    number, expiry_height, capacity_sat, txid, index, base_msat, raw, signature, is_signed = decoded
    new = replace(terms, expiry_height=expiry_height, capacity_sat=capacity_sat)
    return Splice(number, new, Outpoint(txid, index), base_msat, raw, signature, is_signed)


def _channel_of(row: sqlite3.Row) -> ChannelRecord:
    (channel_id, peer, direction, state, payer, payee, expiry_height, capacity_sat, script, opened_height, *rest) = row
    (txid, index, funding_raw, is_confirmed, cumulative_msat, signature, acknowledged_msat, *rest) = rest
    spend_txid, spend_raw, payout_script, number, base_msat, splice = rest
    terms = ChannelTerms(payer, payee, expiry_height, capacity_sat, script)
    return ChannelRecord(
        channel_id=channel_id,
        peer=peer,
        direction=Direction(direction),
        state=ChannelState(state),
        terms=terms,
        opened_height=opened_height,
        funding=None if txid is None else Outpoint(txid, index),
        funding_raw=funding_raw,
        is_confirmed=bool(is_confirmed),
        cumulative_msat=cumulative_msat,
        signature=signature,
        acknowledged_msat=acknowledged_msat,
        spend_txid=spend_txid,
        spend_raw=spend_raw,
        payout_script=payout_script,
        number=number,
        base_msat=base_msat,
        splice=_splice_of(splice, terms),
    )


def _paid_row(record: PaidRecord) -> tuple[Value, ...]:
    signature = None if record.signature is None else bytearray(record.signature)
    return record.cumulative_msat, signature, record.acknowledged_msat, bytearray(record.channel_id)


def _counts_row(record: CountsRecord) -> tuple[Value, ...]:
    return record.peer, record.body, record.signature, record.standing, record.suspicion, record.suspensions


# Of each kind of change, the statement and its values.
_WRITTEN: Mapping[type[Any], tuple[str, Callable[[Any], tuple[Value, ...]]]] = {
    LedgerRecord: (_PUT_LEDGER, _ledger_row),
    ChannelRecord: (_PUT_CHANNEL, _channel_row),
    PaidRecord: (_PUT_PAID, _paid_row),
    CountsRecord: (_PUT_COUNTS, _counts_row),
    CreditRecord: (_PUT_CREDIT, astuple),
    KeptRecord: ("INSERT OR REPLACE INTO kept VALUES (?, ?)", lambda record: (record.peer, record.body)),
    HeightRecord: ("UPDATE chain SET height = ?", lambda record: (record.height,)),
    ForgottenChannel: ("DELETE FROM channel WHERE channel_id = ?", lambda forgotten: (forgotten.channel_id,)),
}
