"""docs/rules.md says what the code does: its tables are the code's, and a code's life is walked through on a real store."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from engine import expiry, issuance, limits
from engine.claims import Decision, Line, State, Version
from engine.errors import PickgateError
from engine.state import scripts
from engine.state.events import EventType
from engine.transitions import ANSWERS, STEPS, TABLE, Happening, Verb
from engine.verdict import InspectVerdict, RedeemVerdict
from tests.engine.rule_tables import tables, written
from tests.engine.shop import Shop

ROOT = Path(__file__).parents[2]
RULES_MD = ROOT / "docs" / "rules.md"


# --- the document -----------------------------------------------------------------------------------------------------
def test_the_document_s_tables_are_the_code_s() -> None:
    text = RULES_MD.read_text(encoding="utf-8")
    assert written(text) == text, "write them anew: python -m tests.engine.rule_tables docs/rules.md"
    assert text.count("<!-- table: ") == text.count("<!-- end -->") == len(tables())


@pytest.mark.parametrize(
    "number",
    [
        f"{limits.PAYLOAD_LIFE_S_DEFAULT} s",
        f"{limits.STAMP_SKEW_S} s",
        f"{limits.TTL_S_DEFAULT // 3600} h",
        f"{limits.AFTERLIFE_S // 3600} h",
        f"{limits.TTL_S_MAX // 86_400} days",
        f"{limits.ACCURACY_ALLOWANCE_M_MAX:g} m",
        f"{limits.ACCURACY_M_MAX:g} m",
        f"{limits.HOLD_S_DEFAULT // 60} minutes",
        f"{limits.REVERSAL_WINDOW_S_DEFAULT // 60} minutes",
        f"{limits.REVERSAL_LIFE_S // 3600} h",
        f"{limits.CYCLES_MAX} times",
        f"{limits.REMEMBERED_REQUESTS_MAX} changes",
        f"{limits.TIER_TIGHT_PERCENT} %",
        f"{limits.TIER_RED_PERCENT} %",
        f"{limits.TIER_CLOSED_PERCENT} %",
        f"{limits.TIER_EMERGENCY_PERCENT} %",
        f"{limits.TIER_HYSTERESIS_PERCENT} points",
    ],
)
def test_numbers_are_the_limits(number: str) -> None:
    assert number in RULES_MD.read_text(encoding="utf-8").replace("\n", " ")


def linked_tests() -> list[tuple[str, str]]:
    """Every test that the document names, as (file, function)."""
    return re.findall(r"\(\.\./(tests/[\w/]+\.py)#(\w+)\)", RULES_MD.read_text(encoding="utf-8"))


def test_the_document_links_tests() -> None:
    assert len(linked_tests()) > 30


@functools.cache
def names_in(file: str) -> set[str]:
    """Of functions and classes."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize(("file", "function"), sorted(set(linked_tests())))
def test_every_test_that_the_document_names_exists(file: str, function: str) -> None:
    assert function in names_in(file)


# --- the table of a code's life ---------------------------------------------------------------------------------------
def test_the_table_is_closed() -> None:
    """Each case once, every state reached and left, every happening and every event of a code in it."""
    assert len(STEPS) == len(TABLE)
    assert {step.happening for step in TABLE} == set(Happening)
    assert {step.after for step in TABLE} - {None} == set(State)
    assert {step.state for step in TABLE} - {None} == set(State)
    of_stock = {
        EventType.STOCK, EventType.EPOCH, EventType.TIER, EventType.TRANSFER_OUT, EventType.TRANSFER_IN,
    }  # fmt: skip
    assert {step.event for step in TABLE} - {None} == set(EventType) - of_stock


def test_a_state_either_allows_a_verb_or_has_its_answer() -> None:
    for verb, answers in ANSWERS.items():
        assert all(not verdict.success for verdict in answers.values())
        allowed = {None, *State} - answers.keys()
        happenings = {happening for happening, done_by in VERB_OF.items() if done_by is verb}
        if happenings:
            assert allowed == {step.state for step in TABLE if step.happening in happenings}, verb
    # Inspect and render change nothing; they are allowed where a redemption is.
    assert ANSWERS[Verb.INSPECT].keys() == ANSWERS[Verb.RENDER].keys() == ANSWERS[Verb.REDEEM].keys()


