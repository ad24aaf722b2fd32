"""`meshctl config`: make, check, look up and change the configuration file, and have the daemon read it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from meshd import schemas
from meshd.ctl import render
from meshd.ctl.command import CallError, Command, Context, UsageError
from meshd.ctl.text import Record, Style

GROUPS = {"config": "Make, check, look up and change the configuration file."}
DEFAULT_CONFIG = "/etc/meshd/meshd.toml"
_SET = schemas.record(file=schemas.text(), key=schemas.text(), value={}, given=schemas.boolean("it stands in the file"))
_CHECKED = schemas.record(
    file=schemas.text(), interfaces=schemas.array(schemas.text()), peers=schemas.array(schemas.text())
)
_KINDS, _SECURITIES = ("wired", "wireless", "tunnel"), ("wireguard", "none")
_BACKENDS = ("kernel", "bitcoind")
_NETWORKS = ("regtest", "signet", "test")


def _file_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=Path(DEFAULT_CONFIG), metavar="FILE", help=f"the file ({DEFAULT_CONFIG})"
    )


def _read(path: Path) -> str:
    """Raises CallError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CallError("not_found", f"there is no {path}; meshctl config init makes one") from None
    except PermissionError:
        raise CallError("denied", f"no permission to read {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CallError("error", f"{path}: {error}") from error


def _write(path: Path, text: str) -> None:
    from meshd import config_edit  # noqa: PLC0415  the daemon's libraries: no other command has need of them

    try:
        config_edit.write(path, text)
    except PermissionError:
        raise CallError("denied", f"no permission to write {path}") from None
    except OSError as error:
        raise CallError("error", f"{path}: {error.strerror}") from error


def _check(context: Context) -> Record:
    from meshd.config import ConfigError, parse  # noqa: PLC0415

    path = context.options.config
    text = _read(path)
    try:
        config = parse(text)
    except ConfigError as error:
        raise CallError("error", f"{path}: {error}") from error
    names = [interface.name for interface in config.interfaces]
    return {"file": str(path), "interfaces": names, "peers": [peer.name for peer in config.peers]}


def _checked(result: Record, style: Style) -> str:
    where = ", ".join([*result["interfaces"], *result["peers"]]) or style.paint("no interface and no peer", "yellow")
    return f"{result['file']}: ok ({where})"


def _get_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="as routing.hello_interval, or interface.wlan0.cost")
    _file_argument(parser)


def _get(context: Context) -> Record:
    from meshd import config_edit  # noqa: PLC0415
    from meshd.config import ConfigError  # noqa: PLC0415

    path, key = context.options.config, context.options.key
    text = _read(path)
    try:
        place = config_edit.find(key, text)
        value, is_given = config_edit.value_of(place, text)
    except config_edit.NoSuchKeyError as error:
        raise CallError("not_found", str(error)) from error
    except ConfigError as error:
        raise CallError("error", f"{path}: {error}") from error
    if place.kind.is_secret and is_given:
        value = "(not shown)"
    return {"file": str(path), "key": key, "value": value, "given": is_given}


def _set_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="as routing.hello_interval, or interface.wlan0.cost")
    parser.add_argument("value", metavar="VALUE", help="as in TOML; a bare word is a string")
    _file_argument(parser)


def _set(context: Context) -> Record:
    from meshd import config_edit  # noqa: PLC0415
    from meshd.config import ConfigError  # noqa: PLC0415

    path = context.options.config
    text = _read(path)
    try:
        place = config_edit.find(context.options.key, text)
        made = config_edit.changed(place, context.options.value, text)
    except config_edit.NoSuchKeyError as error:
        raise CallError("not_found", str(error)) from error
    except ConfigError as error:
        raise CallError("usage", str(error)) from error
    _write(path, made)
    context.say("meshctl config reload has a running daemon read it")
    return _get(context)


def _value(result: Record, style: Style) -> str:
    shown = result["value"] if isinstance(result["value"], str) else json.dumps(result["value"])
    return shown if result["given"] else f"{shown} {style.paint('(by default)', 'dim')}"


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interface",
        metavar="NAME[:KIND[:SECURITY]]",
        action="append",
        type=_interface,
        help=f"to reach neighbours over; {', '.join(_KINDS)}; {' or '.join(_SECURITIES)}. As often as there are some",
    )
    parser.add_argument("--name", help="what the node is called (its host name)")
    parser.add_argument("--announce", metavar="PREFIX", action="append", help="reached through this node")
    parser.add_argument("--fee", metavar="MSAT_PER_GB", type=int, help="asked for carrying; 1000000 is 1 sat/MB")
    parser.add_argument("--no-payments", action="store_true", help="carry for nothing, and pay nobody")
    parser.add_argument("--chain", choices=_BACKENDS, help="where blocks come from")
    parser.add_argument("--network", choices=_NETWORKS, help="which chain")
    parser.add_argument("--output", type=Path, default=Path(DEFAULT_CONFIG), metavar="FILE", help=DEFAULT_CONFIG)
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def _interface(text: str) -> dict[str, str]:
    name, kind, security = (*text.split(":"), "", "")[:3]
    if kind not in ("", *_KINDS) or security not in ("", *_SECURITIES) or text.count(":") > 2:
        raise argparse.ArgumentTypeError(f"expected NAME, NAME:KIND or NAME:KIND:SECURITY, not {text!r}")
    kind = kind or _guess(name)
    return {"name": name, "kind": kind, **({"security": security} if security else {})}


