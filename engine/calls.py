"""The calls of the verbs: for each its request and its answer, as plain frozen values.

Every verb takes a batch of requests and answers with one outcome per item, in order: an answer, or the error of that item
alone (`engine.errors.PickgateError`, not raised). A single call is a batch of one.

A request checks the ranges and lengths of its fields when it is made, and raises InvalidInput; whether what it names exists
is the verb's to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from engine import fields, limits
from engine.claims import (
    UID_BYTES,
    Channel,
    Decision,
    EventId,
    Line,
    LineState,
    Position,
    Split,
    State,
    Suite,
    Terminal,
    Version,
)
from engine.errors import InvalidInput
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

# --- requests: what each verb is asked ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IssueRequest:
    """Ask for a code. One of a batch; the request id's scope is (mall, issue).

    `version` None leaves the pickup mode to the policy of the SKUs. `ttl_s` 0 means what the policy says (48 h).
    `amount_fen` is what was paid, `splits` how it is shared out at redemption: no more than was paid, and to each payee once in each
    role and level. `actor` names who caused it, for the event (for example `mall:7`).
    """

    mall_id: int
    request_id: str
    store_id: int
    order_id: str
    lines: tuple[Line, ...]
    version: Version | None
    suite: Suite
    channel: Channel = Channel.ONLINE
    ttl_s: int = 0
    amount_fen: int = 0
    splits: tuple[Split, ...] = ()
    actor: str = ""
    replaces: bytes = b""
    """Uid of the voided code that this one stands in for (another store); empty: none."""

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.identifier(self.store_id, "store_id")
        fields.request_id(self.request_id)
        fields.text(self.order_id, "order_id", limits.ORDER_ID_CHARS_MAX)
        fields.lines(self.lines, lines_min=1)
        if self.ttl_s:
            fields.whole(self.ttl_s, "ttl_s", limits.TTL_S_MIN, limits.TTL_S_MAX)
        fields.member(self.suite, "suite", tuple(Suite))
        if self.version is not None:
            fields.member(self.version, "version", tuple(Version))
        fields.member(self.channel, "channel", tuple(Channel))
        fields.whole(self.amount_fen, "amount_fen", 0, limits.AMOUNT_FEN_MAX)
        self._check_splits()
        if self.replaces:
            fields.exactly(self.replaces, "replaces", UID_BYTES)
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX)

    def _check_splits(self) -> None:
        if len(self.splits) > limits.SPLITS_MAX:
            raise InvalidInput(
                f"splits has {len(self.splits)} items; expected at most {limits.SPLITS_MAX}", field="splits"
            )
        parties: set[tuple[str, str, int]] = set()
        for index, split in enumerate(self.splits):
            party = (split.payee, split.role, split.level)
            if party in parties:
                raise InvalidInput(
                    f"splits[{index}] names payee {split.payee!r} as {split.role!r} at level {split.level} once more; expected each in one"
                    " split only",
                    field=f"splits[{index}]",
                )
            parties.add(party)
        total_fen = sum(split.amount_fen for split in self.splits)
        if total_fen > self.amount_fen:
            raise InvalidInput(
                f"splits add up to {total_fen} fen; expected at most amount_fen, {self.amount_fen}, which was paid",
                field="splits",
            )


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """Ask for a code's payload: `count` 1 is the one to show now, more are the next ones, each for its own time."""

    mall_id: int
    uid: bytes
    count: int = 1
    position: Position | None = None
    request_id: str = ""
    """Needed where the policy looks at the customer's position: a place too far away counts as a try. Scope (mall, render)."""
    actor: str = ""

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.exactly(self.uid, "uid", UID_BYTES)
        if self.request_id:
            fields.request_id(self.request_id)
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class RedeemRequest:
    """One try to redeem. `code` is the scanned payload ("PG…") or the typed serial (16 digits); no lines: all of it."""

    terminal: Terminal
    request_id: str
    code: str
    pin: str = field(default="", repr=False)
    position: Position | None = None
    lines: tuple[Line, ...] = ()
    actor: str = ""
    proof_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        fields.request_id(self.request_id)
        if self.pin and not (len(self.pin) == 6 and self.pin.isascii() and self.pin.isdigit()):
            # Told apart from a wrong one, so that a slip of the finger costs the customer no try. Never repeated.
            raise InvalidInput("pin is misshapen; expected six digits, or nothing", field="pin")
        if self.lines:
            fields.lines(self.lines, lines_min=0)
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class InspectRequest:
    """Ask what redeem would say, changing nothing."""

    terminal: Terminal
    code: str
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class VoidRequest:
    """Void a code; the request id's scope is (mall, void)."""

    mall_id: int
    request_id: str
    uid: bytes
    reason: str = ""
    actor: str = ""

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.request_id(self.request_id)
        fields.exactly(self.uid, "uid", UID_BYTES)
        fields.text(self.reason, "reason", limits.REASON_CHARS_MAX)
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX)


