"""Checkpoints: folding on from one gives what folding from the beginning gives; one that was tampered with is named and not used."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, insert, select, update

from engine import issuance
from engine.claims import Decision, Line, Version
from engine.errors import LedgerConflict, RequestIdReused
from engine.ledger import checkpoints, folded, reconcile
from engine.ledger.checkpoints import Checkpoint
from engine.ledger.fold import Fold
from engine.ledger.ledger import Ledger
from engine.ledger.rebuild import Rebuilt, rebuild
from engine.ledger.tables import CHECKPOINT_PIECES, CHECKPOINTS, EVENTS
from engine.ledger.verify import Range, verify
from engine.ledger.writer import Writer
from engine.policies import Policy, Tiers
from engine.state.connection import Connection, Durability
from engine.state.keys import partition_of_store
from engine.state.streams import CONTROL, Entry
from tests.engine import shop as shops
from tests.engine.ledger.test_fold import entries_of
from tests.engine.shop import FAR_STORE, PARTITIONS, STORE, Shop, settled
from tests.model.test_model import Engine, run

HISTORIES: Final = 400 if os.environ.get("PICKGATE_SOAK") == "1" else 20
KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
NUMBER: Final = partition_of_store(STORE, PARTITIONS)


def state(fold: Fold) -> dict[str, Any]:
    """All that a fold holds, in plain values."""
    assert fold.answers is not None
    return {
        "place": fold.place,
        "last_at_ms": fold.last_at_ms,
        "shelves": {shelf: figures.pack() for shelf, figures in fold.shelves.items()},
        "records": fold.records,
        "evidence": fold.evidence,
        "reviews": fold.reviews,
        "departures": fold.departures,
        "arrivals": fold.arrivals,
        "register": fold.register,
        "of_codes": fold.answers.of_codes,
        "of_stock": fold.answers.of_stock,
        "of_arrivals": fold.answers.of_arrivals,
    }


def fold_all(number: int, entries: list[Entry], *, by: tuple[int, ...] = ()) -> Fold:
    """Fold entries, as a checkpoint keeps and gives back at each of the places `by`."""
    fold = Fold(number, remember=True)
    for done, entry in enumerate(entries):
        if done in by:
            fold.prune()
            fold = folded.load(list(folded.dump(fold)), remember=True)
        fold.add(entry)
    fold.prune()
    return fold


@pytest.fixture
def busy(shop: Shop) -> dict[str, bytes]:
    """Every verb, tiers crossed, units moved between stores."""
    shop.put_policies(Policy("deployment", tiers=Tiers(tight_percent=40)))
    shop.stock_all(50)
    shop.receive(50, store_id=FAR_STORE)
    codes = {name: shop.issue(lines=(Line(100, 2), Line(103, 3))).uid for name in ("live", "partly", "over")}
    codes["static"] = shop.issue(version=Version.STATIC).uid
    codes["held"] = shop.hold().uid
    shop.redeem(shop.show(codes["partly"]), lines=(Line(100, 1),), request_id="in-part-1")
    shop.redeem(shop.show(codes["over"]), request_id="is-over-1")
    shop.lock(codes["static"])
    shop.decide(codes["static"], Decision.APPROVE)
    shop.confirm(codes["held"])
    shop.transfer(5, request_id="transfer-1")
    shop.reverse(codes["over"])
    return codes


@pytest.fixture
def bring_up(writer: Writer) -> Callable[[], None]:
    def write() -> None:
        while writer.step(block_ms=0):
            pass

    return write


def take(shop: Shop, ledger: Ledger) -> Checkpoint:
    return checkpoints.take(ledger, KEY, at_ms=shop.clock())


# --- the state ----------------------------------------------------------------------------------------------------------
def test_a_fold_goes_on_from_any_place(shop: Shop, busy: dict[str, bytes]) -> None:
    for number, entries in entries_of(shop.deployment).items():
        whole = state(fold_all(number, entries))
        for place in range(len(entries) + 1):
            assert state(fold_all(number, entries, by=(place,))) == whole, (number, place)


class Checkpointed(Engine):
    """The model's histories of every verb; at the end of each its events are folded by way of checkpoints at places drawn at random."""

    folded_on = 0

    def teardown(self) -> None:
        try:
            if self.compared:
                self.fold_by_checkpoints()
        finally:
            super().teardown()

    def fold_by_checkpoints(self) -> None:
        draw = random.Random(len(self.uids))
        for number, entries in entries_of(self.opened[0]).items():
            whole = state(fold_all(number, entries))
            for places in (1, 3):
                by = tuple(draw.randrange(len(entries) + 1) for _ in range(places))
                assert state(fold_all(number, entries, by=by)) == whole, (number, by)
                type(self).folded_on += 1


