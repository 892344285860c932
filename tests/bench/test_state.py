"""One call of the store by batch size: what a redemption costs when it comes alone, and when it comes in company."""

import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from engine.calls import IssueAnswer, StockChange
from engine.claims import Channel, Line, State, Suite, Version
from engine.deployment import system_ms
from engine.state import attempts, codes, stock
from engine.state.connection import Connection, Durability
from engine.state.keys import spread_tags
from engine.state.server import EmbeddedServer
from engine.verdict import IssueVerdict, RedeemVerdict, StockVerdict
from tests.bench.conftest import Measure
from tests.bench.report import OUT
from tests.engine.tries import packed

MALL, STORE, TERMINAL, SKU = 7, 2001, 3, 501
ROUNDS = {1: 100, 8: 50, 64: 25, 256: 12}
FSYNCS = 50

draw = random.Random(4)


@pytest.fixture(scope="module", params=["fsync", "memory"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """Connect to a store of one partition, so that a batch is one call; its data lies beside the report."""
    OUT.mkdir(parents=True, exist_ok=True)
    durability: Any = request.param
    with (
        tempfile.TemporaryDirectory(dir=OUT, prefix="store-") as data_dir,
        EmbeddedServer(data_dir, durability=durability) as server,
    ):
        opened = Connection(server.url, durability=Durability(durability), now_ms=system_ms)
        opened.use_partitions(spread_tags(1), create=True)
        received = stock.StockItem(
            draw.randbytes(12), bytes(8), MALL, STORE, SKU, StockChange.RECEIVE, 1_000_000, "", ""
        )
        [answer] = stock.change(opened, [received])
        assert not isinstance(answer, Exception)
        assert answer.verdict is StockVerdict.RECEIVED
        yield opened
        opened.close()


def issue(connection: Connection, count: int) -> list[bytes]:
    """Make codes of one unit each and return their uids."""
    now_s = system_ms() // 1000
    answers = codes.issue(
        connection,
        [
            codes.IssueItem(
                request=draw.randbytes(12),
                body=bytes(8),
                mall_id=MALL,
                store_id=STORE,
                channel=Channel.ONLINE,
                version=Version.DYNAMIC,
                suite=Suite.AES,
                state=State.LIVE,
                policy_version=1,
                expires_at_s=now_s + 3600,
                ttl_s=3600,
                proof_methods=(),
                amount_fen=9_900,
                pin_generation=0,
                # Partition 0, and never one of the static codes' uids.
                candidates=[(draw.getrandbits(54) | 1 << 33).to_bytes(8)],
                candidates_free=1,
                lines=[Line(SKU, 1)],
                bundles=[],
                order_id="2026112100001",
                splits=[],
                actor="mall:7",
            )
            for _ in range(count)
        ],
    )
    assert all(isinstance(a, IssueAnswer) and a.verdict is IssueVerdict.ISSUED for a in answers)
    return [answer.uid for answer in answers if isinstance(answer, IssueAnswer)]


def tries(uids: list[bytes]) -> list[attempts.Attempt]:
    return [
        packed(
            uid,
            draw.randbytes(12),
            mall_id=MALL,
            store_id=STORE,
            distance_bucket=2,
            body=bytes(8),
            actor=b"terminal:3",
        )
        for uid in uids
    ]


@pytest.mark.parametrize("count", list(ROUNDS))
def test_redeem(measure: Measure, benchmark: BenchmarkFixture, connection: Connection, count: int) -> None:
    durability = connection.durability.value
    rounds = itertools.count()
    answers = measure(
        "redeem in the store",
        f"{durability}, batches of {count}",
        "engine",
        count,
        lambda items: (next(rounds), attempts.run(connection, items))[1],
        prepare=lambda: (tries(issue(connection, count)),),
        rounds=ROUNDS[count],
    )
    assert next(rounds) == ROUNDS[count]
    verdicts = [facts.verdict for facts in answers if isinstance(facts, attempts.Facts)]
    assert verdicts == [RedeemVerdict.REDEEMED.number] * count
    if connection.durability is Durability.FSYNC:
        benchmark.extra_info["fsync_s"] = fsync_s()


PLAIN: Final = """
local answers = {}
for n = 1, #ARGV do
  local uid = ARGV[n]:sub(1, 8)
  local record = redis.call('HGET', KEYS[1], uid)
  local left = redis.call('HINCRBY', KEYS[2], 'left', -1)
  redis.call('HSET', KEYS[1], uid, ARGV[n])
  redis.call('HSET', KEYS[3], ARGV[n]:sub(9, 20), ARGV[n])
  redis.call('APPEND', KEYS[4], uid)
  redis.call('XADD', KEYS[5], '*', 'e', ARGV[n])
  answers[n] = (record and 'A' or 'U') .. left
end
return answers
"""
"""What any script must do that takes a unit durably: read a record, change it and the stock, remember the answer, say when it is to be
forgotten, append an event. No rule is looked at. The measure of our script's rules."""


@pytest.mark.parametrize("count", [64])
def test_plain_script(measure: Measure, connection: Connection, count: int) -> None:
    durability = connection.durability.value
    [sha] = connection.read([("SCRIPT", "LOAD", PLAIN)])
    keys = [f"{{plain}}{name}" for name in ("records", "stock", "answers", "due", "events")]
    [answers] = measure(
        "redeem in the store",
        f"{durability}, batches of {count}",
        "plain",
        count,
        lambda items: connection.read([("EVALSHA", sha, len(keys), *keys, *items)]),
        prepare=lambda: (tries([draw.randbytes(8) for _ in range(count)]),),
        rounds=ROUNDS[count],
    )
    assert len(answers) == count
    assert all(answer.startswith(b"U") for answer in answers)


def fsync_s() -> float:
    """Return the median time of writing 4 KiB and waiting for the disk, where the store's data lies."""
    with tempfile.TemporaryFile(dir=OUT) as file:
        taken = []
        for _ in range(FSYNCS):
            started = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)