# --- answers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle of a code: its SKU, its units at issue less those refunded, and the lines that are its parts, from `first` on."""

    sku_id: int
    units: int
    parts: tuple[LineState, ...]
    first: int = 0
    """Place (0-based) of its first part among the record's lines."""


@dataclass(frozen=True, slots=True)
class Record:
    """A code's record as read by get: the truth about it."""

    uid: bytes
    state: State
    version: Version
    suite: Suite
    mall_id: int
    store_id: int
    order_id: str
    lines: tuple[LineState, ...]
    """What is handed out, bundles taken apart."""
    bundles: tuple[Bundle, ...]
    windows_bind: bool
    """Issued while stock was tight: only handed out in the store's pickup windows."""
    proof_needed: bool
    ttl_s: int
    """Life that confirm gives a held code."""
    channel: Channel
    policy_version: int
    issued_at_ms: int
    changed_at_ms: int
    stamp_floor_s: int
    """Renders to show now take no stamp below it: see engine.issuance.now_stamp."""
    expires_at_s: int
    amount_fen: int
    splits: tuple[Split, ...]
    replaces: bytes
    """Uid of the voided code that this one stands in for; empty: none."""
    pin_generation: int
    revision: int
    cycle: int
    tries: int
    terminal_id: int
    """Terminal of the last redemption; 0 before."""
    redeemed_at_ms: int
    """Time of the last redemption; 0 before."""
    lock: EventId | None
    """Event that locked the code, which is the review's id; None when not locked."""

    @property
    def ordered_sku_ids(self) -> tuple[int, ...]:
        """What the customer ordered: its bundles, and the SKUs of lines that are no part of one. Policies go by these."""
        in_bundles = {bundle.first + n for bundle in self.bundles for n in range(len(bundle.parts))}
        loose = (line.sku_id for n, line in enumerate(self.lines) if n not in in_bundles)
        return (*(bundle.sku_id for bundle in self.bundles), *loose)


@dataclass(frozen=True, slots=True)
class IssueAnswer:
    """Answer of issue. `typed` and `pin` are set for static codes; `sku_id` names the SKU of a refusal.

    `pin_generation` says which generation of the PIN key made `pin` (0: not a static code).
    """

    verdict: IssueVerdict
    uid: bytes = b""
    expires_at_s: int = 0
    issued_at_ms: int = 0
    typed: str = ""
    pin: str = field(default="", repr=False)
    pin_generation: int = 0
    sku_id: int = 0
    store_id: int = 0
    event: EventId | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Payload:
    """One rendered payload and when terminals take it (unix milliseconds, both inclusive)."""

    text: str
    valid_from_ms: int
    valid_until_ms: int


@dataclass(frozen=True, slots=True)
class RenderAnswer:
    """Answer of render."""

    verdict: RenderVerdict
    payloads: tuple[Payload, ...] = ()
    record: Record | None = None
    tries_left: int = 0
    review_id: str = ""
    typed: str = ""
    pin: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class RedeemAnswer:
    """Answer of redeem. `lines` says what this redemption took (count) and what remains (left)."""

    verdict: RedeemVerdict
    uid: bytes = b""
    order_id: str = ""
    lines: tuple[LineState, ...] = ()
    at_ms: int = 0
    terminal_id: int = 0
    """Who redeemed it (now, or the first time for ALREADY_REDEEMED)."""
    tries_left: int = 0
    sku_id: int = 0
    store_id: int = 0
    """The store the code is for, with WRONG_STORE."""
    store_name: str = ""
    cycle: int = 0
    event: EventId | None = None
    review_id: str = ""
    distance_bucket: int = 255
    window: str = ""
    """The next pickup window, with OUTSIDE_WINDOW; the next opening hours, with STORE_CLOSED ('' when none are in sight)."""
    proof_methods: tuple[str, ...] = ()
    """The ways of proof that the code takes, with PROOF_REQUIRED."""
    replayed: bool = False
    """True when this is the remembered answer of an earlier call with the same request id."""


