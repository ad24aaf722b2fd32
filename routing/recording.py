"""Recordings of a speaker (docs/replay.md): every input with its time, and every output, a line of JSON for each input.

What is written follows from the dataclasses of `routing.events`, `routing.tlv` and `routing.config` alone: a new event
or field is recorded without a change here. The header names the fields of each class, so that a line needs none.

    {"recording": 1, "origin": {...}, "now": 5.0, "seed": 7, "config": [...], "classes": {"Hello": ["seqno", ...], ...}}
    {"at": 5.1, "in": ["ReceivedPacket", "eth0", ...], "out": [["SendPacket", ...], ...]}

No file is touched here: the caller writes the lines and reads them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from routing.config import SpeakerConfig
from routing.events import Input, Output
from routing.speaker import Speaker

FORMAT = 1
INPUTS: tuple[type, ...] = typing.get_args(Input)
OUTPUTS: tuple[type, ...] = typing.get_args(Output)
_ADDRESSES = frozenset({IPv4Address, IPv6Address})
_NETWORKS = frozenset({IPv4Network, IPv6Network})

Write = Callable[[str], bool]


class RecordingError(ValueError):
    """The text is no recording, is damaged, or says what this version does not know."""


# -- writing


def encode(value: object) -> Any:
    """As plain JSON values. Raises TypeError for what an input or output must not hold."""
    kind = type(value)
    encoder = _ENCODERS.get(kind)
    if encoder is None:
        encoder = _ENCODERS[kind] = _encoder(kind)
    return encoder(value)


def _encoder(kind: type) -> Callable[[Any], Any]:
    if dataclasses.is_dataclass(kind):
        tag, names = kind.__name__, tuple(item.name for item in dataclasses.fields(kind))
        return lambda value: [tag, *[encode(getattr(value, name)) for name in names]]
    if issubclass(kind, Enum):
        return lambda value: value.name
    if issubclass(kind, tuple(_ADDRESSES | _NETWORKS)):
        return str
    raise TypeError(f"{kind.__name__} cannot be recorded")


def _same(value: object) -> object:
    return value


def _encode_float(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no infinity


_ENCODERS: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((types.NoneType, bool, int, str), _same),
    **dict.fromkeys((*_ADDRESSES, *_NETWORKS), str),
    float: _encode_float,
    bytes: bytes.hex,
    tuple: lambda value: [encode(item) for item in value],
}


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def event_line(event: Input, outputs: Sequence[Output], *, now: float) -> str:
    return _line({"at": now, "in": encode(event), "out": [encode(output) for output in outputs]})


def failure_line(event: Input, error: Exception, *, now: float) -> str:
    """The input that made the engine raise, which is a fault of ours."""
    return _line({"at": now, "in": encode(event), "raised": describe_error(error)})


def describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class RecordedSpeaker(Speaker):
    """Says all that goes in and comes out to `write`, line by line, until that returns False.

    Each line is written before the outputs are returned: what anybody acted on has been recorded. `origin` says in
    words where the recording comes from. The random numbers come from `seed`, which is recorded: it is no secret.
    """

    def __init__(
        self, config: SpeakerConfig, *, seed: int | str, now: float, write: Write, origin: Mapping[str, str]
    ) -> None:
        super().__init__(config, rng=_rng(seed), now=now)
        self._write: Write | None = write
        header = {"recording": FORMAT, "origin": dict(origin), "now": now, "seed": seed}
        self._record(lambda: _line(header | {"config": encode(config), "classes": known_classes()}))

    def handle(self, event: Input, *, now: float) -> list[Output]:
        try:
            outputs = super().handle(event, now=now)
        except Exception as error:
            reason = error
            self._record(lambda: failure_line(event, reason, now=now))
            raise
        self._record(lambda: event_line(event, outputs, now=now))
        return outputs

    def _record(self, line: Callable[[], str]) -> None:
        if self._write is not None and not self._write(line()):
            self._write = None


def _rng(seed: int | str) -> random.Random:
    return random.Random(seed)  # noqa: S311  jitter


# -- reading


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """How a recorded speaker began."""

    origin: dict[str, str]
    now: float
    seed: int | str
    config: SpeakerConfig
    decoder: Decoder

    def speaker(self) -> Speaker:
        """A new one, as it was at the start of the recording."""
        return Speaker(self.config, rng=_rng(self.seed), now=self.now)


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One line. `raised`: the engine failed on the input; there are no outputs then.

    `Decoder.outputs` reads the outputs: whoever makes the same line of them again need not.
    """

    at: float
    input: Input
    raw_outputs: tuple[Any, ...]
    raised: str | None


