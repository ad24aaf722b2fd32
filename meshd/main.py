"""`meshd`: run a node, check a configuration, print an example of one, clean the kernel after a crash."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from meshd import __version__, logs, radio_command
from meshd.config import Config, ConfigError, load
from meshd.config_reference import example_config
from meshd.control import ControlError
from meshd.daemon import Daemon, running
from meshd.identity import IdentityError, load_or_create
from meshd.kernel import KernelConfig, KernelInUseError, NetlinkError, NftError, clean
from meshd.kernel.wireguard import WireGuardError
from meshd.service import ServiceManager
from meshd.session import SessionError
from payments.adapters.store import StoreError

DEFAULT_CONFIG = Path("/etc/meshd/meshd.toml")
EXIT_ERROR, EXIT_USAGE = 1, 2
log = logs.Logger("meshd")

# What a person can mend; anything else is a fault of ours and comes with a traceback.
EXPECTED = (
    IdentityError,
    ControlError,
    SessionError,
    StoreError,
    KernelInUseError,
    NetlinkError,
    NftError,
    WireGuardError,
    OSError,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meshd",
        description="A node of a mesh in which every hop is paid.",
        epilog="Example: meshd example > /etc/meshd/meshd.toml; meshd check; sudo meshd run",
    )
    parser.add_argument("--version", action="version", version=f"meshd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("run", "run the node in the foreground, until SIGINT or SIGTERM; SIGHUP is `meshctl reload`"),
        ("check", "read the configuration and say what is wrong with it"),
        ("clean", "remove from the kernel what a killed daemon left; `run` does it too"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"TOML file (default {DEFAULT_CONFIG})"
        )
        if name == "run":
            command.add_argument(
                "--record",
                type=Path,
                metavar="FILE",
                help="append to FILE all that goes into and out of the routing engine, for tools/replay (the same as "
                "`record` in [node], which this overrides)",
            )
            command.add_argument(
                "--record-max-mb", type=_megabytes, metavar="MB", help="end the recording at this size (default 256)"
            )
    radio_command.add_parser(commands)
    commands.add_parser("example", help="print a configuration with every key explained")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok, 1 error, 2 wrong usage or configuration."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "example":
        sys.stdout.write(example_config())
        return 0
    if arguments.command == "radio":
        return radio_command.main(arguments)
    try:
        config = load(arguments.config)
    except ConfigError as error:
        print(f"meshd: {error}", file=sys.stderr)
        return EXIT_USAGE
    if arguments.command == "run":
        config = _with_recording(config, arguments.record, arguments.record_max_mb)
    if arguments.command == "check":
        print(f"{arguments.config}: ok")
        return 0
    logs.set_up(config.node.log_level, config.node.log_format)
    command = partial(_clean, config) if arguments.command == "clean" else partial(_run, config, arguments.config)
    try:
        trio.run(command)
    except EXPECTED as error:
        return _stopped([error])
    except BaseExceptionGroup as group:
        expected, unexpected = group.split(EXPECTED)
        if unexpected is not None:
            raise
        return _stopped(_leaves(expected))
    return 0


def _megabytes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of megabytes from 1 to 1000000")
    return int(text)


def _with_recording(config: Config, file: Path | None, max_mb: int | None) -> Config:
    """What the command line says goes before the configuration."""
    node = config.node
    if file is not None:
        node = replace(node, record=file.absolute())
    if max_mb is not None:
        node = replace(node, record_max_mb=max_mb)
    return replace(config, node=node)


def _stopped(errors: Sequence[BaseException]) -> int:
    for error in errors:
        log.error("stopped", reason=f"{type(error).__name__}: {error}")
    return EXIT_ERROR


def _leaves(error: BaseException | None) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [] if error is None else [error]


async def _run(config: Config, path: Path) -> None:
    config.node.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = load_or_create(config.node.state_dir / "identity")
    manager = ServiceManager(os.environ)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with running(config, identity, path) as daemon, trio.open_nursery() as nursery:
            nursery.start_soon(manager.feed_watchdog)
            manager.ready(f"{config.node.name} {identity.address}")
            async for number in signals:
                if number == signal.SIGHUP:
                    manager.reloading()
                    await _reload(daemon)
                    manager.ready(f"{config.node.name} {identity.address}")
                    continue
                log.info("stopping", signal=signal.Signals(number).name)
                manager.stopping()
                break
            nursery.cancel_scope.cancel()


async def _reload(daemon: Daemon) -> None:
    try:
        await daemon.reload()
    except ConfigError as error:
        log.error("configuration not read, nothing has changed", reason=error)


async def _clean(config: Config) -> None:
    await clean(KernelConfig(record_path=config.node.state_dir / "kernel.json", table=config.routing.table))


if __name__ == "__main__":
    sys.exit(main())
