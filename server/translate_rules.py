"""Between the wire and the engine, for the rules that operations set up: hours, windows, pickup modes, policies, providers.

The engine's entries check themselves as they are made and name their own field; here it gets the path of where it stands in
the request. The engine's words for closed sets ("dynamic", "face") are the contract's enums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

from engine.errors import InvalidInput
from engine.hours import EVERY_DAY, Hours, SpecialDay, Window
from engine.policies import LEVELS_OF_FIELD, Level, LocationRule, Policy, ProofMethod, ProofRule, Tiers
from engine.proof import Provider, ProviderKey
from engine.stores import PickupMode, TerminalLocation
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds, checks

W = TypeVar("W", bound=str)
T = TypeVar("T")

TERMINAL_LOCATIONS: Final[Mapping[int, TerminalLocation]] = {
    store_pb.TERMINAL_LOCATION_REQUIRED: "required",
    store_pb.TERMINAL_LOCATION_OPTIONAL: "optional",
    store_pb.TERMINAL_LOCATION_OFF: "off",
    store_pb.TERMINAL_LOCATION_INHERIT: "inherit",
}
LOCATION_RULES: Final[Mapping[int, LocationRule]] = {
    store_pb.LOCATION_RULE_OFF: "off",
    store_pb.LOCATION_RULE_OPTIONAL: "optional",
    store_pb.LOCATION_RULE_REQUIRED: "required",
}
PICKUP_MODES: Final[Mapping[int, PickupMode]] = {
    types_pb.PICKUP_MODE_STATIC: "static",
    types_pb.PICKUP_MODE_DYNAMIC: "dynamic",
    types_pb.PICKUP_MODE_VALUABLE: "valuable",
}
PROOF_RULES: Final[Mapping[int, ProofRule]] = {
    store_pb.PROOF_RULE_OFF: "off",
    store_pb.PROOF_RULE_REQUIRED: "required",
}
PROOF_METHODS: Final[Mapping[int, ProofMethod]] = {
    types_pb.PROOF_METHOD_FACE: "face",
    types_pb.PROOF_METHOD_ID_DOCUMENT: "id_document",
    types_pb.PROOF_METHOD_TWO_STAFF: "two_staff",
}
LEVELS: Final[Mapping[int, Level]] = {
    store_pb.POLICY_LEVEL_DEPLOYMENT: "deployment",
    store_pb.POLICY_LEVEL_STORE: "store",
    store_pb.POLICY_LEVEL_SKU: "sku",
}
ALGORITHMS: Final[Mapping[int, str]] = {
    store_pb.PROOF_ALGORITHM_EDDSA: "EdDSA",
    store_pb.PROOF_ALGORITHM_ES256: "ES256",
}


def word(number: int, field: str, words: Mapping[int, W]) -> W:
    """The engine's word for an enum's number; a number that stands for none is InvalidInput."""
    if number not in words:
        checks.refuse(field, number, " or ".join(f"{text} ({known})" for known, text in words.items()))
    return words[number]


def number(text: str, words: Mapping[int, str]) -> Any:
    """The enum's number for the engine's word."""
    return next(known for known, one in words.items() if one == text)


@contextmanager
def at(path: str) -> Iterator[None]:
    """Give what is refused inside the path of where it stands in the request."""
    try:
        yield
    except InvalidInput as error:
        if error.field.startswith(path):
            raise
        field = f"{path}.{error.field}" if error.field else path
        separator = "." if error.field and error.message.startswith(error.field) else ": "
        raise type(error)(f"{path}{separator}{error.message}", field=field) from None


# --- hours ----------------------------------------------------------------------------------------------------------
def hours(messages: Sequence[store_pb.Hours], path: str) -> tuple[Hours, ...]:
    """Read and check opening hours."""
    return _each(messages, path, lambda one: Hours(one.from_min, one.to_min, _weekdays(one)))


def windows(messages: Sequence[store_pb.Window], path: str) -> tuple[Window, ...]:
    """Read and check pickup windows."""
    return _each(messages, path, lambda one: Window(one.from_min, one.to_min, _weekdays(one), one.name))


def special_days(messages: Sequence[store_pb.SpecialDay], path: str) -> tuple[SpecialDay, ...]:
    """Read and check dates with rules of their own."""
    made = []
    for index, one in enumerate(messages):
        here = f"{path}[{index}]"
        with at(here):
            made.append(
                SpecialDay(
                    one.day,
                    one.closed,
                    hours(one.opening_hours.spans, f"{here}.opening_hours.spans")
                    if one.HasField("opening_hours")
                    else None,
                    windows(one.pickup_windows.spans, f"{here}.pickup_windows.spans")
                    if one.HasField("pickup_windows")
                    else None,
                )
            )
    return tuple(made)


def _weekdays(message: store_pb.Hours | store_pb.Window) -> tuple[int, ...]:
    return tuple(message.weekdays) or EVERY_DAY


def _each(messages: Sequence[Any], path: str, make: Callable[[Any], T]) -> tuple[T, ...]:
    made = []
    for index, message in enumerate(messages):
        with at(f"{path}[{index}]"):
            made.append(make(message))
    return tuple(made)


def hours_messages(spans: Sequence[Hours]) -> list[store_pb.Hours]:
    """Write opening hours for the wire."""
    return [store_pb.Hours(from_min=one.from_min, to_min=one.to_min, weekdays=_stated(one)) for one in spans]


def windows_messages(spans: Sequence[Window]) -> list[store_pb.Window]:
    """Write pickup windows for the wire."""
    return [
        store_pb.Window(from_min=one.from_min, to_min=one.to_min, weekdays=_stated(one), name=one.name)
        for one in spans
    ]


def special_day_message(special: SpecialDay) -> store_pb.SpecialDay:
    """Write a date with rules of its own for the wire."""
    message = store_pb.SpecialDay(day=special.day, closed=special.closed)
    if special.opening_hours is not None:
        message.opening_hours.CopyFrom(store_pb.DayHours(spans=hours_messages(special.opening_hours)))
    if special.pickup_windows is not None:
        message.pickup_windows.CopyFrom(store_pb.DayWindows(spans=windows_messages(special.pickup_windows)))
    return message


def _stated(span: Hours) -> tuple[int, ...]:
    return () if span.weekdays == EVERY_DAY else span.weekdays


def page(message: store_pb.ListPoliciesRequest | store_pb.ListProvidersRequest) -> tuple[int, str]:
    """Read and check a page's bounds: how many items, and the name of the entry after which it begins."""
    size = checks.whole(message.page_size, "page_size", 0, bounds.PAGE_ITEMS_MAX, "items")
    token = checks.text(message.page_token, "page_token", bounds.PAGE_TOKEN_CHARS_MAX)
    return size or bounds.PAGE_ITEMS_MAX, token


