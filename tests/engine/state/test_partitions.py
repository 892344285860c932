"""Partitions: each store in one, tags that spread over the slots, and scripts that touch nothing but what they declare."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from engine import expiry, issuance, limits, redemption, stock
from engine.calls import InspectRequest, RedeemRequest, VoidRequest
from engine.claims import Line, Terminal, Version, partition_of
from engine.deployment import Deployment
from engine.state.keys import SLOTS, PartitionKeys, partition_of_store, slot_of, spread_tags
from engine.verdict import RedeemVerdict
from tests.conftest import StoreFactory
from tests.engine import shop as shops
from tests.engine.fold import check_against_store, fold
from tests.engine.proofs import proof_token, put_provider
from tests.engine.shop import FAR_STORE, MALL, NEIGHBOUR, PARTITIONS, STORE, Clock, Shop


# --- tags and slots -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("partitions", [1, 2, 3, 16, 100, 1024])
def test_tags_lie_one_in_each_equal_range_of_slots(partitions: int) -> None:
    tags = spread_tags(partitions)
    assert len(set(tags)) == partitions
    for partition, tag in enumerate(tags):
        assert partition * SLOTS // partitions <= slot_of(tag) < (partition + 1) * SLOTS // partitions
        assert not {b"{", b"}"} & {tag[n : n + 1] for n in range(len(tag))}
    assert spread_tags(partitions) == tags


@pytest.mark.parametrize("primaries", [2, 4, 8, 16])
def test_every_primary_gets_its_share_of_sixteen_partitions(primaries: int) -> None:
    owners = Counter(slot_of(tag) * primaries // SLOTS for tag in spread_tags(16))
    assert owners == dict.fromkeys(range(primaries), 16 // primaries)


def test_slots_are_the_store_s(store_url: str) -> None:
    names = PartitionKeys(b"p3.1")
    with redis.Redis.from_url(store_url) as client:
        try:
            answers = {
                client.execute_command("CLUSTER", "KEYSLOT", key)
                for key in (names.meta, names.record(b"\xff" * 8))
            }
        except redis.ResponseError:
            pytest.skip("this server answers no cluster commands outside a cluster")
    assert answers == {slot_of(b"p3.1")}


@given(st.integers(1, 2**32 - 1), st.integers(1, 1024))
def test_a_store_has_one_partition(store_id: int, partitions: int) -> None:
    assert 0 <= partition_of_store(store_id, partitions) < partitions


def test_stores_spread_over_partitions() -> None:
    counts = Counter(partition_of_store(store_id, 16) for store_id in range(1, 16_001))
    assert set(counts) == set(range(16))
    assert max(counts.values()) < 1.15 * min(counts.values())


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=12, max_size=12))
def test_every_name_of_a_partition_carries_its_tag(uid: bytes, digest: bytes) -> None:
    names = PartitionKeys(b"p0.1")
    made = [
        names.meta, names.events, names.attempts, names.record(uid), names.answers(digest), names.stock(1, 2),
        names.stock_answer(digest), names.register(digest, 20_000), names.due(30_000_000),
    ]  # fmt: skip
    assert all(name.startswith(b"{p0.1}") for name in made)
    assert len(set(made)) == len(made)
    assert len({name[len(b"{p0.1}") :][:1] for name in made}) == len(made)


def test_buckets_are_as_many_as_the_limit_says() -> None:
    names = PartitionKeys(b"t")
    buckets = {names.record(n.to_bytes(8)) for n in range(3 * limits.BUCKETS_PER_PARTITION)}
    assert len(buckets) == limits.BUCKETS_PER_PARTITION


# --- codes live where their store does ----------------------------------------------------------------------------
@pytest.mark.parametrize("version", Version)
def test_a_code_lies_in_the_partition_of_its_store(shop: Shop, version: Version) -> None:
    put_provider(shop)
    for store_id in (STORE, NEIGHBOUR, FAR_STORE):
        shop.stock_all(store_id=store_id)
        issued = shop.issue(store_id=store_id, version=version)
        home = partition_of_store(store_id, PARTITIONS)
        assert partition_of(issued.uid) == home
        assert issued.event is not None
        assert issued.event.partition == home
    assert partition_of_store(STORE, PARTITIONS) == partition_of_store(NEIGHBOUR, PARTITIONS)
    assert partition_of_store(STORE, PARTITIONS) != partition_of_store(FAR_STORE, PARTITIONS)


def test_one_batch_over_several_partitions_keeps_its_order(shop: Shop) -> None:
    for store_id in (STORE, FAR_STORE):
        shop.stock_all(50, store_id=store_id)
    stores = [STORE, FAR_STORE, STORE, FAR_STORE, FAR_STORE, STORE]
    codes = issuance.issue(shop.deployment, [shop.issue_request(store_id=store_id) for store_id in stores])
    uids = [code.uid for code in codes if not isinstance(code, Exception)]
    requests = [
        shop.redeem_request(shop.show(uid), terminal=Terminal(MALL, store_id, 7))
        for uid, store_id in zip(uids, stores, strict=True)
    ]
    requests.insert(3, shop.redeem_request("PGNOTACODE"))
    answers = redemption.redeem(shop.deployment, requests)
    verdicts = [answer.verdict for answer in answers if not isinstance(answer, Exception)]
    assert (
        verdicts == [RedeemVerdict.REDEEMED] * 3 + [RedeemVerdict.INVALID_CODE] + [RedeemVerdict.REDEEMED] * 3
    )
    assert [answer.uid for answer in answers if not isinstance(answer, Exception)] == [
        *uids[:3],
        b"",
        *uids[3:],
    ]


def test_a_payload_of_a_partition_that_isn_t_there_is_no_code(shop: Shop) -> None:
    """Genuine, but of a deployment with more partitions: no key of ours could be looked at for it."""
    keys = shop.deployment.control.copy().usable_keys()
    shop.stock_all()
    record = shop.record(shop.issue().uid)
    foreign = replace(record, uid=(PARTITIONS << 54 | 1 << 40).to_bytes(8))
    [text] = issuance.seal(keys, foreign, [shop.clock.now_s])
    assert shop.redeem(text).verdict is RedeemVerdict.INVALID_CODE


# --- a cluster's rules --------------------------------------------------------------------------------------------
TOKEN: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"')
"""One argument in MONITOR's output, still escaped."""