def is_header(line: str) -> bool:
    return line.startswith('{"recording":')


def read_header(line: str) -> Header:
    """Raises RecordingError."""
    record = _json_object(line)
    if "recording" not in record:
        raise RecordingError("not a recording of meshd")
    if record["recording"] != FORMAT:
        raise RecordingError(f"a recording of format {record['recording']}; this version reads format {FORMAT}")
    try:
        classes = {str(name): [str(item) for item in fields] for name, fields in record["classes"].items()}
        decoder = Decoder(classes)
        config = decoder.decode(record["config"], SpeakerConfig)
        seed, now = record["seed"], float(record["now"])
        if not isinstance(seed, int | str):
            raise TypeError("the seed is neither number nor text")
        origin = {str(name): str(value) for name, value in record["origin"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(error) from error
    return Header(origin, now, seed, config, decoder)


def read_event(line: str, decoder: Decoder) -> Event:
    """Raises RecordingError."""
    record = _json_object(line)
    try:
        event = decoder.decode(record["in"], Input)
        raised = record.get("raised")
        outputs = () if raised is not None else tuple(record["out"])
        return Event(float(record["at"]), event, outputs, None if raised is None else str(raised))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> RecordingError:
    return error if isinstance(error, RecordingError) else RecordingError(f"damaged ({describe_error(error)})")


def _json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordingError("not a line of a recording") from error
    if not isinstance(record, dict):
        raise RecordingError("not a line of a recording")
    return record


_Decode = Callable[[Any], Any]


class Decoder:
    """Makes values from what `encode` made of them, by the types that the dataclasses declare.

    `classes` are the fields as the recording has them. What it lacks takes its default; what only it has is an error,
    for the engine cannot be given what it does not know.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        self._fields: dict[str, list[tuple[str, _Decode]]] = {}
        self._class_by_name = _reachable()
        self._by_hint: dict[Any, _Decode] = {}
        for name, fields in classes.items():
            if name not in self._class_by_name:
                continue  # known to another version; an error where one is used
            hints = typing.get_type_hints(self._class_by_name[name])
            for item in fields:
                if item not in hints:
                    raise RecordingError(f"recorded by another version: {name} has a field '{item}' unknown here")
            self._fields[name] = [(item, self._decoder(hints[item])) for item in fields]

    def decode(self, raw: Any, hint: Any) -> Any:
        """Raises TypeError, ValueError or KeyError for what is not of that type."""
        return self._decoder(hint)(raw)

    def outputs(self, event: Event) -> list[Output]:
        """Raises RecordingError."""
        try:
            return [self.decode(raw, Output) for raw in event.raw_outputs]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(error) from error

    def _decoder(self, hint: Any) -> _Decode:
        if hint not in self._by_hint:
            self._by_hint[hint] = self._build(hint)
        return self._by_hint[hint]

    def _build(self, hint: Any) -> _Decode:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments)
        if origin is tuple and arguments[-1] is Ellipsis:
            item = arguments[0]
            return lambda raw: tuple(map(self._decoder(item), _a(list, raw)))
        if origin is tuple:
            parts = arguments
            return lambda raw: tuple(self._decoder(part)(value) for part, value in zip(parts, raw, strict=True))
        if dataclasses.is_dataclass(hint):
            return self._union((hint,))
        if isinstance(hint, type) and issubclass(hint, Enum):
            kind = hint
            return lambda raw: kind[raw]
        return _SCALARS[hint]

    def _union(self, members: Sequence[Any]) -> _Decode:
        """Dataclasses carry their name; of the rest, only one may be written as text."""
        names = {_name(member) for member in members if dataclasses.is_dataclass(member)}
        others = [member for member in members if not dataclasses.is_dataclass(member)]
        as_text = [member for member in others if member not in (types.NoneType, bool, int, float)]
        if len(as_text) > 1 and not set(as_text) <= _ADDRESSES | _NETWORKS:
            raise TypeError(f"a recording cannot tell these apart: {members}")

        def decode(raw: Any) -> Any:
            if raw is None and types.NoneType in others:
                return None
            if isinstance(raw, list) and raw and raw[0] in names:
                return self._object(raw)
            if names and isinstance(raw, list) and raw and raw[0] not in self._class_by_name:
                raise RecordingError(f"recorded by another version: '{str(raw[0])[:80]}' is unknown here")
            for member in others:
                try:
                    return self._decoder(member)(raw)
                except (TypeError, ValueError, KeyError):
                    continue
            raise TypeError(f"{str(raw)[:80]} is none of {', '.join(map(_name, members))}")

        return decode

    def _object(self, raw: list[Any]) -> Any:
        name, *values = raw
        fields = self._fields.get(name)
        if fields is None:
            raise TypeError(f"the header does not say what a {name} has")
        pairs = zip(fields, values, strict=True)
        return self._class_by_name[name](**{item: decode(value) for (item, decode), value in pairs})


def _name(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint))


def _a(kind: type, raw: Any) -> Any:
    """Exactly that type: True is no number here."""
    if type(raw) is not kind:
        raise TypeError(f"{str(raw)[:80]} is no {kind.__name__}")
    return raw


def _address(kind: type, raw: Any) -> Any:
    return _a(kind, ip_address(_a(str, raw)))


def _network(kind: type, raw: Any) -> Any:
    return _a(kind, ip_network(_a(str, raw)))


def _float(raw: Any) -> float:
    if raw in ("inf", "-inf", "nan"):
        return float(raw)
    return raw if type(raw) is int else float(_a(float, raw))  # 96 where 96.0 would do stays what it was


def _bytes(raw: Any) -> bytes:
    return bytes.fromhex(_a(str, raw))


_SCALARS: dict[Any, _Decode] = {
    **{kind: partial(_a, kind) for kind in (bool, int, str, types.NoneType)},
    **{kind: partial(_address, kind) for kind in _ADDRESSES},
    **{kind: partial(_network, kind) for kind in _NETWORKS},
    float: _float,
    bytes: _bytes,
}


def _reachable() -> dict[str, type]:
    """The dataclasses that inputs, outputs and the configuration are made of, by name."""
    found: dict[str, type] = {}

    def visit(hint: Any) -> None:
        for argument in typing.get_args(hint):
            visit(argument)
        if not dataclasses.is_dataclass(hint) or not isinstance(hint, type):
            return
        if found.setdefault(hint.__name__, hint) is not hint:
            raise TypeError(f"two classes named {hint.__name__}")
        for field_hint in typing.get_type_hints(hint).values():
            if field_hint not in found.values():
                visit(field_hint)

    for root in (Input, Output, SpeakerConfig):
        visit(root)
    return found


def known_classes() -> dict[str, list[str]]:
    """The fields of each class that a recording of this version may hold."""
    return {name: [item.name for item in _fields(kind)] for name, kind in sorted(_reachable().items())}


def _fields(kind: Any) -> Iterable[dataclasses.Field[Any]]:
    return dataclasses.fields(kind)