# --- policies -------------------------------------------------------------------------------------------------------
_NUMBERS: Final = ("code_ttl_s", "hold_s", "payload_life_s", "reversal_window_s", "cycles_max")
_CHOICES: Final[Mapping[str, Mapping[int, str]]] = {
    "terminal_location": LOCATION_RULES,
    "customer_location": LOCATION_RULES,
    "pickup_mode": PICKUP_MODES,
    "customer_proof": PROOF_RULES,
}
_TIERS: Final = (
    "tight_percent",
    "red_percent",
    "closed_percent",
    "emergency_percent",
    "hysteresis_percent",
)


class _Named(Protocol):
    @property
    def field(self) -> str: ...


N = TypeVar("N", bound=_Named)


def each_once(made: tuple[N, ...], what: str) -> tuple[N, ...]:
    """Return entries to put, of which none stands there twice: one of both would be lost without a word."""
    seen: set[str] = set()
    for index, entry in enumerate(made):
        if entry.field in seen:
            checks.refuse(f"{what}[{index}]", entry.field, "each entry once, and this is its second")
        seen.add(entry.field)
    return made


def policies(messages: Sequence[store_pb.Policy]) -> tuple[Policy, ...]:
    """Read and check policies to put."""
    checks.length(messages, "policies", 1, bounds.PUT_ITEMS_MAX)
    return each_once(
        tuple(_policy(message, f"policies[{index}]") for index, message in enumerate(messages)), "policies"
    )


