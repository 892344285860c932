"""A deployment with as many live codes as one asks for: what orders of the last two days would leave behind.

A record's size hangs on its order id and its lines, and the expiry index's on how expiries are spread, so both are stated here:
order ids of 24 characters (marketplaces' have 18 to 32), every fifth code with two lines, expiries evenly over the 48 hours that
codes live by default.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final

from engine import limits, stock
from engine.calls import IssueRequest, StockChange, StockRequest
from engine.claims import Line, Suite, Version
from engine.deployment import Deployment
from engine.errors import PickgateError
from engine.stores import CatalogueEntry, Mall, Store
from engine.wrapping import PassphraseUnlock
from ext.place import Datum

MALL: Final = 1
STORES: Final = range(2001, 2257)
SKUS: Final = range(100, 108)
ORDER_ID_CHARS: Final = 24
TTL_S_MIN: Final = 3600
"""Nothing may expire while it is measured."""
ON_HAND: Final = 1_000_000

unlock: Final = PassphraseUnlock(b"benchmark")


def furnish(deployment: Deployment) -> None:
    """Put a mall, its stores and its catalogue, and have plenty of everything in every store."""
    control = deployment.control
    control.put_malls([Mall(MALL, "Mall")], request_id="put-malls", actor="bench")
    stores = [
        Store(store_id, f"Store {store_id}", (MALL,), 31.2304, 121.4737, Datum.WGS84, terminal_location="off")
        for store_id in STORES
    ]
    control.put_stores(stores, request_id="put-stores", actor="bench")
    entries = [CatalogueEntry(MALL, sku, f"SKU {sku}") for sku in SKUS]
    control.put_catalogue(entries, request_id="put-catalogue", actor="bench")
    receipts = [
        StockRequest(MALL, f"receive-{store_id}-{sku}", store_id, sku, StockChange.RECEIVE, ON_HAND)
        for store_id in STORES
        for sku in SKUS
    ]
    for start in range(0, len(receipts), limits.BATCH_MAX):
        for answer in stock.change(deployment, receipts[start : start + limits.BATCH_MAX]):
            assert not isinstance(answer, PickgateError), answer
            assert answer.verdict.success


def orders(seed: int) -> Iterator[IssueRequest]:
    """Orders without end, the same for the same seed; request and order ids of different seeds differ."""
    draw = random.Random(seed)
    number = 0
    while True:
        number += 1
        sku = draw.choice(SKUS)
        lines: tuple[Line, ...] = (Line(sku, 1),)
        if number % 5 == 0:
            lines += (Line(SKUS[(sku + 1) % len(SKUS)], 2),)
        yield IssueRequest(
            MALL,
            f"bench-{seed}-{number:010}",
            draw.choice(STORES),
            f"{seed:0{ORDER_ID_CHARS - 10}}{number:010}",
            lines,
            Version.DYNAMIC,
            Suite.AES if number % 2 else Suite.SM,
            ttl_s=draw.randrange(TTL_S_MIN, limits.TTL_S_DEFAULT + 1),
            amount_fen=9_900,
        )


def take(wanted: Iterator[IssueRequest], count: int) -> Sequence[IssueRequest]:
    """The next `count` orders."""
    return [next(wanted) for _ in range(count)]