def test_every_event_that_a_script_writes_is_of_its_verb() -> None:
    """Read from the sources, so that no script can write an event that the table doesn't know for it."""
    scripts_of = {
        "issue": {Happening.HOLD, Happening.ISSUE},
        "confirm": {Happening.CONFIRM},
        "extend": {Happening.EXTEND},
        "redeem": {Happening.REDEEM_SOME, Happening.REDEEM_REST},
        "base": {Happening.FAIL, Happening.FAIL_THIRD},
        "reverse": {step.happening for step in TABLE if step.event is EventType.REVERSED},
        "review": {step.happening for step in TABLE if step.event is EventType.REVIEWED},
        "void": {Happening.VOID},
        "expire": {Happening.EXPIRE, Happening.FORGET},
    }
    assert set().union(*scripts_of.values()) == set(Happening)
    for name in ("base", *(script.name for script in scripts.ALL)):
        written_events = {
            EventType[one] for one in re.findall(r"EVENT_TYPE\.(\w+)", scripts.verb_source(name))
        }
        of_codes = {step.event for step in TABLE if step.happening in scripts_of.get(name, ())} - {None}
        assert of_codes == {event for event in written_events if event in {step.event for step in TABLE}}, (
            name
        )


# --- walked through on a real store -----------------------------------------------------------------------------------
VERB_OF: Final[dict[Happening, Verb]] = {
    Happening.CONFIRM: Verb.CONFIRM,
    Happening.EXTEND: Verb.EXTEND,
    Happening.REDEEM_SOME: Verb.REDEEM,
    Happening.REDEEM_REST: Verb.REDEEM,
    Happening.FAIL: Verb.REDEEM,
    Happening.FAIL_THIRD: Verb.REDEEM,
    Happening.APPROVE_WHOLE: Verb.REVIEW,
    Happening.APPROVE_PART: Verb.REVIEW,
    Happening.REDEEM_BY_HAND: Verb.REVIEW,
    Happening.REJECT: Verb.REVIEW,
    Happening.TAKE_BACK_SOME: Verb.REVERSE,
    Happening.TAKE_BACK_ALL: Verb.REVERSE,
    Happening.REFUND_SOME: Verb.REVERSE,
    Happening.REFUND_ALL: Verb.REVERSE,
    Happening.VOID: Verb.VOID,
}
SHORT_S, LONG_S = 100, 30 * 86_400
NEEDS_SOME_OUT: Final = {Happening.APPROVE_PART} | {
    happening for happening, verb in VERB_OF.items() if verb is Verb.REVERSE
}


