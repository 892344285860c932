"""Policies as data: what a deployment, a store or a SKU rules about its codes, each inheriting what it leaves open.

A field is settled by the most specific level that states it: the SKU's policy, the store's, the deployment's, and last what is
built in. Two fields have a home of their own besides: `pickup_mode` may be stated in the SKU's catalogue entry, which stands
between the SKU's policy and the store's; and a store's `terminal_location` is stated in the store itself, like its radius, and
nowhere else on that level.

| field | built in | deployment | store | SKU | several lines |
|---|---|---|---|---|---|
| code_ttl_s | 48 h | x | x | x | shortest |
| hold_s | 15 min | x | x | x | shortest |
| payload_life_s | 60 s | x | x | | |
| reversal_window_s | 60 min | x | x | | |
| cycles_max | 10 | x | x | | |
| terminal_location | required | x | (the store itself) | | |
| customer_location | off | x | x | x | strictest |
| pickup_mode | dynamic | x | x | x (or the catalogue) | strongest |
| customer_proof | required | x | x | x | strictest |
| proof_methods | all | x | x | x | those that every line offers |
| tiers | 30, 10, 5, 1 %, 2 points | x | x | x | |

A field stands only where it can be settled when it is asked for: a terminal's place, a payload's freshness and a reversal are
judged before or without the lines, so no SKU can rule them. Policies are entries of the control partition: a put replaces the
policy of its scope whole (an empty one rules nothing), is an event, and raises the control version, which codes record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Final, Literal, get_args

from engine import limits
from engine.claims import Version
from engine.entries import (
    Entry,
    check_choice,
    check_different,
    check_id,
    check_number_of,
    check_whole,
)
from engine.errors import InvalidInput
from engine.stores import CatalogueEntry, PickupMode, Store

Level = Literal["deployment", "store", "sku"]
"""Where a policy stands, least specific first."""
LocationRule = Literal["off", "optional", "required"]
"""Whether a position is looked at: never; only when one is stated; always, and one must be stated. Laxest first."""
ProofRule = Literal["off", "required"]
"""Whether a valuable code is handed out against a proof of who the customer is only. Laxest first."""
ProofMethod = Literal["face", "id_document", "two_staff"]
"""How a provider made sure who the customer is. Face is never the only way that is offered.

