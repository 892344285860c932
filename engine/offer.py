"""Which stores can serve an order: the nearest to a point that are open and could promise all of it now.

A look, not a promise: only hold or issue reserves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine import fields, hours, nearest
from engine.calls import StockFigures
from engine.claims import Channel, Line, Position, Tier
from engine.deployment import Deployment
from engine.errors import InvalidInput, UnknownMall
from engine.issuance import take_apart
from engine.state import stock as state
from engine.stores import Store


@dataclass(frozen=True, slots=True)
class OfferRequest:
    """Ask for a mall's nearest stores to a position that can serve `lines` (none: whatever they have) on a channel.

    count_max: 1 .. 50 stores. distance_m_max: more than 0, at most 100,000 metres. closed_now_too: also stores outside their
    hours at the moment, never those that are closed altogether. Raises InvalidInput.
    """

    mall_id: int
    position: Position
    lines: tuple[Line, ...] = ()
    channel: Channel = Channel.ONLINE
    count_max: int = 10
    distance_m_max: float = nearest.DISTANCE_M_MAX
    closed_now_too: bool = False

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.lines(self.lines, lines_min=0)


@dataclass(frozen=True, slots=True)
class Offer:
    """One store that can serve the order. `figures` are those of the order's SKUs, bundles taken apart, by SKU.

    opens_at_ms: when it opens next if it is not open now; 0 if it is, or does not within hours.AHEAD_DAYS_MAX days.
    """

    store: Store
    distance_m: float
    open: bool
    opens_at_ms: int
    figures: tuple[StockFigures, ...]


def find(deployment: Deployment, request: OfferRequest) -> list[Offer]:
    """The stores, nearest first. Raises UnknownMall, InvalidInput, StaleControl, StoreUnavailable."""
    copy = deployment.control.copy()
    now_ms = deployment.now_ms()
    if request.mall_id not in copy.malls:
        raise UnknownMall(f"mall {request.mall_id} is not registered: put it first", field="mall_id")
    for index, line in enumerate(request.lines):
        if (request.mall_id, line.sku_id) not in copy.catalogue:
            raise InvalidInput(
                f"lines[{index}].sku_id is {line.sku_id}; expected a SKU of mall {request.mall_id}'s catalogue",
                field=f"lines[{index}].sku_id",
            )
    parts, _ = take_apart(copy, request.mall_id, request.lines)
    wanted: dict[int, int] = {}
    for line in parts:
        # A part may stand beside the bundle: then both must be there.
        wanted[line.sku_id] = wanted.get(line.sku_id, 0) + line.count
    figures_of: dict[int, tuple[StockFigures, ...]] = {}

    def stock_of(store_ids: Sequence[int]) -> list[bool]:
        read = state.read_many(
            deployment.connection, [(request.mall_id, store_id, sorted(wanted)) for store_id in store_ids]
        )
        figures_of.update(zip(store_ids, map(tuple, read), strict=True))
        return [
            all(can_promise(one, wanted[one.sku_id], request.channel) for one in figures) for figures in read
        ]

    found = nearest.nearest(
        copy.table,
        request.mall_id,
        request.position.latitude_deg,
        request.position.longitude_deg,
        request.position.datum,
        now_ms=now_ms,
        count_max=request.count_max,
        distance_m_max=request.distance_m_max,
        open_only=not request.closed_now_too,
        stock_of=stock_of if wanted else None,
    )
    return [
        Offer(
            nearby.store,
            nearby.distance_m,
            nearby.open,
            0 if nearby.open else hours.next_opening(nearby.store, now_ms) or 0,
            figures_of.get(nearby.store.store_id, ()),
        )
        for nearby in found
    ]


def can_promise(figures: StockFigures, count: int, channel: Channel) -> bool:
    """Whether an issue of `count` units on a channel would find the stock, and its tier would let it through (lua/issue.lua)."""
    stopped_at = {Channel.PROMOTION: Tier.RED, Channel.ONLINE: Tier.CLOSED}.get(channel)
    return figures.available >= count and (stopped_at is None or figures.tier < stopped_at)
