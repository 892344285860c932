"""Transfers: units leave one store and arrive at another, once, also when they are cut off in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from engine import expiry, limits, stock
from engine.calls import StockChange
from engine.claims import Line, TransferStep
from engine.errors import PickgateError, RequestIdReused, StockFull, StoreUnavailable
from engine.state import layouts, transfers
from engine.state.connection import Call, Connection
from engine.state.events import EventType
from engine.verdict import TransferVerdict
from tests.engine import shop as shops
from tests.engine.fold import check_against_store, fold, read_store
from tests.engine.shop import FAR_STORE, MALL, NEIGHBOUR, OTHER_MALL, STORE, Shop

ID = "the-same-id"


@contextmanager
def cut_before(monkeypatch: pytest.MonkeyPatch, step: TransferStep) -> Iterator[None]:
    """While it lasts, the connection breaks before calls of this step: the process that made the one before is gone."""
    run = Connection.run

    def breaking(connection: Connection, calls: Any) -> Any:
        def is_cut(call: Call) -> bool:
            return call.script.name == "transfer" and any(
                isinstance(item, bytes) and item[0] == step for item in call.args
            )

        if any(is_cut(call) for call in calls):
            return [StoreUnavailable("cut") for _ in calls]
        return run(connection, calls)

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "run", breaking)
        yield


def on_hand(shop: Shop) -> list[int]:
    return [shop.figures(store_id=store).on_hand for store in (STORE, NEIGHBOUR, FAR_STORE)]


def checked(shop: Shop) -> None:
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


@pytest.mark.parametrize("to_store_id", [NEIGHBOUR, FAR_STORE])
def test_units_move(shop: Shop, to_store_id: int) -> None:
    shop.receive(10)
    answer = shop.transfer(4, to_store_id=to_store_id)
    assert answer.verdict is TransferVerdict.TRANSFERRED
    assert answer.figures == shop.figures()
    assert shop.figures().on_hand == 6
    assert shop.figures(store_id=to_store_id).on_hand == 4
    types = {event.type: event for event in shop.events()}
    assert types[EventType.TRANSFER_OUT].facts["other_store_id"] == to_store_id
    assert types[EventType.TRANSFER_IN].facts["other_store_id"] == STORE
    assert read_store(shop.deployment).transit == {}
    checked(shop)


def test_what_is_promised_stays(shop: Shop) -> None:
    shop.receive(10)
    shop.issue(lines=(Line(100, 7),))
    assert shop.transfer(4).verdict is TransferVerdict.STOCK_SHORT
    assert shop.transfer(3).verdict is TransferVerdict.TRANSFERRED
    shop.receive(2, change=StockChange.COUNT)
    assert shop.transfer(1).verdict is TransferVerdict.STOCK_SHORT
    assert on_hand(shop) == [2, 0, 3]
    checked(shop)


def test_again_gets_the_first_answer(shop: Shop) -> None:
    shop.receive(10)
    first = shop.transfer(4, request_id=ID)
    shop.receive(0, change=StockChange.COUNT)
    before = shop.dump()
    assert shop.transfer(4, request_id=ID) == replace(first, replayed=True)
    assert shop.dump() == before
    for fields in (
        {"to_store_id": NEIGHBOUR},
        {"from_store_id": FAR_STORE, "to_store_id": STORE},
        {"sku_id": 101},
    ):
        with pytest.raises(RequestIdReused):
            shop.transfer(4, request_id=ID, **fields)
    with pytest.raises(RequestIdReused):
        shop.transfer(5, request_id=ID)
    assert shop.dump() == before


def test_again_after_the_set_up_changed(shop: Shop) -> None:
    """The units have moved, whatever has become of the stores since."""
    shop.receive(10)
    first = shop.transfer(4, request_id=ID)
    shop.put_store(FAR_STORE, mall_ids=(OTHER_MALL,))
    assert shop.transfer(4, request_id=ID) == replace(first, replayed=True)
    refused = shop.transfer(4)
    assert (refused.verdict, refused.store_id, refused.figures) == (
        TransferVerdict.UNKNOWN_STORE,
        FAR_STORE,
        None,
    )


@pytest.mark.parametrize("to_store_id", [NEIGHBOUR, FAR_STORE])
@pytest.mark.parametrize("step", [TransferStep.IN, TransferStep.DONE])
@pytest.mark.parametrize("by", ["retry", "sweep", "both"])
def test_cut_off_and_brought_in(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: TransferStep, to_store_id: int, by: str
) -> None:
    shop.receive(10)
    request = shop.transfer_request(4, to_store_id=to_store_id)
    with cut_before(monkeypatch, step):
        [outcome] = stock.transfer(shop.deployment, [request])
    arrived = step is TransferStep.DONE
    assert isinstance(outcome, PickgateError) is not arrived
    assert shop.figures().on_hand == 6
    assert shop.figures(store_id=to_store_id).on_hand == (4 if arrived else 0)
    assert list(read_store(shop.deployment).transit.values()) == [(STORE, to_store_id, 100, 4)]
    checked(shop)

    with shops.open_deployment(shop.url, shop.clock) as other:
        if by in ("sweep", "both"):
            expiry.sweep(other)
        if by in ("retry", "both"):
            assert shops.settled(stock.transfer(other, [request])[0]).verdict.success
        expiry.sweep(other)
    assert shop.figures().on_hand == 6
    assert shop.figures(store_id=to_store_id).on_hand == 4
    assert read_store(shop.deployment).transit == {}
    checked(shop)


def forget_answers(shop: Shop) -> None:
    """What the store does by itself 72 hours after a change: it forgets the answer, but not the arrival."""
    connection = shop.deployment.connection
    answers = [
        key
        for key in connection.scan("*}k*", 1_000)
        if not key.partition(b"}")[2].startswith(b"ki") and not key.startswith(b"{ctl}")
    ]
    for key in answers:
        connection.write([("DEL", key)])
    assert answers


@pytest.mark.parametrize("to_store_id", [NEIGHBOUR, FAR_STORE])
def test_an_id_that_comes_back_when_its_answer_is_forgotten_loses_no_unit(
    shop: Shop, to_store_id: int
) -> None:
    """It is another transfer then, and moves what it says; it is not mistaken for units that arrived long ago."""
    shop.receive(10)
    for n in (1, 2):
        assert shop.transfer(4, to_store_id=to_store_id, request_id=ID).verdict.success
        assert (shop.figures().on_hand, shop.figures(store_id=to_store_id).on_hand) == (10 - 4 * n, 4 * n)
        shop.clock.tick(5 * 86_400)
        forget_answers(shop)
    assert read_store(shop.deployment).transit == {}


def test_one_departure_arrives_once_however_often_it_is_brought_in(shop: Shop) -> None:
    shop.receive(10)
    request = shop.transfer_request(4)
    answer = shops.settled(stock.transfer(shop.deployment, [request])[0])
    assert answer.event is not None
    [out] = [event for event in shop.events() if event.type is EventType.TRANSFER_OUT]
    item = transfers.TransferItem(
        out.request, out.body, MALL, STORE, FAR_STORE, 100, 4, "",
        departure=layouts.DEPARTURE.pack(out.id.epoch, out.id.seq.to_bytes(6, "big")),
    )  # fmt: skip
    before = shop.dump()
    assert transfers._arrive(shop.deployment.connection, [item] * 3) == [None] * 3
    assert shop.dump() == before


def test_in_one_batch(shop: Shop) -> None:
    """There and back, the same twice, and one that is short: each as if it came alone."""
    shop.receive(10)
    requests = [
        shop.transfer_request(4, request_id=ID),
        shop.transfer_request(4, request_id=ID),
        shop.transfer_request(5, request_id=ID),
        shop.transfer_request(7),
        shop.transfer_request(3, to_store_id=NEIGHBOUR),
    ]
    first, again, reused, short, other = stock.transfer(shop.deployment, requests)
    assert again == replace(shops.settled(first), replayed=True)
    assert isinstance(reused, RequestIdReused)
    assert shops.settled(short).verdict is TransferVerdict.STOCK_SHORT
    assert shops.settled(other).verdict.success
    assert on_hand(shop) == [3, 3, 4]
    checked(shop)


def test_what_does_not_fit_is_refused_and_never_cut_short(shop: Shop) -> None:
    """A figure has an end: units that would go past it neither vanish nor come back as fewer."""
    shop.receive(10)
    shop.receive(limits.STOCK_MAX - 4, store_id=FAR_STORE)
    assert shop.transfer(5).verdict is TransferVerdict.ABOVE_LIMIT
    assert on_hand(shop) == [10, 0, limits.STOCK_MAX - 4]

    # Each fits alone, and both together don't: the second has left when that comes out.
    together = [shop.transfer_request(3), shop.transfer_request(3)]
    first, waiting = stock.transfer(shop.deployment, together)
    assert shops.settled(first).verdict is TransferVerdict.TRANSFERRED
    assert isinstance(waiting, StockFull)
    assert on_hand(shop) == [4, 0, limits.STOCK_MAX - 1]
    assert list(read_store(shop.deployment).transit.values()) == [(STORE, FAR_STORE, 100, 3)]
    with pytest.raises(StockFull):
        expiry.sweep(shop.deployment)
    checked(shop)

    shop.receive(20, store_id=FAR_STORE, change=StockChange.COUNT)
    expiry.sweep(shop.deployment)
    assert on_hand(shop) == [4, 0, 23]
    assert shops.settled(stock.transfer(shop.deployment, together[1:])[0]).replayed
    assert on_hand(shop) == [4, 0, 23]
    checked(shop)
