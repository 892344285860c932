"""Workers and their supervisor: ports that are shared among ours only, processes that are started again, orders."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import SetupError
from server import bounds, config
from server.config import parse_listen
from server.stopping import StopSignal
from server.workers import Supervisor, orders_of, reserved
from tests.server.conftest import wait_until


# --- ports ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who listens on a port, and shares it."""
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


def share(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen()
    return made


def test_a_reserved_port_is_shared_by_those_who_say_so() -> None:
    with reserved([parse_listen("127.0.0.1:0")]) as (listen,):
        assert listen.port
        assert listen.address == f"127.0.0.1:{listen.port}"
        with pytest.raises(OSError, match="in use"), socket.socket() as stranger:
            stranger.bind(("127.0.0.1", listen.port))
        with share(listen.port), share(listen.port) as second:
            assert second.getsockname()[1] == listen.port
    with socket.socket() as anybody:
        anybody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        anybody.bind(("127.0.0.1", listen.port))


def test_a_port_on_which_somebody_listens_is_refused_even_if_it_could_be_shared(
    listener: socket.socket,
) -> None:
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(SetupError) as caught, reserved([parse_listen(address)]):
        pass
    assert address in caught.value.message
    assert caught.value.field == "listen"


def test_two_supervisors_do_not_get_one_port() -> None:
    with (
        reserved([parse_listen("127.0.0.1:0")]) as (listen,),
        pytest.raises(SetupError),
        reserved([listen]),
    ):
        pass


def test_localhost_is_one_port_on_every_address_it_has() -> None:
    with reserved([parse_listen("localhost:0")]) as (listen,):
        assert listen.address == f"localhost:{listen.port}"


def test_a_unix_socket_can_not_be_shared(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught, reserved([parse_listen(f"unix:{tmp_path}/s")]):
        pass
    assert "one worker" in caught.value.message


# --- orders --------------------------------------------------------------------------------------------------------
def test_orders_carry_the_settings_that_were_given(tmp_path: Path) -> None:
    settings = config.load(
        {"data_dir": tmp_path, "threads": 5, "lane": "off", "workers": 3, "grace_s": 2.5}, {}, file=None
    )
    settings.own_passphrase_file.write_text("x")
    listen = (parse_listen("127.0.0.1:7000"),)
    of = orders_of(settings, "unix:///tmp/s", listen, {}, passphrase="typed", stats_file="f")
    told = json.loads(of(2))
    assert told["number"] == 2
    assert told["passphrase"] == "typed"
    assert told["stats_file"] == "f"
    heard = config.Settings.model_validate(told["settings"])
    assert (heard.threads, heard.lane, heard.grace_s) == (5, "off", 2.5)
    assert heard.listen == listen
    assert heard.store_url == "unix:///tmp/s"
    assert heard.passphrase_file == settings.own_passphrase_file
    assert "partitions" not in heard.model_fields_set
    assert of(0).endswith(b"\n")
    from_environment = orders_of(
        settings, "unix:///tmp/s", listen, {"PICKGATE_PASSPHRASE": "y"}, passphrase=""
    )
    assert "passphrase_file" not in json.loads(from_environment(0))["settings"]


# --- processes -----------------------------------------------------------------------------------------------------
SERVES = """
import json, os, sys
number = json.loads(sys.stdin.buffer.readline())
os.write(1, b'{"serving": []}\\n')
while os.read(0, 100):
    pass
"""
DIES_LATER = SERVES.replace("while", "os._exit(3)\nwhile")
REFUSES = """
import os
os.write(1, b'{"error": "STORE_SETTINGS", "message": "the store is set wrongly"}\\n')
os._exit(2)
"""
STUBBORN = SERVES + "\nimport signal, threading\nthreading.Event().wait()\n"


def command(source: str) -> list[str]:
    """A small process in a worker's place."""
    return [sys.executable, "-c", source]


def orders(number: int) -> bytes:
    return b"%d\n" % number


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    with StopSignal() as made:
        yield made


def ask_to_stop_when(condition: object, what: str) -> threading.Thread:
    """From a thread: the supervisor's loop has the main one."""

    def run() -> None:
        try:
            wait_until(condition, what)  # type: ignore[arg-type]
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_worker_that_is_killed_is_started_again(stop: StopSignal) -> None:
    with Supervisor(2, orders, grace_s=1, stop=stop, command=command(SERVES)) as supervisor:
        first = supervisor.pids
        assert len(set(first)) == 2
        os.kill(first[0], signal.SIGKILL)
        waiter = ask_to_stop_when(
            lambda: len(supervisor.pids) == 2 and first[0] not in supervisor.pids, "another one"
        )
        supervisor.run()
        waiter.join()
        last = supervisor.pids
        assert first[1] in last
    assert all(map(gone, {*first, *last}))


def test_a_worker_that_ends_at_once_is_started_ever_less_often(
    stop: StopSignal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bounds, "WORKER_WAIT_S_MIN", 0.02)
    monkeypatch.setattr(bounds, "WORKER_WAIT_S_MAX", 0.1)
    with Supervisor(1, orders, grace_s=1, stop=stop, command=command(SERVES)) as supervisor:
        supervisor._command = command(DIES_LATER)
        os.kill(supervisor.pids[0], signal.SIGKILL)
        waiter = ask_to_stop_when(lambda: len(caplog.records) >= 6, "it ended six times")
        supervisor.run()
        waiter.join()
    waits = [record.getMessage().rpartition(" in ")[2] for record in caplog.records][:5]
    assert waits == ["0.0 s", "0.0 s", "0.1 s", "0.1 s", "0.1 s"]
    assert "ended with status 3" in caplog.text


def test_a_first_start_that_fails_says_why_and_leaves_nothing(stop: StopSignal) -> None:
    supervisor = Supervisor(2, orders, grace_s=1, stop=stop, command=command(REFUSES))
    with pytest.raises(SetupError) as caught, supervisor:
        pass
    assert "STORE_SETTINGS: the store is set wrongly" in caught.value.message
    assert supervisor.pids == []


def test_workers_that_never_serve_are_given_up(stop: StopSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "WORKER_START_S_MAX", 0.3)
    silent = SERVES.replace("os.write", "str")
    with (
        pytest.raises(SetupError),
        Supervisor(1, orders, grace_s=1, stop=stop, command=command(silent)),
    ):
        pass


def test_a_worker_that_does_not_stop_is_killed(stop: StopSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "WORKER_END_S_MAX", 0.3)
    with Supervisor(1, orders, grace_s=0, stop=stop, command=command(STUBBORN)) as supervisor:
        (pid,) = supervisor.pids
        began_s = time.monotonic()
    assert gone(pid)
    assert time.monotonic() - began_s < 10


def test_a_stop_during_the_start_ends_it(stop: StopSignal) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    silent = SERVES.replace("os.write", "str")
    with Supervisor(1, orders, grace_s=1, stop=stop, command=command(silent)) as supervisor:
        supervisor.run()
    assert supervisor.pids == []
