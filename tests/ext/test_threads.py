"""Many threads on one key table and one PRF, keys coming and going meanwhile."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ext.claims import PAYLOAD_SIZE
from ext.status import OpenStatus
from tests.ext.twins import KINDS, full_table, kid_of, opened_as, random_claims

THREADS = 16
ROUNDS = 12


def together(calls: list[Callable[[], None]]) -> None:
    """Run all at once, each in its thread, none before all are there; the first error is raised."""
    barrier = threading.Barrier(len(calls))

    def started(call: Callable[[], None]) -> None:
        barrier.wait(timeout=30)
        call()

    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(started, call) for call in calls]:
            future.result(timeout=120)


def test_threads_seal_and_open_while_keys_come_and_go(codec: Any) -> None:
    keys = full_table(codec)

    def work(seed: int) -> None:
        for version, suite in KINDS:
            if version == 3 and seed % 4:
                continue
            size, count = PAYLOAD_SIZE[version], 3 if version == 3 else 50
            claims = random_claims(version, count, seed)
            expected = opened_as(version, suite, claims).tolist()
            offsets = np.arange(count + 1, dtype=np.uint32) * size
            for _ in range(1 if version == 3 else ROUNDS):
                sealed = codec.seal_batch(keys, kid_of(version, suite), claims)
                assert codec.open_batch(keys, sealed, offsets).tolist() == expected

    def churn(seed: int) -> None:
        claims = random_claims(2, 20, seed)
        offsets = np.arange(21, dtype=np.uint32) * 47
        kid = 30_000 + seed
        for _ in range(ROUNDS * 5):
            keys.add(kid, 2, 1, bytes([seed]) * 32)
            sealed = codec.seal_batch(keys, kid, claims)
            assert set(codec.open_batch(keys, sealed, offsets)["status"]) == {OpenStatus.OK}
            keys.remove(kid)
            assert set(codec.open_batch(keys, sealed, offsets)["status"]) == {OpenStatus.KID}

    calls: list[Callable[[], None]] = [lambda seed=seed: work(seed) for seed in range(THREADS)]  # type: ignore[misc]
    calls += [lambda seed=seed: churn(seed) for seed in range(4)]  # type: ignore[misc]
    together(calls)
    assert len(keys) == len(KINDS)


def test_a_key_removed_under_load_is_all_there_or_gone(codec: Any) -> None:
    """Within one batch a kid is known for every code or for none: a batch holds the table."""
    keys = full_table(codec)
    kid = kid_of(1, 2)
    count = 200
    sealed = codec.seal_batch(keys, kid, random_claims(1, count, 1))
    offsets = np.arange(count + 1, dtype=np.uint32) * 31
    known, gone = frozenset({int(OpenStatus.OK)}), frozenset({int(OpenStatus.KID)})
    seen: set[frozenset[int]] = set()
    over = threading.Event()
    give_up_s = time.monotonic() + 30

    def opening() -> None:
        while not over.is_set():
            seen.add(frozenset(codec.open_batch(keys, sealed, offsets)["status"].tolist()))

    def toggling() -> None:
        try:
            rounds = 0
            while (rounds < 200 or not seen >= {known, gone}) and time.monotonic() < give_up_s:
                keys.remove(kid)
                keys.add(kid, 1, 2, bytes([1, 2]) * 16)
                rounds += 1
        finally:
            over.set()

    together([opening, opening, toggling])
    assert seen == {known, gone}


def test_threads_share_a_prf(codec: Any) -> None:
    prf = codec.Prf(2, bytes(32))
    messages = [bytes([i]) * (i * 7) for i in range(40)]
    offsets = np.cumsum([0, *map(len, messages)]).astype(np.uint32)
    expected = [prf.one(message) for message in messages]

    def one() -> None:
        for _ in range(ROUNDS):
            assert [prf.one(message) for message in messages] == expected

    def batch() -> None:
        for _ in range(ROUNDS):
            assert prf.batch(b"".join(messages), offsets) == b"".join(expected)

    together([one, batch] * (THREADS // 2))
