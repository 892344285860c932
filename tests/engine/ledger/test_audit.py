"""The audit: everything that happened is found by each way in, in order, page by page; refused attempts are there, and bounded."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import func, select

from engine import forgeries, limits, redemption
from engine.claims import Line, Terminal, Version
from engine.errors import InvalidInput, StoreUnavailable
from engine.ledger import attempts, checkpoints
from engine.ledger.attempts import AttemptsWriter
from engine.ledger.audit import Cursor, Finding, Question, search
from engine.ledger.heads import Signer
from engine.ledger.ledger import Ledger
from engine.ledger.tables import ATTEMPT_DAYS, METADATA
from engine.ledger.writer import Writer
from engine.policies import Policy
from engine.state.connection import Connection, Durability
from engine.state.streams import Streams
from engine.verdict import RedeemVerdict
from tests.engine.shop import (
    FAR_STORE,
    MALL,
    NEIGHBOUR,
    OTHER_MALL,
    STORE,
    Shop,
    north,
    open_deployment,
    settled,
)


@pytest.fixture
def uid(shop: Shop, ledger: Ledger, writer: Writer) -> bytes:
    """A code with a life: tried at another store, picked up, tried again; beside others."""
    shop.stock_all()
    made = shop.issue(order_id="ORDER-7", lines=(Line(100, 1), Line(101, 1)), actor="mall:till").uid
    shop.clock.tick(1)
    shop.redeem(shop.show(made), terminal=Terminal(MALL, NEIGHBOUR, 9))
    shop.clock.tick(1)
    shop.redeem(shop.show(made), actor="clerk:bob")
    shop.clock.tick(1)
    text = shop.show(shop.issue(order_id="ORDER-8").uid)
    shop.redeem(text, actor="clerk:eve")
    shop.redeem(text, actor="clerk:eve")
    shop.clock.tick(1)
    shop.receive(5, store_id=FAR_STORE, actor="warehouse:li")
    writer.step(block_ms=0)
    AttemptsWriter(Streams(shop.deployment.connection), ledger).step()
    return made


def told(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.what for finding in findings]


def test_the_life_of_a_code(ledger: Ledger, uid: bytes) -> None:
    page = search(ledger, Question(uid=uid))
    assert told(page.findings) == ["ISSUED", "WRONG_STORE", "REDEEMED"]
    assert [finding.refused for finding in page.findings] == [False, True, False]
    assert page.findings[1].store_id == NEIGHBOUR
    assert page.findings[1].terminal_id == 9
    assert page.findings[2].actor == "clerk:bob"
    assert page.findings[2].details["lines"] == [
        {"sku_id": 100, "count": 1, "left": 0},
        {"sku_id": 101, "count": 1, "left": 0},
    ]
    assert page.after is None


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({"mall_id": MALL, "order_id": "ORDER-7"}, ["ISSUED", "WRONG_STORE", "REDEEMED"]),
        ({"mall_id": OTHER_MALL, "order_id": "ORDER-7"}, []),
        ({"mall_id": MALL, "order_id": "ORDER-9"}, []),
        ({"actor": "clerk:eve"}, ["REDEEMED"]),
        ({"actor": "warehouse:li"}, ["STOCK"]),
        ({"store_id": NEIGHBOUR}, ["WRONG_STORE"]),
        ({"store_id": NEIGHBOUR, "terminal_id": 7}, []),
        ({"store_id": STORE, "terminal_id": 7}, ["REDEEMED", "REDEEMED", "ALREADY_REDEEMED"]),
        ({"store_id": FAR_STORE}, ["STOCK"]),
        ({"actor": "test"}, ["CONTROL"] * 3),
    ],
)
def test_every_way_in(ledger: Ledger, uid: bytes, question: dict[str, Any], expected: list[str]) -> None:
    assert told(search(ledger, Question(**question)).findings) == expected


def test_a_span_of_time(shop: Shop, ledger: Ledger, uid: bytes) -> None:
    end_ms = shop.clock.now_ms
    assert told(search(ledger, Question(from_ms=end_ms)).findings) == ["STOCK"]
    before = search(ledger, Question(from_ms=end_ms - 3_000, to_ms=end_ms)).findings
    assert told(before) == ["WRONG_STORE", "REDEEMED", "ISSUED", "REDEEMED", "ALREADY_REDEEMED"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_pages_put_together_are_the_whole(ledger: Ledger, uid: bytes, count: int) -> None:
    question = Question(mall_id=MALL)
    whole = search(ledger, question, count=1_000)
    assert whole.after is None
    found: list[Finding] = []
    after: Cursor | None = None
    while True:
        page = search(ledger, question, count=count, after=after)
        found += page.findings
        if page.after is None:
            break
        after = Cursor.parse(str(page.after))
    assert tuple(found) == whole.findings
    assert [finding.at_ms for finding in found] == sorted(finding.at_ms for finding in found)


@pytest.mark.parametrize(
    ("ask", "part"),
    [
        (lambda: Question(), "nothing is asked for"),
        (lambda: Question(order_id="ORDER-7"), "name the mall too"),
        (lambda: Cursor.parse("1.2.3"), "what an earlier page ended with"),
        (lambda: Cursor.parse("1.2.3.4.x"), "what an earlier page ended with"),
    ],
)
def test_a_question_that_is_none_is_told(ask: Callable[[], object], part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        ask()


def test_a_page_is_bounded(ledger: Ledger) -> None:
    with pytest.raises(InvalidInput, match="1 to 1000"):
        search(ledger, Question(mall_id=MALL), count=1_001)


# --- attempts ---------------------------------------------------------------------------------------------------------
def refuse(shop: Shop, times: int) -> None:
    """Try to pick up a code that is picked up already."""
    text = shop.show(shop.issue().uid)
    shop.redeem(text)
    for _ in range(times):
        shop.redeem(text)


def test_attempts_are_copied_once(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    copier = AttemptsWriter(Streams(shop.deployment.connection), ledger)
    rival = AttemptsWriter(Streams(shop.deployment.connection), ledger)
    copier.start()
    rival.start()
    refuse(shop, 3)
    assert copier.step() == 3
    assert copier.step() == 0
    rival.step()
    refuse(shop, 2)
    successor = AttemptsWriter(Streams(shop.deployment.connection), ledger)
    successor.start()
    assert successor.step() == 2
    found = search(ledger, Question(store_id=STORE)).findings
    assert sum(finding.refused for finding in found) == 5


def test_a_flood_is_counted_and_fills_nothing(
    shop: Shop, ledger: Ledger, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "DAY_MAX", 4)
    shop.stock_all()
    copier = AttemptsWriter(Streams(shop.deployment.connection), ledger)
    copier.start()
    for _ in range(2):
        refuse(shop, 5)
        copier.step()
    assert sum(finding.refused for finding in search(ledger, Question(store_id=STORE)).findings) == 4
    with ledger.engine.connect() as connection:
        counted = connection.execute(select(ATTEMPT_DAYS.c.kept, ATTEMPT_DAYS.c.dropped)).one()
    assert tuple(counted) == (4, 6)


# --- forgeries --------------------------------------------------------------------------------------------------------
FORGED = "PG" + "0" * 74


def forge(shop: Shop, times: int, terminal: Terminal, text: str = FORGED) -> None:
    """Try to pick up with something that is no code."""
    for start in range(0, times, limits.BATCH_MAX):
        tries = [
            shop.redeem_request(text, terminal=terminal) for _ in range(min(limits.BATCH_MAX, times - start))
        ]
        for answer in redemption.redeem(shop.deployment, tries):
            assert settled(answer).verdict is RedeemVerdict.INVALID_CODE


def copied(shop: Shop, ledger: Ledger) -> list[Finding]:
    """What the ledger has of forgeries after the minute."""
    shop.clock.tick(60)
    shop.deployment.forgeries.tell(shop.deployment.connection)
    copier = AttemptsWriter(Streams(shop.deployment.connection), ledger)
    copier.start()
    while copier.step():
        pass
    found = search(ledger, Question(from_ms=1), count=1_000).findings
    return [finding for finding in found if finding.what == "INVALID_CODE"]


def test_forgeries_are_counted_for_each_terminal_and_minute(
    shop: Shop, ledger: Ledger, writer: Writer
) -> None:
    begin_ms = shop.clock() // 60_000 * 60_000
    forge(shop, 5, Terminal(MALL, STORE, 7))
    forge(shop, 2, Terminal(MALL, NEIGHBOUR, 9), text="1234567890123456")
    shop.inspect("nonsense", terminal=Terminal(MALL, NEIGHBOUR, 9))
    shop.clock.tick(60)
    forge(shop, 1, Terminal(MALL, STORE, 7))
    found = copied(shop, ledger)
    assert [(one.at_ms, one.store_id, one.terminal_id, one.details["count"]) for one in found] == [
        (begin_ms, STORE, 7, 5),
        (begin_ms, NEIGHBOUR, 9, 3),
        (begin_ms + 60_000, STORE, 7, 1),
    ]
    assert [len(one.details["samples"]) for one in found] == [3, 3, 1]
    assert [sample["shape"] for sample in found[1].details["samples"]] == ["TYPED", "TYPED", "OTHER"]
    assert [sample["inspected"] for sample in found[1].details["samples"]] == [False, False, True]
    assert found[0].details["samples"][0] == {
        "at_ms": shop.clock() - 120_000, "chars": len(FORGED), "shape": "PAYLOAD", "inspected": False,
    }  # fmt: skip
    asked = search(ledger, Question(store_id=NEIGHBOUR, terminal_id=9)).findings
    assert [one.what for one in asked] == ["INVALID_CODE"]
    assert search(ledger, Question(actor="clerk:eve")).findings == ()
    assert copied(shop, ledger) == found, "each is copied once"


def test_genuine_codes_among_forged_ones_are_not_counted(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    text = shop.show(shop.issue().uid)
    tries = [shop.redeem_request(code) for code in (FORGED, text, FORGED)]
    redemption.redeem(shop.deployment, tries)
    assert [one.details["count"] for one in copied(shop, ledger)] == [2]


def test_a_flood_of_forgeries_fills_nothing(
    shop: Shop, ledger: Ledger, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand from one terminal are one row; from ever more terminals they are told apart up to a bound, and counted beyond it."""
    monkeypatch.setattr(forgeries, "TERMINALS_MAX", 20)
    forge(shop, 10_000, Terminal(MALL, STORE, 7))
    for terminal_id in range(100, 150):
        forge(shop, 2, Terminal(MALL, STORE, terminal_id))
    before = rows(ledger)
    found = copied(shop, ledger)
    assert rows(ledger) - before == 21 + 1, "and the count of the day"
    assert sum(one.details["count"] for one in found) == 10_100
    assert max(found, key=lambda one: int(one.details["count"])).details["count"] == 10_000
    others = next(one for one in found if one.terminal_id == 0)
    assert others.details["count"] == 2 * (50 - 19)
    assert all(len(json.dumps(one.details)) < 400 for one in found)
    assert shop.deployment.connection.read([("XLEN", "{ctl}f")]) == [21]


