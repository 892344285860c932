"""Both stacks for real: codes over the contract, a little load, and books that are cooked behind the service's back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import redis

from loadtests import books, stacks
from loadtests.openloop import even_arrivals
from loadtests.stacks import Comparison, Ours, Stack
from loadtests.subject import Subject, Watcher
from loadtests.supply import STORES, UNITS, near, place, skus, store_ids
from loadtests.wire.pool import Pool

CODES = 60


@pytest.fixture(scope="module", params=[Ours, Comparison])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Shared by the tests of this file, which leave its books in order."""
    kind: type[Stack] = request.param
    with kind(tmp_path_factory.mktemp("stack"), tcp=False) as stack, Subject(stack, connections=2) as made:
        yield made


def client_of(subject: Subject) -> redis.Redis:
    stack = subject.stack
    socket = (
        books.socket_of(stack.data_dir)
        if isinstance(stack, Ours)
        else Path(stack.store.removeprefix("unix://"))
    )
    return redis.Redis(unix_socket_path=str(socket))


def test_a_closed_and_an_open_loop_and_books_that_agree(subject: Subject) -> None:
    subject.stock_up(CODES)
    closed = subject.closed(4, None)
    assert (closed.sent, closed.good) == (CODES, CODES)
    run = subject.open_at(even_arrivals(100, CODES / 100))
    assert (run.sent, run.good, run.unanswered) == (CODES, CODES, 0)
    assert run.verdicts == {"REDEEMED": CODES}
    subject.stock_up(10)  # these stay live
    audit = subject.audit()
    assert audit.findings == []
    assert audit.summary()["redeemed"] == len(subject.acknowledged) >= 2 * CODES
    assert audit.summary()["issued"] == subject.issued
    assert {shelf[1] for shelf in audit.received} == set(store_ids())
    assert sum(audit.received.values()) == UNITS * STORES * len(skus())


def test_what_was_acknowledged_and_is_not_there_is_found(subject: Subject) -> None:
    subject.stock_up(1)
    uid = subject._uids[subject._deck[0]]
    audit = subject.stack.audit([*subject.acknowledged, uid], subject.issued)
    assert audit.findings == [f"{uid.hex()}: a caller was told REDEEMED, and the store does not know"]
    assert "codes were issued" in subject.stack.audit(subject.acknowledged, subject.issued + 1).findings[0]


def test_stock_cooked_in_the_store_is_found(subject: Subject) -> None:
    with client_of(subject) as client:
        if isinstance(subject.stack, Ours):
            key = next(client.scan_iter("{p*}s1:*", count=10_000))
        else:
            key = next(client.scan_iter("stock:1:*", count=10_000))
        name, value = next(iter(client.hgetall(key).items()))
        client.hdel(key, name)
        try:
            assert "stock of mall 1" in subject.audit().findings[0]
        finally:
            client.hset(key, name, value)
    assert subject.audit().findings == []


def test_an_event_taken_out_of_the_store_is_found(subject: Subject) -> None:
    """Restored by a copy: a stream takes nothing back."""
    subject.stock_up(4)
    with client_of(subject) as client:
        streams = client.scan_iter("{p*}e" if isinstance(subject.stack, Ours) else "events", count=10_000)
        stream = max(streams, key=client.xlen)
        client.copy(stream, stream + b":copy")
        (entry_id, _), *_ = client.xrevrange(stream, count=3)[1:]
        client.xdel(stream, entry_id)
        try:
            findings = "\n".join(subject.audit().findings)
            assert "a gap" in findings if isinstance(subject.stack, Ours) else "were appended" in findings
        finally:
            client.rename(stream + b":copy", stream)


def test_a_record_taken_out_of_the_store_is_found(subject: Subject) -> None:
    subject.stock_up(4)
    with client_of(subject) as client:
        if isinstance(subject.stack, Ours):
            key = next(client.scan_iter("{p*}c*", count=10_000))
            name, value = next(iter(client.hgetall(key).items()))
            client.hdel(key, name)
            try:
                assert "1 codes have events and no record" in "\n".join(subject.audit().findings)
            finally:
                client.hset(key, name, value)
        else:
            key = next(client.scan_iter("code:*", count=10_000))
            value = client.hget(key, "lines")
            client.hset(key, "lines", json.dumps([[101, 1, 7]]))
            try:
                assert "its record says" in "\n".join(subject.audit().findings)
            finally:
                client.hset(key, "lines", value)


def test_usage_tells_service_and_store_apart(subject: Subject) -> None:
    with Watcher(subject.stack) as watcher:
        give_up = time.monotonic() + 20
        while len(watcher.seen) < 2:
            assert time.monotonic() < give_up
            time.sleep(0.05)
    first = watcher.seen[0]
    assert first.rss_bytes > 20 * 2**20
    assert first.store_rss_bytes > 2**20
    assert first.descriptors > 5
    with Pool(subject.stack.address, 20) as pool:
        pool.poll(0.05)
        while subject.stack.usage().descriptors < first.descriptors + 20:
            assert time.monotonic() < give_up
            pool.poll(0.05)


def test_batches_are_those_that_the_server_tells_of(subject: Subject) -> None:
    before = subject.batches()
    subject.stock_up(len(subject._deck) + 20)
    after = subject.batches()
    if isinstance(subject.stack, Comparison):
        assert before == after == {}
    else:
        # At least the renders; bulk issue runs elsewhere.
        assert sum(size * count for size, count in (after - before).items()) >= 15


def test_both_stores_have_the_same_durability(tmp_path: Path) -> None:
    with Ours(tmp_path / "a", tcp=False) as ours, Comparison(tmp_path / "b", tcp=True) as comparison:
        settings = stacks.same_durability(ours, comparison)
        assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")
        assert comparison.address.startswith("127.0.0.1:")
        with redis.Redis(unix_socket_path=comparison.store.removeprefix("unix://")) as client:
            client.config_set("appendfsync", "everysec")
        with pytest.raises(stacks.StackFailed, match=r"different settings.*appendfsync"):
            stacks.same_durability(ours, comparison)
        family = psutil.Process(comparison.pid).children(recursive=True)
        assert any("-server" in member.name() for member in family)
    assert not any(member.is_running() for member in family)


def test_a_stack_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(stacks.StackFailed, match=r"(?s)comparison did not come up.*data"):
        Comparison(tmp_path, tcp=False).start()


def test_a_stack_that_is_gone_says_so(tmp_path: Path) -> None:
    with Comparison(tmp_path, tcp=False) as stack:
        psutil.Process(stack.pid).terminate()
        give_up = time.monotonic() + 20
        while stack.alive:
            assert time.monotonic() < give_up
            time.sleep(0.02)
        with pytest.raises(stacks.StackFailed, match="comparison is gone"):
            stack.usage()


def test_a_stack_that_was_killed_leaves_no_store(tmp_path: Path) -> None:
    with Comparison(tmp_path, tcp=False) as stack:
        store, *_ = psutil.Process(stack.pid).children(recursive=True)
        psutil.Process(stack.pid).kill()
    gone, _ = psutil.wait_procs([store], timeout=20)
    assert gone == [store]


def test_positions_are_near_their_stores() -> None:
    import random

    for store_id in store_ids():
        position = near(store_id, random.Random(store_id))
        latitude, longitude = place(store_id)
        assert abs(position.latitude_deg - latitude) < 200 / 110_000
        assert abs(position.longitude_deg - longitude) < 200 / 110_000
        assert 5 <= position.accuracy_m <= 40
