"""The rules in plain Python: what every verb answers, what it changes, and which events it writes.

Written from docs/rules.md and the table of a code's life (engine.transitions), not from the scripts. It keeps whole objects
instead of bytes, one code at a time instead of batches, and no store: what it shares with the engine are the types of requests
and answers, and the calendars of hours, which have tests of their own.

Two things it takes from the engine, because the rules leave them open: the uid of a new code, and, within the minute that the
sweep may take, which codes it ends. Both are checked for being allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from engine import hours, limits
from engine.calls import (
    ConfirmAnswer,
    ConfirmRequest,
    Evidence,
    ExtendAnswer,
    ExtendRequest,
    HoldAnswer,
    InspectAnswer,
    InspectRequest,
    IssueAnswer,
    IssueRequest,
    RedeemAnswer,
    RedeemRequest,
    RenderAnswer,
    RenderRequest,
    ReverseAnswer,
    ReverseRequest,
    ReviewAnswer,
    ReviewRequest,
    StockAnswer,
    StockChange,
    StockFigures,
    StockRequest,
    TransferAnswer,
    TransferRequest,
    VoidAnswer,
    VoidRequest,
)
from engine.claims import (
    Channel,
    Decision,
    EventId,
    LineState,
    Position,
    State,
    Terminal,
    Tier,
    Version,
)
from engine.claims import Line as Wanted
from engine.policies import Policy, Tiers
from engine.state.events import EventType
from engine.stores import CatalogueEntry, Store
from engine.transitions import ANSWERS, STEPS, Happening, Verb
from engine.verdict import (
    ConfirmVerdict,
    ExtendVerdict,
    HoldVerdict,
    InspectVerdict,
    IssueVerdict,
    RedeemVerdict,
    RenderVerdict,
    ReverseVerdict,
    ReviewVerdict,
    StockVerdict,
    TransferVerdict,
    VoidVerdict,
)

NOBODY: Final = bytes(8)
NO_PLACE: Final = 255
SWEEP_LATE_S: Final = 70
"""By then at the latest a sweep ends a code: a minute is swept ten seconds after it began."""
FORGET_LATE_S: Final = 190
DAYS_NOTED: Final = 4
"""A request id of a mall is noted for its day and the three after."""


class Failure(Enum):
    """In place of an answer: an error."""

    REUSED = "the request id came back with another body"
    UNAVAILABLE = "the store could not be asked"
    INVALID = "the request is malformed as things are"
    FULL = "units left and found no room: they are in transit"


REUSED, UNAVAILABLE, INVALID, FULL = Failure


@dataclass
class Line:
    """One line of a code."""

    sku: int
    count: int
    left: int

    @property
    def out(self) -> int:
        """Units that the customer has."""
        return self.count - self.left


@dataclass
class Bundle:
    """Some lines of a code that are handed out together; `per` is how many of each make one."""

    sku: int
    units: int
    first: int
    per: tuple[int, ...]


@dataclass
class Code:
    """Everything about one code."""

    uid: bytes
    mall: int
    store: int
    version: Version
    order: str
    lines: list[Line]
    bundles: list[Bundle]
    ordered: tuple[int, ...]
    windows_bind: bool
    methods: frozenset[str]
    ttl_s: int
    exp_s: int
    issued_ms: int
    state: State
    replaces: bytes
    channel: Channel
    changed_ms: int = 0
    revision: int = 0
    tries: int = 0
    cycle: int = 0
    terminal: int = 0
    redeemed_ms: int = 0
    lock: EventId | None = None
    locked_ms: int = 0
    evidence: list[Evidence] = field(default_factory=list)
    burnt: set[str] = field(default_factory=set)
    remembered: list[tuple[Any, ...]] = field(default_factory=list)
    """Keys of answers that are forgotten with it."""
    made: tuple[Any, ...] = ()

    @property
    def left(self) -> int:
        """Units not handed out yet."""
        return sum(line.left for line in self.lines)

    @property
    def out(self) -> int:
        """Units that the customer has."""
        return sum(line.out for line in self.lines)

    def in_bundle(self, n: int) -> bool:
        """Whether a line is part of a bundle."""
        return any(bundle.first <= n < bundle.first + len(bundle.per) for bundle in self.bundles)

    def choose(self, sku: int, count: int) -> list[tuple[int, int]]:
        """Lines (place, units) that so many of a SKU or a bundle stand for; whether there are as many is another question."""
        for bundle in self.bundles:
            if bundle.sku == sku:
                return [(bundle.first + n, count * per) for n, per in enumerate(bundle.per)]
        return [(n, count) for n, line in enumerate(self.lines) if line.sku == sku and not self.in_bundle(n)]


@dataclass
class Shelf:
    """Stock of one SKU of one mall at one store."""

    on_hand: int = 0
    reserved: int = 0
    baseline: int = 0
    tier: int = 0


@dataclass(frozen=True)
class Written:
    """One event as it should be."""

    partition: int
    type: EventType
    at_ms: int
    mall: int
    store: int
    uid: bytes
    terminal: int
    actor: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """What a payload's text says: made by rendering; None in its place is a text that is no code."""

    uid: bytes
    version: Version
    store: int
    stamp_s: int
    exp_s: int


@dataclass(frozen=True)
class Token:
    """What a proof token says."""

    uid: bytes
    method: str
    jti: str
    iat_s: int


@dataclass
class Terms:
    """What policies say for the SKUs of one order at one store."""

    code_ttl_s: int = limits.TTL_S_DEFAULT
    hold_s: int = limits.HOLD_S_DEFAULT
    payload_life_s: int = limits.PAYLOAD_LIFE_S_DEFAULT
    reversal_window_s: int = limits.REVERSAL_WINDOW_S_DEFAULT
    cycles_max: int = limits.CYCLES_MAX
    terminal_location: str = "required"
    customer_location: str = "off"
    pickup_mode: str = "dynamic"
    customer_proof: str = "required"
    proof_methods: tuple[str, ...] = ("face", "id_document", "two_staff")
    tiers: Tiers = field(default_factory=Tiers)


_STRENGTH: Final = ("static", "dynamic", "valuable")
_STRICTNESS: Final = ("off", "optional", "required")
_VERSION: Final = {"static": Version.STATIC, "dynamic": Version.DYNAMIC, "valuable": Version.VALUABLE}


def in_order(lines: Iterable[Wanted]) -> tuple[Wanted, ...]:
    """Lines by SKU."""
    return tuple(sorted(lines, key=lambda line: line.sku_id))


