"""What the keys of the configuration file take: how a value is read, and how that is said to people."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from meshd.identity import x25519_public_key
from routing.authentication import MAX_KEYS, MacAlgorithm, MacKey

Prefix = IPv4Network | IPv6Network
NOT_FOR_SALE = 2**32 - 1  # msat per GB; the price that means: carried for nobody
_MAX_PRICE = NOT_FOR_SALE - 1
OUR_PROTOCOL = 66  # rtnetlink's protocol number of the routes that we put into the kernel
_MAX_PAIRS = 32  # the kernel needs a table for each source prefix
# As in /etc/iproute2/rt_protos.
_PROTOCOLS = {
    "kernel": 2,
    "boot": 3,
    "static": 4,
    "ra": 9,
    "zebra": 11,
    "bird": 12,
    "dhcp": 16,
    "babel": 42,
    "bgp": 186,
}


class ConfigError(Exception):
    """The configuration cannot be used. The message names the file, key, value and what was expected."""


class InvalidError(Exception):
    """A value is not what its key takes; the message replaces the standard one when it is not empty."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a key takes: `expected` says it to people, `parse` makes the value or raises InvalidError.

    `schema`: JSON Schema of what may be written; it may allow more than `parse`, never less.
    """

    expected: str
    parse: Callable[[Any], Any]
    schema: Mapping[str, Any] = field(default_factory=dict)
    is_secret: bool = False  # a wrong value must not be shown


_TEXT: Mapping[str, Any] = {"type": "string"}


def _price_or(*words: str) -> Mapping[str, Any]:
    return {"anyOf": [{"enum": list(words)}, {"type": "integer", "minimum": 0, "maximum": _MAX_PRICE}]}


def text(expected: str = "a string", pattern: str = r"[^\0\n]+") -> Kind:
    def parse(raw: Any) -> str:
        if not isinstance(raw, str) or not re.fullmatch(pattern, raw):
            raise InvalidError
        return raw

    return Kind(expected, parse, {"type": "string", "pattern": rf"^(?:{pattern})$"})


def choice(*words: str, not_yet: dict[str, str] | None = None) -> Kind:
    def parse(raw: Any) -> str:
        if isinstance(raw, str) and not_yet and raw in not_yet:
            raise InvalidError(not_yet[raw])
        if raw not in words:
            raise InvalidError
        return str(raw)

    return Kind(" or ".join(f'"{word}"' for word in words), parse, {"enum": list(words)})


def integer(low: int, high: int) -> Kind:
    def parse(raw: Any) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
            raise InvalidError
        return raw

    return Kind(f"an integer from {low} to {high}", parse, {"type": "integer", "minimum": low, "maximum": high})


def seconds(low: float, high: float) -> Kind:
    return _decimal("seconds", low, high)


def share() -> Kind:
    return _decimal("a share", 0, 1)


def megabits(low: float, high: float) -> Kind:
    """A rate."""
    return _decimal("Mbit/s", low, high)


def _decimal(unit: str, low: float, high: float) -> Kind:
    def parse(raw: Any) -> float:
        if not isinstance(raw, int | float) or isinstance(raw, bool) or not low <= raw <= high:
            raise InvalidError
        return float(raw)

    return Kind(f"{unit} from {low:g} to {high:g}", parse, {"type": "number", "minimum": low, "maximum": high})


def boolean() -> Kind:
    def parse(raw: Any) -> bool:
        if not isinstance(raw, bool):
            raise InvalidError
        return raw

    return Kind("true or false", parse, {"type": "boolean"})


def absolute_path() -> Kind:
    def parse(raw: Any) -> Path:
        if not isinstance(raw, str) or "\0" in raw or not Path(raw).is_absolute():
            raise InvalidError
        return Path(raw)

    return Kind("an absolute path", parse, {"type": "string", "pattern": "^/"})


def optional_path() -> Kind:
    path = absolute_path()
    return Kind(
        f'{path.expected}, or "" for none',
        lambda raw: None if raw == "" else path.parse(raw),
        {"type": "string", "pattern": "^(/|$)"},
    )


def fee() -> Kind:
    def parse(raw: Any) -> int:
        if raw == "not for sale":
            return NOT_FOR_SALE
        return int(integer(0, _MAX_PRICE).parse(raw))

    return Kind(f'an integer from 0 to {_MAX_PRICE}, or "not for sale"', parse, _price_or("not for sale"))


def unpriced() -> Kind:
    """What is assumed; None: refused."""

    def parse(raw: Any) -> int | None:
        if raw == "refuse":
            return None
        return 0 if raw == "free" else int(integer(0, _MAX_PRICE).parse(raw))

    return Kind(f'"free", "refuse", or an integer from 0 to {_MAX_PRICE}', parse, _price_or("free", "refuse"))


def prefix() -> Kind:
    def parse(raw: Any) -> Prefix:
        if not isinstance(raw, str):
            raise InvalidError
        try:
            return ip_network(raw)
        except ValueError as error:
            raise InvalidError(f"a prefix: {error}") from error

    return Kind('a prefix, such as "10.1.0.0/24" or "::/0"', parse, _TEXT)


def link_local() -> Kind:
    def parse(raw: Any) -> IPv6Address:
        try:
            address = IPv6Address(raw) if isinstance(raw, str) else None
        except ValueError:
            address = None
        if address is None or not address.is_link_local:
            raise InvalidError
        return address

    return Kind('a link-local address, such as "fe80::1"', parse, _TEXT)


def identity() -> Kind:
    """An Ed25519 public key with which a tunnel can be had."""
    digits = text(pattern=r"[0-9a-fA-F]{64}")

    def parse(raw: Any) -> bytes:
        found = bytes.fromhex(digits.parse(raw))
        try:
            x25519_public_key(found)
        except ValueError as error:
            raise InvalidError(f"an identity: {error}") from error
        return found

    return Kind("an identity: 64 hexadecimal digits, as meshctl status shows it", parse, digits.schema)


def endpoint() -> Kind:
    """(name or address, port); None: there is none."""

    def parse(raw: Any) -> tuple[str, int] | None:
        if raw == "":
            return None
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([A-Za-z0-9._-]{1,253})):([0-9]{1,5})", str(raw))
        if not isinstance(raw, str) or found is None or not 1 <= int(found[3]) <= 65535:
            raise InvalidError
        host = found[1] or found[2]
        try:
            address = ip_address(host)
        except ValueError:
            if found[1] or re.fullmatch(r"[0-9.]+", host):  # an address that is none
                raise InvalidError from None
            return host, int(found[3])
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            raise InvalidError("an address that can be reached from afar; those on the same link are found by beacons")
        return host, int(found[3])

    expected = 'a name or an address with a port, such as "gw.example.org:51820" or "[2001:db8::1]:51820"'
    return Kind(expected, parse, _TEXT)


def router_id() -> Kind:
    octets = text(pattern=r"([0-9a-fA-F]{2}:){7}[0-9a-fA-F]{2}")
    expected = 'a router-id, such as "02:00:5e:00:53:00:00:01"'
    return Kind(expected, lambda raw: bytes.fromhex(octets.parse(raw).replace(":", "")), octets.schema)


def protocol() -> Kind:
    def parse(raw: Any) -> int:
        if isinstance(raw, str) and raw in _PROTOCOLS:
            return _PROTOCOLS[raw]
        number = int(integer(1, 255).parse(raw))
        if number == OUR_PROTOCOL:
            raise InvalidError(f"another than our own ({OUR_PROTOCOL}), whose routes are never announced again")
        return number

    schema = {"anyOf": [{"enum": list(_PROTOCOLS)}, {"type": "integer", "minimum": 1, "maximum": 255}]}
    return Kind(f"a number from 1 to 255, or {', '.join(_PROTOCOLS)}", parse, schema)


def prefixes() -> Kind:
    def parse(raw: Any) -> tuple[Prefix, ...]:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise InvalidError
        try:
            return tuple(ip_network(item) for item in raw)
        except ValueError as error:
            raise InvalidError(f"a list of prefixes: {error}") from error

    return Kind('a list of prefixes, such as ["10.1.0.0/24", "fd00::/48"]', parse, {"type": "array", "items": _TEXT})


def urls() -> Kind:
    def parse(raw: Any) -> tuple[str, ...]:
        if not isinstance(raw, list) or not all(
            isinstance(item, str) and re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", item) for item in raw
        ):
            raise InvalidError
        return tuple(raw)

    expected = 'a list of addresses, such as ["https://mempool.space/api", "https://blockstream.info/api"]'
    return Kind(expected, parse, {"type": "array", "items": _TEXT})


def pairs() -> Kind:
    """(prefix, source prefix), each written "PREFIX from PREFIX"."""
    expected = 'a list such as ["::/0 from 2001:db8:1::/48"]'

    def parse_one(raw: str) -> tuple[Prefix, Prefix]:
        left, _, right = raw.partition(" from ")
        prefix, source_prefix = ip_network(left.strip()), ip_network(right.strip())
        if prefix.version != source_prefix.version or source_prefix.prefixlen == 0:
            raise InvalidError(f"{expected}: both of one family, and not from everywhere")
        return prefix, source_prefix

    def parse(raw: Any) -> tuple[tuple[Prefix, Prefix], ...]:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw) or len(raw) > _MAX_PAIRS:
            raise InvalidError
        try:
            return tuple(parse_one(item) for item in raw)
        except ValueError as error:
            raise InvalidError(f"{expected}: {error}") from error

    return Kind(expected, parse, {"type": "array", "items": _TEXT, "maxItems": _MAX_PAIRS})


def key(kind: Kind, doc: str, default: Any = dataclasses.MISSING, example: Any = None) -> Any:
    return field(default=default, metadata={"kind": kind, "doc": doc, "example": example})


def one_of(kinds: type[Enum]) -> Kind:
    words = choice(*(kind.value for kind in kinds))
    return Kind(words.expected, lambda raw: kinds(words.parse(raw)), words.schema)


def mac_keys() -> Kind:
    """Secrets: no message says anything of them but what is wrong."""
    algorithms = choice(*(algorithm.value for algorithm in MacAlgorithm))

    def parse_one(raw: Any) -> MacKey:
        if not isinstance(raw, dict) or set(raw) not in ({"algorithm", "key"}, {"algorithm", "file"}):
            raise InvalidError('each key to be { algorithm = "...", key = "..." }, or with file instead of key')
        try:
            algorithm = MacAlgorithm(algorithms.parse(raw["algorithm"]))
        except InvalidError:
            raise InvalidError(f"algorithm to be {algorithms.expected}") from None
        digits = raw["key"] if "key" in raw else _read_secret(absolute_path().parse(raw["file"]))
        try:
            return MacKey(algorithm, bytes.fromhex(digits))
        except (TypeError, ValueError):
            raise InvalidError(f"1 to {algorithm.key_max} octets in hexadecimal for {algorithm.value}") from None

    def parse(raw: Any) -> tuple[MacKey, ...]:
        if not isinstance(raw, list) or len(raw) > MAX_KEYS:
            raise InvalidError
        return tuple(parse_one(item) for item in raw)

    example = '{ algorithm = "hmac-sha256", key = "00112233445566778899aabbccddeeff" }'
    one = {"type": "object", "properties": {"algorithm": algorithms.schema, "key": _TEXT, "file": _TEXT}}
    schema = {"type": "array", "maxItems": MAX_KEYS, "items": {**one, "required": ["algorithm"]}}
    return Kind(f"a list of up to {MAX_KEYS} keys, such as [{example}]", parse, schema, is_secret=True)


def _read_secret(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path} to hold a key: {getattr(error, 'strerror', None) or 'not text'}") from None


def nearest(name: str, known: Any) -> str:
    """Names the nearest known word in the message; all of them when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(known)}"
