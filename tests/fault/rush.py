"""A rush of customers: many threads redeem (and some void) codes, each retrying with its own request id until it is answered.

While it runs, a test does harm to the store or the server; afterwards `settle` holds everything that was answered against
the books.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import grpc

from engine import issuance, redemption
from engine.calls import IssueAnswer, RedeemRequest, VoidRequest
from engine.deployment import Deployment
from engine.errors import PickgateError, Unavailable
from engine.idempotency import request_digest
from engine.state.events import EventType
from engine.verdict import RedeemVerdict, VoidVerdict
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2
from server.client import CallFailed, Client
from tests.fault.history import Answer, History, violations
from tests.race.books import Books, check_books
from tests.race.serving import until
from tests.race.shop import MALL, STORE, Shop, terminal

THREADS: Final = 12
BOUND_S: Final = 60.0
"""For a whole rush, harm included."""
LET_IN: Final = 2 * THREADS
"""Customers let in at a time."""
PAUSE_S: Final = 0.01
"""Between a call that was not decided and its retry."""


class Counter(Protocol):
    """The way to the engine: one answer, or None when the call was not decided."""

    def redeem(self, terminal_id: int, request_id: str, text: str) -> Answer | None: ...

    def void(self, request_id: str, uid: bytes) -> Answer | None: ...


class EngineCounter:
    """Calls the engine in this process."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def redeem(self, terminal_id: int, request_id: str, text: str) -> Answer | None:
        request = RedeemRequest(terminal(terminal_id), request_id, text)
        return self._answer(lambda: redemption.redeem(self._deployment, [request]))

    def void(self, request_id: str, uid: bytes) -> Answer | None:
        request = VoidRequest(MALL, request_id, uid)
        return self._answer(lambda: issuance.void(self._deployment, [request]))

    def _answer(self, ask: Callable[[], list[Any]]) -> Answer | None:
        try:
            [answer] = ask()
        except Unavailable:
            return None
        if isinstance(answer, Unavailable):
            return None
        if isinstance(answer, PickgateError):
            raise answer
        return Answer(
            answer.verdict.name,
            answer.verdict.success,
            answer.at_ms,
            answer.terminal_id,
            str(answer.event or ""),
            answer.replayed,
        )


class WireCounter:
    """Calls a server over gRPC, without retries of its own: those are what is tested."""

    UNDECIDED: Final = (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        # What gRPC tells a caller whose call had arrived, but not been taken up, when the server stopped in order.
        grpc.StatusCode.CANCELLED,
    )

    def __init__(self, client: Client) -> None:
        self._client = client
        self.undecided: list[CallFailed] = []
        """Why calls were not decided, in their order."""

    @staticmethod
    def redeem_message(terminal_id: int, request_id: str, text: str) -> redemption_pb.RedeemRequest:
        """The request of one terminal."""
        place = types_pb2.Terminal(mall_id=MALL, store_id=STORE, terminal_id=terminal_id)
        return redemption_pb.RedeemRequest(terminal=place, request_id=request_id, code=text)

    def redeem(self, terminal_id: int, request_id: str, text: str) -> Answer | None:
        answer = self._call(
            self._client.redemption.Redeem, self.redeem_message(terminal_id, request_id, text)
        )
        return answer and self._answer(answer, RedeemVerdict.numbered(answer.verdict))

    def void(self, request_id: str, uid: bytes) -> Answer | None:
        message = code_pb.VoidRequest(mall_id=MALL, request_id=request_id, uid=uid.hex())
        answer = self._call(self._client.codes.Void, message)
        return answer and self._answer(answer, VoidVerdict.numbered(answer.verdict))

    def _call(self, method: Any, message: Any) -> Any:
        try:
            return self._client.call(method, message)
        except CallFailed as failed:
            if failed.code in self.UNDECIDED:
                self.undecided.append(failed)
                return None
            raise

    def _answer(self, answer: Any, verdict: RedeemVerdict | VoidVerdict) -> Answer:
        return Answer(
            verdict.name, verdict.success, answer.at_ms, answer.terminal_id, answer.event_id, answer.replayed
        )


@dataclass(frozen=True)
class _Job:
    verb: str
    terminal_id: int
    request_id: str
    uid: bytes
    text: str

    @property
    def digest(self) -> bytes:
        if self.verb == "void":
            return request_digest(f"mall:{MALL}", "void", self.request_id)
        return request_digest(f"terminal:{MALL}:{STORE}:{self.terminal_id}", "redeem", self.request_id)


