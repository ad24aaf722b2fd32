"""Whatever an input or output may hold is written down and read back the same; what cannot be is said."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from routing import events, recording
from routing.config import SpeakerConfig
from routing.events import Input, InterfaceUp, OriginateRoute, Output, ReceivedPacket, SetFee, TimerExpired
from routing.recording import (
    Decoder,
    RecordedSpeaker,
    RecordingError,
    encode,
    event_line,
    known_classes,
    read_event,
    read_header,
)
from routing.tlv import Hello, Update
from tests.routing import strategies

CONFIG = SpeakerConfig(router_id=b"\1" * 8, hello_interval=1.0)
DECODER = Decoder(known_classes())


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Anything that the type allows."""
    if hint in (IPv4Network, IPv6Network):
        return strategies.ipv4_prefixes() if hint is IPv4Network else strategies.ipv6_prefixes()
    if dataclasses.is_dataclass(hint):
        return instances(hint)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
        return st.tuples(*[values_of(argument) for argument in arguments])
    return st.floats(allow_nan=False) if hint is float else st.from_type(hint)


@st.composite
def instances(draw: st.DrawFn, kind: Any) -> Any:
    hints = typing.get_type_hints(kind)
    values = {item.name: draw(values_of(hints[item.name])) for item in dataclasses.fields(kind)}
    try:
        return kind(**values)
    except ValueError:  # it is not so free as its types say
        reject()


MANY = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@pytest.mark.parametrize("kind", typing.get_args(Input) + typing.get_args(Output), ids=lambda kind: kind.__name__)
def test_every_input_and_output_is_read_as_it_was_written(kind: Any) -> None:
    hint = Input if kind in typing.get_args(Input) else Output

    @MANY
    @given(instances(kind))
    def check(value: Any) -> None:
        text = json.dumps(encode(value), allow_nan=False)
        again = DECODER.decode(json.loads(text), hint)
        assert again == value
        assert type(again) is kind
        assert json.dumps(encode(again)) == text

    check()


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(SpeakerConfig)])
def test_every_key_of_the_configuration_is_read_as_it_was_written(name: str) -> None:
    @MANY
    @given(values_of(typing.get_type_hints(SpeakerConfig)[name]))
    def check(value: Any) -> None:
        try:
            config = dataclasses.replace(CONFIG, **{name: value})
        except ValueError:
            reject()
        assert DECODER.decode(json.loads(json.dumps(encode(config))), SpeakerConfig) == config

    if name != "router_id":  # of CONFIG
        check()
    assert DECODER.decode(encode(CONFIG), SpeakerConfig) == CONFIG


def test_no_key_is_ever_recorded() -> None:
    secret = re.compile(r"key|secret|password|nonce|mac\b", re.IGNORECASE)
    fields = [f"{name}.{item}" for name, items in known_classes().items() for item in items]
    assert [field for field in fields if secret.search(field)] == []


@dataclasses.dataclass(frozen=True)
class Ambiguous:
    value: str | bytes


@dataclasses.dataclass(frozen=True)
class Unwritable:
    value: dict[str, int]


def test_types_that_a_recording_cannot_hold_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="cannot tell these apart"):
        DECODER.decode("00", typing.get_type_hints(Ambiguous)["value"])
    with pytest.raises(TypeError, match="dict cannot be recorded"):
        encode(Unwritable({}))


# -- a recorded speaker


def recorded(write: Any) -> RecordedSpeaker:
    return RecordedSpeaker(CONFIG, seed=7, now=5.0, write=write, origin={"node": "n"})


def drive(speaker: Any) -> list[list[events.Output]]:
    neighbour = IPv6Address("fe80::2")
    update = Update(IPv6Network("fd00::/64"), 96, 1, 1600, b"\2" * 8)
    given: list[Input] = [
        InterfaceUp("eth0", IPv6Address("fe80::1")),
        OriginateRoute(IPv6Network("fd01::/64")),
        ReceivedPacket("eth0", neighbour, (Hello(1, 100), update)),
    ]
    outputs = [speaker.handle(event, now=5.0) for event in given]
    for _ in range(5):
        outputs.append(speaker.handle(TimerExpired(), now=speaker.next_deadline()))
    return outputs


def test_a_network_of_somebodys_own_class_is_recorded_as_a_network() -> None:
    class Own(IPv6Network):
        pass

    route = OriginateRoute(Own("2001:db8::/32"))
    assert recording.encode(route) == recording.encode(OriginateRoute(IPv6Network("2001:db8::/32")))


