"""What a wallet keeps beside its keys: fundings whose inputs are set aside, payments of the operator, labels. Files are
replaced whole, and on the disk when a call returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from payments.channel_tx import parse_transaction
from payments.ports import SignedTransaction, WalletError

MAX_LABELS = 10_000
MAX_LABEL = 200  # characters


class _Funding(msgspec.Struct, frozen=True):
    """A signed transaction whose inputs are set aside, as it is kept on disk."""

    raw: str
    fee_sat: int


class _Book(msgspec.Struct):
    labels: dict[str, str]  # by address, or by txid as people write it
    sent: list[str]  # of the fundings, those that the operator has sent


class WalletNotes:
    """Labels, and which fundings are the operator's. Raises WalletError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._book = _read(path, _Book) if path.exists() else _Book({}, [])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self._book.labels)

    def check(self, text: str, key: str = "") -> None:
        """Before anything is signed for a payment of that label."""
        if len(text) > MAX_LABEL or not text.isprintable():
            raise WalletError(f"a label has up to {MAX_LABEL} printable characters")
        if text and key not in self._book.labels and len(self._book.labels) >= MAX_LABELS:
            raise WalletError(f"{MAX_LABELS} labels are there already")

    def label(self, key: str, text: str) -> None:
        """An empty text takes the label away. Blocking."""
        self.check(text, key)
        labels = {other: each for other, each in self._book.labels.items() if other != key}
        if text:
            labels[key] = text
        self._save(_Book(labels, self._book.sent))

    def is_sent(self, txid: bytes) -> bool:
        return txid[::-1].hex() in self._book.sent

    def mark_sent(self, txid: bytes, waiting: Mapping[bytes, SignedTransaction], text: str) -> None:
        """Before it is broadcast. Forgets those that wait no more. Blocking."""
        known = {other[::-1].hex() for other in waiting}
        self._book.sent = [*(other for other in self._book.sent if other in known), txid[::-1].hex()]
        self.label(txid[::-1].hex(), text)

    def _save(self, book: _Book) -> None:
        write_whole(self._path, msgspec.json.encode(book))
        self._book = book


def read_fundings(path: Path) -> dict[bytes, SignedTransaction]:
    """Raises WalletError."""
    if not path.exists():
        return {}
    stored: list[_Funding] = _read(path, list[_Funding])
    try:
        raws = [(bytes.fromhex(funding.raw), funding.fee_sat) for funding in stored]
        signed = [SignedTransaction(raw, parse_transaction(raw).hash(), fee_sat) for raw, fee_sat in raws]
    except ValueError as error:
        raise WalletError(f"{path} is damaged: {error}") from error
    return {each.txid: each for each in signed}


def write_fundings(path: Path, fundings: Mapping[bytes, SignedTransaction]) -> None:
    """Raises WalletError."""
    write_whole(path, msgspec.json.encode([_Funding(each.raw.hex(), each.fee_sat) for each in fundings.values()]))


def write_whole(path: Path, data: bytes) -> None:
    """Atomically, and on the disk when it returns. Raises WalletError."""
    temporary = path.with_suffix(".new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise WalletError(f"cannot write {path}: {error}") from error


def _read(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WalletError(f"{path} is damaged: {error}") from error
