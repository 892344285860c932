"""The fold: byte for byte what the scripts keep, after histories of every verb; what can't have happened is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
import redis

from engine.deployment import Deployment
from engine.ledger import records
from engine.ledger.fold import Contradiction, Fold
from engine.state import layouts
from engine.state.events import EventType
from engine.state.streams import START, Entry, Streams
from tests.engine.shop import MALL, STORE, Shop
from tests.model.test_model import Engine, run

HISTORIES: Final = 2_000 if os.environ.get("PICKGATE_SOAK") == "1" else 60


def entries_of(deployment: Deployment) -> dict[int, list[Entry]]:
    streams = Streams(deployment.connection)
    found: dict[int, list[Entry]] = {}
    for number in range(len(deployment.connection.partitions)):
        place = START
        while page := streams.read({number: place}, 0).get(number):
            found.setdefault(number, []).extend(page)
            place = type(START)(page[-1].epoch, page[-1].seq)
    return found


def folded(deployment: Deployment) -> list[Fold]:
    made = []
    entries = entries_of(deployment)
    for number in range(len(deployment.connection.partitions)):
        fold = Fold(number, remember=True)
        fold.add_all(entries.get(number, []))
        made.append(fold)
    return made


def check_byte_for_byte(deployment: Deployment, url: str) -> None:
    """Every key of every partition that events add up to, compared with the fold."""
    with redis.Redis.from_url(url) as client:
        folds = folded(deployment)
        arrived = {arrival for fold in folds for arrival in fold.arrivals}
        for fold, names in zip(folds, deployment.connection.partitions, strict=True):
            prefix = b"{" + names.tag + b"}"

            def hashes(letter: bytes, prefix: bytes = prefix) -> dict[bytes, dict[bytes, bytes]]:
                keys = client.keys(prefix + letter + b"*")
                return {key[len(prefix) + 1 :]: client.hgetall(key) for key in keys}

            def merged(letter: bytes) -> dict[bytes, bytes]:
                return {name: value for bucket in hashes(letter).values() for name, value in bucket.items()}

            in_store = merged(b"c")
            # The store may have forgotten some that ended; whichever are gone are gone with their answers.
            for uid in set(fold.records) - set(in_store):
                record = records.read(fold.records.pop(uid))
                assert record.ended
                assert fold.answers is not None
                fold.answers.forget(record)
            assert fold.records == in_store
            assert {
                b"%d:%d" % (mall, store): {
                    b"%d" % sku: figures.pack()
                    for (m, s, sku), figures in fold.shelves.items()
                    if (m, s) == (mall, store)
                }
                for mall, store, _ in fold.shelves
            } == hashes(b"s")
            assert fold.evidence == client.hgetall(names.evidence)
            reviews: Any = client.zrange(names.reviews, 0, -1, withscores=True)
            assert fold.reviews == {uid: int(at) for uid, at in reviews}
            transit: Any = client.hgetall(names.transit)
            waiting = {
                departure.request + departure.number: data
                for departure, data in fold.departures.items()
                if (departure.request, layouts.TRANSIT.unpack(data)[2], departure.number) not in arrived
            }
            assert waiting.items() <= transit.items()
            assert set(transit) <= {d.request + d.number for d in fold.departures}
            assert fold.answers is not None
            assert fold.answers.of_codes == merged(b"q")
            remembered: dict[bytes, bytes] = {
                key[len(prefix) + 1 :]: client.get(key) for key in client.keys(prefix + b"k*")
            }
            expected = {digest: answer for digest, (_, answer) in fold.answers.of_stock.items()}
            expected |= {
                names.arrival(digest, store, number)[len(prefix) + 1 :]: answer
                for (digest, store, number), (_, answer) in fold.answers.of_arrivals.items()
            }
            assert expected == remembered
            epoch, seq = map(int, client.hmget(names.meta, "epoch", "seq"))
            assert (max(fold.place.epoch, 1), fold.place.seq) == (epoch, seq)


class Folded(Engine):
    """The model's histories of every verb; at the end of each the fold is compared."""

    folds: ClassVar[int] = 0

    def teardown(self) -> None:
        try:
            if self.compared:
                check_byte_for_byte(self.opened[0], self.server.url)
                type(self).folds += 1
        finally:
            super().teardown()


