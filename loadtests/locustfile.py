"""Locust: terminals, a mall's backend and wallets, at lunch. `python -m loadtests rush` starts a server and runs it.

People who know one another's habits: each user is a greenlet with think time, waits for its answers and retries as a real caller
would. What it measures is behaviour, mixed and closed; rates and latencies at a set rate are `loadtests.openloop`'s.

Users
- Terminal: scans what the mall's users have issued (or its own stock of codes), inspects some first, redeems, and repeats one in
  ten redemptions with the same request id, which must give the same answer.
- Mall: issues, renders, extends, voids and reads.
- Wallet: there is no SettlementService yet, so that it watches what it will book: it reads codes that were redeemed, and stock.

Settings come from the environment, as Locust's own do: LOADTESTS_TARGET is the server, host:port or unix:/path. Thresholds, see
`bounds`, make the exit status 1.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import grpc.experimental.gevent  # type: ignore[import-not-found]  # published without types

grpc.experimental.gevent.init_gevent()  # before the first channel

import grpc  # noqa: E402
from google.protobuf.message import Message  # noqa: E402
from locust import LoadTestShape, User, between, events, task  # noqa: E402

from loadtests import bounds  # noqa: E402
from loadtests.supply import FIRST_SKU, FIRST_STORE, MALL, SKUS, STORES, near  # noqa: E402
from pickgate.v1 import code_service_pb2 as code_pb  # noqa: E402
from pickgate.v1 import code_service_pb2_grpc as code_grpc  # noqa: E402
from pickgate.v1 import redemption_service_pb2 as redemption_pb  # noqa: E402
from pickgate.v1 import redemption_service_pb2_grpc as redemption_grpc  # noqa: E402
from pickgate.v1 import stock_service_pb2 as stock_pb  # noqa: E402
from pickgate.v1 import stock_service_pb2_grpc as stock_grpc  # noqa: E402
from pickgate.v1 import types_pb2 as types_pb  # noqa: E402

TARGET_VARIABLE: Final = "LOADTESTS_TARGET"
SECONDS_VARIABLE: Final = "LOADTESTS_SECONDS"
USERS_VARIABLE: Final = "LOADTESTS_USERS"
SHOWN_MAX: Final = 2_000
"""Codes that wait at the counter, of one process; the oldest go home."""
SHOWN_AGE_S_MAX: Final = 45.0
"""A customer whose code is older refreshes it, which here means that somebody else comes."""


class UnexpectedVerdict(Exception):
    """An answer that this call should not have got."""


class Counter:
    """What the users of one process know of each other's codes."""

    def __init__(self) -> None:
        self.shown: deque[tuple[float, int, str, str]] = deque(maxlen=SHOWN_MAX)
        """When, store, uid and payload of codes that customers hold up."""
        self.redeemed: deque[tuple[int, str]] = deque(maxlen=SHOWN_MAX)
        """Store and uid."""

    def take(self) -> tuple[int, str, str] | None:
        """The next customer whose code is fresh: store, uid, payload."""
        while self.shown:
            at_s, store_id, uid, text = self.shown.popleft()
            if time.monotonic() - at_s < SHOWN_AGE_S_MAX:
                return store_id, uid, text
        return None


COUNTER: Final = Counter()


class Caller(User):
    """What all users share: one channel for each, and calls that Locust counts."""

    abstract = True

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.source = random.Random()
        self.channel = grpc.insecure_channel(os.environ[TARGET_VARIABLE])
        self.redemption = redemption_grpc.RedemptionServiceStub(self.channel)
        self.codes = code_grpc.CodeServiceStub(self.channel)
        self.stock = stock_grpc.StockServiceStub(self.channel)

    def on_stop(self) -> None:
        """Close the channel."""
        self.channel.close()

    def ask(
        self, name: str, method: Callable[..., Any], request: Message, wanted: Callable[[Any], object]
    ) -> Any:
        """Call, and tell Locust. `wanted` looks at the answer; what is falsy is an unexpected verdict. None if it failed."""
        began_s = time.perf_counter()
        answer: Any = None
        failure: Exception | None = None
        try:
            answer = method(request, timeout=bounds.RUSH_CALL_TIMEOUT_S)
            if not wanted(answer):
                failure = UnexpectedVerdict(f"{name}: {answer}"[:300])
        except grpc.RpcError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - began_s) * 1e3,
            response_length=answer.ByteSize() if answer is not None else 0,
            exception=failure,
            context={},
        )
        return None if failure else answer


