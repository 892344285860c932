"""A small deployment on a real store to race in: one mall, two stores, as many SKUs as tests want."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from engine import issuance, stock
from engine.calls import (
    IssueAnswer,
    IssueRequest,
    RenderRequest,
    StockChange,
    StockFigures,
    StockRequest,
)
from engine.claims import Line, Suite, Terminal, Version
from engine.deployment import Deployment
from engine.errors import PickgateError
from engine.stores import CatalogueEntry, Mall, Store
from engine.wrapping import PassphraseUnlock
from ext.place import Datum
from tests.engine import proofs

MALL: Final = 1
STORE: Final = 2001
OTHER_STORE: Final = 2002
"""In another partition than STORE."""
PARTITIONS: Final = 4
FIRST_SKU: Final = 100
PUT: Final = 250
SOAK: Final = os.environ.get("PICKGATE_SOAK") == "1"
SKUS: Final = 4_000 if SOAK else 500
"""Each race takes one of its own."""

R = TypeVar("R")
A = TypeVar("A")

PASSPHRASE: Final = b"correct horse battery staple"
unlock: Final = PassphraseUnlock(PASSPHRASE)


def create(url: str) -> None:
    """Make the deployment in an empty store."""
    Deployment.create(url, unlock=unlock, partitions=PARTITIONS)
    with Deployment.open(url, unlock=unlock) as deployment:
        furnish(deployment)


def furnish(deployment: Deployment) -> None:
    """Put the mall, its stores, its catalogue, and a provider of proofs."""
    control = deployment.control
    control.put_malls([Mall(MALL, "Mall")], request_id="put-malls", actor="test")
    stores = [
        Store(store_id, f"Store {store_id}", (MALL,), 31.2304, 121.4737, Datum.WGS84, terminal_location="off")
        for store_id in (STORE, OTHER_STORE)
    ]
    control.put_stores(stores, request_id="put-stores", actor="test")
    control.put_providers([proofs.provider()], request_id="put-providers", actor="test")
    for first in range(FIRST_SKU, FIRST_SKU + SKUS, PUT):
        entries = [CatalogueEntry(MALL, sku, f"SKU {sku}") for sku in range(first, first + PUT)]
        control.put_catalogue(entries, request_id=f"put-catalogue-{first}", actor="test")


class Shop:
    """An open deployment, with short ways to what a test needs before the race begins.

    `name` keeps the request ids of several shops on one deployment apart.
    """

    def __init__(self, deployment: Deployment, *, name: str = "shop") -> None:
        self.deployment = deployment
        self._name = name
        self._skus = iter(range(FIRST_SKU, FIRST_SKU + SKUS))
        self._ids = itertools.count()

    def request_id(self) -> str:
        """A request id that this shop has not used."""
        return f"{self._name}-{next(self._ids):08}"

    def sku(self, units: int, *, store_id: int = STORE) -> int:
        """A SKU that this shop has not given out before, with units on hand that nobody has claimed."""
        sku_id = next(self._skus)
        self.receive(sku_id, units - self.figures(sku_id, store_id=store_id).available, store_id=store_id)
        return sku_id

    def receive(self, sku_id: int, units: int, *, store_id: int = STORE) -> None:
        """Change on_hand by a number of units."""
        if units:
            request = StockRequest(MALL, self.request_id(), store_id, sku_id, StockChange.ADJUST_BY, units)
            [answer] = stock.change(self.deployment, [request])
            assert sound(answer).verdict.success

    def figures(self, sku_id: int, *, store_id: int = STORE) -> StockFigures:
        """Stock figures now."""
        [figures] = stock.read(self.deployment, MALL, store_id, [sku_id])
        return figures

    def issue(
        self,
        sku_id: int,
        count: int = 1,
        *,
        units: int = 1,
        version: Version = Version.DYNAMIC,
        suite: Suite = Suite.AES,
        store_id: int = STORE,
    ) -> list[IssueAnswer]:
        """Issue `count` codes of `units` units each."""
        requests = [
            IssueRequest(MALL, self.request_id(), store_id, "order", (Line(sku_id, units),), version, suite)
            for _ in range(count)
        ]
        answers = [sound(answer) for answer in issuance.issue(self.deployment, requests)]
        assert all(answer.verdict.success for answer in answers)
        return answers

    def show(self, codes: Sequence[IssueAnswer]) -> list[str]:
        """Payloads of codes, good now."""
        requests = [RenderRequest(MALL, code.uid) for code in codes]
        return [sound(answer).payloads[0].text for answer in issuance.render(self.deployment, requests)]


@contextmanager
def open_shop(url: str) -> Iterator[Shop]:
    """Open the deployment that `create` made."""
    with Deployment.open(url, unlock=unlock) as deployment:
        yield Shop(deployment)


def terminal(number: int, *, store_id: int = STORE) -> Terminal:
    """A terminal of a store."""
    return Terminal(MALL, store_id, number)


def sound(outcome: A | PickgateError) -> A:
    """The answer; an error instead of one is raised."""
    if isinstance(outcome, PickgateError):
        raise outcome
    return outcome


def all_at_once(call: Callable[[A], R], arguments: Sequence[A], *, bound_s: float = 60.0) -> list[R]:
    """Call with each argument in a thread of its own, all let go at the same moment; results in order.

    What a call raises is raised here, after all have ended.
    """
    if not arguments:
        return []
    gate = threading.Barrier(len(arguments))
    results: dict[int, R] = {}
    errors: list[BaseException] = []

    def run(n: int, argument: A) -> None:
        try:
            gate.wait(bound_s)
            results[n] = call(argument)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(n, argument), daemon=True) for n, argument in enumerate(arguments)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(bound_s)
        assert not thread.is_alive(), f"a call did not end within {bound_s:g} s"
    if errors:
        raise errors[0]
    return [results[n] for n in range(len(arguments))]
