"""Rebuild: a wiped store holds again what it held, byte for byte, answers its old requests as before, and goes on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from sqlalchemy import delete

from engine import expiry, limits, stock
from engine.claims import Decision, Line, Version
from engine.deployment import Deployment
from engine.errors import DeploymentMismatch, LedgerConflict
from engine.ledger import database, reconcile
from engine.ledger.ledger import Ledger
from engine.ledger.rebuild import Rebuilt, rebuild
from engine.ledger.tables import EVENTS
from engine.ledger.writer import Writer
from engine.policies import Policy, Tiers
from engine.state import layouts
from engine.state.connection import Connection, Durability
from engine.state.streams import Streams
from engine.verdict import RedeemVerdict
from tests.engine import shop as shops
from tests.engine.shop import FAR_STORE, Clock, Shop, settled
from tests.model.test_model import Engine, run

HISTORIES: Final = 400 if os.environ.get("PICKGATE_SOAK") == "1" else 20
LEFT_OUT: Final = re.compile(rb"\{ctl\}(k.{12}|[em])|\{p\d+\.\d+\}[meax].*", re.DOTALL)
"""Not compared: facts and streams, which have another epoch now, due minutes, and remembered answers of puts."""


def contents(deployment: Deployment) -> dict[bytes, Any]:
    """Every key that a rebuild makes again."""
    return {key: value for key, value in shops.dump(deployment).items() if not LEFT_OUT.fullmatch(key)}


def bring_up(deployment: Deployment, ledger: Ledger, clock: Clock) -> None:
    writer = Writer(Streams(deployment.connection), ledger, now_ms=clock)
    writer.start()
    while writer.step(block_ms=0):
        pass


def wipe(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.script_flush()


def rebuilt(url: str, ledger: Ledger, clock: Clock) -> Rebuilt:
    with closing(Connection(url, durability=Durability.MEMORY, now_ms=clock)) as connection:
        return rebuild(connection, ledger, now_ms=clock())


@pytest.fixture
def busy(shop: Shop) -> dict[str, bytes]:
    """Codes in every state, and all that is remembered of them."""
    shop.put_policies(Policy("deployment", tiers=Tiers(tight_percent=40)))
    shop.stock_all(50)
    shop.receive(50, store_id=FAR_STORE)
    codes = {
        "live": shop.issue(lines=(Line(100, 2), Line(103, 3))).uid,
        "partly": shop.issue(lines=(Line(100, 2), Line(103, 3))).uid,
        "redeemed": shop.issue().uid,
        "reversed": shop.issue().uid,
        "held": shop.hold().uid,
        "confirmed": shop.hold().uid,
        "voided": shop.issue().uid,
        "tried": shop.issue(version=Version.STATIC).uid,
        "locked": shop.issue(version=Version.STATIC).uid,
        "decided": shop.issue(version=Version.STATIC).uid,
    }
    shop.redeem(shop.show(codes["partly"]), lines=(Line(100, 1),))
    shop.redeem(shop.show(codes["redeemed"]), request_id="redeemed-1")
    shop.redeem(shop.show(codes["reversed"]))
    shop.reverse(codes["reversed"])
    shop.confirm(codes["confirmed"])
    shop.void(codes["voided"])
    rendered = shop.render(codes["tried"])
    wrong = f"{(int(rendered.pin) + 1) % 1_000_000:06d}"
    shop.redeem(rendered.payloads[0].text, pin=wrong, request_id="wrong-pin-1")
    for name in ("locked", "decided"):
        shop.lock(codes[name])
    shop.decide(codes["decided"], Decision.APPROVE)
    shop.transfer(5, request_id="transfer-1")
    return codes


@contextmanager
def lost_and_rebuilt(shop: Shop, ledger: Ledger) -> Iterator[Shop]:
    """The store is wiped and rebuilt; gives the shop in it, as another process sees it."""
    bring_up(shop.deployment, ledger, shop.clock)
    wipe(shop.url)
    rebuilt(shop.url, ledger, shop.clock)
    with shops.open_deployment(shop.url, shop.clock) as deployment:
        bring_up(deployment, ledger, shop.clock)
        yield Shop(deployment, shop.url, shop.clock)


def test_a_wiped_store_holds_again_what_it_held(shop: Shop, ledger: Ledger, busy: dict[str, bytes]) -> None:
    before = contents(shop.deployment)
    with lost_and_rebuilt(shop, ledger) as again:
        assert contents(again.deployment) == before
        result = reconcile.reconcile(again.deployment, ledger, cause="rebuild")
        assert result.drifts == []
        assert result.codes == len(busy)


def test_earlier_requests_still_get_their_answers(shop: Shop, ledger: Ledger, busy: dict[str, bytes]) -> None:
    """With a fresh payload, hours later: the first answer, and nothing happens again."""
    transfer = shop.transfer_request(5, request_id="transfer-1")
    moved = settled(stock.transfer(shop.deployment, [transfer])[0])
    text = shop.show(busy["live"])
    picked_up = shop.redeem(text, request_id="picked-up-1")
    with lost_and_rebuilt(shop, ledger) as again:
        figures = again.figures()
        assert settled(stock.transfer(again.deployment, [transfer])[0]) == moved
        assert again.redeem(text, request_id="picked-up-1") == replace(picked_up, replayed=True)
        static = again.render(busy["tried"])
        wrong = f"{(int(static.pin) + 1) % 1_000_000:06d}"
        answer = again.redeem(static.payloads[0].text, pin=wrong, request_id="wrong-pin-1")
        assert (answer.verdict, answer.tries_left, answer.replayed) == (RedeemVerdict.PIN_WRONG, 2, True)
        assert again.figures() == figures


def test_codes_go_on_where_they_were(shop: Shop, ledger: Ledger, busy: dict[str, bytes]) -> None:
    with lost_and_rebuilt(shop, ledger) as again:
        expected = {
            "live": RedeemVerdict.REDEEMED,
            "partly": RedeemVerdict.REDEEMED,
            "reversed": RedeemVerdict.REDEEMED,
            "confirmed": RedeemVerdict.REDEEMED,
            "held": RedeemVerdict.REDEEMED,
        }
        again.confirm(busy["held"])
        for name, verdict in expected.items():
            assert again.redeem(again.show(busy[name])).verdict is verdict, name
        again.decide(busy["locked"], Decision.APPROVE)
        bring_up(again.deployment, ledger, again.clock)
        assert reconcile.reconcile(again.deployment, ledger, cause="rebuild").drifts == []


def test_what_fell_due_meanwhile_expires(shop: Shop, ledger: Ledger, busy: dict[str, bytes]) -> None:
    bring_up(shop.deployment, ledger, shop.clock)
    wipe(shop.url)
    shop.clock.tick(limits.TTL_S_DEFAULT + 600)
    rebuilt(shop.url, ledger, shop.clock)
    with shops.open_deployment(shop.url, shop.clock) as deployment:
        assert expiry.sweep(deployment).expired == 8
        shop.clock.tick(limits.AFTERLIFE_S + 600)
        assert expiry.sweep(deployment).forgotten == len(busy)
        bring_up(deployment, ledger, shop.clock)
        result = reconcile.reconcile(deployment, ledger, cause="rebuild")
        assert (result.drifts, result.codes) == ([], 0)


def test_what_was_forgotten_does_not_come_back(shop: Shop, ledger: Ledger, busy: dict[str, bytes]) -> None:
    bring_up(shop.deployment, ledger, shop.clock)
    wipe(shop.url)
    shop.clock.tick(limits.AFTERLIFE_S + 600)
    made = rebuilt(shop.url, ledger, shop.clock)
    assert made.codes == len(busy) - 2, "without those that were redeemed or voided"


def test_units_in_transit_arrive(shop: Shop, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.stock_all()
    with monkeypatch.context() as cut:
        cut.setattr("engine.state.transfers._arrive", lambda connection, items: [None] * len(items))
        shop.transfer(4)
    with lost_and_rebuilt(shop, ledger) as again:
        before = again.figures(store_id=FAR_STORE).on_hand
        expiry.sweep(again.deployment)
        assert again.figures(store_id=FAR_STORE).on_hand == before + 4


def test_numbers_go_on_in_another_epoch(shop: Shop, ledger: Ledger, busy: dict[str, bytes]) -> None:
    before = {event.id for event in shop.events()}
    with lost_and_rebuilt(shop, ledger) as again:
        answer = again.receive(1)
        assert answer.event is not None
        assert answer.event.epoch == 2
        assert answer.event not in before


def test_a_store_that_is_not_empty_is_left_alone(shop: Shop, ledger: Ledger, busy: dict[str, bytes]) -> None:
    bring_up(shop.deployment, ledger, shop.clock)
    before = shop.dump()
    with pytest.raises(DeploymentMismatch, match="not empty"):
        rebuilt(shop.url, ledger, shop.clock)
    assert shop.dump() == before


def test_a_ledger_that_contradicts_itself_rebuilds_nothing(
    shop: Shop, ledger: Ledger, busy: dict[str, bytes]
) -> None:
    bring_up(shop.deployment, ledger, shop.clock)
    with ledger.engine.begin() as connection:
        connection.execute(delete(EVENTS).where(EVENTS.c.seq == 3))
    wipe(shop.url)
    with pytest.raises(LedgerConflict, match="events between them are missing"):
        rebuilt(shop.url, ledger, shop.clock)
    with redis.Redis.from_url(shop.url) as client:
        assert client.dbsize() == 0


def without_bounds(held: Mapping[bytes, Any]) -> dict[bytes, Any]:
    """Without the copies of policies that every process brings to the partitions when it opens the deployment."""
    return {key: value for key, value in held.items() if not re.fullmatch(rb"\{p\d+\.\d+\}b", key)}


def without_arrived(held: Mapping[bytes, Any]) -> dict[bytes, Any]:
    """Without units that stand in transit though they have arrived: the step that strikes them out was cut off, and is not missed."""
    arrivals = {key.partition(b"}")[2] for key in held if b"}ki" in key}
    left: dict[bytes, Any] = {}
    for key, value in held.items():
        if re.fullmatch(rb"\{p\d+\.\d+\}t", key):
            value = {
                name: data
                for name, data in value.items()
                if b"ki" + name[:12] + layouts.TRANSIT.unpack(data)[2].to_bytes(4, "big") + name[12:]
                not in arrivals
            }
            if not value:
                continue
        left[key] = value
    return left


def ledger_knows(after: Mapping[bytes, Any], before: Mapping[bytes, Any]) -> dict[bytes, Any]:
    """The rebuilt store without what the lost one had forgotten by its sweeps."""
    known: dict[bytes, Any] = {}
    for key, value in after.items():
        if re.match(rb"\{p\d+\.\d+\}[cq]", key):
            value = {field: one for field, one in value.items() if field in before.get(key, {})}
            if not value:
                continue
        known[key] = value
    return known


class Lost(Engine):
    """The model's histories of every verb; at the end of each the store is wiped and rebuilt."""

    rebuilds = 0

    def teardown(self) -> None:
        try:
            if self.compared:
                self.lose()
        finally:
            super().teardown()

    def lose(self) -> None:
        deployment = self.opened[0]
        path = self.folder.parent / f"ledger-{id(self)}.sqlite3"
        with Ledger.open(
            database.sqlite_url(path), deployment_id=deployment.constants.deployment_id, create=True
        ) as ledger:
            bring_up(deployment, ledger, self.clock)
            before = without_arrived(without_bounds(contents(deployment)))
            wipe(self.server.url)
            with closing(
                Connection(self.server.url, durability=Durability.MEMORY, now_ms=self.clock)
            ) as connection:
                # At the beginning of time nothing is old enough to be forgotten: the sweep may not have come by yet.
                rebuild(connection, ledger, now_ms=1)
            after = without_bounds(contents(deployment))
            assert ledger_knows(after, before) == before
            type(self).rebuilds += 1
        for file in path.parent.glob(path.name + "*"):
            file.unlink()
        self.compared = False  # the streams that the model reads are gone


def test_histories_of_every_verb_are_rebuilt(tmp_path: Path) -> None:
    run(Lost, tmp_path / "store", "memory", HISTORIES)
    assert Lost.rebuilds >= HISTORIES // 2
