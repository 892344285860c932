"""Random histories: whatever is asked in whatever order, the events add up to the store, and retries get the first answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine import expiry, issuance, limits, redemption, stock
from engine.calls import (
    IssueAnswer,
    IssueRequest,
    RedeemRequest,
    RenderAnswer,
    RenderRequest,
    StockChange,
    StockRequest,
    VoidRequest,
)
from engine.claims import Line, Suite, Terminal, Version
from engine.deployment import Deployment
from engine.errors import PickgateError
from engine.state.events import EventType
from engine.verdict import RedeemVerdict
from tests.engine import shop as shops
from tests.engine.fold import check_against_store, fold
from tests.engine.shop import FAR_STORE, MALL, NEIGHBOUR, STORE, Clock

HISTORIES: Final = 400 if os.environ.get("PICKGATE_SOAK") == "1" else 40
STEPS: Final = 30
SEALED_CHARS: Final = 2 + 51 * 8 // 5
"""Of a payload's text, all that is sealed: the signature behind it (version 3) is drawn anew by SM2."""
PHASES: Final = (Phase.explicit, Phase.reuse, Phase.generate)
"""No shrinking: a history takes a fifth of a second, so it would take longer than reading the failure."""
STORES: Final = (STORE, NEIGHBOUR, FAR_STORE)
SHELF: Final = (100, 101, 102)

lines = st.lists(
    st.builds(Line, st.sampled_from(SHELF), st.integers(1, 3)),
    min_size=1,
    max_size=3,
    unique_by=lambda line: line.sku_id,
).map(tuple)
any_code = st.integers(0, 12)

issue = st.tuples(
    st.just("issue"),
    st.lists(
        st.tuples(
            st.sampled_from(STORES),
            lines,
            st.sampled_from(Version),
            st.sampled_from(Suite),
            st.sampled_from((0, 0, 0, 60, 300)),
        ),
        min_size=2,
        max_size=6,
    ),
)
redeem = st.tuples(
    st.just("redeem"),
    st.lists(
        st.tuples(
            any_code,
            st.sampled_from(("right", "right", "wrong", "wrong", "none")),
            st.sampled_from(("all", "one", "one", "too many", "others")),
            st.sampled_from((False,) * 7 + (True,)),
            st.integers(1, 2),
        ),
        min_size=2,
        max_size=10,
    ),
)
void = st.tuples(st.just("void"), st.lists(any_code, min_size=1, max_size=3))
render = st.tuples(
    st.just("render"), st.lists(st.tuples(any_code, st.integers(1, 4)), min_size=1, max_size=4)
)
change = st.tuples(
    st.just("stock"),
    st.lists(
        st.tuples(
            st.sampled_from(STORES),
            st.sampled_from(SHELF),
            st.sampled_from(
                [(StockChange.RECEIVE, 8), (StockChange.RECEIVE, 3), (StockChange.ADJUST_BY, -2),
                 (StockChange.ADJUST_BY, 1), (StockChange.COUNT, 1), (StockChange.COUNT, 6), (StockChange.BASELINE, 10)]
            ),
        ),
        min_size=1,
        max_size=4,
    ),
)  # fmt: skip
again = st.tuples(st.just("again"), st.integers(0, STEPS))
tick = st.tuples(
    st.just("tick"),
    st.sampled_from((0.1, 0.5, 1.0, 1.0, 3.0, 3.0, 59.0, 59.0, 240.0, 3600.0, 50 * 3600.0, 80 * 3600.0)),
)
sweep = st.tuples(st.just("sweep"), st.none())
guess = st.tuples(st.just("guess"), st.tuples(st.integers(0, 3), st.integers(1, 4)))
step = st.one_of(
    issue, guess, redeem, redeem, redeem, redeem, void, render, change, again, again, tick, sweep
)


