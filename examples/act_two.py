"""The second act: the rules around a redemption, played while the screenshot of the first act grows old.

A hold that is paid and one that is not; a lock and its review; goods that come back; parts and bundles; valuables with a proof
of who the customer is; a SKU that runs out, tier by tier, with what its watchers are told; the nearest stores that can serve.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final, Self

from rich import box
from rich.markup import escape
from rich.table import Table

from examples.provider import Provider
from examples.session import TIME_ZONE, Figures, Key, Session, Subject, clock, moved
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import review_service_pb2 as review_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import CallFailed, Client
from server.plain import enum_name

UNPAID: Final = "3002"
"""The order that is held for 60 s, and that nobody pays."""
EXTENDED: Final = "3018"
"""The order whose code would live for 60 s, and is given another day."""

MALL: Final = 1
WATCHED: Final[Key] = (MALL, 2001, 113)
"""The stock that runs out, of a baseline of 100."""
FACTORY: Final = 2004
"""The factory store of the region."""
NEWS_S_MAX: Final = 10.0
"""How long the news of a crossing may take; it takes milliseconds."""

BUND: Final = types_pb.Position(
    latitude_deg=31.2389, longitude_deg=121.4858, accuracy_m=30, datum=types_pb.DATUM_WGS84
)
"""Where a customer stands who asks for the nearest stores: the Bund, across the river from store 2001."""


def begin(session: Session) -> int:
    """Begin what needs time to pass; gives the unix millisecond at which it has passed."""
    held = session.hold(UNPAID)
    session.issue_batch([EXTENDED])
    session.ending.add(UNPAID)
    return max(held.expires_at_ms, session.orders[EXTENDED].expires_at_ms)


def play(session: Session) -> None:
    """All that needs no time to pass."""
    session.shows_reserved = True
    session.table = session.new_table()
    hold_and_confirm(session)
    found = lock_and_review(session)
    reversals(session)
    parts(session)
    bundle(session)
    proofs(session)
    with Watcher(session.address, WATCHED) as watcher:
        crossings = tiers(session, watcher)
        offers = nearest(session)
        crossings += supplied(session, watcher)
        watched(session, watcher)
    another_store(session)
    session.extend(EXTENDED, "a code of 60 s gets another day", by_s=86_400)
    session.flush("Second act: rules")
    print_review(session, found)
    print_crossings(session, crossings)
    print_offers(session, offers)


def a_minute_later(session: Session) -> None:
    """What time has ended, and what it has not."""
    session.confirm(UNPAID, "paid after the hold of 60 s", "EXPIRED")
    session.scan(EXTENDED, "code of 60 s, extended", "REDEEMED", 32, session.show(EXTENDED))


# --- scenes -------------------------------------------------------------------------------------------------------


def hold_and_confirm(session: Session) -> None:
    """Stock is reserved before the customer pays, and handed out only afterwards."""
    session.heading("Held until it is paid")
    session.hold("3001", "the customer is about to pay")
    session.render_row("3001", "shows the code before paying", "NOT_CONFIRMED")
    session.confirm("3001", "the payment has arrived")
    session.scan("3001", "QR code", "REDEEMED", 11, session.show("3001"))


def lock_and_review(session: Session) -> review_pb.Review:
    """The code that three wrong PINs have locked in the first act; gives its review."""
    session.heading("A lock and its review")
    found = session.reviews(MALL)
    session.expect("open reviews", [one.code.order_id for one in found], ["1004"])
    review = found[0]
    tries = [(one.terminal_id, one.redeem_verdict, one.actor) for one in review.evidence]
    wrong = (21, redemption_pb.REDEEM_VERDICT_PIN_WRONG, "clerk:21")
    session.expect("the review's tries", tries, [wrong] * 3)
    session.decide("1004", "decided by who made the tries", "OWN_TRY", "clerk:21")
    session.decide("1004", "decided by somebody else", "APPROVED", "ops:lin")
    session.expect("open reviews after the decision", session.reviews(MALL), [])
    session.scan(
        "1004", "the right PIN", "REDEEMED", 21, session.show("1004"), pin=session.orders["1004"].pin
    )
    return review


def reversals(session: Session) -> None:
    """Goods come back over the counter: for another try, or for good."""
    session.heading("Goods come back")
    session.reverse("1005", "brought back to another store", "WRONG_STORE", 21)
    session.reverse("1005", "brought back for another day", "REVERSED", 11)
    session.scan("1005", "picked up again, fresh QR code", "REDEEMED", 12, session.show("1005"))
    session.reverse("1008", "brought back and refunded", "REVERSED", 11, release=True)
    session.reverse("1008", "brought back once more", "NOT_REDEEMED", 11)


def parts(session: Session) -> None:
    """A code of two lines is picked up bit by bit."""
    session.heading("Bit by bit")
    session.issue("3003", "two lines, five units")
    session.scan("3003", "one unit of one line", "REDEEMED", 11, session.show("3003"), lines={102: 1})
    fresh = session.show("3003")
    session.inspect("3003", "the fresh QR code", 12, fresh)
    session.scan("3003", "a whole line", "REDEEMED", 12, fresh, lines={105: 2})
    session.reverse("3003", "one of them comes back", "REVERSED", 12, lines={105: 1})
    session.scan(
        "3003", "two of a line with one left", "NOTHING_LEFT", 12, session.show("3003"), lines={105: 2}
    )
    session.scan("3003", "the rest", "REDEEMED", 11, session.show("3003"))


def bundle(session: Session) -> None:
    """A gift basket is two mugs and a jar of honey: all of it or nothing."""
    session.heading("A bundle: 110 is 2 of 111, 1 of 112")
    session.issue("3005", "four baskets, honey for three", "STOCK_SHORT")
    session.issue("3006", "two baskets")
    session.stocktake("3006", 112, 1)
    session.scan("3006", "both, but one jar is missing", "OUT_OF_STOCK", 31, session.show("3006"))
    session.scan("3006", "the mugs alone", "NOTHING_LEFT", 31, session.show("3006"), lines={111: 2})
    session.scan("3006", "one whole basket", "REDEEMED", 31, session.show("3006"), lines={110: 1})
    session.delivery("3006", 112, 5)
    session.scan("3006", "the other basket", "REDEEMED", 32, session.show("3006"))


def proofs(session: Session) -> None:
    """Valuables: the customer's phone must be near, and somebody must vouch for who the customer is."""
    session.heading("Valuables: here, and identified")
    session.issue("3004", "the catalogue says how: valuable")
    shop = session.terminals[11].position
    assert shop is not None
    session.render_row("3004", "the phone doesn't say where it is", "LOCATION_REQUIRED")
    session.render_row("3004", "the phone is 3 km away", "OUT_OF_RANGE", moved(shop, north_m=3_000))
    code, uid = session.show("3004", shop), session.orders["3004"].uid
    session.scan("3004", "QR code, no proof", "PROOF_REQUIRED", 11, code, say=True)
    session.scan(
        "3004",
        "a proof that a stranger signed",
        "PROOF_REJECTED",
        11,
        code,
        proof_token=Provider().vouch(uid),
        # The phone that was too far away has used up the first.
        facts={"tries_left": 1},
        say=True,
    )
    session.scan("3004", "the provider's proof", "REDEEMED", 11, code, proof_token=session.proof("3004"))


