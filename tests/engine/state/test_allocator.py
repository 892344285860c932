"""The embedded store's allocator, with real servers and the real library, whole and damaged."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import redis

from engine.state import allocator
from engine.state.server import EmbeddedServer, find_binary
from tests.conftest import StoreFactory
from tests.engine.state.test_server import fake_server, until

ENVIRON = {"PATH": os.defpath, "LC_ALL": "C"}
LAUNCHER = Path(allocator.__file__).with_name("launch.py")


def installed() -> Path:
    """The library as it is installed."""
    [file] = [file for file in metadata.files(allocator.DISTRIBUTION) or () if file.name == allocator.LIBRARY]
    return Path(str(file.locate())).resolve()


def answers(server: EmbeddedServer) -> bool:
    with redis.Redis.from_url(server.url) as client:
        return bool(client.set("a", 1)) and client.get("a") == b"1"


def test_the_wheel_s_server_has_mimalloc_in_front(
    make_store: StoreFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_store(binary=find_binary(environ={}))
    assert answers(server)
    assert allocator.loaded_from(server.pid) == str(installed())
    assert caplog.text == ""


def test_no_huge_pages(make_store: StoreFactory) -> None:
    server = make_store(binary=find_binary(environ={}))
    with redis.Redis.from_url(server.url) as client:
        for n in range(64):
            client.set(n, b"x" * 100_000)
        memory = client.info("memory")
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert "THP_enabled:\t0\n" in status
    smaps = Path(f"/proc/{server.pid}/smaps_rollup").read_text()
    assert "AnonHugePages:         0 kB\n" in smaps
    # The server counts what the library gives out: its own figures still say how much there is.
    # What is resident is no measure for it: pages that nothing was written to are counted too, and are not there.
    assert 6_400_000 < memory["used_memory"] < 64_000_000


@pytest.mark.fault
def test_a_restarted_store_has_it_again(make_store: StoreFactory) -> None:
    server = make_store(binary=find_binary(environ={}))
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: server.restarts == 1, "a restart")
    until(lambda: _loaded(server), "mimalloc in the store that was started again")


def _loaded(server: EmbeddedServer) -> bool:
    try:
        return allocator.loaded_from(server.pid) == str(installed())
    except Exception:  # none runs at the moment
        return False


@pytest.mark.fault
def test_the_file_is_rewritten_while_other_threads_free(make_store: StoreFactory) -> None:
    # mimalloc does nothing for a fork, so a child made while another thread holds one of its locks would wait for ever.
    server = make_store(binary=find_binary(environ={}), extra_settings={"lazyfree-lazy-user-del": "yes"})
    with redis.Redis.from_url(server.url) as client:
        for turn in range(20):
            with client.pipeline(transaction=False) as pipe:
                for n in range(200):
                    pipe.rpush(f"list-{n}", *[b"x" * 200] * 100)
                pipe.delete(*[f"list-{n}" for n in range(200)])
                pipe.bgrewriteaof()
                pipe.execute()
            until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], f"rewrite {turn}")
            assert client.info("persistence")["aof_last_bgrewrite_status"] == "ok"


def test_nothing_of_the_caller_s_environment_is_loaded(
    make_store: StoreFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs.so"
    theirs.write_bytes(installed().read_bytes())
    monkeypatch.setenv("LD_PRELOAD", str(theirs))
    monkeypatch.setenv("MIMALLOC_ALLOW_THP", "1")
    server = make_store(binary=find_binary(environ={}))
    assert str(theirs) not in Path(f"/proc/{server.pid}/maps").read_text()
    assert allocator.loaded_from(server.pid) == str(installed())
    assert "THP_enabled:\t0\n" in Path(f"/proc/{server.pid}/status").read_text()


def a_distribution(site: Path) -> Path:
    """Make an installed distribution of the library's name, found before the real one; returns its library."""
    library = site / "lib" / allocator.LIBRARY
    about = site / "cmeel_mimalloc-9.0.dist-info"
    library.parent.mkdir(parents=True)
    about.mkdir()
    library.write_bytes(installed().read_bytes())
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: cmeel-mimalloc\nVersion: 9.0\n")
    (about / "RECORD").write_text(f"lib/{allocator.LIBRARY},,\n")
    return library


