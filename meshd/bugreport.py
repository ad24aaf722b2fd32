"""What a report of a fault needs, and no secret: `meshctl bugreport`.

Secrets are kept out twice: they are not asked for, and whatever of them were still there is taken out of every part.
"""

from __future__ import annotations

import gzip
import io
import json
import platform
import re
import subprocess
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

from meshd import __version__
from meshd.ctl.client import CallError, call
from meshd.doctor import World, examine

_METHODS = ("status", "neighbours", "tunnels", "routes", "channels", "ledger", "price.show", "budget.show")
_COMMANDS = {
    "addresses.txt": ("ip", "address"),
    "links.txt": ("ip", "-statistics", "-details", "link"),
    "rules.txt": ("ip", "rule"),
    "rules6.txt": ("ip", "-6", "rule"),
    "kernel-routes.txt": ("ip", "route", "show", "table", "all"),
    "kernel-routes6.txt": ("ip", "-6", "route", "show", "table", "all"),
    "nftables.txt": ("nft", "list", "ruleset"),
    "log.txt": ("journalctl", "--unit", "meshd", "--lines", "2000", "--no-pager"),
}
_COMMAND_TIMEOUT = 20.0
_MAX_PART = 4_000_000
_REMOVED = "(removed)"
_SHORTEST_SECRET = 6  # characters; less would be found everywhere
# Keys of the configuration whose values are secret, wherever they stand, comments included.
_SECRET_KEYS = re.compile(r"""(\b(?:key|\w*(?:password|passphrase|secret|seed|token))\s*=\s*)("[^"\n]*"|'[^'\n]*')""")


def gather(config_path: Path, *, socket: str | None = None, timeout: float = 10.0) -> dict[str, bytes]:
    """The parts, by file name. What cannot be had is said in its place."""
    world = World(config_path, socket=socket, timeout=timeout)
    parts: dict[str, str] = {"version.txt": _versions(), "meshd.toml": _configuration(config_path)}
    for method in _METHODS:
        parts[f"{method}.json"] = _answer(world.socket_path, method, timeout)
    for name, argv in _COMMANDS.items():
        parts[name] = _output(argv)
    parts["doctor.json"] = json.dumps([finding.as_dict() for finding in examine(world)], indent=1)
    secrets = sorted(_secrets(world), key=len, reverse=True)
    return {name: _without(text, secrets).encode()[:_MAX_PART] for name, text in parts.items()}


def write(path: Path, parts: dict[str, bytes]) -> None:
    """For nobody but whoever asked. Raises OSError."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, octets in sorted(parts.items()):
            item = tarfile.TarInfo(f"{path.name.partition('.')[0]}/{name}")
            item.size, item.mtime, item.mode = len(octets), int(time.time()), 0o600
            archive.addfile(item, io.BytesIO(octets))
    path.touch(mode=0o600)
    path.write_bytes(gzip.compress(buffer.getvalue()))


def _versions() -> str:
    release = Path("/etc/os-release")
    system = release.read_text(errors="replace") if release.exists() else ""
    return f"meshd {__version__}\nPython {platform.python_version()}\n{' '.join(platform.uname())}\n\n{system}"


def _configuration(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"{path}: {error.strerror}"
    return _SECRET_KEYS.sub(rf'\1"{_REMOVED}"', text)


def _answer(socket: str, method: str, timeout: float) -> str:
    try:
        return json.dumps(call(socket, method, {}, timeout=timeout), indent=1)
    except CallError as error:
        return f"{method}: {error}"


def _output(argv: Iterable[str]) -> str:
    argv = list(argv)
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", check=False, timeout=_COMMAND_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(argv)}: {error}"
    return done.stdout + done.stderr


def _secrets(world: World) -> Iterable[str]:
    """All that we can read: of what we cannot, nothing can have got into the parts by us."""
    config = world.config
    state, chain = config.node.state_dir, config.chain
    files: list[Path | None] = [state / "identity", chain.rpc_cookie, chain.rpc_password_file]
    files += [*state.glob("*seed*"), *state.glob("*.key")]
    found = [_content(path) for path in files]
    found += [key.secret.hex() for interface in config.interfaces for key in interface.mac_keys]
    for text in found:
        for secret in {text, *text.split(), text.rpartition(":")[2]}:
            if len(secret.strip()) >= _SHORTEST_SECRET:
                yield secret.strip()


def _content(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = re.sub(re.escape(secret), _REMOVED, text, flags=re.IGNORECASE)
    return text
