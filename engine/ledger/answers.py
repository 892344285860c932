"""The answers that the store remembers, made again from the events: byte for byte what the scripts keep.

A retry of a request whose answer is remembered gets it again, also from a store that was rebuilt. Each function here says which script's
`kept` it makes; a test compares them with the store's own after a history of every verb.
"""

from __future__ import annotations

from typing import Final

from engine import limits
from engine.calls import StockChange
from engine.claims import Decision
from engine.ledger.records import Record
from engine.state import layouts
from engine.state.events import Event, EventType
from engine.verdict import (
    ConfirmVerdict,
    ExtendVerdict,
    RedeemVerdict,
    RenderVerdict,
    ReverseVerdict,
    ReviewVerdict,
    StockVerdict,
    TransferVerdict,
    VoidVerdict,
)

_STOCK_CHANGES: Final = frozenset({EventType.STOCK, EventType.TRANSFER_OUT, EventType.TRANSFER_IN})
BURNT: Final = b"P"
"""What is remembered of a proof token's digest: that it was used."""
_REVIEWED: Final = {
    Decision.APPROVE: ReviewVerdict.APPROVED,
    Decision.REDEEM: ReviewVerdict.REDEEMED,
    Decision.VOID: ReviewVerdict.VOIDED,
}


class Answers:
    """What is remembered, by the digest of the request."""

    def __init__(self) -> None:
        self.of_codes: dict[bytes, bytes] = {}
        """Kept as long as their code: body digest and answer, or BURNT."""
        self.of_stock: dict[bytes, tuple[int, bytes]] = {}
        """Kept for STOCK_ANSWER_TTL_S from a time (unix ms)."""
        self.of_arrivals: dict[tuple[bytes, int, bytes], tuple[int, bytes]] = {}
        """By request, the store that the units left and the number of that event; kept for ARRIVAL_TTL_S from a time."""
        self._last: Event | None = None

    def forget(self, record: Record) -> None:
        """A code's time is over, and that of all that was remembered for it."""
        for at in range(0, len(record.requests), 12):
            self.of_codes.pop(record.requests[at : at + 12], None)

    def prune(self, now_ms: int) -> None:
        """Drop answers of stock changes and arrivals whose lifetime is over."""
        for digest, (at_ms, _) in list(self.of_stock.items()):
            if at_ms + limits.STOCK_ANSWER_TTL_S * 1000 <= now_ms:
                del self.of_stock[digest]
        for key, (at_ms, _) in list(self.of_arrivals.items()):
            if at_ms + limits.ARRIVAL_TTL_S * 1000 <= now_ms:
                del self.of_arrivals[key]

    # --- codes ------------------------------------------------------------------------------------------------
    def redeem(self, event: Event, record: Record) -> None:
        """lua/redeem.lua, of a redemption."""
        facts = event.facts
        lines = _lines(event)
        kept = _redeem_answer(
            event, record, RedeemVerdict.REDEEMED, event.terminal_id, 0, len(facts["lines"])
        )
        self._keep(event, kept + lines + record.order)
        if facts["burnt"]:
            self.of_codes[facts["burnt"]] = BURNT

    def try_(self, event: Event, record: Record) -> None:
        """lua/redeem.lua of a counted try at a terminal; lua/try.lua of one at the customer's phone."""
        locked = event.type is EventType.LOCKED
        tries_left = limits.TRIES_MAX - record.tries
        if event.terminal_id:
            verdict = RedeemVerdict.LOCKED if locked else RedeemVerdict.numbered(event.facts["verdict"])
            self._keep(event, _redeem_answer(event, record, verdict, 0, tries_left, 0) + record.order)
            return
        number = RenderVerdict.LOCKED.number if locked else event.facts["verdict"]
        self._keep(event, layouts.TRY_ANSWER.pack(number, *_when(event), tries_left))

    def change(self, event: Event, record: Record) -> None:
        """lua/confirm.lua, lua/extend.lua."""
        confirmed = event.type is EventType.CONFIRMED
        verdict = ConfirmVerdict.CONFIRMED.number if confirmed else ExtendVerdict.EXTENDED.number
        at, epoch, seq = _when(event)
        self._keep(event, layouts.CHANGE_ANSWER.pack(verdict, at, record.exp, epoch, seq))

    def reverse(self, event: Event, record: Record) -> None:
        """lua/reverse.lua."""
        count = len(event.facts["lines"])
        head = layouts.REVERSE_ANSWER.pack(
            ReverseVerdict.REVERSED.number, *_when(event), record.exp, 0, record.store, record.cycle, count
        )
        self._keep(event, head + _lines(event))

    def review(self, event: Event, record: Record) -> None:
        """lua/review.lua."""
        verdict = _REVIEWED[Decision(event.facts["decision"])]
        count = len(event.facts["lines"])
        self._keep(event, layouts.REVIEW_ANSWER.pack(verdict.number, *_when(event), 0, count) + _lines(event))

    def void(self, event: Event, record: Record) -> None:
        """lua/void.lua."""
        count = len(event.facts["lines"])
        self._keep(
            event,
            layouts.VOID_ANSWER.pack(VoidVerdict.VOIDED.number, *_when(event), 0, count) + _lines(event),
        )

    def _keep(self, event: Event, answer: bytes) -> None:
        self.of_codes[event.request] = event.body + answer

    # --- stock ------------------------------------------------------------------------------------------------
    def stock(self, event: Event, figures: bytes) -> None:
        """lua/stock.lua."""
        self.of_stock[event.request] = event.at_ms, _stock_answer(event, figures)
        self._last = event

    def departure(self, event: Event, figures: bytes) -> None:
        """lua/transfer.lua, out."""
        self.of_stock[event.request] = event.at_ms, _stock_answer(event, figures)
        self._last = event

    def arrival(self, event: Event, figures: bytes, departure: bytes) -> None:
        """lua/transfer.lua, in."""
        key = event.request, event.facts["other_store_id"], departure
        self.of_arrivals[key] = event.at_ms, _stock_answer(event, figures)
        self._last = event

    @property
    def cause(self) -> Event | None:
        """The change of stock that the next event may follow from."""
        return self._last

    def go_on_from(self, event: Event) -> None:
        """Take up behind an event: what was answered to it is known, the tier that it caused may follow."""
        if event.type in _STOCK_CHANGES:
            self._last = event

    def tier(self, event: Event, figures: bytes) -> None:
        """The crossing that a change of stock caused is its next event, and its answer has the new tier."""
        cause, self._last = self._last, None
        if cause is None or (cause.id.epoch, cause.id.seq + 1) != (event.id.epoch, event.id.seq):
            return
        shelf = event.mall_id, event.store_id, event.facts["sku_id"]
        if (cause.mall_id, cause.store_id, cause.facts["sku_id"]) != shelf:
            return
        answer = cause.at_ms, _stock_answer(cause, figures)
        if cause.type is EventType.TRANSFER_IN:
            epoch, seq = cause.facts["departure"]
            number = layouts.DEPARTURE.pack(epoch, seq.to_bytes(6, "big"))
            self.of_arrivals[cause.request, cause.facts["other_store_id"], number] = answer
        else:
            self.of_stock[cause.request] = answer