def _guess(interface: str) -> str:
    return "wireless" if Path(f"/sys/class/net/{interface}/phy80211").exists() else "wired"


def _init(context: Context) -> Record:
    from meshd.config import ConfigError, parse  # noqa: PLC0415
    from meshd.config_reference import example_config  # noqa: PLC0415

    options = context.options
    if options.network not in (None, "regtest") and options.chain is None:
        options.chain = "bitcoind"  # the embedded chain is one for tests
    if options.output.exists() and not options.force:
        raise CallError("error", f"{options.output} is there; --force replaces it")
    if not options.interface:
        _interview(context)
    values: dict[str, list[dict[str, Any]]] = {
        "node": [{} if options.name is None else {"name": options.name}],
        "interface": options.interface,
        "routing": [{"announce": options.announce} if options.announce else {}],
        "price": [{} if options.fee is None else {"fee_msat_per_gb": options.fee}],
        "payments": [{"enabled": False} if options.no_payments else {}],
        "chain": [{key: word for key, word in (("backend", options.chain), ("network", options.network)) if word}],
    }
    text = example_config(values)
    try:
        parse(text)
    except ConfigError as error:
        raise CallError("usage", str(error)) from error
    options.output.parent.mkdir(parents=True, exist_ok=True)
    _write(options.output, text)
    options.config = options.output
    return _check(context)


def _interview(context: Context) -> None:
    """Asks what was not said. Raises UsageError where nobody can answer."""
    options = context.options
    if options.json or not sys.stdin.isatty():
        raise UsageError("which interfaces? --interface wlan0:wireless, or run it in a terminal to be asked")
    there = sorted(path.name for path in Path("/sys/class/net").iterdir() if path.name != "lo")
    context.say(f"This machine has the interfaces {', '.join(there) or '(none)'}.")
    names = _ask(context, "Which of them reach neighbours?", " ".join(there[:1])).split()
    options.interface = []
    for name in names:
        kind = _ask(context, f"What is {name} ({', '.join(_KINDS)})?", _guess(name))
        trusted = _ask(context, f"Is everybody on {name} trusted (no WireGuard)?", "no")
        security = "none" if trusted.lower().startswith("y") else "wireguard"
        options.interface.append(_interface(f"{name}:{kind}:{security}"))
    options.name = options.name or _ask(context, "What is this node called?", _host_name())
    if options.fee is None and not options.no_payments:
        paid = _ask(context, "Is carrying to be paid?", "yes")
        options.no_payments = not paid.lower().startswith("y")
    if options.fee is None and not options.no_payments:
        sat = _ask(context, "Fee for carrying, in sat per MB?", "0.1")
        try:
            options.fee = round(float(sat) * 1_000_000)
        except ValueError:
            raise UsageError(f"{sat!r} is not a number") from None
        options.network = options.network or _ask(context, f"Which chain ({', '.join(_NETWORKS)})?", _NETWORKS[0])
        options.chain = options.chain or ("kernel" if options.network == "regtest" else "bitcoind")


def _ask(context: Context, question: str, default: str) -> str:
    print(f"{question} [{default}] ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        context.say("")
        raise UsageError("not finished")
    return line.strip() or default


def _host_name() -> str:
    import socket  # noqa: PLC0415

    return socket.gethostname().split(".")[0][:63] or "meshd"


def _schema(context: Context) -> Any:  # noqa: ARG001
    from meshd.config_reference import json_schema  # noqa: PLC0415

    return json_schema()


COMMANDS = (
    Command(
        words="config init",
        help="Make a configuration file, by asking or from options.",
        example="meshctl config init --interface wlan0:wireless --fee 100000",
        result=_CHECKED,
        render=_checked,
        run=_init,
        arguments=_init_arguments,
    ),
    Command(
        words="config check",
        help="Say what is wrong with a configuration file.",
        example="meshctl config check --config meshd.toml",
        result=_CHECKED,
        render=_checked,
        run=_check,
        arguments=_file_argument,
    ),
    Command(
        words="config get",
        help="What a key of the configuration file has, or has by default.",
        example="meshctl config get routing.hello_interval",
        result=_SET,
        render=_value,
        run=_get,
        arguments=_get_arguments,
    ),
    Command(
        words="config set",
        help="Change a key of the configuration file, and leave all the rest as it is.",
        example="meshctl config set interface.wlan0.cost 256",
        result=_SET,
        render=_value,
        run=_set,
        arguments=_set_arguments,
    ),
    Command(
        words="config reload",
        help="Have the daemon read the file anew, without dropping a link or a payment.",
        example="meshctl config reload",
        method="reload",
        result=schemas.RELOADED,
        render=render.reloaded,
    ),
    Command(
        words="config schema",
        help="The JSON Schema of the configuration file, for editors and programs.",
        example="meshctl config schema",
        result={"type": "object", "description": "a JSON Schema, draft 2020-12"},
        render=lambda result, _: json.dumps(result, indent=1),
        run=_schema,
    ),
)