class Model:
    """The whole deployment. `clock_ms` is the caller's clock; a partition's own time never goes back."""

    def __init__(
        self, clock_ms: Callable[[], int], partition_of_store: Callable[[int], int], buckets: tuple[int, int]
    ) -> None:
        self._clock_ms = clock_ms
        self._partition_of_store = partition_of_store
        self._near, self._far = buckets
        """Distance buckets of the two places that callers state: at the store, and far from it."""
        self.malls: set[int] = set()
        self.stores: dict[int, Store] = {}
        self.catalogue: dict[tuple[int, int], CatalogueEntry] = {}
        self.policies: dict[str, Policy] = {}
        self.vouching: frozenset[str] = frozenset()
        """Ways by which the one provider may prove; none: it isn't there, or is revoked."""
        self.codes: dict[bytes, Code] = {}
        self.shelves: dict[tuple[int, int, int], Shelf] = {}
        self.answers: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        """By partition, scope and request id: what was asked, what was answered, for what changed something."""
        self.made: dict[tuple[Any, ...], tuple[Any, bytes, Any]] = {}
        self.noted: dict[int, dict[tuple[Any, ...], tuple[Any, int]]] = {}
        """Request ids of malls by day: what was asked, and by how many calls."""
        self.transit: dict[EventId, TransferRequest] = {}
        self.arrived: set[EventId] = set()
        self.numbers: dict[int, tuple[int, int]] = {}
        self.seen_ms: dict[int, int] = {}
        self.written: list[Written] = []

    # --- time, events ---------------------------------------------------------------------------------------------
    def now(self, partition: int) -> int:
        """A partition's time, unix ms."""
        return max(self._clock_ms(), self.seen_ms.get(partition, 0))

    @property
    def clock_s(self) -> int:
        """The caller's time, unix seconds."""
        return self._clock_ms() // 1000

    def partition(self, uid: bytes) -> int:
        """Partition of a code: its first ten bits (docs/format.md)."""
        return int.from_bytes(uid[:2], "big") >> 6

    def restart(self) -> None:
        """The store came back as another server: every partition begins an epoch."""
        for partition, (epoch, _) in self.numbers.items():
            self.numbers[partition] = epoch + 1, 0
            self._write(partition, EventType.EPOCH, 0, 0)

    def _write(
        self,
        partition: int,
        type_: EventType,
        mall: int,
        store: int,
        uid: bytes = NOBODY,
        terminal: int = 0,
        actor: str = "",
        **facts: Any,
    ) -> EventId:
        epoch, seq = self.numbers.get(partition, (1, 0))
        self.numbers[partition] = epoch, seq + 1
        at_ms = self.seen_ms[partition] = self.now(partition)
        self.written.append(Written(partition, type_, at_ms, mall, store, uid, terminal, actor, facts))
        return EventId(partition, epoch, seq + 1)

    def _happen(
        self, code: Code, what: Happening, *, terminal: int = 0, actor: str = "", **facts: Any
    ) -> EventId:
        """Something happens to a code: its state moves as the table has it, and the table's event is written."""
        step = STEPS[code.state, what]
        assert step.after is not None
        assert step.event is not None
        code.state = step.after
        partition = self.partition(code.uid)
        if code.state.ended:
            code.tries, code.evidence, code.lock = 0, [], None
        return self._write(partition, step.event, code.mall, code.store, code.uid, terminal, actor, **facts)

    def _touch(self, code: Code) -> None:
        code.changed_ms = self.now(self.partition(code.uid))
        code.revision += 1

    def _state(self, code: Code | None, mall: int) -> State | None:
        """State as the answers have it: a code whose time is over has expired; another mall's isn't there."""
        if code is None or code.mall != mall:
            return None
        if not code.state.ended and code.exp_s * 1000 <= self.now(self.partition(code.uid)):
            return State.EXPIRED
        return code.state

    # --- policies -------------------------------------------------------------------------------------------------
    def terms(self, store: int, mall: int = 0, skus: Iterable[int] = ()) -> Terms:
        """What holds for an order: what satisfies each of its SKUs."""
        of_each = [self._terms_of(store, mall, sku) for sku in skus] or [self._terms_of(store, mall, 0)]
        terms = replace(of_each[0])
        if len(of_each) > 1:
            terms.code_ttl_s = min(one.code_ttl_s for one in of_each)
            terms.hold_s = min(one.hold_s for one in of_each)
            terms.customer_location = max((one.customer_location for one in of_each), key=_STRICTNESS.index)
            terms.pickup_mode = max((one.pickup_mode for one in of_each), key=_STRENGTH.index)
            if any(one.customer_proof == "required" for one in of_each):
                terms.customer_proof = "required"
            common = [
                way for way in Terms().proof_methods if all(way in one.proof_methods for one in of_each)
            ]
            terms.proof_methods = () if common == ["face"] else tuple(common)
        return terms

    def _terms_of(self, store: int, mall: int, sku: int) -> Terms:
        terms = Terms()
        levels: list[Any] = [self.policies.get("deployment"), self.policies.get(f"store:{store}")]
        entry = self.catalogue.get((mall, sku))
        levels += [entry, self.policies.get(f"sku:{mall}:{sku}")]
        for level in levels:
            for name in vars(terms):
                value = getattr(level, name, None)
                if value is not None:
                    setattr(terms, name, value)
        at = self.stores.get(store)
        if at is not None and at.terminal_location != "inherit":
            terms.terminal_location = at.terminal_location
        return terms

    # --- stock ----------------------------------------------------------------------------------------------------
    def shelf(self, mall: int, store: int, sku: int) -> Shelf:
        """A shelf; empty if it was never used."""
        return self.shelves.get((mall, store, sku), Shelf())

    def _book(self, mall: int, store: int, moves: dict[int, tuple[int, int]]) -> None:
        """Change shelves by (on_hand, reserved) for each SKU; a crossing of tiers is one event for each."""
        for sku in sorted(moves):
            shelf = self.shelves.setdefault((mall, store, sku), Shelf())
            shelf.on_hand += moves[sku][0]
            shelf.reserved += moves[sku][1]
            # I2.
            assert shelf.on_hand >= 0
            assert shelf.reserved >= 0
            tier = self._judge(mall, store, sku, shelf)
            if tier != shelf.tier:
                old, shelf.tier = shelf.tier, tier
                self._write(
                    self._partition_of_store(store), EventType.TIER, mall, store,
                    sku_id=sku, old=old, tier=tier, on_hand=shelf.on_hand, reserved=shelf.reserved, baseline=shelf.baseline,
                )  # fmt: skip

    def _judge(self, mall: int, store: int, sku: int, shelf: Shelf) -> int:
        if shelf.baseline == 0:
            return Tier.NORMAL
        bounds = self._terms_of(store, mall, sku).tiers
        share = max(0, shelf.on_hand - shelf.reserved) * 100

        def tier(slack: int) -> int:
            return (
                (share < (bounds.tight_percent + slack) * shelf.baseline)
                + (share <= (bounds.red_percent + slack) * shelf.baseline)
                + (share <= (bounds.closed_percent + slack) * shelf.baseline)
                + (share <= (bounds.emergency_percent + slack) * shelf.baseline)
            )

        worse = tier(0)
        return worse if worse >= shelf.tier else min(shelf.tier, tier(bounds.hysteresis_percent))

    def _sum(self, moves: Iterable[tuple[int, int, int]]) -> dict[int, tuple[int, int]]:
        summed: dict[int, tuple[int, int]] = {}
        for sku, on_hand, reserved in moves:
            before = summed.get(sku, (0, 0))
            summed[sku] = before[0] + on_hand, before[1] + reserved
        return summed

    def figures(self, mall: int, store: int, sku: int) -> StockFigures:
        """Figures as read."""
        shelf = self.shelf(mall, store, sku)
        return StockFigures(sku, shelf.on_hand, shelf.reserved, shelf.baseline, shelf.tier)

    # --- request ids ----------------------------------------------------------------------------------------------
    def _noted(
        self, items: Sequence[tuple[tuple[Any, ...], Any]], decide: Callable[[list[int]], list[Any]]
    ) -> list[Any]:
        """A mall's calls: an id that comes back with another body is refused, whatever partition it names.

        A call notes its ids before it is decided, and strikes them out again if it was refused: a refusal changes nothing.
        """
        days = self._days_noted()
        distinct = list(dict.fromkeys(items))
        clashes = {entry for entry in distinct if not self._note(days, *entry)}
        going = [n for n, entry in enumerate(items) if entry not in clashes]
        answers = dict(zip(going, decide(going), strict=True))
        outcomes = [answers.get(n, REUSED) for n in range(len(items))]
        done = {
            items[n][0]
            for n in going
            if getattr(outcomes[n], "verdict", None) and outcomes[n].verdict.success
        }
        refused = [
            items[n]
            for n in going
            if items[n][0] not in done
            and (
                outcomes[n] is REUSED or (hasattr(outcomes[n], "verdict") and not outcomes[n].verdict.success)
            )
        ]
        for entry in dict.fromkeys(refused):
            self._strike(days, *entry)
        return outcomes

    def _days_noted(self) -> list[int]:
        """Where an id may stand: today, the days before, and tomorrow if that has begun by the clock of another process."""
        now_ms = self._clock_ms()
        today, ahead = (at_ms // 86_400_000 for at_ms in (now_ms, now_ms + 2 * limits.CLOCK_SKEW_MS_MAX))
        days = list(range(today, today - DAYS_NOTED, -1))
        return days if ahead == today else [*days, ahead]

    def _note(self, days: Sequence[int], key: tuple[Any, ...], body: Any) -> bool:
        for day in days:
            found = self.noted.get(day, {}).get(key)
            if found is not None:
                if found[0] != body:
                    return False
                self.noted[day][key] = body, found[1] + 1
                return True
        self.noted.setdefault(days[0], {})[key] = body, 1
        return True

    def _strike(self, days: Sequence[int], key: tuple[Any, ...], body: Any) -> None:
        for day in days:
            found = self.noted.get(day, {}).get(key)
            if found is not None:
                if found[0] == body:
                    if found[1] > 1:
                        self.noted[day][key] = body, found[1] - 1
                    else:
                        del self.noted[day][key]
                return

    def _first(self, key: tuple[Any, ...], body: Any) -> Any | None:
        """I7: the answer that a request got before."""
        kept = self.answers.get(key)
        if kept is None:
            return None
        return replace(kept[1], replayed=True) if kept[0] == body else REUSED

    def _keep(self, key: tuple[Any, ...], body: Any, answer: Any, code: Code | None = None) -> Any:
        self.answers[key] = body, answer
        if code is not None:
            code.remembered.append(key)
        return answer

    # --- issue and hold -------------------------------------------------------------------------------------------
    def issue(self, requests: Sequence[IssueRequest], uids: Sequence[bytes], *, held: bool) -> list[Any]:
        """`uids[n]` is what the engine called the code, if it made one."""
        verb = "hold" if held else "issue"
        outcomes: list[Any] = [None] * len(requests)
        wanted = []
        for n, request in enumerate(requests):
            terms = self._terms_of_order(request)
            version = request.version or _VERSION[terms.pickup_mode]
            if self._needs_proof(version, terms) and not terms.proof_methods:
                outcomes[n] = INVALID
            else:
                wanted.append(n)
        items = [
            ((requests[n].mall_id, verb, requests[n].request_id), self._body_of_issue(requests[n]))
            for n in wanted
        ]

        def decide(going: list[int]) -> list[Any]:
            return [self._issue(requests[wanted[n]], items[n], uids[wanted[n]], held) for n in going]

        for n, outcome in zip(wanted, self._noted(items, decide), strict=True):
            outcomes[n] = outcome
        return outcomes

    def _terms_of_order(self, request: IssueRequest) -> Terms:
        return self.terms(request.store_id, request.mall_id, [line.sku_id for line in request.lines])

    def _needs_proof(self, version: Version, terms: Terms) -> bool:
        return version is Version.VALUABLE and terms.customer_proof == "required"

    def _body_of_issue(self, request: IssueRequest) -> Any:
        # Which line comes first is no part of what is wanted.
        return replace(request, request_id="any-request", actor="", lines=in_order(request.lines))

    def _issue(self, request: IssueRequest, item: tuple[Any, Any], uid: bytes, held: bool) -> Any:
        (key, body), store, mall = item, request.store_id, request.mall_id
        partition = self._partition_of_store(store)
        kind: Any = HoldVerdict if held else IssueVerdict
        answer_type: Any = HoldAnswer if held else IssueAnswer
        known = self.made.get((partition, *key))
        if known is not None:
            return replace(known[2], replayed=True) if known[0] == body else REUSED

        def refuse(verdict: str, sku: int = 0) -> Any:
            return answer_type(kind[verdict], sku_id=sku, store_id=store)

        at = self.stores.get(store)
        if at is None or mall not in at.mall_ids:
            return refuse("UNKNOWN_STORE")
        if at.closed:
            return refuse("STORE_CLOSED")
        for line in request.lines:
            if (mall, line.sku_id) not in self.catalogue:
                return refuse("UNKNOWN_SKU", line.sku_id)
        terms = self._terms_of_order(request)
        version = request.version or _VERSION[terms.pickup_mode]
        proof_needed = self._needs_proof(version, terms)
        if proof_needed and self.vouching & set(terms.proof_methods) <= {"face"}:
            return refuse("PROOF_UNAVAILABLE")

        lines: list[Line] = []
        bundles: list[Bundle] = []
        for line in request.lines:
            parts = self.catalogue[mall, line.sku_id].parts
            if parts:
                bundles.append(
                    Bundle(line.sku_id, line.count, len(lines), tuple(count for _, count in parts))
                )
            for sku, per in parts or ((line.sku_id, 1),):
                lines.append(Line(sku, line.count * per, line.count * per))
        promised: dict[int, int] = {}
        for one in lines:
            shelf = self.shelf(mall, store, one.sku)
            if request.channel is Channel.PROMOTION and shelf.tier >= Tier.RED:
                return refuse("PROMOTION_STOPPED", one.sku)
            if request.channel is not Channel.STAFF and shelf.tier >= Tier.CLOSED:
                return refuse("CHANNEL_CLOSED", one.sku)
            promised[one.sku] = promised.get(one.sku, 0) + one.count
            if shelf.on_hand - shelf.reserved < promised[one.sku]:
                return refuse("STOCK_SHORT", one.sku)

        now_ms = self.now(partition)
        ttl_s = request.ttl_s or terms.code_ttl_s
        exp_s = self.clock_s + (terms.hold_s if held else ttl_s)
        assert uid not in self.codes, "a uid that another code has"
        assert len(uid) == 8
        code = Code(
            uid=uid, mall=mall, store=store, version=version, order=request.order_id, lines=lines, bundles=bundles,
            ordered=tuple(line.sku_id for line in request.lines),
            windows_bind=any(self.shelf(mall, store, one.sku).tier >= Tier.TIGHT for one in lines),
            methods=frozenset(terms.proof_methods if proof_needed else ()),
            ttl_s=ttl_s, exp_s=exp_s, issued_ms=now_ms, state=State.HELD if held else State.LIVE,
            replaces=request.replaces, channel=request.channel, changed_ms=now_ms, made=(partition, *key),
        )  # fmt: skip
        self.codes[uid] = code
        step = STEPS[None, Happening.HOLD if held else Happening.ISSUE]
        assert step.after is code.state
        assert step.event is not None
        event = self._write(partition, step.event, mall, store, uid, 0, request.actor)
        self._book(mall, store, {sku: (0, count) for sku, count in promised.items()})
        fields: dict[str, Any] = {
            "uid": uid,
            "expires_at_s": exp_s,
            "issued_at_ms": now_ms,
            "store_id": store,
        }
        if not held:
            fields["pin_generation"] = 1 if version is Version.STATIC else 0
        answer = answer_type(kind["HELD" if held else "ISSUED"], event=event, **fields)
        self.made[partition, *key] = body, uid, answer
        return answer

    # --- confirm, extend, void ------------------------------------------------------------------------------------
    def _of_mall(
        self,
        verb: str,
        requests: Sequence[Any],
        body: Callable[[Any], Any],
        decide: Callable[[Any, Code | None, tuple[Any, ...], Any], Any],
    ) -> list[Any]:
        items = [((one.mall_id, verb, one.request_id), body(one)) for one in requests]

        def decide_all(going: list[int]) -> list[Any]:
            found = []
            for n in going:
                key = self.partition(requests[n].uid), *items[n][0]
                first = self._first(key, items[n][1])
                if first is not None:
                    found.append(first)
                else:
                    found.append(decide(requests[n], self.codes.get(requests[n].uid), key, items[n][1]))
            return found

        return self._noted(items, decide_all)

    def confirm(self, requests: Sequence[ConfirmRequest]) -> list[Any]:
        """Answers of confirm."""

        def decide(request: ConfirmRequest, code: Code | None, key: tuple[Any, ...], body: Any) -> Any:
            state = self._state(code, request.mall_id)
            refusal = ANSWERS[Verb.CONFIRM].get(state)
            if refusal is not None or code is None:
                assert isinstance(refusal, ConfirmVerdict)
                return ConfirmAnswer(refusal, request.uid, code.exp_s if code and state else 0)
            code.exp_s = self.clock_s + code.ttl_s
            event = self._happen(code, Happening.CONFIRM, actor=request.actor, expires_at_s=code.exp_s)
            self._touch(code)
            answer = ConfirmAnswer(ConfirmVerdict.CONFIRMED, code.uid, code.exp_s, event)
            return self._keep(key, body, answer, code)

        return self._of_mall("confirm", requests, lambda one: one.uid, decide)

    def extend(self, requests: Sequence[ExtendRequest]) -> list[Any]:
        """Answers of extend."""

        def decide(request: ExtendRequest, code: Code | None, key: tuple[Any, ...], body: Any) -> Any:
            state = self._state(code, request.mall_id)
            refusal = ANSWERS[Verb.EXTEND].get(state)
            if refusal is None and code is not None:
                if request.expires_at_s <= code.exp_s:
                    refusal = ExtendVerdict.NOT_LATER
                elif request.expires_at_s > code.issued_ms // 1000 + limits.TTL_S_MAX:
                    refusal = ExtendVerdict.TOO_LONG
            if refusal is not None or code is None:
                assert isinstance(refusal, ExtendVerdict)
                return ExtendAnswer(refusal, request.uid, code.exp_s if code and state else 0)
            code.exp_s = request.expires_at_s
            event = self._happen(code, Happening.EXTEND, actor=request.actor, expires_at_s=code.exp_s)
            self._touch(code)
            answer = ExtendAnswer(ExtendVerdict.EXTENDED, code.uid, code.exp_s, event)
            return self._keep(key, body, answer, code)

        return self._of_mall("extend", requests, lambda one: (one.uid, one.expires_at_s), decide)

    def void(self, requests: Sequence[VoidRequest]) -> list[Any]:
        """Answers of void."""

        def decide(request: VoidRequest, code: Code | None, key: tuple[Any, ...], body: Any) -> Any:
            now_ms = self.now(self.partition(request.uid))
            state = self._state(code, request.mall_id)
            refusal = ANSWERS[Verb.VOID].get(state)
            if refusal is not None or code is None:
                assert isinstance(refusal, VoidVerdict)
                at_ms, terminal = now_ms, 0
                if code is not None and state is not None:
                    at_ms, terminal = {
                        State.REDEEMED: (code.redeemed_ms, code.terminal),
                        State.VOIDED: (code.changed_ms, 0),
                    }.get(state, (code.exp_s * 1000, 0))
                return VoidAnswer(refusal, request.uid, at_ms, terminal)
            lines = self._left(code)
            event = self._happen(
                code, Happening.VOID, actor=request.actor, lines=lines, reason=request.reason
            )
            self._touch(code)
            self._release(code, lines)
            answer = VoidAnswer(VoidVerdict.VOIDED, code.uid, now_ms, 0, lines, event)
            return self._keep(key, body, answer, code)

        return self._of_mall("void", requests, lambda one: one.uid, decide)

    def _left(self, code: Code) -> tuple[LineState, ...]:
        return tuple(LineState(line.sku, line.count, line.left) for line in code.lines if line.left)

    def _release(self, code: Code, lines: Iterable[LineState]) -> None:
        self._book(code.mall, code.store, self._sum((line.sku_id, 0, -line.left) for line in lines))

    # --- places ---------------------------------------------------------------------------------------------------
    def _place(self, position: Position | None, rule: str, store: Store) -> tuple[str | None, int]:
        """What a position says against its caller (a slug), and the distance bucket that may be kept."""
        if rule == "off":
            return None, NO_PLACE
        if position is None:
            return ("LOCATION_REQUIRED" if rule == "required" else None), NO_PLACE
        if position.accuracy_m > limits.ACCURACY_M_MAX:
            return "LOCATION_UNRELIABLE", NO_PLACE
        near = abs(position.latitude_deg - store.latitude_deg) < 1e-6
        return (None, self._near) if near else ("OUT_OF_RANGE", self._far)

    # --- render ---------------------------------------------------------------------------------------------------
    def render(self, requests: Sequence[RenderRequest]) -> list[Any]:
        """Answers of render, without payloads and record: those are compared with what the model knows of the code."""
        # What the requests find is read for all of them at once; tries are counted afterwards.
        outcomes: list[Any] = []
        far: list[tuple[int, int]] = []
        for n, request in enumerate(requests):
            verdict, bucket = self._rendered(request)
            if verdict is RenderVerdict.OUT_OF_RANGE:
                far.append((n, bucket))
            code = self.codes.get(request.uid)
            review_id = str(code.lock) if code and verdict is RenderVerdict.LOCKED else ""
            outcomes.append(RenderAnswer(verdict, review_id=review_id))
        for n, bucket in far:
            outcomes[n] = self._count_far(requests[n], bucket)
        return outcomes

    def _rendered(self, request: RenderRequest) -> tuple[RenderVerdict, int]:
        code = self.codes.get(request.uid)
        # Rendering reads with the caller's clock.
        state = code.state if code is not None and code.mall == request.mall_id else None
        if code is None or state is None:
            return RenderVerdict.UNKNOWN_CODE, NO_PLACE
        if not state.ended and code.exp_s <= self.clock_s:
            state = State.EXPIRED
        refusal = ANSWERS[Verb.RENDER].get(state)
        if refusal is not None:
            assert isinstance(refusal, RenderVerdict)
            return refusal, NO_PLACE
        terms = self.terms(code.store, code.mall, self._ordered(code))
        found, bucket = self._place(request.position, terms.customer_location, self.stores[code.store])
        if found is not None:
            return RenderVerdict[found], bucket
        if (
            request.count > 1
            and code.version is not Version.STATIC
            and code.revision > limits.REVISIONS_AHEAD_MAX
        ):
            return RenderVerdict.TOO_MANY_CHANGES, bucket
        return RenderVerdict.RENDERED, bucket

    def _ordered(self, code: Code) -> list[int]:
        loose = [line.sku for n, line in enumerate(code.lines) if not code.in_bundle(n)]
        return [bundle.sku for bundle in code.bundles] + loose

    def _count_far(self, request: RenderRequest, bucket: int) -> Any:
        code = self.codes[request.uid]
        key = self.partition(code.uid), request.mall_id, "render", request.request_id
        kept = self.answers.get(key)
        if kept is not None:
            return kept[1] if kept[0] == request.uid else REUSED
        state = self._state(code, request.mall_id)
        if state not in (State.LIVE, State.PARTLY):
            # Locked by another of the same batch: it was read before.
            return RenderAnswer(RenderVerdict.OUT_OF_RANGE)
        event = self._fail(code, RenderVerdict.OUT_OF_RANGE.number, 0, request.actor, bucket)
        locked = code.state is State.LOCKED
        answer = RenderAnswer(
            RenderVerdict.LOCKED if locked else RenderVerdict.OUT_OF_RANGE,
            tries_left=limits.TRIES_MAX - code.tries,
            review_id=str(event) if locked else "",
        )
        return self._keep(key, request.uid, answer, code)

    def _fail(self, code: Code, verdict: int, terminal: int, actor: str, bucket: int) -> EventId:
        """Count a failed try; the third locks."""
        now_ms = self.now(self.partition(code.uid))
        code.tries += 1
        code.evidence.append(Evidence(now_ms, code.store, terminal, verdict, bucket, actor))
        third = code.tries == limits.TRIES_MAX
        what = Happening.FAIL_THIRD if third else Happening.FAIL
        event = self._happen(
            code, what, terminal=terminal, actor=actor, tries=code.tries, bucket=bucket, verdict=verdict
        )
        if third:
            code.lock, code.locked_ms = event, now_ms
        return event

    # --- redeem and inspect ---------------------------------------------------------------------------------------
    def redeem(
        self,
        requests: Sequence[RedeemRequest],
        shown: Sequence[Shown | None],
        pins: Sequence[bool],
        tokens: Sequence[Token | None],
    ) -> list[Any]:
        """Answers of redeem. For each: what its code says, whether its PIN is right, what its proof says."""
        return [
            self._redeem(request, of, right, token)
            for request, of, right, token in zip(requests, shown, pins, tokens, strict=True)
        ]

    def _redeem(self, request: RedeemRequest, of: Shown | None, right: bool, token: Token | None) -> Any:
        terminal = request.terminal
        if of is None:
            return RedeemAnswer(RedeemVerdict.INVALID_CODE)
        partition = self.partition(of.uid)
        key = partition, terminal, "redeem", request.request_id
        body = of.uid, in_order(request.lines)
        first = self._first(key, body)
        if first is not None:
            return first
        code = self.codes.get(of.uid)
        verdict, facts = self._refusal(terminal, of, request.position)
        if verdict is not None:
            return self._said(verdict, of, facts)
        assert code is not None
        bucket = facts["distance_bucket"]
        failed = self._second_factor(code, request, of, right, token)
        if failed is RedeemVerdict.PIN_REQUIRED or failed is RedeemVerdict.PROOF_REQUIRED:
            if failed is RedeemVerdict.PROOF_REQUIRED:
                facts["proof_methods"] = tuple(way for way in Terms().proof_methods if way in code.methods)
            return self._said(failed, of, facts)
        if failed is not None:
            event = self._fail(code, failed.number, terminal.terminal_id, request.actor, bucket)
            locked = code.state is State.LOCKED
            facts |= {"event": event, "tries_left": limits.TRIES_MAX - code.tries}
            if locked:
                facts["review_id"] = str(event)
            return self._keep(
                key, body, self._said(RedeemVerdict.LOCKED if locked else failed, of, facts), code
            )
        verdict = self._at_store(code, terminal, request.position)
        if verdict is not None:
            return self._said(verdict, of, facts)

        taken: list[tuple[int, int]] = []
        for line in request.lines:
            chosen = code.choose(line.sku_id, line.count)
            if not chosen or any(code.lines[n].left < count for n, count in chosen):
                return self._said(RedeemVerdict.NOTHING_LEFT, of, facts | {"sku_id": line.sku_id})
            taken += chosen
        if not request.lines:
            taken = [(n, line.left) for n, line in enumerate(code.lines) if line.left]
        short = self._short(code, taken)
        if short:
            return self._said(RedeemVerdict.OUT_OF_STOCK, of, facts | {"sku_id": short})

        now_ms = self.now(partition)
        for n, count in taken:
            code.lines[n].left -= count
            # I1.
            assert code.lines[n].left >= 0
        lines = tuple(LineState(code.lines[n].sku, count, code.lines[n].left) for n, count in taken)
        code.terminal, code.redeemed_ms = terminal.terminal_id, now_ms
        if token is not None and code.methods:
            code.burnt.add(token.jti)
        event = self._happen(
            code, Happening.REDEEM_SOME if code.left else Happening.REDEEM_REST,
            terminal=terminal.terminal_id, actor=request.actor,
            lines=lines, places=tuple(n for n, _ in taken), cycle=code.cycle, bucket=bucket,
        )  # fmt: skip
        self._touch(code)
        self._book(
            code.mall, code.store, self._sum((line.sku_id, -line.count, -line.count) for line in lines)
        )
        facts |= {"event": event, "lines": lines, "terminal_id": terminal.terminal_id}
        return self._keep(key, body, self._said(RedeemVerdict.REDEEMED, of, facts), code)

    def _refusal(
        self, terminal: Terminal, of: Shown, position: Position | None
    ) -> tuple[RedeemVerdict | None, dict[str, Any]]:
        """What speaks against a try before the second factor is asked for; and what an answer says in any case."""
        code = self.codes.get(of.uid)
        state = self._state(code, terminal.mall_id)
        store = self.stores.get(terminal.store_id)
        rule = self.terms(terminal.store_id).terminal_location
        bucket = self._place(position, rule, store)[1] if store else NO_PLACE
        facts: dict[str, Any] = {"at_ms": self.now(self.partition(of.uid)), "distance_bucket": bucket}
        if code is not None and state is not None:
            facts |= {"order_id": code.order, "store_id": code.store, "cycle": code.cycle}
        refusal = ANSWERS[Verb.REDEEM].get(state)
        if refusal is not None:
            assert isinstance(refusal, RedeemVerdict)
            if code is not None:
                if state is State.REDEEMED:
                    facts |= {"at_ms": code.redeemed_ms, "terminal_id": code.terminal}
                elif state is State.VOIDED:
                    facts["at_ms"] = code.changed_ms
                elif state is State.LOCKED:
                    facts |= {"event": code.lock, "review_id": str(code.lock)}
            return refusal, facts
        assert code is not None
        life_s = self.terms(of.store).payload_life_s
        fresh = of.exp_s > self.clock_s and (
            of.version is Version.STATIC
            or of.stamp_s - limits.STAMP_SKEW_S <= self.clock_s <= of.stamp_s + life_s + limits.STAMP_SKEW_S
        )
        if not fresh:
            return RedeemVerdict.STALE_CODE, facts
        if code.store != terminal.store_id:
            return RedeemVerdict.WRONG_STORE, facts
        return None, facts

    def _second_factor(
        self, code: Code, request: RedeemRequest, of: Shown, right: bool, token: Token | None
    ) -> RedeemVerdict | None:
        if code.version is Version.STATIC:
            if not request.pin:
                return RedeemVerdict.PIN_REQUIRED
            return None if right else RedeemVerdict.PIN_WRONG
        if code.methods:
            if not request.proof_token:
                return RedeemVerdict.PROOF_REQUIRED
            good = (
                token is not None
                and token.uid == of.uid
                and 0 <= self.clock_s - token.iat_s <= 120
                and token.method in code.methods & self.vouching
                and token.jti not in code.burnt
            )
            return None if good else RedeemVerdict.PROOF_REJECTED
        return None

    def _at_store(self, code: Code, terminal: Terminal, position: Position | None) -> RedeemVerdict | None:
        store = self.stores[terminal.store_id]
        found, _ = self._place(position, self.terms(store.store_id).terminal_location, store)
        if found is not None:
            return RedeemVerdict[found]
        if not hours.is_open(store, self._clock_ms()):
            return RedeemVerdict.STORE_CLOSED
        if code.windows_bind and store.pickup_windows and hours.in_window(store, self._clock_ms()) is None:
            return RedeemVerdict.OUTSIDE_WINDOW
        return None

    def _short(self, code: Code, taken: Iterable[tuple[int, int]]) -> int:
        """The first SKU of which the shelf hasn't enough, in the order of the lines; 0 if it has."""
        wanted: dict[int, int] = {}
        for n, count in taken:
            sku = code.lines[n].sku
            wanted[sku] = wanted.get(sku, 0) + count
            if self.shelf(code.mall, code.store, sku).on_hand < wanted[sku]:
                return sku
        return 0

    def _said(self, verdict: RedeemVerdict, of: Shown, facts: dict[str, Any]) -> RedeemAnswer:
        known = {name: value for name, value in facts.items() if name != "store_name"}
        store = self.stores.get(known.get("store_id", 0))
        return RedeemAnswer(verdict, uid=of.uid, store_name=store.name if store else "", **known)

    def inspect(self, requests: Sequence[InspectRequest], shown: Sequence[Shown | None]) -> list[Any]:
        """Answers of inspect: nothing changes, no second factor is judged."""
        return [self._inspect(request, of) for request, of in zip(requests, shown, strict=True)]

    def _inspect(self, request: InspectRequest, of: Shown | None) -> Any:
        if of is None:
            return InspectAnswer(InspectVerdict.INVALID_CODE)
        code = self.codes.get(of.uid)
        verdict, facts = self._refusal(request.terminal, of, request.position)
        if verdict is None and code is not None:
            verdict = self._at_store(code, request.terminal, request.position)
            everything = [(n, line.left) for n, line in enumerate(code.lines) if line.left]
            if verdict is None:
                short = self._short(code, everything)
                verdict = RedeemVerdict.OUT_OF_STOCK if short else RedeemVerdict.REDEEMED
                if short:
                    facts["sku_id"] = short
                else:
                    facts["lines"] = tuple(LineState(line.sku, line.count, line.left) for line in code.lines)
                    # A part may be handed out already: when.
                    facts["at_ms"] = code.redeemed_ms
        assert verdict is not None
        facts.pop("event", None)
        facts.pop("cycle", None)
        if code is not None and "order_id" in facts:
            facts |= {
                "version": code.version,
                "expires_at_s": code.exp_s,
                "pin_required": code.version is Version.STATIC,
                "proof_required": bool(code.methods),
            }
        store = self.stores.get(facts.get("store_id", 0))
        return InspectAnswer(
            InspectVerdict.numbered(verdict.number),
            uid=of.uid,
            store_name=store.name if store else "",
            **facts,
        )

    # --- reverse --------------------------------------------------------------------------------------------------
    def reverse(self, requests: Sequence[ReverseRequest]) -> list[Any]:
        """Answers of reverse."""
        return [self._reverse(request) for request in requests]

    def _reverse(self, request: ReverseRequest) -> Any:
        terminal, uid = request.terminal, request.uid
        partition = self.partition(uid)
        now_ms = self.now(partition)
        key = partition, terminal, "reverse", request.request_id
        body = uid, in_order(request.lines), request.release
        first = self._first(key, body)
        if first is not None:
            return first
        code = self.codes.get(uid)
        state = self._state(code, terminal.mall_id)

        def said(verdict: Any, **facts: Any) -> ReverseAnswer:
            if code is not None and state is not None:
                facts |= {"expires_at_s": code.exp_s, "store_id": code.store, "cycle": code.cycle}
                facts["store_name"] = self.stores[code.store].name
            return ReverseAnswer(verdict, uid, now_ms, **facts)

        if code is None or state is None:
            return said(ANSWERS[Verb.REVERSE][None])
        if code.store != terminal.store_id:
            return said(ReverseVerdict.WRONG_STORE)
        if code.out == 0:
            return said(ReverseVerdict.NOT_REDEEMED)
        refusal = ANSWERS[Verb.REVERSE].get(state)
        if refusal is not None:
            return said(refusal)
        terms = self.terms(code.store)
        if now_ms >= code.redeemed_ms + terms.reversal_window_s * 1000:
            return said(ReverseVerdict.REVERSAL_CLOSED)
        if code.cycle >= terms.cycles_max:
            return said(ReverseVerdict.REVERSAL_LIMIT)
        back: list[tuple[int, int]] = []
        for line in request.lines:
            chosen = code.choose(line.sku_id, line.count)
            if not chosen or any(code.lines[n].out < count for n, count in chosen):
                return said(ReverseVerdict.NOT_REDEEMED, sku_id=line.sku_id)
            back += chosen
        if not request.lines:
            back = [(n, line.out) for n, line in enumerate(code.lines) if line.out]

        for n, count in back:
            if request.release:
                code.lines[n].count -= count
            else:
                code.lines[n].left += count
        for bundle in code.bundles:
            bundle.units = code.lines[bundle.first].count // bundle.per[0]
        lines = tuple(LineState(code.lines[n].sku, count, code.lines[n].left) for n, count in back)
        code.cycle += 1
        if not request.release and code.left:
            code.exp_s = max(code.exp_s, self.clock_s + limits.REVERSAL_LIFE_S)
        if request.release:
            what = Happening.REFUND_SOME if code.out else Happening.REFUND_ALL
        else:
            what = Happening.TAKE_BACK_SOME if code.out else Happening.TAKE_BACK_ALL
        event = self._happen(
            code, what, terminal=terminal.terminal_id, actor=request.actor, lines=lines,
            places=tuple(n for n, _ in back), cycle=code.cycle, release=request.release,
            expires_at_s=code.exp_s, reason=request.reason,
        )  # fmt: skip
        self._touch(code)
        self._book(
            code.mall,
            code.store,
            self._sum((line.sku_id, line.count, 0 if request.release else line.count) for line in lines),
        )
        return self._keep(key, body, said(ReverseVerdict.REVERSED, lines=lines, event=event), code)

    # --- reviews --------------------------------------------------------------------------------------------------
    def decide(self, requests: Sequence[ReviewRequest]) -> list[Any]:
        """Answers of a reviewer's decisions."""

        def decide(request: ReviewRequest, code: Code | None, key: tuple[Any, ...], body: Any) -> Any:
            now_ms = self.now(self.partition(request.uid))
            refusal = ANSWERS[Verb.REVIEW].get(self._state(code, request.mall_id))
            if refusal is not None or code is None:
                assert isinstance(refusal, ReviewVerdict)
                return ReviewAnswer(refusal, request.uid, now_ms)
            if any(one.actor == request.actor for one in code.evidence):
                return ReviewAnswer(ReviewVerdict.OWN_TRY, request.uid, now_ms)
            lines: tuple[LineState, ...] = ()
            verdict = ReviewVerdict.APPROVED
            what = Happening.APPROVE_PART if code.out else Happening.APPROVE_WHOLE
            moves: dict[int, tuple[int, int]] = {}
            if request.decision is Decision.REDEEM:
                taken = [(n, line.left) for n, line in enumerate(code.lines) if line.left]
                short = self._short(code, taken)
                if short:
                    return ReviewAnswer(ReviewVerdict.OUT_OF_STOCK, request.uid, now_ms, sku_id=short)
                verdict, what = ReviewVerdict.REDEEMED, Happening.REDEEM_BY_HAND
                lines = tuple(LineState(code.lines[n].sku, count, 0) for n, count in taken)
                for n, _ in taken:
                    code.lines[n].left = 0
                code.terminal, code.redeemed_ms = 0, now_ms
                moves = self._sum((line.sku_id, -line.count, -line.count) for line in lines)
            elif request.decision is Decision.VOID:
                verdict, what = ReviewVerdict.VOIDED, Happening.REJECT
                lines = self._left(code)
                moves = self._sum((line.sku_id, 0, -line.left) for line in lines)
            event = self._happen(
                code, what, actor=request.actor, decision=request.decision, lines=lines, reason=request.reason
            )
            code.tries, code.evidence, code.lock = 0, [], None
            if code.state.ended:
                self._touch(code)
            self._book(code.mall, code.store, moves)
            answer = ReviewAnswer(verdict, code.uid, now_ms, lines, event=event)
            return self._keep(key, body, answer, code)

        return self._of_mall("review", requests, lambda one: (one.uid, one.decision), decide)

    # --- stock ----------------------------------------------------------------------------------------------------
    def change(self, requests: Sequence[StockRequest]) -> list[Any]:
        """Answers of receive, adjust, count and baseline."""
        items = [
            ((one.mall_id, "stock", one.request_id), (one.store_id, one.sku_id, one.change, one.amount))
            for one in requests
        ]

        def decide(going: list[int]) -> list[Any]:
            return [self._change(requests[n], *items[n]) for n in going]

        return self._noted(items, decide)

    def _change(self, request: StockRequest, scope: tuple[Any, ...], body: Any) -> Any:
        mall, store, sku = request.mall_id, request.store_id, request.sku_id
        partition = self._partition_of_store(store)
        key = partition, *scope
        first = self._first(key, body)
        if first is not None:
            return first
        at, entry = self.stores.get(store), self.catalogue.get((mall, sku))
        refusal = None
        if at is None or mall not in at.mall_ids:
            refusal = StockVerdict.UNKNOWN_STORE
        elif entry is None:
            refusal = StockVerdict.UNKNOWN_SKU
        elif entry.parts:
            refusal = StockVerdict.BUNDLE
        if refusal is not None:
            return StockAnswer(refusal, sku_id=sku, store_id=store)
        shelf = self.shelf(mall, store, sku)
        on_hand, baseline = shelf.on_hand, shelf.baseline
        verdict = StockVerdict.ADJUSTED
        if request.change is StockChange.RECEIVE:
            on_hand, verdict = on_hand + request.amount, StockVerdict.RECEIVED
        elif request.change is StockChange.ADJUST_BY:
            on_hand += request.amount
        elif request.change is StockChange.COUNT:
            on_hand = request.amount
        else:
            baseline = request.amount
        if not 0 <= on_hand <= limits.STOCK_MAX:
            refusal = StockVerdict.BELOW_ZERO if on_hand < 0 else StockVerdict.ABOVE_LIMIT
            return StockAnswer(refusal, self.figures(mall, store, sku), sku, store)
        event = self._write(
            partition, EventType.STOCK, mall, store, actor=request.actor,
            sku_id=sku, change=request.change, amount=request.amount, reason=request.reason,
            on_hand=on_hand, reserved=shelf.reserved, baseline=baseline, tier=shelf.tier,
        )  # fmt: skip
        self.shelves.setdefault((mall, store, sku), Shelf()).baseline = baseline
        self._book(mall, store, {sku: (on_hand - shelf.on_hand, 0)})
        return self._keep(key, body, StockAnswer(verdict, self.figures(mall, store, sku), sku, store, event))

    def transfer(self, requests: Sequence[TransferRequest], *, cut: str = "") -> list[Any]:
        """Answers of transfers. `cut`: the process was cut off before the units came `in`, or before that was `done`."""
        items = [
            (
                (one.mall_id, "transfer", one.request_id),
                (one.from_store_id, one.to_store_id, one.sku_id, one.amount),
            )
            for one in requests
        ]

        # Asked before any unit leaves, for all of them at once.
        full = [not self._has_room(one) for one in requests]

        def decide(going: list[int]) -> list[Any]:
            outcomes = [self._depart(requests[n], *items[n], full=full[n]) for n in going]
            left = [n for n, one in enumerate(outcomes) if getattr(one, "event", None)]
            for n in left:
                if cut == "in":
                    outcomes[n] = UNAVAILABLE
                elif not self._arrive(outcomes[n].event, requests[going[n]], done=cut != "done"):
                    outcomes[n] = FULL
            return outcomes

        return self._noted(items, decide)

    def _has_room(self, request: TransferRequest) -> bool:
        """Whether the units fit into the figure of the store that they go to."""
        shelf = self.shelf(request.mall_id, request.to_store_id, request.sku_id)
        return shelf.on_hand + request.amount <= limits.STOCK_MAX

    def _depart(self, request: TransferRequest, scope: tuple[Any, ...], body: Any, *, full: bool) -> Any:
        mall, store, sku = request.mall_id, request.from_store_id, request.sku_id
        partition = self._partition_of_store(store)
        key = partition, *scope
        first = self._first(key, body)
        if first is not None:
            return first
        for one in (store, request.to_store_id):
            at = self.stores.get(one)
            if at is None or mall not in at.mall_ids:
                return TransferAnswer(TransferVerdict.UNKNOWN_STORE, sku_id=sku, store_id=one)
        entry = self.catalogue.get((mall, sku))
        if entry is None:
            return TransferAnswer(TransferVerdict.UNKNOWN_SKU, sku_id=sku)
        if entry.parts:
            return TransferAnswer(TransferVerdict.BUNDLE, sku_id=sku)
        if full:
            return TransferAnswer(TransferVerdict.ABOVE_LIMIT, sku_id=sku, store_id=request.to_store_id)
        shelf = self.shelf(mall, store, sku)
        if shelf.on_hand - shelf.reserved < request.amount:
            return TransferAnswer(TransferVerdict.STOCK_SHORT, self.figures(mall, store, sku), sku)
        event = self._write(
            partition, EventType.TRANSFER_OUT, mall, store, actor=request.actor,
            sku_id=sku, amount=request.amount, other_store_id=request.to_store_id,
        )  # fmt: skip
        self._book(mall, store, {sku: (-request.amount, 0)})
        self.transit[event] = request
        answer = TransferAnswer(TransferVerdict.TRANSFERRED, self.figures(mall, store, sku), sku, 0, event)
        return self._keep(key, body, answer)

    def _arrive(self, departure: EventId, request: TransferRequest, *, done: bool = True) -> bool:
        """The units come in, once; False where there is no room: they stay in transit."""
        if departure not in self.arrived:
            if not self._has_room(request):
                return False
            self.arrived.add(departure)
            store = request.to_store_id
            self._write(
                self._partition_of_store(store), EventType.TRANSFER_IN, request.mall_id, store,
                actor=request.actor, sku_id=request.sku_id, amount=request.amount,
                other_store_id=request.from_store_id, departure=(departure.epoch, departure.seq),
            )  # fmt: skip
            self._book(request.mall_id, store, {request.sku_id: (request.amount, 0)})
        if done:
            self.transit.pop(departure, None)
        return True

    # --- the sweep ------------------------------------------------------------------------------------------------
    def bring_in(self, departure: EventId) -> None:
        """The sweep found units in transit."""
        assert departure not in self.arrived, "arrived twice"
        assert self._arrive(departure, self.transit[departure]), "arrived though there was no room"

    def brought_in(self) -> None:
        """The sweep has brought in all that it could: only what has no room is still in transit."""
        for departure in list(self.transit):
            assert departure in self.arrived or not self._has_room(self.transit[departure])
            if departure in self.arrived:
                # What was cut off before it was done has arrived before.
                del self.transit[departure]

    def expire(self, uid: bytes) -> None:
        """The sweep ended a code: its time must be over."""
        code = self.codes[uid]
        assert code.exp_s * 1000 <= self.now(self.partition(uid)), "ended before its time"
        lines = self._left(code)
        self._happen(code, Happening.EXPIRE, lines=lines)
        self._touch(code)
        self._release(code, lines)

    def forget(self, uid: bytes) -> None:
        """The sweep forgot a code, with all that was remembered of it."""
        code = self.codes.pop(uid)
        assert STEPS[code.state, Happening.FORGET].after is None
        afterlife_ms = limits.AFTERLIFE_S * 1000
        assert code.changed_ms + afterlife_ms <= self.now(self.partition(uid)), "forgotten too early"
        for key in code.remembered:
            del self.answers[key]
        del self.made[code.made]

    def overdue(self) -> tuple[list[bytes], list[bytes]]:
        """Codes that a sweep now must have ended, and those that it must have forgotten."""
        ended = [
            code.uid
            for code in self.codes.values()
            if not code.state.ended and code.exp_s + SWEEP_LATE_S <= self.clock_s
        ]
        forgotten = [
            code.uid
            for code in self.codes.values()
            if code.state.ended
            and code.changed_ms // 1000 + limits.AFTERLIFE_S + FORGET_LATE_S <= self.clock_s
        ]
        return ended, forgotten