class Terminal(Caller):
    """A store terminal."""

    weight = 6
    wait_time = between(0.05, 0.4)

    def on_start(self) -> None:
        """Take a place: which store's customers come here is said by their codes."""
        self.terminal_id = 1 + self.source.randrange(1_000_000)

    @task(1)
    def inspect_then_redeem(self) -> None:
        """Look first, then redeem."""
        customer = COUNTER.take()
        if customer is None:
            return
        store_id, uid, text = customer
        asked = redemption_pb.InspectRequest(
            terminal=self._place(store_id), code=text, position=near(store_id, self.source)
        )
        if self.ask(
            "Inspect",
            self.redemption.Inspect,
            asked,
            lambda answer: answer.verdict == redemption_pb.INSPECT_VERDICT_REDEEMABLE,
        ):
            self._redeem(store_id, uid, text)

    @task(4)
    def redeem(self) -> None:
        """Redeem at once."""
        customer = COUNTER.take()
        if customer is not None:
            self._redeem(*customer)

    def _redeem(self, store_id: int, uid: str, text: str) -> None:
        asked = redemption_pb.RedeemRequest(
            terminal=self._place(store_id),
            request_id=str(uuid.uuid4()),
            code=text,
            position=near(store_id, self.source),
        )
        done = redemption_pb.REDEEM_VERDICT_REDEEMED
        first = self.ask("Redeem", self.redemption.Redeem, asked, lambda answer: answer.verdict == done)
        if first is None:
            return
        COUNTER.redeemed.append((store_id, uid))
        if self.source.random() < bounds.RUSH_RETRY_SHARE:
            self.ask(
                "Redeem, again",
                self.redemption.Redeem,
                asked,
                lambda answer: (
                    (answer.verdict, answer.event_id, answer.replayed) == (done, first.event_id, True)
                ),
            )

    def _place(self, store_id: int) -> types_pb.Terminal:
        return types_pb.Terminal(mall_id=MALL, store_id=store_id, terminal_id=self.terminal_id)


class Mall(Caller):
    """A mall's backend."""

    weight = 3
    wait_time = between(0.02, 0.1)

    @task(12)
    def sell(self) -> None:
        """Issue a code and render it for a customer who goes to the counter."""
        issued = self._issue()
        if issued is None:
            return
        store_id, uid = issued
        answer = self.ask(
            "Render",
            self.codes.Render,
            code_pb.RenderRequest(mall_id=MALL, uid=uid),
            lambda answer: answer.verdict == code_pb.RENDER_VERDICT_RENDERED,
        )
        if answer is not None:
            COUNTER.shown.append((time.monotonic(), store_id, uid, answer.payloads[0].text))

    @task(1)
    def extend(self) -> None:
        """Sell to somebody who comes later."""
        issued = self._issue()
        if issued is None:
            return
        later_ms = int(time.time() + 7 * 24 * 3600) * 1000
        self.ask(
            "Extend",
            self.codes.Extend,
            code_pb.ExtendRequest(
                mall_id=MALL, request_id=str(uuid.uuid4()), uid=issued[1], expires_at_ms=later_ms
            ),
            lambda answer: answer.verdict == code_pb.EXTEND_VERDICT_EXTENDED,
        )

    @task(1)
    def void(self) -> None:
        """Sell to somebody who changes their mind; the code says so afterwards."""
        issued = self._issue()
        if issued is None:
            return
        _, uid = issued
        asked = code_pb.VoidRequest(
            mall_id=MALL, request_id=str(uuid.uuid4()), uid=uid, reason="changed their mind"
        )
        if self.ask(
            "Void", self.codes.Void, asked, lambda answer: answer.verdict == code_pb.VOID_VERDICT_VOIDED
        ):
            self.ask(
                "GetCode, void",
                self.codes.GetCode,
                code_pb.GetCodeRequest(mall_id=MALL, uid=uid),
                lambda answer: answer.code.state == types_pb.CODE_STATE_VOIDED,
            )

    def _issue(self) -> tuple[int, str] | None:
        """Store and uid of a new code."""
        store_id = FIRST_STORE + self.source.randrange(STORES)
        asked = code_pb.IssueRequest(
            mall_id=MALL,
            request_id=str(uuid.uuid4()),
            store_id=store_id,
            order_id=f"{self.source.getrandbits(60):018}",
            lines=[types_pb.Line(sku_id=FIRST_SKU + self.source.randrange(SKUS), count=1)],
            version=types_pb.VERSION_DYNAMIC,
            suite=types_pb.SUITE_AES,
        )
        answer = self.ask(
            "Issue", self.codes.Issue, asked, lambda answer: answer.verdict == code_pb.ISSUE_VERDICT_ISSUED
        )
        return None if answer is None else (store_id, answer.uid)


