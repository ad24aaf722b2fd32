"""Exit codes: what a person can mend is said in a line; a fault of ours keeps its traceback."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from meshd import main as command
from meshd.config import Config, ConfigError
from meshd.config_reference import example_config
from meshd.identity import Identity
from meshd.kernel import NetlinkError, NftError
from meshd.main import EXIT_ERROR, EXIT_USAGE, main
from payments.adapters.store import StoreError


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "meshd.toml"
    file.write_text(f'[node]\nname = "n"\nstate_dir = "{tmp_path / "state"}"\n[[interface]]\nname = "eth0"\n')
    return file


def node_that(monkeypatch: pytest.MonkeyPatch, *errors: Exception, signal_to_send: int = 0) -> list[str]:
    """In the place of the daemon: ends with these errors, or at the signal."""
    journal = []

    @asynccontextmanager
    async def running(_config: Config, _identity: Identity, _path: Path) -> AsyncIterator[None]:
        journal.append("started")
        if errors:
            raise ExceptionGroup("nursery", [ExceptionGroup("nested", list(errors))])
        os.kill(os.getpid(), signal_to_send)
        yield
        journal.append("stopped")

    monkeypatch.setattr(command, "running", running)
    return journal


def test_the_example_is_a_configuration_that_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example"]) == 0
    printed = capsys.readouterr().out
    assert printed == example_config()
    file = tmp_path / "meshd.toml"
    file.write_text(printed)
    assert main(["check", "--config", str(file)]) == 0


def test_a_configuration_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "meshd.toml"
    file.write_text("[node]\nnaem = 1\n")
    for arguments in (["check"], ["run"], ["clean"]):
        assert main([*arguments, "--config", str(file)]) == EXIT_USAGE
        assert str(file) in capsys.readouterr().err
    assert main(["check", "--config", str(tmp_path / "none")]) == EXIT_USAGE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(config: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    journal = node_that(monkeypatch, signal_to_send=number)
    assert main(["run", "--config", str(config)]) == 0
    assert journal == ["started", "stopped"]
    assert (config.parent / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("error", [None, ConfigError("wrong")])
def test_a_hangup_reads_the_configuration_anew_and_ends_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch, error: ConfigError | None
) -> None:
    journal: list[Path | str] = []

    @asynccontextmanager
    async def running(_config: Config, _identity: Identity, path: Path) -> AsyncIterator[SimpleNamespace]:
        async def reload() -> None:
            journal.append(path)
            os.kill(os.getpid(), signal.SIGTERM)
            if error is not None:
                raise error

        os.kill(os.getpid(), signal.SIGHUP)
        yield SimpleNamespace(reload=reload)
        journal.append("stopped")

    monkeypatch.setattr(command, "running", running)
    assert main(["run", "--config", str(config)]) == 0
    assert journal == [config, "stopped"]


@pytest.mark.parametrize(
    ("arguments", "record", "max_mb"),
    [
        ([], "/var/tmp/configured", 7),  # noqa: S108
        (["--record", "there"], "there", 7),
        (["--record", "/there", "--record-max-mb", "9"], "/there", 9),
    ],
)
def test_the_command_line_says_where_to_record_before_the_configuration(
    config: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], record: str, max_mb: int
) -> None:
    config.write_text('[node]\nrecord = "/var/tmp/configured"\nrecord_max_mb = 7\n' + config.read_text()[7:])
    seen: list[Config] = []

    @asynccontextmanager
    async def running(config: Config, _identity: Identity, _path: Path) -> AsyncIterator[None]:
        seen.append(config)
        raise OSError("enough")
        yield

    monkeypatch.setattr(command, "running", running)
    main(["run", "--config", str(config), *arguments])
    assert (seen[0].node.record, seen[0].node.record_max_mb) == (Path(record).absolute(), max_mb)


def test_a_size_of_a_recording_that_is_none(config: Path) -> None:
    for size in ("0", "-1", "much"):
        with pytest.raises(SystemExit) as caught:
            main(["run", "--config", str(config), "--record-max-mb", size])
        assert caught.value.code == EXIT_USAGE


@pytest.mark.parametrize("error", [OSError("port in use"), StoreError("disk"), NetlinkError(1), NftError("no nft")])
def test_what_a_person_can_mend_is_a_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    node_that(monkeypatch, error)
    assert main(["run", "--config", str(config)]) == EXIT_ERROR
    said = capsys.readouterr().err
    assert type(error).__name__ in said and "Traceback" not in said


def test_a_fault_of_ours_is_not_hidden_behind_another_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node_that(monkeypatch, OSError("port in use"), AssertionError("a fault"))
    with pytest.raises(ExceptionGroup) as caught:
        main(["run", "--config", str(config)])
    assert caught.group_contains(AssertionError)


def test_a_state_directory_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    config = tmp_path / "meshd.toml"
    config.write_text(f'[node]\nname = "n"\nstate_dir = "{tmp_path / "file" / "state"}"\n')
    assert main(["run", "--config", str(config)]) == EXIT_ERROR
    assert "file" in capsys.readouterr().err


def test_clean_uses_the_record_of_the_node(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []

    async def clean(kernel_config: object) -> None:
        await trio.lowlevel.checkpoint()
        cleaned.append(kernel_config)

    monkeypatch.setattr(command, "clean", clean)
    assert main(["clean", "--config", str(config)]) == 0
    assert [c.record_path for c in cleaned] == [config.parent / "state" / "kernel.json"]  # type: ignore[attr-defined]
