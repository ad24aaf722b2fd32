"""tools/replay: the same again, the first difference, and files that are damaged or something else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routing.events import SetFee
from routing.recording import failure_line
from routing.speaker import Speaker
from simulator import main as meshsim
from tools.replayer.main import DIFFERENT, SAME, UNUSABLE, main

ROOT = Path(__file__).resolve().parent.parent.parent
Edit = Callable[[list[str]], list[str]]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the node in the middle of three recorded, through the codec."""
    path = tmp_path_factory.mktemp("recording") / "recording"
    arguments = ["--topology", "line:3", "--quiet", "5", "--wire", "--json", "--record", f"1:{path}"]
    assert meshsim.main(["run", *arguments]) == 0
    return path.read_text().splitlines(keepends=True)


def replay(tmp_path: Path, lines: list[str], *options: str) -> int:
    path = tmp_path / "recording"
    path.write_text("".join(lines))
    return main([*options, str(path)])


def document(tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    replay(tmp_path, lines, "--json", *options)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_recording_is_replayed_to_the_same_outputs(
    tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(tmp_path, lines) == SAME
    assert "the same as then" in capsys.readouterr().out
    found = document(tmp_path, lines, capsys)
    (run,) = found["runs"]
    assert (found["ok"], run["inputs"], run["neighbours"], run["selected_routes"]) == (True, len(lines) - 1, 2, 2)
    assert run["outputs"] >= 10


def test_the_command_itself_runs_with_another_order_of_hashes(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "recording"
    path.write_text("".join(lines))
    outputs = []
    for seed in ("1", "2"):
        command = ["env", f"PYTHONHASHSEED={seed}", str(ROOT / "tools/replay"), "--digest", str(path)]
        outputs.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 33


def test_an_output_that_was_another_is_shown_with_its_place(
    tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    number = next(n for n, line in enumerate(lines) if '["InstallRoute"' in line)
    record = json.loads(lines[number])
    index = next(n for n, output in enumerate(record["out"]) if output[0] == "InstallRoute")
    record["out"][index][4] += 1  # its metric
    changed = [*lines[:number], json.dumps(record, separators=(",", ":")) + "\n", *lines[number + 1 :]]
    assert replay(tmp_path, changed) == DIFFERENT
    said = capsys.readouterr()
    assert "DIFFERENT" in said.out
    assert f"line {number + 1}, input {number}," in said.err
    assert said.err.count("InstallRoute") == 2 and "ReceivedPacket" in said.err
    found = document(tmp_path, changed, capsys)["difference"]
    assert (found["line"], found["number"], found["output_index"]) == (number + 1, number, index)
    assert json.loads(found["expected"])[4] == json.loads(found["got"])[4] + 1


def _without_last_output(line: str) -> str:
    record = json.loads(line)
    record["out"].pop()
    return json.dumps(record, separators=(",", ":")) + "\n"


def test_an_output_too_many_or_too_few_is_a_difference(
    tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    number = next(n for n, line in enumerate(lines) if '["SendPacket"' in line)
    fewer = [*lines[:number], _without_last_output(lines[number]), *lines[number + 1 :]]
    assert replay(tmp_path, fewer) == DIFFERENT
    assert "expected  no more outputs" in capsys.readouterr().err
    more = json.loads(lines[number])
    more["out"].append(more["out"][-1])
    assert replay(tmp_path, [*lines[:number], json.dumps(more) + "\n"]) == DIFFERENT
    assert "got       no more outputs" in capsys.readouterr().err


def test_other_spaces_are_no_difference(tmp_path: Path, lines: list[str]) -> None:
    assert replay(tmp_path, [lines[0], *(json.dumps(json.loads(line)) + "\n" for line in lines[1:])]) == SAME


def test_a_seed_that_is_another_makes_a_difference(tmp_path: Path, lines: list[str]) -> None:
    assert replay(tmp_path, [json.dumps(json.loads(lines[0]) | {"seed": 1}) + "\n", *lines[1:]]) == DIFFERENT


def test_a_last_line_that_was_cut_is_said_and_the_rest_replayed(
    tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(tmp_path, [*lines[:-1], lines[-1][:-9]]) == SAME
    assert f"ends at line {len(lines)}, which was not written to its end" in capsys.readouterr().out


@pytest.mark.parametrize("end", [[], ['{"at":1.0,"in":["Rec\n']], ids=["whole", "cut"])
def test_two_lives_of_a_daemon_in_one_file(
    tmp_path: Path, lines: list[str], end: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(tmp_path, [*lines, *end, *lines], capsys)
    assert found["ok"]
    assert [run["inputs"] for run in found["runs"]] == [len(lines) - 1] * 2
    assert [run["cut_at_line"] for run in found["runs"]] == [len(lines) + 1 if end else None, None]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [], "empty"),
        (lambda lines: ["[node]\n"], "line 1: not a line of a recording"),
        (lambda lines: lines[1:], "line 1: not a recording of meshd"),
        (lambda lines: [lines[0].replace('"recording":1', '"recording":9')], "line 1: a recording of format 9"),
        (lambda lines: [*lines[:3], "?\n", *lines[3:]], "line 4: not a line of a recording"),
        (lambda lines: [*lines[:3], "?\n"], "line 4: not a line of a recording"),
        (lambda lines: [lines[0], lines[1].replace('"out":[', '"out":["?",')], "line 2: damaged"),
        (lambda lines: ["\0" * 1000], "line 1: not a line of a recording"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_a_line(
    tmp_path: Path, lines: list[str], edit: Edit, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(tmp_path, edit(lines)) == UNUSABLE
    said = capsys.readouterr()
    assert said.err.startswith(f"replay: {tmp_path}/recording: {message}")
    assert (said.err.count("\n"), said.out) == (1, "")


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == UNUSABLE
    assert "No such file" in capsys.readouterr().err
    assert main([str(tmp_path)]) == UNUSABLE
    with pytest.raises(SystemExit) as caught:
        main(["--until", "-1", "x"])
    assert caught.value.code == UNUSABLE


def test_until_ends_it_earlier(tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    start = json.loads(lines[0])["now"]
    wanted = sum(json.loads(line)["at"] - start <= 1.0 for line in lines[1:])
    (run,) = document(tmp_path, lines, capsys, "--until", "1")["runs"]
    assert run["inputs"] == wanted < len(lines) - 1


def test_words_tell_what_came_in_what_went_out_and_how_it_ended(
    tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(tmp_path, lines, "--words") == SAME
    said = capsys.readouterr().out
    for text in (
        "program meshsim, node 1",
        "in  originate route: prefix fd00::1/128\n",
        "in  received packet: interface to0, source fe80::1\n",
        "hello: seqno",
        "out send packet: interface to2, to everybody\n",
        "neighbours: 2\n",
        "fe80::3 on to2: cost 96,",
        "selected routes: 2\n",
        "fd00::2/128 via fe80::3 dev to2: metric 96,",
    ):
        assert text in said


def test_a_failure_of_the_engine_is_replayed(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = json.loads(lines[-1])["at"]
    handle = Speaker.handle

    def failing(self: Speaker, event: Any, *, now: float) -> Any:
        if event == SetFee(13):
            raise KeyError(13)
        return handle(self, event, now=now)

    failed = [*lines, failure_line(SetFee(13), KeyError(13), now=at)]
    assert replay(tmp_path, failed) == DIFFERENT  # it is repaired since
    assert "raised KeyError: 13" in capsys.readouterr().err
    monkeypatch.setattr(Speaker, "handle", failing)
    assert replay(tmp_path, failed) == SAME
    assert "failed on the last input, as it did then: KeyError: 13" in capsys.readouterr().out
    fine = [*lines, failed[-1].replace('"raised":"KeyError: 13"', '"out":[]')]
    assert replay(tmp_path, fine) == DIFFERENT
    assert "Traceback" in capsys.readouterr().err


def test_meshsim_refuses_what_it_cannot_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in (f"7:{tmp_path / 'r'}", f"0:{tmp_path}/none/r"):
        assert meshsim.main(["run", "--topology", "line:2", "--record", record]) == 2
        assert capsys.readouterr().err.startswith("meshsim: ")
    assert not any(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        meshsim.main(["run", "--record", "file"])
