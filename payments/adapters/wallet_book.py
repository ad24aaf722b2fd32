"""bitcoinlib's part of the wallet: it makes addresses from a public key, and keeps the book of unspent outputs.

It lives in a process of its own (`python -m payments.adapters.wallet_book DIRECTORY NETWORK PUBLIC_KEY`), which
`wallet_process` starts when it is needed and ends when it is not: bitcoinlib with SQLAlchemy takes 44 MB, and half a
second to load. No secret comes here. One request a line on standard input, as JSON: {"call": name, "arguments": [...]};
one answer a line: {"result": ...} or {"error": "..."}. The end of the input is the end of the process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from payments.ports import WalletError

_WALLET_NAME = "meshd"
_CONFIG = """[logs]
enable_bitcoinlib_logging = False
[common]
service_caching_enabled = False
"""
_NICENESS = 5  # routing goes before it


class Book:
    """Of one directory. One thread alone uses it: bitcoinlib's SQLite objects work only in the one that made them."""

    def __init__(self, directory: Path, network: str, public_key: str) -> None:
        """Raises WalletError when the directory is of another key."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        wallets = load_bitcoinlib(directory).wallets
        uri = f"sqlite:///{(directory / 'wallet.sqlite').absolute()}"
        try:
            if wallets.wallet_exists(_WALLET_NAME, db_uri=uri):
                self._wallet = wallets.Wallet(_WALLET_NAME, db_uri=uri)
            else:
                self._wallet = wallets.Wallet.create(
                    _WALLET_NAME, keys=public_key, network=network, witness_type="segwit", db_uri=uri
                )
        except wallets.WalletError as error:
            raise WalletError(str(error)) from error
        if self._wallet.main_key.wif != public_key:
            self.close()
            raise WalletError(f"the wallet in {directory} has another seed")

    def close(self) -> None:
        self._wallet.session.close()
        self._wallet._engine.dispose()

    def addresses(self) -> list[tuple[str, int, int]]:
        """All that were made: address, branch, index."""
        keys = self._wallet.keys(depth=self._wallet.key_depth)
        return [(key.address, key.change, key.address_index) for key in keys]

    def new_addresses(self, branch: int, count: int) -> list[tuple[str, int, int]]:
        """On disk before they are used: a key is never given out twice."""
        keys = self._wallet.new_keys(change=branch, number_of_keys=count)
        return [(key.address, key.change, key.address_index) for key in keys]

    def update_outputs(self, outputs: list[dict[str, Any]]) -> None:
        self._wallet.utxos_update(utxos=outputs)

    def balance_sat(self) -> int:
        return sum(int(output["value"]) for output in self._wallet.utxos())


def load_bitcoinlib(directory: Path) -> Any:
    """On import it writes to ~/.bitcoinlib unless BCL_DATA_DIR says otherwise, so it is imported when the directory is
    known; that choice holds for the process, but only its settings are there: each wallet has a database."""
    if "BCL_DATA_DIR" not in os.environ:
        settings = directory / "bitcoinlib"
        settings.mkdir(mode=0o700, exist_ok=True)
        (settings / "config.ini").write_text(_CONFIG)
        os.environ["BCL_DATA_DIR"] = str(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated calls and unclosed files of its own
        importlib.import_module("bitcoinlib.wallets")
        return importlib.import_module("bitcoinlib")


def _answer(function: Any, *arguments: Any) -> str:
    try:
        return json.dumps({"result": function(*arguments)})
    except WalletError as error:
        return json.dumps({"error": str(error)})
    except Exception as error:  # bitcoinlib and SQLAlchemy raise dozens of types, and document none
        return json.dumps({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    with contextlib.suppress(OSError):  # a service may be forbidden to
        os.nice(_NICENESS)
    # Whatever a library prints is not an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    opened: list[Book] = []

    def start() -> list[tuple[str, int, int]]:
        opened.append(Book(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
        return opened[0].addresses()

    print(_answer(start), file=answers)
    for line in sys.stdin if opened else ():
        request = json.loads(line)
        print(_answer(getattr(opened[0], request["call"]), *request["arguments"]), file=answers)
    for book in opened:
        book.close()


if __name__ == "__main__":
    main()