def test_past_the_days_bound_forgeries_are_only_counted(
    shop: Shop, ledger: Ledger, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "DAY_MAX", 4)
    for terminal_id in range(1, 8):
        forge(shop, 1, Terminal(MALL, STORE, terminal_id))
    assert len(copied(shop, ledger)) == 4
    with ledger.engine.connect() as connection:
        counted = connection.execute(select(ATTEMPT_DAYS.c.kept, ATTEMPT_DAYS.c.dropped)).one()
    assert tuple(counted) == (4, 3)


def test_a_store_that_is_away_loses_no_count(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    forge(shop, 3, Terminal(MALL, STORE, 7))
    shop.clock.tick(60)
    away = Connection("redis://127.0.0.1:1/0", durability=Durability.MEMORY, now_ms=shop.clock)
    with pytest.raises(StoreUnavailable):
        shop.deployment.forgeries.tell(away)
    away.close()
    assert [one.details["count"] for one in copied(shop, ledger)] == [3]


def test_a_process_that_ends_tells_the_last_minute(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    with open_deployment(shop.url, shop.clock) as deployment:
        forge(Shop(deployment, shop.url, shop.clock), 2, Terminal(MALL, STORE, 7))
    assert [one.details["count"] for one in copied(shop, ledger)] == [2]


def rows(ledger: Ledger) -> int:
    """Of all tables."""
    with ledger.engine.connect() as connection:
        return sum(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in METADATA.sorted_tables
        )


# --- what must not be kept ----------------------------------------------------------------------------------------------
def everything(shop: Shop, ledger: Ledger, *folders: Path) -> Iterator[tuple[str, bytes]]:
    """Every value of every table and of every key in the store, and every file; pieces of checkpoints unpacked."""
    with ledger.engine.connect() as connection:
        for table in METADATA.sorted_tables:
            for row in connection.execute(select(table)):
                for name, value in row._mapping.items():
                    data = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                    yield f"{table.name}.{name}", data
                    if table.name == "checkpoint_pieces" and name == "data":
                        yield f"{table.name}.{name}", zlib.decompress(data)
    with redis.Redis.from_url(shop.url) as store:
        for key in store.keys("*"):
            yield "a key's name", key
            kind = store.type(key).decode()
            if kind == "stream":
                found: Any = store.xrange(key)
            elif kind == "hash":
                found = store.hgetall(key)
            elif kind == "zset":
                found = store.zrange(key, 0, -1)
            else:
                found = store.get(key)
            yield key.decode(errors="replace"), b"\0".join(flat(found))
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield path.name, path.read_bytes()


def flat(value: Any) -> Iterator[bytes]:
    """The bytes of a reply, however deep."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield from flat(list(value.items()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from flat(one)


def written_forms(number: float) -> list[bytes]:
    """How a coordinate might be written down: as text, as a float of either size and order, in millionths."""
    text = f"{number:.4f}".encode()
    packed = [struct.pack(form, number) for form in (">d", "<d", ">f", "<f")]
    return [text, *packed, b"%d" % round(number * 1e6), round(number * 1e7).to_bytes(4, "big")]


def test_neither_pin_nor_payload_nor_place_is_kept_anywhere(
    shop: Shop, ledger: Ledger, writer: Writer, tmp_path: Path
) -> None:
    """After a day with every verb in it, by name: codes in every state, tries at the wrong place, forgeries, a checkpoint, signed heads."""
    shop.stock_all(50)
    shop.put_store(STORE, terminal_location="required")
    shop.put_policies(Policy("deployment", customer_location="required"))
    near, far = north(37.5), north(2_000.0)
    static = shop.issue(version=Version.STATIC, order_id="ORDER-1").uid
    dynamic = shop.issue(lines=(Line(100, 2), Line(103, 1)), order_id="ORDER-2").uid
    held = shop.hold().uid
    shop.confirm(held)
    shop.void(held)
    rendered = shop.render(static, position=near, request_id="near-by-1")
    shown = shop.render(dynamic, position=near, request_id="near-by-2")
    texts = [rendered.payloads[0].text, shown.payloads[0].text, rendered.typed, FORGED]
    wrong = f"{(int(rendered.pin) + 1) % 1_000_000:06d}"
    shop.redeem(texts[0], pin=wrong, position=near)
    shop.redeem(texts[0], pin=rendered.pin, position=far)
    assert shop.redeem(texts[0], pin=rendered.pin, position=near).verdict is RedeemVerdict.REDEEMED
    assert shop.redeem(texts[1], position=near, lines=(Line(100, 1),)).verdict is RedeemVerdict.REDEEMED
    shop.redeem(texts[1], position=far)
    assert shop.render(dynamic, position=far, request_id="far-away-1").verdict.slug == "OUT_OF_RANGE"
    shop.reverse(static)
    shop.transfer(3)
    forge(shop, 5, Terminal(MALL, STORE, 7))
    while writer.step(block_ms=0):
        pass
    assert copied(shop, ledger)
    key = Ed25519PrivateKey.generate()
    checkpoints.take(ledger, key, at_ms=shop.clock())
    signer = Signer(key, tmp_path / "heads", deployment_id=ledger.deployment_id, algorithm="sha256")
    assert signer.sign(ledger.heads(), shop.clock())
    secrets = [text.encode() for text in texts]
    secrets += [text.replace(" ", "").replace("-", "").encode() for text in texts]
    secrets += [raw_payload(text) for text in texts[:2]]
    secrets += [rendered.pin.encode(), wrong.encode()]
    for place in (near, far):
        secrets += written_forms(place.latitude_deg)
    looked_at = 0
    for where, data in everything(shop, ledger, tmp_path / "heads"):
        looked_at += 1
        for secret in secrets:
            assert secret not in data, (where, secret)
    assert looked_at > 500
    with pytest.raises(AssertionError):
        assert b"ORDER-2" not in b"".join(data for _, data in everything(shop, ledger)), "it does look"


def raw_payload(text: str) -> bytes:
    """The bytes that a payload's text stands for: Crockford's base32 behind PG."""
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    bits = "".join(f"{alphabet.index(char):05b}" for char in text.removeprefix("PG"))
    return int(bits[: len(bits) // 8 * 8], 2).to_bytes(len(bits) // 8, "big")
