"""A slice of tools/fuzz with hypothesis instead of atheris, and that the targets find what they look for."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.rules import METRIC_INFINITY
from routing.tlv import Hello, Update
from tools.fuzzer import seeds, targets

ROOT = Path(__file__).resolve().parents[2]
PACKETS = list(seeds.packets())
SCRIPTS = list(seeds.scripts(random.Random(2), 20))


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """One of them, with a few octets replaced, left out or doubled."""
    octets = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(octets) - 1)))
        length = draw(st.integers(0, 3))
        octets[at : at + length] = draw(st.binary(max_size=4))
    return bytes(octets)


@settings(max_examples=1000, deadline=None)
@given(damaged(PACKETS) | st.binary(max_size=100))
def test_the_decoder(octets: bytes) -> None:
    targets.decode_target(octets)
    targets.decode_target(octets[4:])


@settings(max_examples=100, deadline=None)
@given(damaged(SCRIPTS))
def test_the_speaker(octets: bytes) -> None:
    targets.speaker_target(octets)


def test_a_packet_that_is_not_said_again_alike_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = bytes.fromhex("04 06 0000 0001 0190")
    targets.decode_target(hello)
    monkeypatch.setattr(targets, "pack", lambda *_, **__: [])
    with pytest.raises(targets.WrongError, match="something else"):
        targets.decode_target(hello)


def test_the_speaker_really_learns_routes_from_the_scripts() -> None:
    """Else its target would test nothing."""
    patient = targets.Patient()
    script = targets.Script(next(s for s in SCRIPTS if len(s) > 200))
    learnt = 0
    while script.is_more:
        patient.take(script)
        learnt = max(learnt, len(patient.speaker.routes()))
    assert learnt > 0
    patient.check()


def test_a_storm_and_an_infinite_route_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = targets.Patient()
    monkeypatch.setattr(type(patient.speaker), "next_deadline", lambda _: 0.0)
    with pytest.raises(targets.WrongError, match="storm"):
        patient.wait(1.0)
    patient = targets.Patient()
    views: list[Any] = [replace(view, route_count=1) for view in patient.speaker.neighbours()]
    monkeypatch.setattr(type(patient.speaker), "neighbours", lambda _: views)
    with pytest.raises(targets.WrongError, match="counted wrongly"):
        patient.check()


def test_the_seeds_are_packets_of_every_peer_with_routes() -> None:
    found = [tlv for packet in PACKETS for tlv in targets.decode(packet, source=targets.SOURCE)]
    assert any(isinstance(tlv, Hello) for tlv in found)
    assert any(isinstance(tlv, Update) and tlv.metric < METRIC_INFINITY for tlv in found)


def test_the_script() -> None:
    done = subprocess.run([ROOT / "tools/fuzz", "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "--inputs" in done.stdout