Source: 人脸识别技术应用安全管理办法 (Cyberspace Administration and Ministry of Public Security of China, in force since
2025-06-01): where another way serves the same purpose, face recognition must not be the only means of verification.
"""

VERSION_OF_MODE: Final[Mapping[PickupMode, Version]] = {
    "static": Version.STATIC,
    "dynamic": Version.DYNAMIC,
    "valuable": Version.VALUABLE,
}
"""Which codes a pickup mode is made of; the higher, the better protected."""

_EVERYWHERE: Final[frozenset[Level]] = frozenset(get_args(Level))
_NOT_SKU: Final[frozenset[Level]] = frozenset(("deployment", "store"))
_MEMO_MAX: Final = 65_536
"""Resolved policies kept per control version: about 20 MB."""


@dataclass(frozen=True)
class Tiers(Entry):
    """At which share of its baseline (percent of available ÷ baseline) stock crosses into a tier.

    Below tight_percent it is tight; at or below red_percent red, closed_percent closed, emergency_percent emergency. A tier is
    left upwards only when the stock lies hysteresis_percent points above its bound, so that one sale and one void at a bound
    don't cross it twice. Bounds rise from emergency to tight, by more than the hysteresis: leaving one tier must not lead past
    the next. Stated as a whole, because only together can they be wrong.
    """

    tight_percent: int = limits.TIER_TIGHT_PERCENT
    red_percent: int = limits.TIER_RED_PERCENT
    closed_percent: int = limits.TIER_CLOSED_PERCENT
    emergency_percent: int = limits.TIER_EMERGENCY_PERCENT
    hysteresis_percent: int = limits.TIER_HYSTERESIS_PERCENT

    def __post_init__(self) -> None:
        check_whole(self.hysteresis_percent, "tiers.hysteresis_percent", 0, 20, "points")
        least = 0
        for name in ("emergency_percent", "closed_percent", "red_percent", "tight_percent"):
            check_whole(
                getattr(self, name),
                f"tiers.{name}",
                least,
                100 - self.hysteresis_percent,
                f"percent (rising by more than the hysteresis of {self.hysteresis_percent} points)",
            )
            least = getattr(self, name) + self.hysteresis_percent + 1

    def pack(self) -> bytes:
        """The bounds as the scripts read them: a byte each, in the order of engine.state.layouts.TIERS."""
        return bytes(
            (
                self.tight_percent,
                self.red_percent,
                self.closed_percent,
                self.emergency_percent,
                self.hysteresis_percent,
            )
        )


@dataclass(frozen=True)
class Policy(Entry):
    """What one scope rules; None inherits. Scope: the deployment; a store (store_id); or a SKU (mall_id and sku_id).

    code_ttl_s: life of a code that states none (60 s .. 400 days). hold_s: how long stock is held for an unpaid order (60 s ..
    24 h). payload_life_s: how long a rendered payload is taken (60 .. 600). reversal_window_s: how long after a redemption it
    can be reversed (0, never, .. 30 days). cycles_max: how often one code may be redeemed and reversed (1 .. 10).
    terminal_location, customer_location: whether the terminal's position at redeem, the customer's at render, is looked at.
    pickup_mode: how codes are handed over. customer_proof: whether a valuable code needs a proof of who the customer is.
    proof_methods: which proofs open it, never face alone. tiers: stock tiers. Raises InvalidInput, naming the field, its value and what was expected.
    """

    NESTED: ClassVar = {"tiers": Tiers}

    level: Level
    store_id: int = 0
    mall_id: int = 0
    sku_id: int = 0
    code_ttl_s: int | None = None
    hold_s: int | None = None
    payload_life_s: int | None = None
    reversal_window_s: int | None = None
    cycles_max: int | None = None
    terminal_location: LocationRule | None = None
    customer_location: LocationRule | None = None
    pickup_mode: PickupMode | None = None
    customer_proof: ProofRule | None = None
    proof_methods: tuple[ProofMethod, ...] | None = None
    tiers: Tiers | None = None

    def __post_init__(self) -> None:
        check_choice(self.level, "level", get_args(Level))
        self._check_scope()
        for name, levels in LEVELS_OF_FIELD.items():
            value = getattr(self, name)
            if value is None:
                continue
            if self.level not in levels:
                raise InvalidInput(
                    f"{name} is {value!r} in a {self.level}'s policy; expected"
                    f" {'it in the store itself' if name == 'terminal_location' and self.level == 'store' else 'none'}:"
                    f" a policy of {' or '.join(level for level in get_args(Level) if level in levels)} may state it",
                    field=name,
                )
            if name in _BOUNDS_OF_FIELD:
                check_whole(value, name, *_BOUNDS_OF_FIELD[name])
            elif name in _CHOICES_OF_FIELD:
                check_choice(value, name, _CHOICES_OF_FIELD[name])
        if self.proof_methods is not None:
            _check_proof_methods(self.proof_methods)

    def _check_scope(self) -> None:
        wanted = {"deployment": (), "store": ("store_id",), "sku": ("mall_id", "sku_id")}[self.level]
        for name in ("store_id", "mall_id", "sku_id"):
            if name in wanted:
                check_id(getattr(self, name), name)
            elif getattr(self, name) != 0:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)!r}; expected 0 in a {self.level}'s policy", field=name
                )

    @property
    def field(self) -> str:
        """Its name within its kind: there is one policy for each scope."""
        return {
            "deployment": "deployment",
            "store": f"store:{self.store_id}",
            "sku": f"sku:{self.mall_id}:{self.sku_id}",
        }[self.level]

    @property
    def empty(self) -> bool:
        """True when it rules nothing: it was taken back."""
        return all(getattr(self, name) is None for name in LEVELS_OF_FIELD)


LEVELS_OF_FIELD: Final[Mapping[str, frozenset[Level]]] = {
    "code_ttl_s": _EVERYWHERE,
    "hold_s": _EVERYWHERE,
    "payload_life_s": _NOT_SKU,
    "reversal_window_s": _NOT_SKU,
    "cycles_max": _NOT_SKU,
    "terminal_location": frozenset(("deployment",)),
    "customer_location": _EVERYWHERE,
    "pickup_mode": _EVERYWHERE,
    "customer_proof": _EVERYWHERE,
    "proof_methods": _EVERYWHERE,
    "tiers": _EVERYWHERE,
}
"""Which levels may state a field."""

_BOUNDS_OF_FIELD: Final[Mapping[str, tuple[int, int, str]]] = {
    "code_ttl_s": (limits.TTL_S_MIN, limits.TTL_S_MAX, "seconds"),
    "hold_s": (limits.HOLD_S_MIN, limits.HOLD_S_MAX, "seconds"),
    "payload_life_s": (limits.PAYLOAD_LIFE_S_MIN, limits.PAYLOAD_LIFE_S_MAX, "seconds"),
    "reversal_window_s": (0, limits.REVERSAL_WINDOW_S_MAX, "seconds"),
    "cycles_max": (1, limits.CYCLES_MAX, "cycles"),
}
_CHOICES_OF_FIELD: Final[Mapping[str, tuple[str, ...]]] = {
    "terminal_location": get_args(LocationRule),
    "customer_location": get_args(LocationRule),
    "pickup_mode": get_args(PickupMode),
    "customer_proof": get_args(ProofRule),
}


def _check_proof_methods(methods: Sequence[ProofMethod]) -> None:
    check_number_of(methods, "proof_methods", 1, len(get_args(ProofMethod)))
    for index, method in enumerate(methods):
        check_choice(method, f"proof_methods[{index}]", get_args(ProofMethod))
    check_different(methods, "proof_methods")
    if tuple(methods) == ("face",):
        raise InvalidInput(
            "proof_methods is face alone; expected id_document or two_staff with it: nobody may be made to give their face",
            field="proof_methods",
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for one code: fields as in Policy, none left open."""

    code_ttl_s: int
    hold_s: int
    payload_life_s: int
    reversal_window_s: int
    cycles_max: int
    terminal_location: LocationRule
    customer_location: LocationRule
    pickup_mode: PickupMode
    customer_proof: ProofRule
    proof_methods: tuple[ProofMethod, ...]

    @property
    def version(self) -> Version:
        """Version of codes that the pickup mode asks for."""
        return VERSION_OF_MODE[self.pickup_mode]