def tiers(session: Session, watcher: Watcher) -> list[stock_pb.TierCrossing]:
    """Forty units of a baseline of a hundred are sold, tier by tier; gives what the watcher was told."""
    session.heading("A SKU runs out: 40 of 100")
    crossings: list[stock_pb.TierCrossing] = []

    def crosses(into: int) -> stock_pb.TierCrossing:
        crossing = told(session, watcher, into)
        crossings.append(crossing)
        return crossing

    session.issue("3007", "sold while there is enough")
    session.issue("3008", "ten more are sold")
    crosses(types_pb.STOCK_TIER_TIGHT)
    session.issue("3009", "sold while it is tight")
    session.issue("3010", "ten more are sold")
    session.expect("red is an alert", crosses(types_pb.STOCK_TIER_RED).alert, True)
    session.issue("3011", "a promotion gives one away", "PROMOTION_STOPPED")
    session.issue("3012", "five more are sold")
    session.expect("closed is an alert", crosses(types_pb.STOCK_TIER_CLOSED).alert, True)
    session.issue("3013", "one is ordered online", "CHANNEL_CLOSED")
    session.issue("3014", "the staff sells four")
    asked = crosses(types_pb.STOCK_TIER_EMERGENCY)
    session.expect("who is asked", (asked.factory_store_id, asked.replenish_count), (FACTORY, 99))

    # Who bought before it was tight keeps the terms of then; the others come in the store's windows. It has one that begins
    # in two hours, whatever the clock says when you read this.
    set_window(session, from_now_min=120)
    session.scan("3007", "sold before: at any time", "REDEEMED", 11, session.show("3007"))
    session.scan(
        "3009", "sold while tight: in windows only", "OUTSIDE_WINDOW", 11, session.show("3009"), say=True
    )
    return crossings