class Code:
    """A static code of five units, brought into a state; two are out where a part is."""

    def __init__(self, shop: Shop, state: State, *, some_out: bool, ttl_s: int) -> None:
        shop.receive(20)
        self.shop = shop
        if state is State.HELD:
            self.uid = shop.hold(version=Version.STATIC, lines=(Line(100, 5),), ttl_s=ttl_s).uid
        else:
            self.uid = shop.issue(version=Version.STATIC, lines=(Line(100, 5),), ttl_s=ttl_s).uid
        keys = shop.deployment.control.copy().usable_keys()
        record = shop.record(self.uid)
        [self.text] = issuance.seal(keys, record, [0])
        self.pin = "" if state is State.HELD else shop.render(self.uid).pin
        if state is State.PARTLY or (some_out and state in (State.LOCKED, State.VOIDED, State.EXPIRED)):
            self.do(Happening.REDEEM_SOME, units=2)
        before: dict[State, Happening] = {
            State.LOCKED: Happening.FAIL_THIRD,
            State.REDEEMED: Happening.REDEEM_REST,
            State.VOIDED: Happening.VOID,
            State.EXPIRED: Happening.EXPIRE,
        }
        if state in before:
            self.do(before[state])
        assert shop.record(self.uid).state is state

    def redeem(self, pin: str, *lines: Line) -> Any:
        return self.shop.redeem(self.text, pin=pin, lines=lines)

    def do(self, what: Happening, units: int = 1) -> Any:
        """Do one thing to it, and give the answer."""
        shop, uid = self.shop, self.uid
        wrong = f"{(int(self.pin or 0) + 1) % 1_000_000:06d}"
        decide: Callable[[Decision], Any] = lambda decision: shop.decide(uid, decision)  # noqa: E731
        acts: dict[Happening, Callable[[], Any]] = {
            Happening.CONFIRM: lambda: shop.confirm(uid),
            Happening.EXTEND: lambda: shop.extend(uid, shop.clock.now_s + LONG_S + 1),
            Happening.REDEEM_SOME: lambda: self.redeem(self.pin or "000000", Line(100, units)),
            Happening.REDEEM_REST: lambda: self.redeem(self.pin or "000000"),
            Happening.FAIL: lambda: self.redeem(wrong),
            Happening.FAIL_THIRD: lambda: [self.redeem(wrong) for _ in range(limits.TRIES_MAX)][-1],
            Happening.APPROVE_WHOLE: lambda: decide(Decision.APPROVE),
            Happening.APPROVE_PART: lambda: decide(Decision.APPROVE),
            Happening.REDEEM_BY_HAND: lambda: decide(Decision.REDEEM),
            Happening.REJECT: lambda: decide(Decision.VOID),
            Happening.TAKE_BACK_SOME: lambda: shop.reverse(uid, lines=(Line(100, 1),)),
            Happening.TAKE_BACK_ALL: lambda: shop.reverse(uid),
            Happening.REFUND_SOME: lambda: shop.reverse(uid, lines=(Line(100, 1),), release=True),
            Happening.REFUND_ALL: lambda: shop.reverse(uid, release=True),
            Happening.VOID: lambda: shop.void(uid),
            Happening.EXPIRE: lambda: self.wait(SHORT_S if self.pin else limits.HOLD_S_DEFAULT),
            Happening.FORGET: lambda: self.wait(limits.AFTERLIFE_S + 120),
        }
        return acts[what]()

    def wait(self, s: int) -> None:
        self.shop.clock.tick(s + 71)
        expiry.sweep(self.shop.deployment)

    @property
    def state(self) -> State | None:
        [found] = issuance.get(self.shop.deployment, 1, [self.uid])
        return found.state if found else None


CASES: Final = [
    (state, happening)
    for state, happening in product(State, Happening)
    if happening not in (Happening.HOLD, Happening.ISSUE)
    # A hold is over long before that.
    and (state, happening) != (State.HELD, Happening.FORGET)
]


@pytest.mark.parametrize(("state", "happening"), CASES, ids=lambda one: one.name)
def test_every_happening_in_every_state(shop: Shop, state: State, happening: Happening) -> None:
    expires = happening is Happening.EXPIRE or state is State.EXPIRED
    code = Code(shop, state, some_out=happening in NEEDS_SOME_OUT, ttl_s=SHORT_S if expires else LONG_S)
    before, events, record = shop.dump(), len(shop.events()), shop.record(code.uid)

    answer = code.do(happening)

    step = STEPS.get((state, happening))
    if step is not None:
        assert code.state is step.after
        new = shop.events()[events:]
        assert [event.type for event in new][-1:] == ([step.event] if step.event else [])
        assert len(new) == (limits.TRIES_MAX if happening is Happening.FAIL_THIRD else step.event is not None)
        assert answer is None or answer.verdict.success or VERB_OF[happening] is Verb.REDEEM
        return
    assert shop.events()[events:] == []
    assert shop.record(code.uid) == record
    verb = VERB_OF.get(happening)
    if verb is not None:
        assert shop.dump() == before
        assert answer.verdict is ANSWERS[verb][state]