@dataclass(frozen=True, slots=True)
class Resolved(Terms):
    """What holds for one SKU of one mall at one store."""

    tiers: Tiers


BUILT_IN: Final = Resolved(
    code_ttl_s=limits.TTL_S_DEFAULT,
    hold_s=limits.HOLD_S_DEFAULT,
    payload_life_s=limits.PAYLOAD_LIFE_S_DEFAULT,
    reversal_window_s=limits.REVERSAL_WINDOW_S_DEFAULT,
    cycles_max=limits.CYCLES_MAX,
    terminal_location="required",
    customer_location="off",
    pickup_mode="dynamic",
    customer_proof="required",
    proof_methods=get_args(ProofMethod),
    tiers=Tiers(),
)
"""What holds where nobody says otherwise."""


class Policies:
    """All policies at one control version, with the stores and the catalogue of the same. For many threads at once."""

    def __init__(
        self,
        policies: Iterable[Policy] = (),
        stores: Mapping[int, Store] | None = None,
        catalogue: Mapping[tuple[int, int], CatalogueEntry] | None = None,
    ) -> None:
        """Stores by id, catalogue by (mall, SKU), as in the process' copy of the control partition."""
        self._of = {policy.field: policy for policy in policies}
        self._stores = stores or {}
        self._catalogue = catalogue or {}
        self._resolved: dict[tuple[int, int, int], Resolved] = {}

    def __iter__(self) -> Iterator[Policy]:
        return iter(self._of.values())

    def of_scope(self, *, store_id: int = 0, mall_id: int = 0, sku_id: int = 0) -> Policy | None:
        """The policy put for a store, for a SKU of a mall, or for the deployment (no id), None if none was."""
        if store_id:
            return self._of.get(f"store:{store_id}")
        return self._of.get(f"sku:{mall_id}:{sku_id}" if sku_id else "deployment")

    def resolve(self, store_id: int, mall_id: int = 0, sku_id: int = 0) -> Resolved:
        """What holds for a SKU (mall_id and sku_id) at a store; without a SKU, for the store as such.

        An id that nobody knows has no policy of its own, so what is above it holds.
        """
        key = store_id, mall_id, sku_id
        found = self._resolved.get(key)
        if found is None:
            if len(self._resolved) >= _MEMO_MAX:
                self._resolved.clear()
            found = self._resolved[key] = self._settled(*key)
        return found

    def resolve_lines(self, store_id: int, mall_id: int, sku_ids: Iterable[int]) -> Terms:
        """What holds for a code of several SKUs (at least one) at a store: see strictest."""
        return strictest([self.resolve(store_id, mall_id, sku_id) for sku_id in sku_ids])

    def _settled(self, store_id: int, mall_id: int, sku_id: int) -> Resolved:
        settled = {field.name: getattr(BUILT_IN, field.name) for field in fields(BUILT_IN)}
        store = self._stores.get(store_id)
        entry = self._catalogue.get((mall_id, sku_id))
        for stated in (
            self._stated("deployment"),
            self._stated(f"store:{store_id}"),
            {"terminal_location": store.terminal_location}
            if store and store.terminal_location != "inherit"
            else {},
            {"pickup_mode": entry.pickup_mode} if entry and entry.pickup_mode else {},
            self._stated(f"sku:{mall_id}:{sku_id}"),
        ):
            settled |= stated
        return Resolved(**settled)

    def _stated(self, field: str) -> Mapping[str, object]:
        policy = self._of.get(field)
        if policy is None:
            return {}
        return {name: value for name in LEVELS_OF_FIELD if (value := getattr(policy, name)) is not None}