class Rush:
    """Two terminals for each code, and for each fourth one a void. Use it as a context manager; leaving waits for the end.

    The customers come as far as they are let in (`reach`, `go_on`, leaving): so there is always somebody to feel a harm, on
    however busy a machine.
    """

    def __init__(
        self,
        counter: Counter,
        codes: Sequence[IssueAnswer],
        texts: Sequence[str],
        *,
        seed: int,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.history = History()
        self._pause_s = pause_s
        self.uids = [code.uid for code in codes]
        self._counter = counter
        jobs = []
        for n, (code, text) in enumerate(zip(codes, texts, strict=True)):
            for terminal_id in (2 * n + 1, 2 * n + 2):
                jobs.append(_Job("redeem", terminal_id, f"redeem-{seed}-{terminal_id}", code.uid, text))
            if n % 4 == 0:
                jobs.append(_Job("void", 0, f"void-{seed}-{n:08}", code.uid, ""))
        self.jobs = len(jobs)
        # Shuffled within a window only, so that rivals for a code meet and the rush works through the codes.
        source = random.Random(seed)
        order = sorted(range(len(jobs)), key=lambda n: n + source.uniform(0, 2 * THREADS))
        shares = [[jobs[n] for n in order[first::THREADS]] for first in range(THREADS)]
        self._door = threading.Condition()
        self._let_in = LET_IN
        self._begun = 0
        self._giving_up = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work, args=(share,), daemon=True) for share in shares]

    def _work(self, jobs: Sequence[_Job]) -> None:
        try:
            for job in jobs:
                if not self._begin():
                    return
                while (
                    self.history.record(
                        job.verb,
                        job.digest,
                        job.terminal_id,
                        job.uid,
                        lambda job=job: self._ask(job),  # type: ignore[misc]
                    )
                    is None
                ):
                    if self._giving_up.wait(self._pause_s):
                        return
        except BaseException as error:
            self._errors.append(error)

    def _ask(self, job: _Job) -> Answer | None:
        if job.verb == "void":
            return self._counter.void(job.request_id, job.uid)
        return self._counter.redeem(job.terminal_id, job.request_id, job.text)

    def _begin(self) -> bool:
        """Wait to be let in; False when it is over."""
        with self._door:
            self._door.wait_for(lambda: self._begun < self._let_in or self._giving_up.is_set(), BOUND_S)
            self._begun += 1
        return not self._giving_up.is_set()

    def _let(self, customers: int) -> None:
        with self._door:
            self._let_in = max(self._let_in, customers)
            self._door.notify_all()

    def reach(self, calls: int) -> None:
        """Wait until so many calls have been answered; some more customers are being served by then."""
        assert calls + 2 * LET_IN < self.jobs, "nobody would be left"
        self._let(calls + LET_IN)
        until(lambda: self.history.answered() >= calls or bool(self._errors), f"{calls} answers", BOUND_S)

    def go_on(self) -> None:
        """Let some more customers in."""
        self._let(self._let_in + LET_IN)

    def let_all_in(self) -> None:
        """Let everybody in."""
        self._let(self.jobs)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        end = time.monotonic() + BOUND_S
        if kind is not None:
            self._giving_up.set()
        self.let_all_in()
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        stuck = sum(thread.is_alive() for thread in self._threads)
        self._giving_up.set()
        if kind is None:
            if self._errors:
                raise self._errors[0]
            assert not stuck, f"{stuck} customers were not served within {BOUND_S:g} s"

    def settle(self, deployment: Deployment) -> Books:
        """Hold all that was told against the books; every code has ended, once."""
        books = check_books(deployment)
        own = set(self.uids)  # there may have been other rushes before
        assert violations(self.history.calls, (event for event in books.events if event.uid in own)) == []
        assert self.history.answered() == self.jobs
        for uid in self.uids:
            kinds = books.kinds(uid)
            assert kinds in (
                [EventType.ISSUED, EventType.REDEEMED],
                [EventType.ISSUED, EventType.VOIDED],
            ), f"{uid.hex()}: {kinds}"
        return books


def open_rush(
    shop: Shop, counter: Counter, codes: int, *, seed: int, pause_s: float = PAUSE_S
) -> tuple[Rush, int]:
    """Receive stock for `codes` codes and ten units besides, issue and show them; gives the rush, and the SKU."""
    sku_id = shop.sku(codes + 10)
    made = []
    texts = []
    for start in range(0, codes, 200):
        chunk = shop.issue(sku_id, min(200, codes - start))
        made += chunk
        texts += shop.show(chunk)
    return Rush(counter, made, texts, seed=seed, pause_s=pause_s), sku_id