@dataclass(frozen=True, slots=True)
class InspectAnswer:
    """Answer of inspect; fields as in RedeemAnswer, with `lines` showing what is left."""

    verdict: InspectVerdict
    uid: bytes = b""
    order_id: str = ""
    version: int = 0
    lines: tuple[LineState, ...] = ()
    at_ms: int = 0
    terminal_id: int = 0
    sku_id: int = 0
    store_id: int = 0
    store_name: str = ""
    review_id: str = ""
    expires_at_s: int = 0
    pin_required: bool = False
    proof_required: bool = False
    window: str = ""
    distance_bucket: int = 255


@dataclass(frozen=True, slots=True)
class VoidAnswer:
    """Answer of void. `lines` says what was released (left before) per line."""

    verdict: VoidVerdict
    uid: bytes = b""
    at_ms: int = 0
    terminal_id: int = 0
    lines: tuple[LineState, ...] = ()
    event: EventId | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class StockFigures:
    """Stock of one SKU at one store for one mall, in units. `baseline` 0: no tiers."""

    sku_id: int
    on_hand: int
    reserved: int
    baseline: int
    tier: int

    @property
    def available(self) -> int:
        """Units that can still be promised."""
        return max(0, self.on_hand - self.reserved)

    @property
    def short(self) -> int:
        """Units promised but not there (after a stocktake below reserved)."""
        return max(0, self.reserved - self.on_hand)


class StockChange(IntEnum):
    """Kinds of stock change. Numbers are stored: never renumber."""

    RECEIVE = 1
    """Goods came in: amount > 0 is added to on_hand."""
    ADJUST_BY = 2
    """Correct on_hand by a signed amount."""
    COUNT = 3
    """A stocktake: on_hand becomes the amount."""
    BASELINE = 4
    """Set the baseline that tiers are measured against; on_hand stays."""


@dataclass(frozen=True, slots=True)
class StockRequest:
    """One stock change; the request id's scope is (mall, stock)."""

    mall_id: int
    request_id: str
    store_id: int
    sku_id: int
    change: StockChange
    amount: int
    reason: str = ""
    actor: str = ""

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.request_id(self.request_id)
        fields.identifier(self.store_id, "store_id")
        fields.identifier(self.sku_id, "sku_id")
        lowest = {StockChange.RECEIVE: 1, StockChange.ADJUST_BY: -limits.STOCK_MAX}.get(self.change, 0)
        fields.whole(self.amount, "amount", lowest, limits.STOCK_MAX)
        fields.text(self.reason, "reason", limits.REASON_CHARS_MAX)
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class StockAnswer:
    """Answer of a stock change: the figures after it (or unchanged, with a refusal)."""

    verdict: StockVerdict
    figures: StockFigures | None = None
    sku_id: int = 0
    store_id: int = 0
    event: EventId | None = None
    replayed: bool = False


# --- hold, confirm, extend --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HoldAnswer:
    """Answer of hold. `expires_at_s` is when the hold ends by itself; fields as in IssueAnswer."""

    verdict: HoldVerdict
    uid: bytes = b""
    expires_at_s: int = 0
    issued_at_ms: int = 0
    sku_id: int = 0
    store_id: int = 0
    event: EventId | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class ConfirmRequest:
    """Make a held code live, because it was paid; the request id's scope is (mall, confirm)."""

    mall_id: int
    request_id: str
    uid: bytes
    actor: str = ""

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.request_id(self.request_id)
        fields.exactly(self.uid, "uid", UID_BYTES)
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class ConfirmAnswer:
    """Answer of confirm, with the code's expiry. `typed` and `pin` are set for static codes."""

    verdict: ConfirmVerdict
    uid: bytes = b""
    expires_at_s: int = 0
    event: EventId | None = None
    replayed: bool = False
    typed: str = ""
    pin: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ExtendRequest:
    """Move a code's expiry to a later unix second; the request id's scope is (mall, extend)."""

    mall_id: int
    request_id: str
    uid: bytes
    expires_at_s: int
    actor: str = ""

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.request_id(self.request_id)
        fields.exactly(self.uid, "uid", UID_BYTES)
        fields.whole(self.expires_at_s, "expires_at_s", 1, limits.EXPIRES_AT_S_MAX)
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class ExtendAnswer:
    """Answer of extend, with the expiry in force."""

    verdict: ExtendVerdict
    uid: bytes = b""
    expires_at_s: int = 0
    event: EventId | None = None
    replayed: bool = False


