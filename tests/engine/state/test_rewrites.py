"""When the embedded store rewrites its file: the bound by itself, and a real store in a rush and after it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from engine.state import rewrites
from engine.state.rewrites import QUIET_BYTES_MIN, QUIET_SHARE_MAX, RUSH_BYTES_MIN, RUSH_TIMES, File, Rewrites
from tests.conftest import StoreFactory

MIB = 1024 * 1024


@dataclass
class Scene:
    """A store that is as busy, and has as long a file, as the test says."""

    now_s: float = 0.0
    used_s: float = 0.0
    file: File = field(default_factory=lambda: File(0, 0))
    answers: bool = True
    told: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rewrites = Rewrites(lambda: self.file, lambda: self.used_s, self.tell, lambda: self.now_s)

    def tell(self, bound_bytes: int) -> bool:
        self.told.append(bound_bytes)
        return self.answers

    def pass_by(self, seconds: float, share: float = 0.0) -> None:
        """Time in which the store uses a share of a core, looked at eight times a second."""
        for _ in range(round(seconds * 8)):
            self.now_s += 0.125
            self.used_s += 0.125 * share
            self.rewrites.look()


GROWN = File(10 * MIB, 100 * MIB)


def test_a_quiet_moment_takes_the_bound_down_and_up_again() -> None:
    scene = Scene(file=GROWN)
    scene.pass_by(1.0)
    assert scene.told == []  # one quiet second may be the pause between two calls
    scene.pass_by(1.0)
    assert scene.told == [QUIET_BYTES_MIN]
    scene.pass_by(1.0)
    assert scene.told == [QUIET_BYTES_MIN, RUSH_BYTES_MIN]


def test_a_file_is_asked_for_once_until_it_has_grown_again() -> None:
    scene = Scene(file=GROWN)
    scene.pass_by(60)
    assert scene.told == [QUIET_BYTES_MIN, RUSH_BYTES_MIN]
    scene.file = File(10 * MIB, 200 * MIB)
    scene.pass_by(5)
    assert scene.told == [QUIET_BYTES_MIN, RUSH_BYTES_MIN] * 2


def test_a_file_that_was_rewritten_is_looked_at_anew() -> None:
    scene = Scene(file=GROWN)
    scene.pass_by(5)
    scene.file = File(20 * MIB, 1 * MIB)
    scene.pass_by(5)
    scene.file = File(20 * MIB, 70 * MIB)
    scene.pass_by(5)
    assert scene.told == [QUIET_BYTES_MIN, RUSH_BYTES_MIN] * 2


@pytest.mark.parametrize("share", [QUIET_SHARE_MAX * 1.5, 1.0])
def test_a_busy_store_is_left_alone(share: float) -> None:
    scene = Scene(file=GROWN)
    scene.pass_by(30, share)
    assert scene.told == []
    scene.pass_by(3)
    assert scene.told[0] == QUIET_BYTES_MIN


def test_a_pause_of_a_second_is_no_quiet_moment() -> None:
    scene = Scene(file=GROWN)
    for _ in range(20):
        scene.pass_by(2.0, 0.6)
        scene.pass_by(1.0)
    assert scene.told == []


@pytest.mark.parametrize("file", [File(0, 0), File(0, QUIET_BYTES_MIN - 1), File(200 * MIB, 199 * MIB)])
def test_a_file_that_has_not_doubled_is_left_alone(file: File) -> None:
    scene = Scene(file=file._replace(base_bytes=min(file.base_bytes, RUSH_BYTES_MIN // RUSH_TIMES)))
    scene.file = file
    scene.pass_by(30)
    assert QUIET_BYTES_MIN not in scene.told


def test_the_bound_of_a_rush_grows_with_what_is_there() -> None:
    scene = Scene(file=File(1_000 * MIB, 10 * MIB))
    scene.pass_by(3, 1.0)
    assert scene.told == [RUSH_TIMES * 1_000 * MIB]
    scene.file = File(100 * MIB, 10 * MIB)
    scene.pass_by(3, 1.0)
    assert scene.told == [RUSH_TIMES * 1_000 * MIB, RUSH_BYTES_MIN]


def test_what_the_store_did_not_take_is_told_again() -> None:
    scene = Scene(file=GROWN, answers=False)
    scene.pass_by(5.0)
    assert scene.told == [QUIET_BYTES_MIN] * 4
    scene.answers = True
    scene.pass_by(5)
    assert scene.told == [QUIET_BYTES_MIN] * 5 + [RUSH_BYTES_MIN]


def test_files_and_processes_that_are_not_there(tmp_path: Path) -> None:
    assert rewrites.file_in(tmp_path) == File(0, 0)
    folder = tmp_path / "appendonlydir"
    folder.mkdir()
    (folder / "appendonly.aof.1.base.rdb").write_bytes(b"x" * 5)
    (folder / "appendonly.aof.1.incr.aof").write_bytes(b"x" * 7)
    (folder / "appendonly.aof.2.incr.aof").write_bytes(b"x" * 11)
    (folder / "appendonly.aof.manifest").write_bytes(b"x" * 13)
    assert rewrites.file_in(tmp_path) == File(5, 18)
    assert rewrites.used_s(2**22 + 1) == 0.0


def grow(client: redis.Redis, mib: int) -> None:
    value = b"v" * MIB
    for _ in range(mib):
        client.set("k", value)


def test_a_real_store_rewrites_its_file_when_the_rush_is_over(make_store: StoreFactory) -> None:
    server = make_store()
    over = threading.Event()

    def rush() -> None:
        with redis.Redis.from_url(server.url) as other:
            while not over.is_set():
                other.eval("for n = 1, 1000000 do local m = n end return 0", 0)

    caller = threading.Thread(target=rush)
    caller.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            grow(client, QUIET_BYTES_MIN // MIB + 8)
            start_s = rewrites.used_s(server.pid)
            # Longer than two looks of the watcher, in the store's own time: as busy as that it is not quiet.
            end = time.monotonic() + 60
            while rewrites.used_s(server.pid) - start_s < 3 * rewrites.LOOK_S and time.monotonic() < end:
                assert client.info("persistence")["aof_rewrite_in_progress"] == 0
                threading.Event().wait(0.05)
            assert rewrites.file_in(server.data_dir).grown_bytes > QUIET_BYTES_MIN
            over.set()
            end = time.monotonic() + 30
            while rewrites.file_in(server.data_dir).grown_bytes > QUIET_BYTES_MIN:
                assert time.monotonic() < end, "not rewritten within 30 s"
                threading.Event().wait(0.05)
            while client.config_get("auto-aof-rewrite-min-size") != {
                "auto-aof-rewrite-min-size": str(RUSH_BYTES_MIN)
            }:
                assert time.monotonic() < end, "the bound is not up again"
                threading.Event().wait(0.05)
            assert client.get("k") == b"v" * MIB
    finally:
        over.set()
        caller.join()


def test_no_rewrite_begins_while_the_operator_has_them_off(make_store: StoreFactory) -> None:
    """As during a backup (docs/operations.md)."""
    server = make_store()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("auto-aof-rewrite-percentage", 0)
        grow(client, QUIET_BYTES_MIN // MIB + 8)
        end = time.monotonic() + 30

        def bound_bytes() -> int:
            return int(client.config_get("auto-aof-rewrite-min-size")["auto-aof-rewrite-min-size"])

        for wanted in (
            QUIET_BYTES_MIN,
            RUSH_BYTES_MIN,
        ):  # the watcher would have it rewritten, and has had its moment
            while bound_bytes() != wanted:
                assert time.monotonic() < end, f"the bound is never {wanted}"
                threading.Event().wait(0.02)
        assert client.info("persistence")["aof_rewrite_in_progress"] == 0
        assert rewrites.file_in(server.data_dir).grown_bytes > QUIET_BYTES_MIN