def _policy(message: store_pb.Policy, path: str) -> Policy:
    stated: dict[str, Any] = {
        name: getattr(message, name) if message.HasField(name) else None for name in _NUMBERS
    }
    for name, words in _CHOICES.items():
        value = getattr(message, name)
        stated[name] = word(value, f"{path}.{name}", words) if value else None
    if message.proof_methods:
        stated["proof_methods"] = _methods(message.proof_methods, f"{path}.proof_methods")
    if message.HasField("tiers"):
        with at(path):
            stated["tiers"] = _tiers(message.tiers)
    level = word(message.level, f"{path}.level", LEVELS)
    with at(path):
        return Policy(level, message.store_id, message.mall_id, message.sku_id, **stated)


def _tiers(message: store_pb.StockTiers) -> Tiers:
    for name in _TIERS:
        if not message.HasField(name):
            raise InvalidInput(f"tiers.{name} is missing; expected percent", field=f"tiers.{name}")
    return Tiers(**{name: getattr(message, name) for name in _TIERS})


def _methods(numbers: Sequence[int], path: str) -> tuple[ProofMethod, ...]:
    return tuple(word(one, f"{path}[{index}]", PROOF_METHODS) for index, one in enumerate(numbers))


def policy_message(policy: Policy) -> store_pb.Policy:
    """Write a policy for the wire; what it leaves open is not set."""
    message = store_pb.Policy(
        level=number(policy.level, LEVELS),
        store_id=policy.store_id,
        mall_id=policy.mall_id,
        sku_id=policy.sku_id,
    )
    for name in LEVELS_OF_FIELD:
        value = getattr(policy, name)
        if value is None:
            continue
        if name in _NUMBERS:
            setattr(message, name, value)
        elif name in _CHOICES:
            setattr(message, name, number(value, _CHOICES[name]))
        elif name == "proof_methods":
            message.proof_methods.extend(number(one, PROOF_METHODS) for one in value)
        else:
            message.tiers.CopyFrom(store_pb.StockTiers(**{one: getattr(value, one) for one in _TIERS}))
    return message


# --- providers ------------------------------------------------------------------------------------------------------
def providers(messages: Sequence[store_pb.Provider]) -> tuple[Provider, ...]:
    """Read and check providers of proof tokens to put."""
    checks.length(messages, "providers", 1, bounds.PUT_ITEMS_MAX)
    made = []
    for index, message in enumerate(messages):
        path = f"providers[{index}]"
        keys = _each(message.keys, f"{path}.keys", _provider_key)
        methods = _methods(message.methods, f"{path}.methods")
        with at(path):
            made.append(Provider(message.provider_id, message.name, keys, methods, message.revoked))
    return each_once(tuple(made), "providers")


def _provider_key(message: store_pb.ProviderKey) -> ProviderKey:
    alg = word(message.alg, "alg", ALGORITHMS)
    return ProviderKey(message.kid, alg, message.x, message.y)  # type: ignore[arg-type]


def provider_message(provider: Provider) -> store_pb.Provider:
    """Write a provider for the wire."""
    return store_pb.Provider(
        provider_id=provider.provider_id,
        name=provider.name,
        keys=[
            store_pb.ProviderKey(kid=key.kid, alg=number(key.alg, ALGORITHMS), x=key.x, y=key.y)
            for key in provider.keys
        ],
        methods=[number(method, PROOF_METHODS) for method in provider.methods],
        revoked=provider.revoked,
    )