# --- reverse ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReverseRequest:
    """Take back what a code handed out, all of it or the lines named; the request id's scope is (terminal, reverse).

    `release` says that the customer was refunded: the units leave the code instead of being reserved for it again.
    """

    terminal: Terminal
    request_id: str
    uid: bytes
    lines: tuple[Line, ...] = ()
    release: bool = False
    reason: str = ""
    actor: str = ""

    def __post_init__(self) -> None:
        fields.request_id(self.request_id)
        fields.exactly(self.uid, "uid", UID_BYTES)
        fields.lines(self.lines, lines_min=0)
        fields.text(self.reason, "reason", limits.REASON_CHARS_MAX)
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class ReverseAnswer:
    """Answer of reverse. `lines` says what came back (count) and what the code has left afterwards (left)."""

    verdict: ReverseVerdict
    uid: bytes = b""
    at_ms: int = 0
    lines: tuple[LineState, ...] = ()
    expires_at_s: int = 0
    sku_id: int = 0
    store_id: int = 0
    store_name: str = ""
    cycle: int = 0
    event: EventId | None = None
    replayed: bool = False


# --- reviews ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evidence:
    """One counted try. `verdict` is RedeemVerdict's number, or RenderVerdict's when `terminal_id` is 0 (the customer's phone)."""

    at_ms: int
    store_id: int
    terminal_id: int
    verdict: int
    distance_bucket: int
    actor: str


@dataclass(frozen=True, slots=True)
class Review:
    """A locked code that waits for a decision. `review_id` is the number of the event that locked it."""

    review_id: str
    locked_at_ms: int
    record: Record
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class ReviewRequest:
    """Decide a locked code; the request id's scope is (mall, review). `actor` is the reviewer, and must be stated."""

    mall_id: int
    request_id: str
    uid: bytes
    decision: Decision
    actor: str
    reason: str = ""

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.request_id(self.request_id)
        fields.exactly(self.uid, "uid", UID_BYTES)
        # A decision without a decider could not be told from the decider's own tries.
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX, chars_min=1)
        fields.text(self.reason, "reason", limits.REASON_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class ReviewAnswer:
    """Answer of a decision. `lines` says what it handed out or released."""

    verdict: ReviewVerdict
    uid: bytes = b""
    at_ms: int = 0
    lines: tuple[LineState, ...] = ()
    sku_id: int = 0
    event: EventId | None = None
    replayed: bool = False


# --- transfer ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """Move units of a SKU from one store to another; the request id's scope is (mall, transfer)."""

    mall_id: int
    request_id: str
    from_store_id: int
    to_store_id: int
    sku_id: int
    amount: int
    actor: str = ""

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.request_id(self.request_id)
        for name in ("from_store_id", "to_store_id", "sku_id"):
            fields.identifier(getattr(self, name), name)
        if self.from_store_id == self.to_store_id:
            raise InvalidInput(
                f"to_store_id is {self.to_store_id}, as from_store_id; expected another store",
                field="to_store_id",
            )
        fields.whole(self.amount, "amount", 1, limits.STOCK_MAX)
        fields.text(self.actor, "actor", limits.ACTOR_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class TransferAnswer:
    """Answer of a transfer: the figures at the store that the units left."""

    verdict: TransferVerdict
    figures: StockFigures | None = None
    sku_id: int = 0
    store_id: int = 0
    event: EventId | None = None
    replayed: bool = False