def _when(event: Event) -> tuple[bytes, int, bytes]:
    """Time and number of an event, as layouts pack them."""
    return event.at_ms.to_bytes(6, "big"), event.id.epoch, event.id.seq.to_bytes(6, "big")


def _lines(event: Event) -> bytes:
    return b"".join(layouts.LINE.pack(line.sku_id, line.count, line.left) for line in event.facts["lines"])


def _redeem_answer(
    event: Event, record: Record, verdict: RedeemVerdict, terminal_id: int, tries_left: int, n_lines: int
) -> bytes:
    return layouts.REDEEM_ANSWER.pack(
        verdict.number,
        *_when(event),
        terminal_id,
        tries_left,
        0,
        record.store,
        record.cycle,
        record.flavour,
        record.flags,
        record.exp,
        event.facts["bucket"],
        n_lines,
        len(record.order),
    )


def _stock_answer(event: Event, figures: bytes) -> bytes:
    if event.type is not EventType.STOCK:
        verdict = TransferVerdict.TRANSFERRED.number
    elif event.facts["change"] == StockChange.RECEIVE:
        verdict = StockVerdict.RECEIVED.number
    else:
        verdict = StockVerdict.ADJUSTED.number
    on_hand, reserved, baseline, tier = layouts.STOCK.struct.unpack(figures)
    _, epoch, seq = _when(event)
    return event.body + layouts.STOCK_ANSWER.pack(
        verdict, event.facts["sku_id"], on_hand, reserved, baseline, tier, epoch, seq
    )
