"""The file of a recording: what is in it stays, and nothing that happens to it reaches the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshd.recorder import Recorder, RecorderError

HEADER = '{"recording":1}\n'
LINE = '{"at":1.0}\n'


def contents(path: Path) -> str:
    return path.read_text()


def test_lines_are_in_the_file_at_once_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    recorder = Recorder(path, max_bytes=1000)
    assert recorder.write(HEADER) and recorder.write(LINE)
    assert contents(path) == HEADER + LINE  # before it is closed, as after a SIGKILL
    assert path.stat().st_mode & 0o777 == 0o600
    recorder.close()


@pytest.mark.parametrize(("before", "between"), [(HEADER + LINE, ""), (HEADER + LINE[:5], "\n")])
def test_an_earlier_recording_stays_whole_or_cut(tmp_path: Path, before: str, between: str) -> None:
    path = tmp_path / "recording"
    path.write_text(before)
    recorder = Recorder(path, max_bytes=1000)
    recorder.write(HEADER)
    recorder.close()
    assert contents(path) == before + between + HEADER


def test_another_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "meshd.toml"
    path.write_text("[node]\n")
    with pytest.raises(RecorderError, match="something else"):
        Recorder(path, max_bytes=1000)
    assert contents(path) == "[node]\n"
    with pytest.raises(RecorderError, match="cannot record to"):
        Recorder(tmp_path / "none" / "recording", max_bytes=1000)


def test_it_ends_before_the_line_that_would_be_too_much(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    recorder = Recorder(path, max_bytes=len(HEADER + LINE))
    assert [recorder.write(line) for line in (HEADER, LINE, LINE)] == [True, True, False]
    recorder.close()
    assert contents(path) == HEADER + LINE
    again = Recorder(path, max_bytes=len(HEADER + LINE))
    assert not again.write(HEADER)
    again.close()


def test_a_full_disk_ends_it_and_nothing_else() -> None:
    recorder = Recorder(Path("/dev/full"), max_bytes=1000)
    assert not recorder.write(HEADER)
    recorder.close()


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recording"
    recorder = Recorder(path, max_bytes=1000)
    recorder.write(HEADER)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:4]))
    assert not recorder.write(LINE)
    recorder.close()
    assert contents(path) == HEADER