def whole(library: Path) -> None:
    assert library.exists()


def absent(library: Path) -> None:
    library.unlink()


def garbage(library: Path) -> None:
    library.write_bytes(b"\x7fELF and nothing else")


def without_its_needs(library: Path) -> None:
    content = library.read_bytes()
    assert b"libpthread.so.0\0" in content
    library.write_bytes(content.replace(b"libpthread.so.0\0", b"no-such-lib.so\0\0"))


def another_library(library: Path) -> None:
    (library.parents[1] / "cmeel_mimalloc-9.0.dist-info" / "RECORD").write_text("lib/libmimalloc.so.4,,\n")


@pytest.mark.parametrize(
    ("folder", "change", "reason"),
    [
        ("site", absent, "is missing; install it again"),
        ("site", garbage, r"can't be loaded: .*libmimalloc"),
        ("site", without_its_needs, r"can't be loaded: .*no-such-lib\.so"),
        ("site", another_library, r"has no libmimalloc\.so\.3"),
        ("a site", whole, "has a space, a colon or a"),
        ("a:site", whole, "has a space, a colon or a"),
    ],
)
def test_a_library_that_can_t_be_loaded_is_told_once_and_the_store_runs(
    make_store: StoreFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    folder: str,
    change: Callable[[Path], None],
    reason: str,
) -> None:
    change(a_distribution(tmp_path / folder))
    monkeypatch.setattr(sys, "path", [str(tmp_path / folder), *sys.path])
    server = make_store(binary=find_binary(environ={}))
    assert answers(server)
    assert allocator.loaded_from(server.pid) == ""
    assert re.search(reason, the_warning(caplog))


def the_warning(caplog: pytest.LogCaptureFixture) -> str:
    [record] = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, allocator.__name__)
    assert "the C library's allocator" in record.getMessage()
    return record.getMessage()


def test_without_the_distribution_the_store_runs_and_says_what_to_install(
    make_store: StoreFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(allocator, "DISTRIBUTION", "no-such-distribution")
    server = make_store(binary=find_binary(environ={}))
    assert answers(server)
    assert allocator.loaded_from(server.pid) == ""
    assert "no-such-distribution is not installed; install it: pip install" in the_warning(caplog)


def test_a_server_that_lets_nothing_in_front_is_told(
    make_store: StoreFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {find_binary(environ={})} "$@"\n')
    wrapper.chmod(0o755)
    server = make_store(binary=wrapper)
    assert answers(server)
    assert allocator.loaded_from(server.pid) == ""
    assert "does not load libraries in front" in the_warning(caplog)


def test_which_servers_get_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, (answer, wanted) in enumerate(
        [
            ("Valkey server v=8.1.4 sha=00000000:0 malloc=libc bits=64", True),
            ("Valkey server v=8.1.4 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", False),
            ("Redis server v=7.2.4 sha=00000000:0", False),
        ]
    ):
        server = fake_server(tmp_path / f"server-{number}", answer)
        variables = allocator.variables_for(server, ENVIRON)
        assert variables == ({"LD_PRELOAD": str(installed()), "MIMALLOC_ALLOW_THP": "0"} if wanted else {})
    assert caplog.text == ""


def test_maps_of_a_process_that_is_gone() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(OSError, match="No such file"):
        allocator.loaded_from(process.pid)


def test_the_launcher_gives_its_variables_to_the_program_alone() -> None:
    command = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), "A=1=2", "B=", "--"]
    show = [
        sys.executable,
        "-c",
        "import os, sys; print(sorted(os.environ.items()), sys.argv[1:])",
        "--",
        "C=3",
    ]
    done = subprocess.run(
        [*command, *show], env={"PATH": os.defpath}, capture_output=True, text=True, check=True
    )
    assert "('A', '1=2'), ('B', '')" in done.stdout
    assert "('PATH', " in done.stdout
    assert done.stdout.endswith("['--', 'C=3']\n")