def test_a_speaker_made_from_the_header_says_the_same() -> None:
    lines: list[str] = []
    then = drive(recorded(lambda line: not lines.append(line)))
    header, *rest = lines
    assert len(rest) == len(then)
    began = read_header(header)
    assert (began.now, began.seed, began.config, began.origin) == (5.0, 7, CONFIG, {"node": "n"})
    speaker = began.speaker()
    for line, outputs in zip(rest, then, strict=True):
        event = read_event(line, began.decoder)
        assert began.decoder.outputs(event) == outputs
        assert event_line(event.input, speaker.handle(event.input, now=event.at), now=event.at) == line
    assert any(outputs for outputs in then[3:])  # which depend on the random numbers


def test_a_recorded_speaker_does_what_another_does_and_goes_on_when_the_recording_ends() -> None:
    lines: list[str] = []
    then = drive(recorded(lambda line: lines.append(line) or len(lines) < 3))
    assert then == drive(read_header(lines[0]).speaker())
    assert len(lines) == 3


def test_the_input_on_which_the_engine_fails_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    speaker = recorded(lambda line: not lines.append(line))
    monkeypatch.setattr(speaker._selection, "announce_all", lambda *, now: {}[3])
    with pytest.raises(KeyError):
        speaker.handle(SetFee(9), now=6.0)
    event = read_event(lines[-1], DECODER)
    assert (event.at, event.input, event.raised, event.raw_outputs) == (6.0, SetFee(9), "KeyError: 3", ())


# -- other versions, other files


def changed_header(**changes: Any) -> str:
    lines: list[str] = []
    recorded(lambda line: not lines.append(line))
    return json.dumps(json.loads(lines[0]) | changes)


def test_a_field_that_the_recording_lacks_has_its_default() -> None:
    classes = known_classes()
    at = classes["Hello"].index("unicast")
    classes["Hello"].pop(at)
    decoder = read_header(changed_header(classes=classes)).decoder
    raw = encode(ReceivedPacket("eth0", IPv6Address("fe80::2"), (Hello(1, 100),)))
    del raw[3][0][at + 1]
    assert decoder.decode(raw, Input).tlvs == (Hello(1, 100),)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{}", "not a recording"),
        ("[]", "not a line of a recording"),
        ("\x7fELF", "not a line of a recording"),
        (changed_header(recording=2), "format 2; this version reads format 1"),
        (changed_header(seed=None), "damaged"),
        (changed_header(config=["SpeakerConfig"]), "damaged"),
        (changed_header(classes=3), "damaged"),
        (changed_header(classes=known_classes() | {"Hello": ["colour"]}), "Hello has a field 'colour' unknown here"),
    ],
)
def test_what_is_no_header_is_said(header: str, message: str) -> None:
    with pytest.raises(RecordingError, match=message):
        read_header(header)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"at": 1.0, "in": ["TimerExpired"]', "not a line"),
        ('{"at": 1.0}', "damaged"),
        ('{"at": "x", "in": ["TimerExpired"], "out": []}', "damaged"),
        ('{"at": 1.0, "in": ["TimerExpired"]}', "damaged"),
        ('{"at": 1.0, "in": ["SetFee", true], "out": []}', "damaged"),
        ('{"at": 1.0, "in": ["SetFee", 1, 2], "out": []}', "damaged"),
        ('{"at": 1.0, "in": ["SendPacket", "eth0", null, []], "out": []}', "damaged"),  # no input
        ('{"at": 1.0, "in": ["SetColour", 1], "out": []}', "another version: 'SetColour' is unknown"),
    ],
)
def test_what_is_no_event_is_said(line: str, message: str) -> None:
    with pytest.raises(RecordingError, match=message):
        read_event(line, DECODER)


def test_what_the_header_does_not_explain_is_an_error() -> None:
    classes = {name: fields for name, fields in known_classes().items() if name != "SetFee"}
    with pytest.raises(RecordingError, match="does not say what a SetFee has"):
        read_event(event_line(SetFee(1), [], now=1.0), Decoder(classes))


def test_two_classes_of_one_name_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.make_dataclass("Hello", [("prefix", int)])
    monkeypatch.setattr(recording, "Output", events.Output | other)
    with pytest.raises(TypeError, match="two classes named Hello"):
        known_classes()
