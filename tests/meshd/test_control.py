"""The control socket, talked to as meshctl does and as it should not be."""

from __future__ import annotations

import grp
import json
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd import control
from meshd.control import Access, ControlError, ControlServer, Limits, Method, Param, RpcError

Scenario = Callable[[Path], Awaitable[None]]


async def _echo(params: dict[str, Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return params


async def _refuse(params: dict[str, Any]) -> Any:
    await trio.lowlevel.checkpoint()
    raise RpcError(control.NOT_FOUND, "no such thing")


async def _break(params: dict[str, Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return 1 // 0


async def _not_json(params: dict[str, Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return {"key": b"bytes"}


async def _long(params: dict[str, Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return "x" * 10_000_000


METHODS = {
    "echo": Method(
        _echo,
        "Gives back.",
        {"text": Param("string", "A text."), "number": Param("integer", "A number.", required=False)},
    ),
    "change": Method(_echo, "Changes.", writes=True),
    "refuse": Method(_refuse, "Refuses."),
    "break": Method(_break, "Is broken."),
    "not_json": Method(_not_json, "Is broken too."),
    "hang": Method(lambda params: trio.sleep_forever(), "Never ends."),
    "long": Method(_long, "Is long."),
}


def serve(path: Path, scenario: Scenario, limits: Limits | None = None, access: Access = Access()) -> None:  # noqa: B008
    async def main() -> None:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                await nursery.start(ControlServer(path, METHODS, access=access, limits=limits).run)
                try:
                    await scenario(path)
                finally:
                    while Client.opened:
                        await trio.aclose_forcefully(Client.opened.pop())
                nursery.cancel_scope.cancel()

    trio.run(main)


class Client:
    opened: ClassVar[list[trio.SocketStream]] = []  # `serve` closes them

    def __init__(self, stream: trio.SocketStream) -> None:
        self.opened.append(stream)
        self.stream = stream
        self._buffer = b""

    @classmethod
    async def connect(cls, path: Path) -> Client:
        return cls(await trio.open_unix_socket(path))

    async def reply(self) -> Any:
        """The next line; None at the end."""
        while b"\n" not in self._buffer:
            chunk = await self.stream.receive_some()
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def ask(self, request: Any) -> Any:
        await self.stream.send_all(json.dumps(request).encode() + b"\n")
        return await self.reply()

    async def call(self, method: str, **params: Any) -> Any:
        return await self.ask({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


def test_answers_requests_in_order(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        client = await Client.connect(path)
        for number in range(3):
            assert await client.call("echo", text="x", number=number) == {
                "jsonrpc": "2.0",
                "result": {"text": "x", "number": number},
                "id": 1,
            }
        assert await client.call("change") == {"jsonrpc": "2.0", "result": {}, "id": 1}

    serve(tmp_path / "s", scenario)


@pytest.mark.parametrize(
    ("request_", "code", "request_id"),
    [
        ([], control.INVALID_REQUEST, None),
        (3, control.INVALID_REQUEST, None),
        ({"id": 1, "method": "echo"}, control.INVALID_REQUEST, 1),
        ({"jsonrpc": "2.0", "id": "a", "method": 5}, control.INVALID_REQUEST, "a"),
        ({"jsonrpc": "2.0", "id": [], "method": 5}, control.INVALID_REQUEST, None),
        ({"jsonrpc": "2.0", "id": 1, "method": "nothing"}, control.METHOD_NOT_FOUND, 1),
        ({"jsonrpc": "2.0", "id": 1, "method": "echo"}, control.INVALID_PARAMS, 1),
        ({"jsonrpc": "2.0", "id": 1, "method": "echo", "params": ["x"]}, control.INVALID_PARAMS, 1),
        ({"jsonrpc": "2.0", "id": 1, "method": "echo", "params": {"text": 5}}, control.INVALID_PARAMS, 1),
        (
            {"jsonrpc": "2.0", "id": 1, "method": "echo", "params": {"text": "", "number": True}},
            control.INVALID_PARAMS,
            1,
        ),
        ({"jsonrpc": "2.0", "id": 1, "method": "echo", "params": {"text": "", "more": 1}}, control.INVALID_PARAMS, 1),
        ({"jsonrpc": "2.0", "id": 1, "method": "refuse"}, control.NOT_FOUND, 1),
    ],
)
def test_errors(tmp_path: Path, request_: Any, code: int, request_id: Any) -> None:
    async def scenario(path: Path) -> None:
        client = await Client.connect(path)
        reply = await client.ask(request_)
        assert (reply["error"]["code"], reply["id"]) == (code, request_id)
        assert "result" not in reply
        assert (await client.call("echo", text="still there"))["result"] == {"text": "still there"}

    serve(tmp_path / "s", scenario)


@pytest.mark.parametrize("method", ["break", "not_json"])
def test_fault_in_a_method_is_logged_and_harms_no_one(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(path: Path) -> None:
        client = await Client.connect(path)
        error = (await client.call(method))["error"]
        assert error["code"] == control.INTERNAL_ERROR
        assert "ZeroDivision" not in error["message"]
        assert (await client.call("echo", text="x"))["result"] == {"text": "x"}

    serve(tmp_path / "s", scenario)
    assert caplog.records[0].exc_info is not None


def test_method_that_hangs_times_out(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        client = await Client.connect(path)
        assert (await client.call("hang"))["error"]["code"] == control.TIMEOUT

    serve(tmp_path / "s", scenario, Limits(handler_timeout=0.05))


def test_notifications_get_no_reply(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        client = await Client.connect(path)
        for method in ("echo", "refuse", "nothing"):
            note: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": {}}
            await client.stream.send_all(json.dumps(note).encode() + b"\n")
        assert (await client.call("echo", text="x"))["result"] == {"text": "x"}

    serve(tmp_path / "s", scenario)


def test_discover_describes_every_method(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        methods = (await (await Client.connect(path)).call("rpc.discover"))["result"]
        assert set(methods) == {*METHODS, "rpc.discover"}
        assert methods["change"]["writes"] and not methods["echo"]["writes"]
        assert methods["echo"]["params"]["number"] == {"kind": "integer", "doc": "A number.", "required": False}

    serve(tmp_path / "s", scenario)


def test_only_root_and_our_own_user_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(path: Path) -> None:
        client = await Client.connect(path)
        assert (await client.call("change"))["error"]["code"] == control.DENIED
        assert (await client.call("echo", text="x"))["result"] == {"text": "x"}

    monkeypatch.setattr(control, "_may_write", lambda *_: False)
    serve(tmp_path / "s", scenario)


ASK_AS = """
import os, socket, sys
gid, groups = int(sys.argv[2]), [int(group) for group in sys.argv[3:]]
os.setgroups(groups); os.setgid(gid); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.sendall(b'{"jsonrpc":"2.0","id":1,"method":"change"}\\n')
    sys.stdout.write(s.recv(9999).decode())
"""
GROUP = grp.getgrgid(1)  # there is one everywhere


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize(
    ("group", "others", "gids", "outcome"),
    [
        ("", False, [65534], "PermissionError"),
        ("", True, [65534], "denied"),
        (GROUP.gr_name, False, [65534], "PermissionError"),
        (GROUP.gr_name, False, [GROUP.gr_gid], "done"),
        (GROUP.gr_name, False, [65534, 65534, GROUP.gr_gid], "done"),  # its further groups
        (GROUP.gr_name, True, [65534], "denied"),
        ("no-such-group", True, [65534], "denied"),
    ],
)
def test_kernel_says_who_a_client_is(group: str, others: bool, gids: list[int], outcome: str) -> None:
    # Not in tmp_path, which is closed to others.
    path = Path(f"/tmp/meshd-test-{os.getpid()}.sock")  # noqa: S108

    async def scenario(path: Path) -> None:
        stranger = [sys.executable, "-c", ASK_AS, str(path), *map(str, gids)]
        done = await trio.run_process(stranger, capture_stdout=True, capture_stderr=True, check=False)
        if outcome == "PermissionError":
            assert b"PermissionError" in done.stderr
        elif outcome == "denied":
            assert json.loads(done.stdout)["error"]["code"] == control.DENIED
        else:
            assert json.loads(done.stdout)["result"] == {}

    serve(path, scenario, access=Access(group, others_may_read=others))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.binary(max_size=80), st.sampled_from([b'{"id":1e999}', b"[" * 5000, b'{"id":NaN}']))))
def test_any_bytes_leave_the_server_standing(tmp_path: Path, lines: list[bytes]) -> None:
    async def scenario(path: Path) -> None:
        client = await Client.connect(path)
        for line in lines:
            await client.stream.send_all(line.replace(b"\n", b"") + b"\n")
            assert (await client.reply())["error"]["code"] in (control.PARSE_ERROR, control.INVALID_REQUEST)
        await client.stream.send_all(b"half a line")
        await client.stream.aclose()
        assert (await (await Client.connect(path)).call("echo", text="x"))["result"] == {"text": "x"}

    serve(tmp_path / "s", scenario)


def test_too_long_a_line_ends_the_connection(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        client = await Client.connect(path)
        fits = {"jsonrpc": "2.0", "id": 1, "method": "echo", "params": {"text": "x" * 65_000}}
        assert "result" in await client.ask(fits)
        await client.stream.send_all(b"x" * (control.MAX_LINE_LENGTH + 1))
        assert (await client.reply())["error"]["code"] == control.PARSE_ERROR
        with pytest.raises((trio.BrokenResourceError, AssertionError)):  # closed, by FIN or by reset
            assert await client.reply() is not None

    serve(tmp_path / "s", scenario)


def test_silent_client_is_dropped(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        client = await Client.connect(path)
        await client.stream.send_all(b"{")
        assert await client.reply() is None

    serve(tmp_path / "s", scenario, Limits(idle_timeout=0.5))


def test_client_that_does_not_read_stalls_no_one(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        lazy, other = await Client.connect(path), await Client.connect(path)
        await lazy.stream.send_all(b'{"jsonrpc":"2.0","id":1,"method":"long"}\n')
        assert (await other.call("echo", text="x"))["result"] == {"text": "x"}
        await trio.sleep(0.2)  # real time: the kernel's socket buffers fill
        received = 0
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            while True:
                chunk = await lazy.stream.receive_some(1 << 20)
                received += len(chunk)
                if not chunk:
                    raise EOFError
        assert received < 10_000_000

    serve(tmp_path / "s", scenario, Limits(send_timeout=0.05))


def test_clients_are_bounded(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        clients = [await Client.connect(path) for _ in range(2)]
        for client in clients:
            await client.call("echo", text="x")
        assert await (await Client.connect(path)).reply() is None
        await clients[0].stream.aclose()
        while True:  # until the server has noticed
            client = await Client.connect(path)
            try:
                if await client.call("echo", text="x"):
                    return
            except trio.BrokenResourceError:
                continue

    serve(tmp_path / "s", scenario, Limits(max_clients=2))


def test_socket_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run" / "meshd.sock"

    async def scenario(path: Path) -> None:
        await trio.lowlevel.checkpoint()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert os.listdir(path.parent) == ["meshd.sock"]

    serve(path, scenario)
    assert os.listdir(path.parent) == []


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))

    async def scenario(path: Path) -> None:
        assert (await (await Client.connect(path)).call("echo", text="x"))["result"] == {"text": "x"}

    serve(path, scenario)


def test_living_daemon_and_other_files_are_left_alone(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        with pytest.raises(ControlError, match="another daemon"):
            await ControlServer(path, METHODS).run()
        assert (await (await Client.connect(path)).call("echo", text="x"))["result"] == {"text": "x"}

    serve(tmp_path / "s", scenario)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ControlError, match="something else"):
        trio.run(ControlServer(tmp_path / "file", METHODS).run)
    with pytest.raises(ControlError, match="File exists"):
        trio.run(ControlServer(tmp_path / "file" / "s", METHODS).run)
    with pytest.raises(ControlError, match="too long"):
        trio.run(ControlServer(tmp_path / ("x" * 200), METHODS).run)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        await trio.lowlevel.checkpoint()
        path.unlink()
        path.write_text("of a successor")

    serve(tmp_path / "s", scenario)
    assert (tmp_path / "s").exists()


def test_error_codes_are_those_that_meshctl_knows() -> None:
    from meshd.ctl.client import _WORD_BY_CODE

    assert _WORD_BY_CODE == {
        control.INVALID_PARAMS: "usage",
        control.NOT_FOUND: "not_found",
        control.DENIED: "denied",
        control.TIMEOUT: "timeout",
        control.FUNDS: "funds",
        control.POLICY: "policy",
    }
