"""What health says when the store is not what it was, and when this process can open nothing more."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from server.client import CallFailed, Client
from tests.server.conftest import HouseFactory, wait_until
from tests.server.test_cli import environment, read_line


def test_a_partition_that_is_gone_ends_the_serving_until_it_is_back(
    make_house: HouseFactory, caplog: pytest.LogCaptureFixture
) -> None:
    house = make_house()
    meta = house.deployment.connection.partitions[3].meta
    with Client(house.tcp, tries=1) as client, redis.Redis.from_url(house.store.url) as store:
        assert client.healthy()
        with caplog.at_level(logging.WARNING):
            store.rename(meta, b"gone")
            wait_until(lambda: not client.healthy(), "health says NOT_SERVING")
        assert "not serving: STORE_UNAVAILABLE" in caplog.text
        store.rename(b"gone", meta)
        wait_until(client.healthy, "health says SERVING again")


LIMITED = """import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
os.execv(sys.argv[3], sys.argv[3:])
"""
"""In a program between and not in `preexec_fn`, for which Python forks this process: gRPC's threads here may end such a child."""


@contextmanager
def process(tmp_path: Path, soft: int, hard: int) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A server with a limit of open files: the process, its address, its log."""
    log = tmp_path / "server.log"
    with log.open("w") as stderr:
        made = subprocess.Popen(
            [
                *(sys.executable, "-c", LIMITED, str(soft), str(hard)),
                *(sys.executable, "-m", "server.cli", "serve", "--json", "--durability", "memory"),
                *("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"),
            ],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert made.stdout
    try:
        yield made, json.loads(read_line(made.stdout, made))["serving"][0], log
    finally:
        made.terminate()
        assert made.wait(30) == 0
        made.stdout.close()


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(tmp_path: Path) -> None:
    with process(tmp_path, 256, 1_500) as (server, _, _):
        (line,) = [
            line
            for line in Path(f"/proc/{server.pid}/limits").read_text().splitlines()
            if line.startswith("Max open files")
        ]
    assert line.split()[3:5] == ["1500", "1500"]


def test_more_connections_than_files_are_survived(tmp_path: Path) -> None:
    count = 160
    with process(tmp_path, count, count) as (server, address, log), ExitStack() as stack:
        host, _, port = address.rpartition(":")
        for _ in range(2 * count):
            one = stack.enter_context(socket.socket())
            one.settimeout(1)
            try:
                one.connect((host, int(port)))
            except TimeoutError:  # the queue of those who wait to be accepted is full too
                break
        opened = Path(f"/proc/{server.pid}/fd")
        wait_until(lambda: len(list(opened.iterdir())) >= count - 1, "no file is left")
        # Looks at the store go on meanwhile, one a second.
        looks = len(log.read_text())
        with pytest.raises(CallFailed), Client(address, timeout_s=2.5, tries=1) as client:
            client.healthy()
        stack.close()
        with Client(address, timeout_s=2, tries=1) as client:

            def healthy() -> bool:
                try:
                    return client.healthy()
                except CallFailed:
                    return False

            wait_until(healthy, "it serves those who come after", 40)
        assert server.poll() is None
        assert "Traceback" not in log.read_text()[looks:]
