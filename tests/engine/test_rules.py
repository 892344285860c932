"""docs/rules.md says what the code does: its tables are the code's, its states are walked through on a real store."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from engine import expiry, limits
from engine.calls import IssueAnswer
from engine.claims import Line, State, Version
from tests.engine.rule_tables import ACTS, STATES, TRANSITIONS, tables, written
from tests.engine.shop import Shop

RULES_MD = Path(__file__).parents[2] / "docs" / "rules.md"


def test_the_document_s_tables_are_the_code_s() -> None:
    text = RULES_MD.read_text(encoding="utf-8")
    assert written(text) == text, "write them anew: python -m tests.engine.rule_tables docs/rules.md"
    assert text.count("<!-- table: ") == text.count("<!-- end -->") == len(tables())


def test_only_states_of_today_are_described() -> None:
    """A held code is known to the format but made by no verb yet."""
    assert set(State) - set(STATES) == {State.HELD}
    assert "held" not in RULES_MD.read_text(encoding="utf-8").lower().replace("withheld", "")


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
    ],
)
def test_numbers_are_the_limits(number: str) -> None:
    assert number in RULES_MD.read_text(encoding="utf-8").replace("\n", " ")


def bring(shop: Shop, state: State) -> IssueAnswer:
    """A static code of three units in a state."""
    shop.receive(10)
    issued = shop.issue(version=Version.STATIC, lines=(Line(100, 3),))
    if state is State.PARTLY:
        act(shop, issued, "part")
    elif state is State.LOCKED:
        act(shop, issued, "third wrong PIN")
    elif state is State.REDEEMED:
        act(shop, issued, "all")
    elif state is State.VOIDED:
        act(shop, issued, "void")
    elif state is State.EXPIRED:
        act(shop, issued, "time")
    assert shop.record(issued.uid).state is state
    return issued


def act(shop: Shop, issued: IssueAnswer, what: str) -> None:
    if what == "part":
        shop.redeem(issued.typed, pin=issued.pin, lines=(Line(100, 1),))
    elif what == "all":
        shop.redeem(issued.typed, pin=issued.pin)
    elif what == "third wrong PIN":
        for _ in range(limits.TRIES_MAX):
            shop.redeem(issued.typed, pin=f"{(int(issued.pin) + 1) % 1_000_000:06d}")
    elif what == "void":
        shop.void(issued.uid)
    else:
        shop.clock.tick(limits.TTL_S_DEFAULT + 90)
        expiry.sweep(shop.deployment)


@pytest.mark.parametrize(("state", "what"), list(product(STATES, ACTS)))
def test_every_change_of_state(shop: Shop, state: State, what: str) -> None:
    issued = bring(shop, state)
    before, figures = shop.record(issued.uid), shop.figures()
    act(shop, issued, what)
    after = shop.record(issued.uid)
    assert after.state is TRANSITIONS.get((state, what), state)
    if (state, what) not in TRANSITIONS:
        assert after == before
        assert shop.figures() == figures
    if after.state.ended:
        assert shop.figures().reserved == 0