class Wallet(Caller):
    """A wallet service, as far as there is something to call: it reads what was redeemed, and stock."""

    weight = 1
    wait_time = between(0.2, 0.6)

    @task(3)
    def look_at_the_redeemed(self) -> None:
        """Read a code that was redeemed here."""
        if not COUNTER.redeemed:
            return
        _, uid = self.source.choice(COUNTER.redeemed)
        self.ask(
            "GetCode, redeemed",
            self.codes.GetCode,
            code_pb.GetCodeRequest(mall_id=MALL, uid=uid),
            lambda answer: answer.code.state == types_pb.CODE_STATE_REDEEMED,
        )

    @task(1)
    def look_at_stock(self) -> None:
        """Read a store's figures."""
        store_id = FIRST_STORE + self.source.randrange(STORES)
        self.ask(
            "ReadStock",
            self.stock.ReadStock,
            stock_pb.ReadStockRequest(mall_id=MALL, store_id=store_id),
            lambda answer: (
                len(answer.figures) == SKUS and all(figure.short == 0 for figure in answer.figures)
            ),
        )


class LunchRush(LoadTestShape):
    """Quiet before noon, twice as many within minutes, the peak, and the tail: in LOADTESTS_SECONDS seconds."""

    PHASES: Final = ((0.2, 0.3), (0.35, 0.7), (0.75, 1.0), (0.9, 0.5), (1.0, 0.2))
    """Until which share of the time, how many of the users."""

    def tick(self) -> tuple[int, float] | None:
        """Users now, and how many may come or go per second; None ends the run."""
        seconds = float(os.environ.get(SECONDS_VARIABLE, bounds.RUSH_SECONDS))
        users = int(os.environ.get(USERS_VARIABLE, bounds.RUSH_USERS))
        at = self.get_run_time() / seconds  # type: ignore[no-untyped-call]
        for until, share in self.PHASES:
            if at < until:
                return max(3, round(users * share)), max(1.0, users / 4)
        return None


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Any, **_: Any) -> None:
    """Set the exit status by the thresholds; of several processes the one that has all figures decides."""
    if environment.runner is not None and type(environment.runner).__name__ == "WorkerRunner":
        return
    total = environment.stats.total
    faults = []
    if total.num_requests < bounds.RUSH_CALLS_MIN:
        faults.append(f"only {total.num_requests} calls, fewer than {bounds.RUSH_CALLS_MIN}")
    if total.fail_ratio > bounds.RUSH_FAIL_RATIO_MAX:
        faults.append(
            f"{total.fail_ratio:.2%} of the calls failed, more than {bounds.RUSH_FAIL_RATIO_MAX:.2%}"
        )
    p95_ms = total.get_response_time_percentile(0.95) or 0
    if p95_ms > bounds.RUSH_P95_MS_MAX:
        faults.append(f"p95 is {p95_ms:.0f} ms, more than {bounds.RUSH_P95_MS_MAX:.0f}")
    unexpected = sum(
        error.occurrences
        for error in environment.stats.errors.values()
        if UnexpectedVerdict.__name__ in repr(error.error)
    )
    if unexpected:
        faults.append(f"{unexpected} answers had an unexpected verdict")
    for fault in faults:
        print(f"rush: {fault}")
    environment.process_exit_code = 1 if faults else 0