def supplied(session: Session, watcher: Watcher) -> list[stock_pb.TierCrossing]:
    """The factory store sends goods, and the shop is open again; gives what the watcher was told."""
    session.heading("The factory store sends goods")
    mall_id, store_id, sku_id = WATCHED
    session.transfer(mall_id, sku_id, 60, from_store_id=FACTORY, to_store_id=store_id)
    crossing = told(session, watcher, types_pb.STOCK_TIER_NORMAL)
    session.expect("a recovery is no alert", crossing.alert, False)
    session.issue("3015", "ordered online again")
    set_window(session, from_now_min=-60)
    session.scan("3009", "a window opens", "REDEEMED", 11, session.show("3009"))
    return [crossing]


def set_window(session: Session, *, from_now_min: int) -> None:
    """Give the store one pickup window a day, of two hours, that begins so many minutes from now."""
    now = datetime.now(TIME_ZONE)
    from_min = (now.hour * 60 + now.minute + from_now_min) % 1440
    store = store_pb.Store()
    store.CopyFrom(session.stores[WATCHED[1]])
    del store.pickup_windows[:]
    store.pickup_windows.add(name="加场", from_min=from_min, to_min=(from_min + 120) % 1440 or 1440)
    session.put_stores([store])


def nearest(session: Session) -> list[tuple[str, Sequence[store_pb.NearbyStore]]]:
    """Which stores could serve an order online now; gives each question with its answer."""

    def ask(
        what: str, expected: list[int], *, closed_too: bool = False
    ) -> tuple[str, Sequence[store_pb.NearbyStore]]:
        request = store_pb.NearestStoresRequest(
            mall_id=MALL,
            position=BUND,
            lines=[types_pb.Line(sku_id=WATCHED[2], count=2)],
            closed_now_too=closed_too,
        )
        found = session.client.call(session.client.stores.NearestStores, request).stores
        session.expect(f"nearest stores, {what}", [one.store.store_id for one in found], expected)
        distances_m = [one.distance_m for one in found]
        session.expect(f"nearest stores, {what}: nearest first", distances_m, sorted(distances_m))
        return what, found

    # Special days, today's and tomorrow's, so that it is the same at any hour, also when midnight passes.
    set_special_days(session, closed=False)
    opened = ask("store 2001 would be nearest, but is closed online for 113", [2005, FACTORY])
    set_special_days(session, closed=True)
    closed = ask("store 2005 is closed today", [FACTORY])
    too = ask("the same, closed stores too", [2005, FACTORY], closed_too=True)
    session.expect("store 2005 is open", [one.open for one in too[1]], [False, True])
    session.expect("store 2005 opens again", too[1][0].opens_at_ms > time.time() * 1000, True)
    set_special_days(session, closed=False)
    return [opened, closed, too]


def set_special_days(session: Session, *, closed: bool) -> None:
    """Have store 2005 closed today and tomorrow, or open around the clock."""
    today = datetime.now(TIME_ZONE).date()
    store = store_pb.Store()
    store.CopyFrom(session.stores[2005])
    del store.special_days[:]
    for day in (today, today + timedelta(days=1)):
        special = store.special_days.add(day=day.isoformat(), closed=closed)
        if not closed:
            special.opening_hours.SetInParent()
    session.put_stores([store])


def another_store(session: Session) -> None:
    """A customer takes another store: the code is void, and one for the other store stands in for it."""
    session.heading("Another store, another day")
    session.issue("3016", "for store 2001")
    session.void("3016", "the customer takes another store")
    session.issue("3017", "in its place, for store 2005", replaces=session.orders["3016"].uid)
    session.expect(
        "what it stands in for", session.record(session.orders["3017"]).replaces, session.orders["3016"].uid
    )
    session.scan("3017", "QR code", "REDEEMED", 51, session.show("3017"))


# --- watching -----------------------------------------------------------------------------------------------------


