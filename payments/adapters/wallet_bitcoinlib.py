"""WalletPort on bitcoinlib: an HD wallet (BIP84, P2WPKH) whose outputs the chain port tells. No network of its own.

bitcoinlib does public keys and addresses, and keeps the book of unspent outputs in its SQLite file. It does not do:

- Secrets: it gets the account's *public* key only; private keys are derived from the seed, with embit, when they sign.
- Coin selection: its own tries all combinations, exponential in the number of small outputs.
- Building and signing: embit and coincurve, as everywhere else (its BIP143 is wrong for NONE and SINGLE).

bitcoinlib is AGPL-3.0, brings SQLAlchemy, and takes 44 MB: it is in a process of its own that comes and goes
(`wallet_process`), and gets no secret.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio
from embit import bip32
from embit.networks import NETWORKS
from embit.script import address_to_scriptpubkey

from payments.adapters.addresses import address_of
from payments.adapters.chain_index import inputs_of
from payments.adapters.p2wpkh import (
    INPUT_VBYTES,
    OVERHEAD_VBYTES,
    P2WPKH_BYTES,
    OwnedOutput,
    output_vbytes,
    p2wpkh_script,
    sign_p2wpkh,
)
from payments.adapters.wallet_notes import WalletNotes, read_fundings, write_fundings
from payments.adapters.wallet_process import Address, BookProcess
from payments.channel_tx import MAX_FEE_RATE, MAX_MONEY_SAT, dust_limit, parse_transaction
from payments.ports import (
    ChainPort,
    ForeignInput,
    InsufficientFundsError,
    SignedTransaction,
    Utxo,
    WalletBalance,
    WalletError,
)

COIN_TYPES = {"bitcoin": 0, "testnet": 1, "testnet4": 1, "signet": 1, "regtest": 1}  # SLIP-44
_CORE_NAMES = {"bitcoin": "main", "testnet": "test", "testnet4": "testnet4", "signet": "signet", "regtest": "regtest"}
RECEIVE_BRANCH, CHANGE_BRANCH = 0, 1  # BIP44
GAP_LIMIT = 200  # keys in a row without money after which a lost wallet is believed to end; channels leave many unused
COINBASE_MATURITY = 100
MAX_INPUTS = 400
MIN_SEED_BYTES, MAX_SEED_BYTES = 16, 64  # BIP32
# As bitcoinlib writes the account's public key: regtest with the main network's prefix.
_PREFIX_NETWORK = {"bitcoin": "main", "regtest": "main", "testnet": "test", "testnet4": "test", "signet": "signet"}
# One call after the other, in their order, and never abandoned.
_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wallet")

T = TypeVar("T")


class Book(Protocol):
    """What bitcoinlib does: `wallet_book.Book`, in this process or in one of its own."""

    def close(self) -> None: ...

    def addresses(self) -> list[Address]: ...

    def new_addresses(self, branch: int, count: int) -> list[Address]: ...

    def update_outputs(self, outputs: list[dict[str, Any]]) -> None: ...

    def balance_sat(self) -> int: ...


class BitcoinlibWallet:
    """One seed, one directory, one process. One call runs at a time, what bitcoinlib does of it in a worker thread."""

    def __init__(self, directory: Path, chain: ChainPort, keys: _KeyStore, network: str) -> None:
        """Use `open`."""
        self._network = network
        self._chain = chain
        self._keys = keys
        self._lock = trio.Lock()
        self._fundings_path = directory / "fundings.json"
        self._fundings = read_fundings(self._fundings_path)
        self._notes = WalletNotes(directory / "notes.json")
        self._known: list[Utxo] | None = None
        self._balance_sat: int | None = None  # of `_known`; None: to be asked for

    @classmethod
    async def open(
        cls,
        directory: Path,
        chain: ChainPort,
        *,
        seed: bytes,
        network: str = "regtest",
        open_book: Callable[[Path, str, str], Book] = BookProcess,
    ) -> BitcoinlibWallet:
        """The wallet of `seed` (16 to 64 bytes). If `directory` is new, finds the money that the seed has on the chain.

        Raises WalletError, and ChainError when the search is needed and the chain cannot be reached.
        """
        if not MIN_SEED_BYTES <= len(seed) <= MAX_SEED_BYTES:
            raise WalletError(f"a seed of {len(seed)} bytes")
        if network not in COIN_TYPES:
            raise WalletError(f"unknown network {network}")
        keys = await _in_thread(_KeyStore, directory, seed, network, open_book)
        wallet = cls(directory, chain, keys, network)
        if not wallet._fundings_path.exists():
            await wallet._recover()
        return wallet

    async def close(self) -> None:
        async with self._lock:
            await _in_thread(self._keys.close)

    # --- WalletPort ---

    async def balance_sat(self) -> int:
        async with self._lock:
            await self._refresh()
            if self._balance_sat is None:
                self._balance_sat = await _in_thread(self._keys.balance_sat)
            return self._balance_sat

    async def balance(self) -> WalletBalance:
        async with self._lock:
            await self._refresh()
            known = self._known or []
            confirmed_sat = sum(utxo.value_sat for utxo in known if utxo.height is not None)
            return WalletBalance(confirmed_sat, sum(utxo.value_sat for utxo in known) - confirmed_sat)

    async def address(self, label: str = "") -> str:
        address = address_of(await self.new_script_pubkey(), _CORE_NAMES[self._network])
        await self.label(address, label)
        return address

    async def labels(self) -> dict[str, str]:
        return self._notes.labels

    async def label(self, key: str, text: str) -> None:
        async with self._lock:
            await _in_thread(self._notes.label, key, text)

    async def new_script_pubkey(self) -> bytes:
        async with self._lock:
            return await _in_thread(self._keys.new_script, RECEIVE_BRANCH)

    async def fund(self, script_pubkey: bytes, amount_sat: int, *, fee_rate: float) -> SignedTransaction:
        """See WalletPort. The transaction, and so what is set aside, is on disk before this returns: see `pending`."""
        return await self._fund([(script_pubkey, amount_sat)], None, fee_rate)

    async def fund_splice(
        self, foreign: ForeignInput, outputs: Sequence[tuple[bytes, int]], *, fee_rate: float
    ) -> SignedTransaction:
        return await self._fund(list(outputs), foreign, fee_rate)

    async def _fund(
        self, outputs: list[tuple[bytes, int]], foreign: ForeignInput | None, fee_rate: float
    ) -> SignedTransaction:
        for script_pubkey, amount_sat in outputs:
            if not dust_limit(script_pubkey) <= amount_sat <= MAX_MONEY_SAT:
                raise WalletError(f"cannot pay {amount_sat} sat to an output")
        if not 0.0 < fee_rate <= MAX_FEE_RATE:
            raise WalletError(f"a fee rate of {fee_rate} sat/vB")
        async with self._lock:
            await self._refresh()
            chosen, change_sat = _choose(self._spendable(), outputs, foreign, fee_rate)
            if change_sat > 0:
                outputs = [*outputs, (await _in_thread(self._keys.new_script, CHANGE_BRANCH), change_sat)]
            signed = await _in_thread(self._keys.sign, chosen, outputs, foreign)
            await self._save({**self._fundings, signed.txid: signed})
            return signed

    async def send(
        self, script_pubkey: bytes, amount_sat: int, *, fee_rate: float, label: str = ""
    ) -> SignedTransaction:
        self._notes.check(label)
        signed = await self.fund(script_pubkey, amount_sat, fee_rate=fee_rate)
        async with self._lock:  # a crash before this leaves a funding that nobody waits for: it is released
            await _in_thread(self._notes.mark_sent, signed.txid, self._fundings, label)
        return signed

    async def sweep(
        self, txids: Collection[bytes] | None, script_pubkey: bytes, *, fee_rate: float, label: str = ""
    ) -> SignedTransaction:
        if not 0.0 < fee_rate <= MAX_FEE_RATE:
            raise WalletError(f"a fee rate of {fee_rate} sat/vB")
        self._notes.check(label)
        async with self._lock:
            await self._refresh()
            swept = [
                utxo
                for utxo in self._spendable()
                if utxo.height is not None and (txids is None or utxo.outpoint.txid in txids)
            ][:MAX_INPUTS]
            vbytes = OVERHEAD_VBYTES + output_vbytes(script_pubkey) + INPUT_VBYTES * len(swept)
            left_sat = sum(utxo.value_sat for utxo in swept) - math.ceil(vbytes * fee_rate)
            if left_sat < dust_limit(script_pubkey):
                raise InsufficientFundsError(f"{len(swept)} outputs to sweep, of which the fee leaves {left_sat} sat")
            signed = await _in_thread(self._keys.sign, swept, [(script_pubkey, left_sat)], None)
            await self._save({**self._fundings, signed.txid: signed})
            await _in_thread(self._notes.mark_sent, signed.txid, self._fundings, label)
            return signed

    async def release(self, txid: bytes) -> None:
        async with self._lock:
            if txid in self._fundings:
                await self._save({other: each for other, each in self._fundings.items() if other != txid})

    async def pending(self) -> list[SignedTransaction]:
        """Fundings neither confirmed nor released.

        For the start after a crash: broadcast those that a channel waits for, and release the others.
        """
        async with self._lock:
            await self._refresh()
            return [each for txid, each in self._fundings.items() if not self._notes.is_sent(txid)]

    async def sent(self) -> list[SignedTransaction]:
        async with self._lock:
            await self._refresh()
            return [each for txid, each in self._fundings.items() if self._notes.is_sent(txid)]

    # --- What the chain says ---

    async def _refresh(self) -> None:
        """Forgets fundings that are in a block, then feeds bitcoinlib what the chain knows, if that has changed.

        In this order, or a block between the two questions would hide the change of a funding: no longer pending, and
        not yet seen as confirmed.
        """
        waiting = {txid: each for txid, each in self._fundings.items() if not await self._is_confirmed(txid)}
        if len(waiting) < len(self._fundings):
            await self._save(waiting)
        utxos = [utxo for utxo in await self._chain.utxos(self._keys.scripts()) if self._keys.owns(utxo.script_pubkey)]
        if any(utxo.coinbase for utxo in utxos):
            height = (await self._chain.tip()).height
            utxos = [utxo for utxo in utxos if not utxo.coinbase or _is_mature(utxo, height)]
        if utxos != self._known:
            await _in_thread(self._keys.update_utxos, utxos)
            self._known, self._balance_sat = utxos, None

    async def _is_confirmed(self, txid: bytes) -> bool:
        status = await self._chain.transaction(txid)
        return status is not None and status.height is not None

    async def _recover(self) -> None:
        """Makes ours again all keys up to the last with money, then writes the file of fundings: the mark of done."""
        for branch in (RECEIVE_BRANCH, CHANGE_BRANCH):
            used, start = 0, 0
            while start < used + GAP_LIMIT:
                scripts = await _in_thread(self._keys.peek_scripts, branch, start, GAP_LIMIT)
                found = {utxo.script_pubkey for utxo in await self._chain.utxos(scripts)}
                used = max([used, *(start + scripts.index(script) + 1 for script in found)])
                start += GAP_LIMIT
            missing = used - self._keys.count(branch)
            if missing > 0:
                await _in_thread(self._keys.new_scripts, branch, missing)
        await self._save({})

    def _spendable(self) -> list[Utxo]:
        """Not set aside, and ours for good: confirmed, or change that only we can take back. Confirmed, large first."""
        set_aside = {
            outpoint for funding in self._fundings.values() for outpoint in inputs_of(parse_transaction(funding.raw))
        }
        candidates = [
            utxo
            for utxo in self._known or ()
            if utxo.outpoint not in set_aside and (utxo.height is not None or utxo.outpoint.txid in self._fundings)
        ]
        return sorted(candidates, key=lambda utxo: (utxo.height is None, -utxo.value_sat, utxo.outpoint.txid))

    async def _save(self, fundings: dict[bytes, SignedTransaction]) -> None:
        """Disk first: if that fails, nothing has changed."""
        await _in_thread(write_fundings, self._fundings_path, fundings)
        self._fundings = fundings


class _KeyStore:
    """The keys, and the book. Called in one worker thread at a time."""

    def __init__(self, directory: Path, seed: bytes, network: str, open_book: Callable[[Path, str, str], Book]) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._account = bip32.HDKey.from_seed(seed).derive(f"m/84'/{COIN_TYPES[network]}'/0'")
        public = self._account.to_public().to_base58(NETWORKS[_PREFIX_NETWORK[network]]["zpub"])
        self._book = open_book(directory, network, public)
        self._address_by_script: dict[bytes, Address] = {}
        for address in self._book.addresses():
            self._remember(address)

    def close(self) -> None:
        self._book.close()

    def scripts(self) -> list[bytes]:
        return list(self._address_by_script)

    def count(self, branch: int) -> int:
        return sum(1 for _, each, _ in self._address_by_script.values() if each == branch)

    def owns(self, script_pubkey: bytes) -> bool:
        return script_pubkey in self._address_by_script

    def balance_sat(self) -> int:
        return self._book.balance_sat()

    def new_script(self, branch: int) -> bytes:
        return self.new_scripts(branch, 1)[0]

    def new_scripts(self, branch: int, count: int) -> list[bytes]:
        """On disk before they are used: a key is never given out twice."""
        return [self._remember(address) for address in self._book.new_addresses(branch, count)]

    def peek_scripts(self, branch: int, start: int, count: int) -> list[bytes]:
        """What `new_scripts` would give from index `start` on, without making them ours."""
        parent = self._account.to_public().derive([branch])
        return [p2wpkh_script(parent.derive([index]).sec()) for index in range(start, start + count)]

    def update_utxos(self, utxos: list[Utxo]) -> None:
        """`confirmations` is only told apart as none or some, so that a new block alone changes nothing here."""
        self._book.update_outputs(
            [
                {
                    "address": self._address_by_script[utxo.script_pubkey][0],
                    "script": utxo.script_pubkey.hex(),
                    "confirmations": int(utxo.height is not None),
                    "output_n": utxo.outpoint.index,
                    "txid": utxo.outpoint.txid[::-1].hex(),
                    "value": utxo.value_sat,
                }
                for utxo in utxos
            ]
        )

    def sign(
        self, utxos: list[Utxo], outputs: list[tuple[bytes, int]], foreign: ForeignInput | None
    ) -> SignedTransaction:
        inputs = [OwnedOutput(utxo.outpoint, utxo.value_sat, self._secret(utxo.script_pubkey)) for utxo in utxos]
        return sign_p2wpkh(inputs, outputs, foreign)

    def _secret(self, script_pubkey: bytes) -> bytes:
        _, branch, index = self._address_by_script[script_pubkey]
        secret: bytes = self._account.derive([branch, index]).secret
        return secret

    def _remember(self, address: Address) -> bytes:
        script: bytes = address_to_scriptpubkey(address[0]).data
        self._address_by_script[script] = address
        return script


def _choose(
    candidates: list[Utxo], outputs: list[tuple[bytes, int]], foreign: ForeignInput | None, fee_rate: float
) -> tuple[list[Utxo], int]:
    """Inputs in the order of `candidates` until they pay amount and fee, and the change, 0 if it would be dust."""
    fixed_vbytes = OVERHEAD_VBYTES + sum(output_vbytes(script) for script, _ in outputs)
    amount_sat = sum(value for _, value in outputs)
    if foreign is not None:
        fixed_vbytes += foreign.vbytes
        amount_sat -= foreign.value_sat
    change_vbytes = output_vbytes(bytes(P2WPKH_BYTES))
    least_change = dust_limit(b"\x00\x14" + bytes(20))
    chosen: list[Utxo] = []
    total = 0
    for utxo in candidates[:MAX_INPUTS]:
        chosen.append(utxo)
        total += utxo.value_sat
        vbytes = fixed_vbytes + INPUT_VBYTES * len(chosen)
        over = total - amount_sat - math.ceil(vbytes * fee_rate)
        if over >= 0:
            change_sat = total - amount_sat - math.ceil((vbytes + change_vbytes) * fee_rate)
            return chosen, change_sat if change_sat >= least_change else 0
    raise InsufficientFundsError(f"{total} sat to spend, which is not {amount_sat} and the fee")


def _is_mature(utxo: Utxo, height: int) -> bool:
    return utxo.height is not None and height + 1 - utxo.height >= COINBASE_MATURITY


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """In one thread, since it waits for the disk and another process. Not to be abandoned in the middle of a commit."""

    def call() -> T:
        return _THREAD.submit(function, *arguments).result()

    try:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=False)
    except WalletError:
        raise
    except Exception as error:  # bitcoinlib and SQLAlchemy, where they are in this process, raise dozens of types
        raise WalletError(f"{type(error).__name__}: {error}") from error