def test_histories_of_every_verb_fold_to_the_store(tmp_path: Path) -> None:
    run(Folded, tmp_path / "store", "memory", HISTORIES)
    assert Folded.folds >= HISTORIES // 2
    met = {name.removeprefix("EventType.") for name in Folded.met if name.startswith("EventType.")}
    assert met >= {kind.name for kind in EventType} - {"EPOCH"}


def test_records_survive_both_ways(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(order_id="ORDER-9").uid
    fold = next(fold for fold in folded(shop.deployment) if uid in fold.records)
    record = records.read(fold.records[uid])
    assert (record.mall, record.store, record.order) == (MALL, STORE, b"ORDER-9")
    assert records.write(record) == fold.records[uid]


# --- what can't have happened -----------------------------------------------------------------------------------------
@pytest.fixture
def story(shop: Shop) -> tuple[int, list[Entry]]:
    """A partition's events: stock, a code picked up, one voided, one taken back."""
    shop.stock_all()
    first, second = shop.issue().uid, shop.issue().uid
    shop.redeem(shop.show(first))
    shop.void(second)
    shop.reverse(first)
    number = next(event.id.partition for event in shop.events() if event.store_id == STORE)
    return number, entries_of(shop.deployment)[number]


def of(entries: list[Entry], kind: EventType) -> int:
    """Index of the first event of a kind."""
    return next(n for n, entry in enumerate(entries) if entry.data[1] == kind)


def renumbered(entries: list[Entry]) -> list[Entry]:
    """As somebody would who hides what was done: numbers without a gap."""
    return [entry._replace(seq=n) for n, entry in enumerate(entries, start=1)]


Forgery = Callable[[list[Entry]], list[Entry]]


def again(kind: EventType) -> Forgery:
    def forge(entries: list[Entry]) -> list[Entry]:
        at = of(entries, kind) + 1
        return [*entries[:at], entries[at - 1], *entries[at:]]

    return forge


def without(kind: EventType) -> Forgery:
    def forge(entries: list[Entry]) -> list[Entry]:
        at = of(entries, kind)
        return [*entries[:at], *entries[at + 1 :]]

    return forge


@pytest.mark.parametrize(
    ("forge", "part"),
    [
        (again(EventType.REDEEMED), "REDEEMED of code"),
        (again(EventType.VOIDED), "VOIDED of code"),
        (again(EventType.REVERSED), "comes back than code"),
        (again(EventType.STOCK), "it says that SKU 100"),
        (without(EventType.REDEEMED), "comes back than code"),
        (without(EventType.STOCK), "its record says another mall, store or event"),
    ],
)
def test_a_forged_history_is_named_at_its_event(
    story: tuple[int, list[Entry]], forge: Forgery, part: str
) -> None:
    number, entries = story
    with pytest.raises(Contradiction, match=part) as caught:
        Fold(number).add_all(renumbered(forge(entries)))
    assert caught.value.event.partition == number


def test_a_missing_event_is_named(story: tuple[int, list[Entry]]) -> None:
    number, entries = story
    del entries[3]
    with pytest.raises(Contradiction, match=f"event {number}-1-5: it follows 1-3"):
        Fold(number).add_all(entries)


def test_bytes_that_are_no_event_are_named(story: tuple[int, list[Entry]]) -> None:
    number, entries = story
    entries[2] = entries[2]._replace(data=entries[2].data[:20])
    with pytest.raises(Contradiction, match=f"event {number}-1-3: its bytes are no event"):
        Fold(number).add_all(entries)