_STRICTNESS: Final = get_args(LocationRule)
_PROOF_STRICTNESS: Final = get_args(ProofRule)


def strictest(lines: Sequence[Resolved]) -> Terms:
    """What holds for a code whose lines (at least one) are SKUs at one store with these policies: what satisfies each of them.

    The shortest times, the stricter location and proof, the better protected mode, and the proof methods that every line offers. If those
    are none, or face alone, `proof_methods` is empty: then no proof opens such a code, and a valuable one must not be issued.
    """
    first = lines[0]
    if len(lines) == 1:
        return first
    methods = tuple(m for m in get_args(ProofMethod) if all(m in line.proof_methods for line in lines))
    return Terms(
        code_ttl_s=min(line.code_ttl_s for line in lines),
        hold_s=min(line.hold_s for line in lines),
        payload_life_s=first.payload_life_s,
        reversal_window_s=first.reversal_window_s,
        cycles_max=first.cycles_max,
        terminal_location=first.terminal_location,
        customer_location=max((line.customer_location for line in lines), key=_STRICTNESS.index),
        pickup_mode=max((line.pickup_mode for line in lines), key=VERSION_OF_MODE.__getitem__),
        customer_proof=max((line.customer_proof for line in lines), key=_PROOF_STRICTNESS.index),
        proof_methods=() if methods == ("face",) else methods,
    )