def test_holding_and_issuing(shop: Shop) -> None:
    shop.receive(10)
    for make, happening in ((shop.hold, Happening.HOLD), (shop.issue, Happening.ISSUE)):
        step = STEPS[None, happening]
        uid = make().uid
        assert shop.record(uid).state is step.after
        assert shop.events()[-1].type is step.event


@pytest.mark.parametrize("state", list(State), ids=lambda one: one.name)
@pytest.mark.parametrize("verb", list(Verb), ids=lambda one: one.value)
def test_no_answer_depends_on_when_the_sweep_comes(shop: Shop, verb: Verb, state: State) -> None:
    """A code whose time is over says the same before and behind the sweep that writes it down."""
    code = Code(shop, state, some_out=True, ttl_s=SHORT_S)
    shop.clock.tick(limits.HOLD_S_DEFAULT if state is State.HELD else SHORT_S)
    # The sweep comes a minute later at most; until then nothing is written.
    asks: dict[Verb, Callable[[], Any]] = {
        Verb.CONFIRM: lambda: shop.confirm(code.uid),
        Verb.EXTEND: lambda: shop.extend(code.uid, shop.clock.now_s + LONG_S),
        Verb.RENDER: lambda: shop.render(code.uid),
        Verb.INSPECT: lambda: shop.inspect(code.text),
        Verb.REDEEM: lambda: code.redeem("000000"),
        Verb.REVERSE: lambda: shop.reverse(code.uid),
        Verb.REVIEW: lambda: shop.decide(code.uid, Decision.APPROVE),
        Verb.VOID: lambda: shop.void(code.uid),
    }
    if state.ended and (verb is not Verb.REVERSE or state is not State.REDEEMED):
        assert asks[verb]().verdict is ANSWERS[verb][state]
        return
    first = asks[verb]()
    if state is State.REDEEMED:
        assert first.verdict.success
        return
    assert code.state is state
    assert expiry.sweep(shop.deployment).expired == 0
    code.wait(0)
    assert code.state is State.EXPIRED
    second = asks[verb]()
    assert first.verdict is second.verdict
    # Nothing is out of a code that was never redeemed; that is said first.
    expected = ANSWERS[verb][State.EXPIRED]
    if verb is Verb.REVERSE and state in (State.HELD, State.LIVE):
        expected = ANSWERS[verb][state]
    assert first.verdict is expected


@pytest.mark.parametrize("state", [None, *State], ids=lambda one: one.name if one else "none")
def test_inspect_says_what_redeem_would(shop: Shop, state: State | None) -> None:
    inspected, redeemed = ANSWERS[Verb.INSPECT].get(state), ANSWERS[Verb.REDEEM].get(state)
    assert (inspected is None) == (redeemed is None)
    if inspected and redeemed:
        assert isinstance(inspected, InspectVerdict)
        assert isinstance(redeemed, RedeemVerdict)
        assert inspected.number == redeemed.number


@pytest.mark.parametrize("verb", list(Verb), ids=lambda one: one.value)
def test_a_code_that_is_not_there(shop: Shop, verb: Verb) -> None:
    shop.receive(10)
    code = Code(shop, State.VOIDED, some_out=False, ttl_s=LONG_S)
    code.wait(limits.AFTERLIFE_S + 120)
    assert code.state is None
    before = shop.dump()
    asks: dict[Verb, Callable[[], Any]] = {
        Verb.CONFIRM: lambda: shop.confirm(code.uid),
        Verb.EXTEND: lambda: shop.extend(code.uid, shop.clock.now_s + LONG_S),
        Verb.RENDER: lambda: shop.render(code.uid),
        Verb.INSPECT: lambda: shop.inspect(code.text),
        Verb.REDEEM: lambda: code.redeem("000000"),
        Verb.REVERSE: lambda: shop.reverse(code.uid),
        Verb.REVIEW: lambda: shop.decide(code.uid, Decision.APPROVE),
        Verb.VOID: lambda: shop.void(code.uid),
    }
    answer = asks[verb]()
    assert not isinstance(answer, PickgateError)
    assert answer.verdict is ANSWERS[verb][None]
    assert shop.dump() == before