@dataclass
class History:
    """One run: what was asked and answered, and every payload ever shown."""

    deployment: Deployment
    clock: Clock
    asked: list[tuple[Any, Sequence[Any], int]] = field(default_factory=list)
    outcomes: dict[tuple[str, str], Any] = field(default_factory=dict)
    """First answer that changed something, by verb and request id."""
    issued: list[IssueAnswer] = field(default_factory=list)
    lines: dict[bytes, tuple[Line, ...]] = field(default_factory=dict)
    texts: dict[bytes, str] = field(default_factory=dict)
    shown: dict[tuple[bytes, int], str] = field(default_factory=dict)
    locked: set[bytes] = field(default_factory=set)
    number: int = 0

    def new_id(self) -> str:
        self.number += 1
        return f"request-{self.number:05}"

    def code(self, n: int) -> IssueAnswer | None:
        return self.issued[n % len(self.issued)] if self.issued else None

    def run(self, what: str, details: Any) -> None:
        getattr(self, f"do_{what}")(details)

    def wanted(self, uid: bytes, what: str) -> tuple[Line, ...]:
        """Lines to ask for, of those that the code was issued with."""
        first = self.lines[uid][0]
        return {
            "all": (),
            "one": tuple(Line(line.sku_id, 1) for line in self.lines[uid]),
            "too many": (Line(first.sku_id, first.count + 1),),
            "others": (Line(107, 1),),
        }[what]

    # --- steps ------------------------------------------------------------------------------------------------
    def do_issue(self, details: Any) -> None:
        requests = [
            IssueRequest(MALL, self.new_id(), store, "ORDER", wanted, version, suite, ttl_s=ttl_s)
            for store, wanted, version, suite, ttl_s in details
        ]
        for request, answer in zip(requests, self.ask(issuance.issue, requests), strict=True):
            if answer.verdict.success:
                self.issued.append(answer)
                self.lines[answer.uid] = request.lines
                self.show(answer.uid)

    def do_redeem(self, details: Any) -> None:
        requests = []
        for n, pin, wanted, neighbour, terminal_id in details:
            code = self.code(n)
            if code is None:
                continue
            self.show(code.uid)
            store_id = NEIGHBOUR if neighbour else code.store_id
            wrong = f"{(int(code.pin or 0) + 1) % 1_000_000:06d}"
            requests.append(
                RedeemRequest(
                    Terminal(MALL, store_id, terminal_id),
                    self.new_id(),
                    self.texts[code.uid],
                    pin={"right": code.pin, "wrong": wrong, "none": ""}[pin],
                    lines=self.wanted(code.uid, wanted),
                )
            )
        self.ask(redemption.redeem, requests)

    def do_guess(self, details: tuple[int, int]) -> None:
        """Several wrong PINs and the right one, at once, for a static code."""
        n, guesses = details
        code = self.code(n * len(Version))
        if code is not None and code.pin:
            wrong = [(code, f"{(int(code.pin) + 1 + guess) % 1_000_000:06d}") for guess in range(guesses)]
            self.ask(
                redemption.redeem,
                [
                    RedeemRequest(Terminal(MALL, code.store_id, 3), self.new_id(), code.typed, pin=pin)
                    for code, pin in [*wrong, (code, code.pin)]
                ],
            )

    def do_void(self, details: Any) -> None:
        codes = [code for code in map(self.code, details) if code]
        self.ask(issuance.void, [VoidRequest(MALL, self.new_id(), code.uid) for code in codes])

    def do_stock(self, details: Any) -> None:
        self.ask(
            stock.change,
            [
                StockRequest(MALL, self.new_id(), store, sku, kind, amount)
                for store, sku, (kind, amount) in details
            ],
        )

    def do_render(self, details: Any) -> None:
        for n, count in details:
            code = self.code(n)
            if code is not None:
                self.show(code.uid, count)

    def do_again(self, n: int) -> None:
        """The same requests once more; unless their codes were forgotten meanwhile, with the same answers."""
        if self.asked:
            verb, requests, at_ms = self.asked[n % len(self.asked)]
            if self.clock.now_ms - at_ms < limits.AFTERLIFE_S * 1000:
                self.ask(verb, requests)

    def do_tick(self, s: float) -> None:
        self.clock.tick(s)

    def do_sweep(self, _: None) -> None:
        expiry.sweep(self.deployment)

    # --- shared -----------------------------------------------------------------------------------------------
    def show(self, uid: bytes, count: int = 1) -> None:
        """Render, and check that no stamp has ever had another content."""
        [answer] = issuance.render(self.deployment, [RenderRequest(MALL, uid, count)])
        if isinstance(answer, RenderAnswer) and answer.payloads:
            self.texts[uid] = answer.payloads[0].text
            for payload in answer.payloads:
                sealed = payload.text[:SEALED_CHARS]
                assert self.shown.setdefault((uid, payload.valid_from_ms), sealed) == sealed

    def ask(self, verb: Any, requests: Sequence[Any]) -> list[Any]:
        if not requests:
            return []
        self.asked.append((verb, requests, self.clock.now_ms))
        before = self.changes()
        answers: list[Any] = verb(self.deployment, requests)
        done = 0
        for request, answer in zip(requests, answers, strict=True):
            assert not isinstance(answer, PickgateError), answer
            key = verb.__name__, request.request_id
            first = self.outcomes.get(key)
            if first is not None:
                # I7, in full: everything that was said the first time.
                assert answer == replace(first, replayed=True)
            elif answer.verdict.success or self.counted(answer):
                assert not answer.replayed
                self.outcomes[key] = answer
                done += 1
        # I5 and I8: one event for each change, none for a refusal.
        assert self.changes() - before == done
        return answers

    def changes(self) -> int:
        """Events so far, but for the crossings of tiers that some bring with them."""
        return sum(event.type is not EventType.TIER for event in shops.read_events(self.deployment))

    def counted(self, answer: Any) -> bool:
        """True for a try that was counted: a wrong PIN, and the one that locked the code."""
        if answer.verdict is RedeemVerdict.LOCKED and answer.uid not in self.locked:
            self.locked.add(answer.uid)
            return True
        return answer.verdict is RedeemVerdict.PIN_WRONG


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(steps=st.lists(step, min_size=STEPS // 2, max_size=STEPS))
def test_events_add_up_to_the_store(empty_store_url: str, steps: list[tuple[str, Any]]) -> None:
    with redis.Redis.from_url(empty_store_url) as client:
        client.flushall()
    clock = Clock()
    shops.create(empty_store_url, clock)
    with shops.open_deployment(empty_store_url, clock, monotonic_s=lambda: 0.0) as deployment:
        shops.furnish(deployment)
        history = History(deployment, clock)
        history.do_stock([(store, sku, (StockChange.RECEIVE, 25)) for store in STORES for sku in SHELF])
        history.do_issue(
            [
                (store, (Line(100, 2), Line(101, 3)), version, Suite.AES, 0)
                for store in STORES
                for version in Version
            ]
        )
        for what, details in steps:
            history.run(what, details)
        check_against_store(fold(shops.read_events(deployment)), deployment, clock.now_ms)
