"""Backups on the file system: the static channel file that a running node keeps, and what meshctl makes of it.

`channels.backup` in the state directory is sealed with a key that derives from the node's seed: it may be copied
anywhere, and together with the seed's words it brings the node back. It is written anew when channels come, go or
change, and now and then for the sums. None of this needs a running daemon, and a restore must not have one.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from meshd import identity as identities
from meshd.identity import Identity
from meshd.logs import Logger
from meshd.ticks import tick_after
from payments.adapters.store import Store
from payments.backup import (
    NONCE_BYTES,
    SALT_BYTES,
    Backup,
    BackupError,
    open_with_key,
    seal_with_key,
    seal_with_passphrase,
    slim,
)
from payments.records import ChannelState, EngineState, HeightRecord

log = Logger("meshd.backup")
CHANNEL_FILE, IDENTITY_FILE, STORE_FILE = "channels.backup", "identity", "payments.sqlite"
LOOK_INTERVAL = 10.0
SUMS_INTERVAL = 600.0  # of what was paid; the counterparties know it, too


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore has put in place."""

    identity: Identity
    channels: int
    created_at: float


def channel_file_key(identity: Identity) -> bytes:
    return identity.derive_secret("channel file")


def write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, for nobody else to read. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class ChannelFile:
    """Of a running node."""

    def __init__(self, path: Path, identity: Identity, chain: str, state: Callable[[], EngineState]) -> None:
        self._path = path
        self._key = channel_file_key(identity)
        self._chain = chain
        self._state = state
        self._written: object = None
        self._written_at = -SUMS_INTERVAL

    async def run(self) -> None:
        """Until cancelled. A disk that is full is said once, and tried again."""
        failure = ""
        while True:
            try:
                await self.write_if_changed()
                failure = ""
            except OSError as error:
                if str(error) != failure:
                    log.warning("channel file not written", file=self._path, reason=error)
                failure = str(error)
            await trio.sleep_until(tick_after(trio.current_time(), LOOK_INTERVAL))

    async def write_if_changed(self) -> None:
        state, now = self._state(), trio.current_time()
        shape = tuple((c.channel_id, c.state, c.number, c.funding, c.splice is None) for c in state.channels)
        if shape == self._written and now < self._written_at + SUMS_INTERVAL:
            return
        backup = _backup(state, self._chain)
        data = seal_with_key(backup, self._key, nonce=secrets.token_bytes(NONCE_BYTES))
        await trio.to_thread.run_sync(write_private, self._path, data)
        self._written, self._written_at = shape, now


def _backup(state: EngineState, chain: str) -> Backup:
    """Channels that are over are of no use any more."""
    channels = tuple(slim(channel) for channel in state.channels if channel.state is not ChannelState.CLOSED)
    return Backup(chain=chain, created_at=time.time(), height=state.height, channels=channels, ledgers=state.ledgers)


def read_identity(state_dir: Path) -> Identity:
    """Raises BackupError."""
    try:
        return identities.load(state_dir / IDENTITY_FILE)
    except (OSError, identities.IdentityError) as error:
        raise BackupError(f"no identity in {state_dir}: {error}") from error


def export(state_dir: Path, passphrase: str) -> tuple[bytes, Backup]:
    """The seed and the static channel file of a node, sealed with a passphrase. Raises BackupError and ValueError."""
    identity = read_identity(state_dir)
    try:
        data = (state_dir / CHANNEL_FILE).read_bytes()
    except FileNotFoundError:
        backup = Backup(chain="", created_at=time.time(), height=0)  # it never ran, or without payments
    except OSError as error:
        raise BackupError(str(error)) from error
    else:
        backup = open_with_key(data, channel_file_key(identity))
    whole = msgspec.structs.replace(backup, seed=identity.seed)
    salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
    return seal_with_passphrase(whole, passphrase, salt=salt, nonce=nonce), whole


def open_with_seed(data: bytes, seed: bytes) -> Backup:
    """The static channel file, with the seed that its words say. Raises BackupError."""
    return msgspec.structs.replace(open_with_key(data, channel_file_key(Identity(seed))), seed=seed)


def restore(state_dir: Path, backup: Backup) -> Restored:
    """Puts identity and channels in place, for a node that has none. Raises BackupError, and changes nothing, where
    another identity or any payments database is: that one is newer."""
    identity = Identity(backup.seed)
    store_path = state_dir / STORE_FILE
    if store_path.exists():
        raise BackupError(f"{store_path} is there, and newer than any backup: move it away if it is really lost")
    try:
        if (state_dir / IDENTITY_FILE).exists() and identities.load(state_dir / IDENTITY_FILE) != identity:
            raise BackupError(f"{state_dir / IDENTITY_FILE} is another node's: move it away first")
        identities.create(state_dir / IDENTITY_FILE, identity.seed)
    except (OSError, identities.IdentityError) as error:
        raise BackupError(f"cannot write the identity: {error}") from error
    store = Store.open(store_path)
    try:
        store.apply([*backup.ledgers, *backup.channels, HeightRecord(backup.height)])
        store.load()  # it is what the daemon will see
    except BaseException:
        store.close()
        for name in (STORE_FILE, f"{STORE_FILE}-wal", f"{STORE_FILE}-shm"):
            (state_dir / name).unlink(missing_ok=True)
        raise
    store.close()
    return Restored(identity, len(backup.channels), backup.created_at)