def test_histories_of_every_verb_go_on_from_any_place(tmp_path: Path) -> None:
    run(Checkpointed, tmp_path / "store", "memory", HISTORIES)
    assert Checkpointed.folded_on >= HISTORIES


@pytest.mark.parametrize(
    "harm",
    [
        lambda pieces: [b"PGFX" + pieces[0][4:], *pieces[1:]],
        lambda pieces: [pieces[0], pieces[1][:-1], *pieces[2:]],
        lambda pieces: [pieces[0], pieces[1] + b"x", *pieces[2:]],
        lambda pieces: [pieces[0], b"\xff" + pieces[1][1:], *pieces[2:]],
        lambda pieces: [],
    ],
)
def test_bytes_that_are_no_fold_are_told(
    shop: Shop, busy: dict[str, bytes], harm: Callable[[list[bytes]], list[bytes]]
) -> None:
    pieces = list(folded.dump(fold_all(NUMBER, entries_of(shop.deployment)[NUMBER])))
    with pytest.raises(folded.Malformed):
        folded.load(harm(pieces), remember=True)


# --- taken and used -----------------------------------------------------------------------------------------------------
def lose_and_rebuild(shop: Shop, ledger: Ledger, key: Ed25519PrivateKey | None) -> tuple[Rebuilt, Any]:
    with redis.Redis.from_url(shop.url) as client:
        client.flushall()
        client.script_flush()
    with closing(Connection(shop.url, durability=Durability.MEMORY, now_ms=shop.clock)) as connection:
        made = rebuild(connection, ledger, now_ms=shop.clock(), key=key.public_key() if key else None)
    registers = {}
    with redis.Redis.from_url(shop.url) as client:
        for name in client.keys("*}r*"):
            registers[name] = client.hgetall(name)
    return made, (shop.dump(), registers)