class Watcher:
    """Follows one SKU's stock at one store, as a dashboard would, in a thread and over a connection of its own."""

    def __init__(self, address: str, watched: Key) -> None:
        mall_id, store_id, sku_id = watched
        self.level = stock_pb.StockFigures()
        self._request = stock_pb.WatchStockRequest(mall_id=mall_id, store_ids=[store_id], sku_ids=[sku_id])
        self._crossings: queue.SimpleQueue[stock_pb.TierCrossing] = queue.SimpleQueue()
        self._told = threading.Event()
        self._client = Client(address)
        self._thread = threading.Thread(target=self._follow, name="demo-watcher", daemon=True)

    def _follow(self) -> None:
        try:
            for news in self._client.stream(self._client.stock.WatchStock, self._request):
                if news.HasField("level"):
                    self.level = news.level.figures
                elif news.HasField("levels_told"):
                    self._told.set()
                else:
                    self._crossings.put(news.crossing)
        except (
            CallFailed
        ):  # closing ends the stream this way; one that ends too early is missed by who waits for its news
            return

    def __enter__(self) -> Self:
        self._thread.start()
        self._told.wait(NEWS_S_MAX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._thread.join()

    def crossing(self) -> stock_pb.TierCrossing | None:
        """The next crossing, None if none is told in time."""
        try:
            return self._crossings.get(timeout=NEWS_S_MAX)
        except queue.Empty:
            return None

    @property
    def waiting(self) -> int:
        """Crossings that nobody has asked for."""
        return self._crossings.qsize()


def told(session: Session, watcher: Watcher, into: int) -> stock_pb.TierCrossing:
    """Take the next crossing from the watcher, with a row; it must be into this tier."""
    crossing = watcher.crossing() or stock_pb.TierCrossing()
    expected = enum_name(types_pb.StockTier.DESCRIPTOR, into)
    tier = enum_name(types_pb.StockTier.DESCRIPTOR, crossing.figures.tier)
    good = session.expect("the watch is told", tier, expected)
    books = session.books()
    figures = Figures(crossing.figures.on_hand, crossing.figures.reserved)
    good &= session.expect(f"the figures of {tier}", figures, books[WATCHED])
    details = [f"{crossing.figures.available} of {crossing.figures.baseline} available"]
    if crossing.alert:
        details.append(f"alert: replenish {crossing.replenish_count}")
    if crossing.factory_store_id:
        details.append(f"asks store {crossing.factory_store_id}")
    subject = Subject("watch", WATCHED[1], "", (WATCHED,))
    session.add(subject, "its watchers are told", tier, details, expected, good, books, books)
    return crossing


def watched(session: Session, watcher: Watcher) -> None:
    """Nothing was told twice, and the last level that was told is the true one."""
    deadline_s = time.monotonic() + NEWS_S_MAX
    wanted = session.books()[WATCHED]
    while (level := Figures(watcher.level.on_hand, watcher.level.reserved)) != wanted:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.02)
    session.expect("the last level that the watch is told", level, wanted)
    session.expect("crossings told besides", watcher.waiting, 0)


# --- what is printed behind the table -----------------------------------------------------------------------------


def print_review(session: Session, review: review_pb.Review) -> None:
    """What the reviewer saw."""
    session.console.print(f"What the reviewer of order {review.code.order_id} saw: review {review.review_id}")
    for one in review.evidence:
        verdict = enum_name(redemption_pb.RedeemVerdict.DESCRIPTOR, one.redeem_verdict)
        session.console.print(
            f"  {clock(one.at_ms)}  terminal {one.terminal_id}  {verdict}  {escape(one.actor)}"
        )
    session.console.print()


def print_crossings(session: Session, crossings: Sequence[stock_pb.TierCrossing]) -> None:
    """The sentences of the crossings."""
    session.console.print("What those who watch the stock read")
    for one in crossings:
        name = enum_name(types_pb.StockTier.DESCRIPTOR, one.figures.tier)
        session.console.print(
            f"  {name:<10} {escape(one.message_zh)}\n  {'':<10} {escape(one.message_en)}", soft_wrap=True
        )
    session.console.print()


def print_offers(session: Session, offers: Sequence[tuple[str, Sequence[store_pb.NearbyStore]]]) -> None:
    """The nearest stores, question by question."""
    table = Table(
        title="Stores nearest to the Bund that could serve two of SKU 113",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("asked", "store", "distance", "now", "available"):
        table.add_column(
            column, justify="right" if column in ("distance", "available") else "left", overflow="fold"
        )
    for what, found in offers:
        for number, one in enumerate(found):
            opens = datetime.fromtimestamp(one.opens_at_ms / 1000, TIME_ZONE)
            table.add_row(
                "" if number else what,
                f"{one.store.store_id} {escape(one.store.name)}",
                f"{one.distance_m / 1000:.1f} km",
                "open" if one.open else f"opens {opens:%d %b %H:%M}",
                available(one.figures),
            )
    session.console.print(table)


def available(figures: Sequence[stock_pb.StockFigures]) -> str:
    """Units that can be promised, by SKU."""
    return " ".join(f"{one.sku_id}:{one.available}" for one in figures)