class Monitor:
    """All commands that the server runs, those of scripts included, as it reports them."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(path)
        self._socket.sendall(b"MONITOR\r\n")
        self._stream = self._socket.makefile("rb")
        assert self._stream.readline() == b"+OK\r\n"

    def until(self, sentinel: bytes) -> Iterator[tuple[bool, list[bytes]]]:
        """(run by a script?, arguments) of each command, up to the one that echoes `sentinel`."""
        for line in self._stream:
            arguments = TOKEN.findall(line)
            if arguments[:2] == [b"ECHO", sentinel]:
                return
            yield b" lua]" in line, arguments

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster_shop(make_store: StoreFactory, clock: Clock) -> Iterator[Shop]:
    """A shop on a server in cluster mode that owns every slot: it refuses a command whose keys lie in several."""
    ports = [_free_port() for _ in range(2)]
    server = make_store(
        durability="memory",
        tcp_port=ports[0],
        extra_settings={"cluster-enabled": "yes", "cluster-port": str(ports[1])},
    )
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        ends_s = time.monotonic() + 20
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
            assert time.monotonic() < ends_s
            time.sleep(0.02)
    shops.create(server.url, clock)
    with shops.open_deployment(server.url, clock) as deployment:
        shops.furnish(deployment)
        yield Shop(deployment, server.url, clock)


def everything(shop: Shop) -> Deployment:
    """Every verb, over several partitions at once."""
    deployment = shop.deployment
    stores = (STORE, NEIGHBOUR, FAR_STORE)
    for store_id in stores:
        shop.stock_all(20, store_id=store_id)
    put_provider(shop)
    codes = issuance.issue(
        deployment,
        [
            shop.issue_request(store_id=store_id, version=version, lines=(Line(100, 2), Line(101, 1)))
            for store_id in stores
            for version in Version
        ],
    )
    issued = [code for code in codes if not isinstance(code, Exception)]
    assert len(issued) == 9
    texts = [shop.show(code.uid) for code in issued]
    tries = [
        RedeemRequest(
            Terminal(MALL, code.store_id, 7),
            shop.new_id(),
            text,
            pin=code.pin,
            proof_token=proof_token(shop, code.uid),
            lines=(Line(100, 1),),
        )
        for code, text in zip(issued, texts, strict=True)
    ]
    answers = redemption.redeem(deployment, [*tries, *tries])
    assert all(not isinstance(answer, Exception) and answer.verdict.success for answer in answers)
    assert shop.redeem(texts[0], terminal=Terminal(MALL, FAR_STORE, 1)).verdict is RedeemVerdict.WRONG_STORE
    redemption.inspect(deployment, [InspectRequest(Terminal(MALL, STORE, 7), text) for text in texts])
    voids = [VoidRequest(MALL, shop.new_id(), code.uid) for code in issued[::2]]
    assert all(not isinstance(answer, Exception) for answer in issuance.void(deployment, voids))
    assert shop.issue(lines=(Line(107, 999),)).verdict.slug == "STOCK_SHORT"
    assert len(stock.read(deployment, MALL, STORE)) == 8
    assert issuance.get_by_request_id(deployment, MALL, ["no-such-request"]) == [None]
    shop.clock.tick(limits.TTL_S_DEFAULT + 120)
    assert expiry.sweep(deployment).expired == 4
    shop.clock.tick(limits.AFTERLIFE_S + 240)
    assert expiry.sweep(deployment).forgotten == 9
    return deployment


def test_every_verb_in_a_cluster(cluster_shop: Shop) -> None:
    deployment = everything(cluster_shop)
    check_against_store(fold(cluster_shop.events()), deployment, cluster_shop.clock.now_ms)


def test_scripts_touch_only_keys_that_they_declare(cluster_shop: Shop) -> None:
    """Undeclared keys work on one server and break on the day that the slots are spread over several."""
    monitor = Monitor(cluster_shop.url.removeprefix("unix://"))
    try:
        everything(cluster_shop)
        with redis.Redis.from_url(cluster_shop.url) as client:
            client.echo("that was all")
        declared: set[bytes] = set()
        scripts_run = commands_run = 0
        for by_script, arguments in monitor.until(b"that was all"):
            name = arguments[0].upper()
            if name == b"EVALSHA":
                count = int(arguments[2])
                declared = set(arguments[3 : 3 + count])
                assert len({re.match(rb"\{[^}]+\}", key).group() for key in declared}) == 1  # type: ignore[union-attr]
                scripts_run += 1
            elif by_script and name != b"TIME":
                touched = arguments[1:] if name == b"EXISTS" else arguments[1:2]
                assert touched
                assert set(touched) <= declared, arguments
                commands_run += 1
    finally:
        monitor.close()
    assert scripts_run > 30
    assert commands_run > 200