def test_a_rebuild_from_a_checkpoint_and_from_the_beginning_give_the_same(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    bring_up()
    checkpoint = take(shop, ledger)
    shop.redeem(shop.show(busy["live"]))
    shop.transfer(1)
    bring_up()
    made, from_checkpoint = lose_and_rebuild(shop, ledger, KEY)
    assert made.checkpoint == checkpoint.number
    made, from_beginning = lose_and_rebuild(shop, ledger, None)
    assert made.checkpoint == 0
    assert from_checkpoint == from_beginning
    assert from_beginning[1], "the register of request ids"


def test_a_request_id_that_names_another_store_is_noticed_after_a_rebuild(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    request = shop.issue_request(request_id="order-77")
    first = settled(issuance.issue(shop.deployment, [request])[0])
    bring_up()
    take(shop, ledger)
    lose_and_rebuild(shop, ledger, KEY)
    with shops.open_deployment(shop.url, shop.clock) as deployment:
        again = Shop(deployment, shop.url, shop.clock)
        again.receive(50, store_id=FAR_STORE)
        elsewhere = shop.issue_request(request_id="order-77", store_id=FAR_STORE)
        assert isinstance(issuance.issue(deployment, [elsewhere])[0], RequestIdReused)
        assert settled(issuance.issue(deployment, [request])[0]).uid == first.uid


def test_reconciliation_goes_on_from_a_checkpoint(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    bring_up()
    checkpoint = take(shop, ledger)
    # What lies before the checkpoint is not looked at any more: the checkpoint stands for it.
    with ledger.engine.begin() as connection:
        connection.execute(delete(EVENTS).where(EVENTS.c.partition == NUMBER, EVENTS.c.seq == 3))
    shop.redeem(shop.show(busy["live"]))
    bring_up()
    run = reconcile.reconcile(shop.deployment, ledger, cause="command", key=KEY.public_key())
    assert (run.drifts, run.checkpoint, run.unsound) == ([], checkpoint.number, [])
    [drift] = reconcile.reconcile(shop.deployment, ledger, cause="command").drifts
    assert drift.what == "event"


def test_drift_is_found_from_a_checkpoint_too(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    bring_up()
    take(shop, ledger)
    with redis.Redis.from_url(shop.url) as client:
        names = shop.deployment.connection.partitions[NUMBER]
        client.hdel(names.record(busy["live"]), busy["live"])
    run = reconcile.reconcile(shop.deployment, ledger, cause="command", key=KEY.public_key())
    [drift] = run.drifts
    assert (drift.what, drift.uid, run.checkpoint) == ("record", busy["live"], 1)


def test_a_store_put_back_behind_the_checkpoint_is_compared_from_the_beginning(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    bring_up()
    take(shop, ledger)
    with redis.Redis.from_url(shop.url) as client:
        client.hset(shop.deployment.connection.partitions[NUMBER].meta, "seq", 3)
    run = reconcile.reconcile(shop.deployment, ledger, cause="command", key=KEY.public_key())
    assert run.checkpoint == 0
    assert any(drift.what == "event" and drift.partition == NUMBER for drift in run.drifts)


def test_only_the_newest_are_kept(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    bring_up()
    with ledger.engine.begin() as connection:  # what one left that was killed
        connection.execute(insert(CHECKPOINT_PIECES).values(number=2, partition=0, piece=0, data=b"x"))
    numbers = [take(shop, ledger).number for _ in range(checkpoints.KEPT + 2)]
    assert numbers == [3, 4, 5, 6, 7]
    with ledger.engine.connect() as connection:
        kept = connection.execute(select(CHECKPOINTS.c.number).order_by(CHECKPOINTS.c.number)).scalars().all()
        pieces = set(connection.execute(select(CHECKPOINT_PIECES.c.number)).scalars())
    assert list(kept) == [5, 6, 7]
    assert pieces == {5, 6, 7}


def test_no_checkpoint_is_made_of_a_ledger_that_contradicts_itself(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    bring_up()
    row = (EVENTS.c.partition == NUMBER) & (EVENTS.c.seq == 5)
    with ledger.engine.begin() as connection:
        link = bytes(connection.execute(select(EVENTS.c.link).where(row)).scalar_one())
        connection.execute(update(EVENTS).where(row).values(link=bytes([link[0] ^ 1]) + link[1:]))
    with pytest.raises(LedgerConflict, match=rf"partition {NUMBER}, row 1-5: the chain breaks here"):
        take(shop, ledger)
    with ledger.engine.connect() as connection:
        assert connection.execute(select(CHECKPOINTS.c.number)).all() == []


# --- tampered with ------------------------------------------------------------------------------------------------------
def change_piece(ledger: Ledger, number: int) -> None:
    wanted = (CHECKPOINT_PIECES.c.number == number) & (CHECKPOINT_PIECES.c.partition == NUMBER)
    wanted &= CHECKPOINT_PIECES.c.piece == 1
    with ledger.engine.begin() as connection:
        data = bytearray(
            bytes(connection.execute(select(CHECKPOINT_PIECES.c.data).where(wanted)).scalar_one())
        )
        data[len(data) // 2] ^= 1
        connection.execute(update(CHECKPOINT_PIECES).where(wanted).values(data=bytes(data)))


def drop_piece(ledger: Ledger, number: int) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(
            delete(CHECKPOINT_PIECES).where(
                CHECKPOINT_PIECES.c.number == number, CHECKPOINT_PIECES.c.piece == 1
            )
        )


def change_statement(ledger: Ledger, number: int) -> None:
    wanted = CHECKPOINTS.c.number == number
    with ledger.engine.begin() as connection:
        text = connection.execute(select(CHECKPOINTS.c.statement).where(wanted)).scalar_one()
        connection.execute(
            update(CHECKPOINTS).where(wanted).values(statement=text.replace('"at_ms":1', '"at_ms":2'))
        )


def replay(ledger: Ledger, number: int) -> None:
    """An older, signed one stands in another's place."""
    with ledger.engine.begin() as connection:
        older = connection.execute(select(CHECKPOINTS).where(CHECKPOINTS.c.number == number - 1)).one()
        connection.execute(
            update(CHECKPOINTS)
            .where(CHECKPOINTS.c.number == number)
            .values(statement=older.statement, signature=bytes(older.signature))
        )


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (change_piece, f"partition {NUMBER}: "),
        (drop_piece, "piece 1 of its state is missing"),
        (change_statement, "not signed by the key"),
        (replay, "it was signed for checkpoint 1"),
    ],
)
def test_a_bad_checkpoint_is_named_and_the_one_before_is_used(
    shop: Shop,
    ledger: Ledger,
    busy: dict[str, bytes],
    bring_up: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Ledger, int], None],
    part: str,
) -> None:
    bring_up()
    take(shop, ledger)
    shop.redeem(shop.show(busy["live"]))
    bring_up()
    take(shop, ledger)
    harm(ledger, 2)
    run = reconcile.reconcile(shop.deployment, ledger, cause="command", key=KEY.public_key())
    assert (run.drifts, run.checkpoint) == ([], 1)
    [bad] = run.unsound
    assert bad.source == "checkpoint 2"
    assert part in bad.why
    assert any("checkpoint 2 is not used" in one.getMessage() for one in caplog.records)
    report = verify(ledger, key=KEY.public_key())
    assert (report.unsound, report.checkpoints, report.sound) == ([bad], 1, False)
    assert report.faults == []
    made, _ = lose_and_rebuild(shop, ledger, KEY)
    assert (made.checkpoint, made.unsound) == (1, (bad,))


def test_without_a_sound_one_it_goes_from_the_beginning(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    bring_up()
    take(shop, ledger)
    run = reconcile.reconcile(shop.deployment, ledger, cause="command", key=OTHER_KEY.public_key())
    assert (run.drifts, run.checkpoint) == ([], 0)
    assert "not signed by the key" in run.unsound[0].why
    change_piece(ledger, 1)
    assert reconcile.reconcile(shop.deployment, ledger, cause="command", key=KEY.public_key()).checkpoint == 0


# --- verifying ----------------------------------------------------------------------------------------------------------
def test_rows_written_anew_before_a_checkpoint_are_found(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    """Every link is right again, but for the one that the checkpoint was signed with."""
    bring_up()
    checkpoint = take(shop, ledger)
    report = verify(ledger, key=KEY.public_key())
    assert (report.sound, report.checkpoints) == (True, 1)
    head = ledger.heads()[NUMBER]
    with ledger.engine.begin() as connection:
        rows = list(ledger.rows(NUMBER))
        link = rows[3].link
        for row in rows[4:]:
            data = row.entry.data
            if row is rows[4]:
                data = data[:-1] + bytes([data[-1] ^ 1])
            link = ledger.chain.link(link, NUMBER, Entry(row.entry.epoch, row.entry.seq, data))
            connection.execute(
                update(EVENTS)
                .where(EVENTS.c.partition == NUMBER, EVENTS.c.seq == row.entry.seq)
                .values(data=data, link=link)
            )
    faults = [fault for fault in verify(ledger, key=KEY.public_key()).faults if fault.place == head.place]
    assert checkpoint.source in faults[0].why


def test_verifying_from_the_latest_checkpoint_on(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes], bring_up: Callable[[], None]
) -> None:
    bring_up()
    checkpoint = take(shop, ledger)
    shop.redeem(shop.show(busy["live"]))
    bring_up()
    report = verify(ledger, only=Range(latest=True), key=KEY.public_key())
    assert report.sound
    held = sum(part.head.rows for part in checkpoint.parts.values())
    control = ledger.heads()[CONTROL].rows
    assert report.rows == sum(head.rows for head in ledger.heads().values()) - held
    assert report.rows > control
    row = (EVENTS.c.partition == NUMBER) & (EVENTS.c.seq == checkpoint.parts[NUMBER].head.place.seq + 1)
    with ledger.engine.begin() as connection:
        connection.execute(update(EVENTS).where(row).values(at_ms=EVENTS.c.at_ms + 1))
    [fault] = verify(ledger, only=Range(latest=True), key=KEY.public_key()).faults
    assert "column at_ms" in fault.why
