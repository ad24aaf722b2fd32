"""Backups: words, a file with everything, and back. They look at the node's files, and need no daemon."""

from __future__ import annotations

import argparse
import getpass
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from meshd import schemas
from meshd.ctl.command import CallError, Command, Context, UsageError
from meshd.ctl.text import Record, Style

if TYPE_CHECKING:
    from payments.backup import Backup

GROUPS = {"backup": "Save what a node cannot do without, and bring it back."}
DEFAULT_STATE_DIR = Path("/var/lib/meshd")


def _state_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        default=DEFAULT_STATE_DIR,
        help=f"where the node keeps its state (default {DEFAULT_STATE_DIR})",
    )


def _passphrase_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passphrase-file", metavar="FILE", type=Path, help="its first line is the passphrase; asked for otherwise"
    )


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="what to make; it must not be there yet")
    _state_argument(parser)
    _passphrase_argument(parser)


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="of `backup export`, or channels.backup")
    _state_argument(parser)
    _passphrase_argument(parser)
    parser.add_argument(
        "--words-file", metavar="FILE", type=Path, help="the 24 words, for channels.backup or without any file"
    )


def _restore_question(options: argparse.Namespace) -> str:
    return (
        f"Make {options.state_dir} the node of this backup? The same node must run nowhere else, and this one must be"
        " stopped. What was paid since is learnt from the neighbours."
    )


def _words_question(options: argparse.Namespace) -> str:  # noqa: ARG001  a question like the others
    return "Show the words? Whoever reads them has all the money of this node."


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CallError("error", f"{path}: {error.strerror}") from error


def _passphrase(context: Context, *, anew: bool) -> str:
    options = context.options
    if options.passphrase_file is not None:
        return _read(options.passphrase_file).decode("utf-8", "replace").split("\n")[0].rstrip("\r")
    if options.json or not sys.stdin.isatty():
        raise UsageError("add --passphrase-file")
    passphrase = getpass.getpass("passphrase: ", sys.stderr)
    if anew and getpass.getpass("again: ", sys.stderr) != passphrase:
        raise UsageError("the two are not the same")
    return passphrase


def _export(context: Context) -> Record:
    from meshd import backup as backups  # noqa: PLC0415  the libraries of payments are slow to load
    from payments.backup import BackupError  # noqa: PLC0415

    options = context.options
    if options.file.exists():
        raise CallError("error", f"{options.file} is there already")
    try:
        data, backup = backups.export(options.state_dir, _passphrase(context, anew=True))
        backups.write_private(options.file, data)
    except (BackupError, ValueError, OSError) as error:
        raise CallError("error", str(error)) from error
    return {"file": str(options.file), **_summary(backup)}


def _summary(backup: Backup) -> Record:
    from meshd.identity import Identity  # noqa: PLC0415

    identity = Identity(backup.seed)
    return {
        "identity": identity.public_key.hex(),
        "address": str(identity.address),
        "channels": len(backup.channels),
        "height": backup.height,
        "created_at": datetime.fromtimestamp(backup.created_at, UTC).isoformat(timespec="seconds"),
    }


def _restore(context: Context) -> Record:
    from meshd import backup as backups  # noqa: PLC0415
    from payments.adapters.store import StoreError  # noqa: PLC0415
    from payments.backup import BackupError  # noqa: PLC0415

    try:
        backup = _opened(context)
        backups.restore(context.options.state_dir, backup)
    except (BackupError, StoreError, OSError) as error:
        raise CallError("error", str(error)) from error
    return {"file": None if context.options.file is None else str(context.options.file), **_summary(backup)}


def _opened(context: Context) -> Backup:
    from meshd import backup as backups  # noqa: PLC0415
    from payments.backup import Backup, open_with_passphrase, seed_of  # noqa: PLC0415

    options = context.options
    if options.words_file is not None:
        seed = seed_of(_read(options.words_file).decode("utf-8", "replace"))
        if options.file is None:
            return Backup(chain="", created_at=0.0, height=0, seed=seed)
        return backups.open_with_seed(_read(options.file), seed)
    if options.file is None:
        raise UsageError("which backup? FILE, --words-file, or both")
    return open_with_passphrase(_read(options.file), _passphrase(context, anew=False))


def _words(context: Context) -> Record:
    from meshd import backup as backups  # noqa: PLC0415
    from payments.backup import BackupError, words_of  # noqa: PLC0415

    try:
        identity = backups.read_identity(context.options.state_dir)
    except BackupError as error:
        raise CallError("not_found", str(error)) from error
    return {"words": words_of(identity.seed), "address": str(identity.address)}


def _exported(result: Record, style: Style) -> str:  # noqa: ARG001  a renderer like the others
    return f"{result['file']}: {result['address']}, {result['channels']} channels, as of {result['created_at']}"


def _restored(result: Record, style: Style) -> str:  # noqa: ARG001
    return (
        f"{result['address']} is back, with {result['channels']} channels, as of {result['created_at']}.\n"
        "Start it where its neighbours are: they know what was paid since."
    )


def _shown_words(result: Record, style: Style) -> str:  # noqa: ARG001
    words = result["words"].split()
    lines = [" ".join(f"{n + 1:>2} {words[n]:<10}" for n in range(row, row + 6)) for row in range(0, len(words), 6)]
    return "\n".join([f"the words of {result['address']}:", *[line.rstrip() for line in lines]])


_SUMMARY = schemas.record(
    file=schemas.nullable(schemas.text("what was written or read")),
    identity=schemas.IDENTITY,
    address=schemas.ADDRESS,
    channels=schemas.COUNT,
    height=schemas.COUNT,
    created_at=schemas.text("of the channels in it, ISO 8601"),
)
COMMANDS = (
    Command(
        words="backup export",
        help="Make one file of the node's seed and channels, sealed with a passphrase.",
        example="meshctl backup export node.backup",
        result=_SUMMARY,
        render=_exported,
        run=_export,
        arguments=_export_arguments,
    ),
    Command(
        words="backup restore",
        help="Make the state directory of a stopped daemon the node of a backup.",
        example="meshctl backup restore node.backup",
        result=_SUMMARY,
        render=_restored,
        run=_restore,
        arguments=_restore_arguments,
        question=_restore_question,
    ),
    Command(
        words="backup words",
        help="Show the node's seed as 24 words (BIP39), to be written down.",
        example="meshctl backup words",
        result=schemas.record(words=schemas.text("24, with a space between them"), address=schemas.ADDRESS),
        render=_shown_words,
        run=_words,
        arguments=_state_argument,
        question=_words_question,
    ),
)
