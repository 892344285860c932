"""The hot lane: a second completion queue of the official server, drained by one thread, decided in batches.

An ordinary handler costs each call a thread's hop, locks and several round trips through the interpreter. Here one thread
takes whatever has arrived of the registered methods, hands it on as one batch (server.owners), and polls again. Draining waits
for nothing but the queue, so the batches grow by themselves while the store is busy, and a call alone goes on at once.

    arrival ─ bounds ─ message ─ sort ─ owner's queue ─ batch packed ─ store (on the owner's thread)
                                                      ─ batch unpacked ─ answers ─ completion, and the call is over

It is the only file that uses grpcio's internals (`grpc._cython.cygrpc`, and `_cy_server` of a server), which nobody has promised
to keep: see docs/adr/0041. Health, reflection, streams and all other methods stay with the server's own handlers.

A call that its caller cancels while it waits may be decided all the same: a retry with the same request id gets the answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # not among the published types

from engine import limits
from engine.errors import Exhausted
from engine.sm_profile import Sealed
from server import bounds, statuses, translate
from server.batches import Method, Outcome
from server.owners import Answered, Owners, Waiting
from server.sealing import MARK, Sealing, quiet
from server.throttle import BAD, Throttle
from server.turns import TooLate

_log = logging.getLogger(__name__)

_NO_FLAGS: Final = 0
_DETAILS_KEY: Final = "grpc-status-details-bin"
_PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
"""What gRPC's own retries read (gRFC A6)."""
_CERTIFICATE_KEY: Final = b"x509_pem_cert"
_CODES: Final[Mapping[grpc.StatusCode, Any]] = {
    code: getattr(cygrpc.StatusCode, "ok" if code is grpc.StatusCode.OK else code.name.lower())
    for code in grpc.StatusCode
}
_OK: Final = _CODES[grpc.StatusCode.OK]

_NO_METADATA: Final = cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)
_ALL_WELL: Final = cygrpc.SendStatusFromServerOperation(None, _OK, b"", _NO_FLAGS)
"""Parts of every answer, made once: gRPC copies what they say when it takes them up, and there is nothing in them to be let go of."""

# What is done with an operation of the queue that has ended, by its tag's stage.
_READING, _ANSWERING, _REFUSING, _OVER = range(4)

_WAKE: Final = object()
"""Tag of an operation that does nothing but end: it wakes the thread that drains."""


class Arrival(Waiting):
    """A call of the lane, from its headers on."""

    __slots__ = ("_event", "call", "sealed", "stage")

    def __init__(self, event: Any, method: int, came_s: float) -> None:
        self._event = event
        self.call = event.call
        self.method = method
        self.message = b""
        self.deadline_s = event.call_details.deadline
        self.came_s = came_s
        self.alone = False
        self.grant = None
        self.sealed: Sealed | None = None
        self.stage = _READING

    def let_go(self) -> None:
        """Say that the call is over.

        gRPC keeps its stream, one of the hundred of its connection, for as long as anything here refers to it, and an error's traceback
        may do so until the interpreter looks for garbage.
        """
        self.call = self._event = None

    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What came with the headers."""
        return tuple(self._event.invocation_metadata)

    def peer(self) -> str:
        """The caller's address, as gRPC writes it."""
        return str(self.call.peer().decode("utf-8", "replace"))

    def certificate(self) -> bytes | None:
        """The caller's TLS certificate, in PEM; None without one."""
        pem = (cygrpc.auth_context(self.call) or {}).get(_CERTIFICATE_KEY)
        return bytes(pem[0]) if pem else None


Admit: TypeAlias = Callable[[Arrival], Exception | None]
"""Looks at a call before its request is read: the error that it is refused with, or None. It may set the call's grant."""


class _Ask:
    """Tag of the calls that gRPC was asked to hand over: of which method."""

    __slots__ = ("number", "path")

    def __init__(self, number: int, path: str) -> None:
        self.number = number
        self.path = path


class _Status(NamedTuple):
    """An error as gRPC's operations want it."""

    code: Any
    details: bytes
    metadata: tuple[tuple[str, str | bytes], ...]


class Lane:
    """The lane of one server: made before the server starts, `start` after it, `stop` when the server has stopped.

    Args:
        server: made by grpc.server, not started. Its own handlers of these methods are not called any more.
        methods: what the lane serves, by path.
        owners: partition owners.
        queue_calls_max: calls that may wait for an answer; one more is shed. From half as many on, gRPC is asked for no more.
        request_wait_s: how long a call may wait for its request.
        queue_wait_s: how long a call may wait for its owner.
        admit: looks at each call before its request is read; it must not wait.
        throttle: slows down whoever keeps presenting forged codes.
        sealing: opens bodies of the SM profile, and seals their answers.
        monotonic_s: the clock of the waits.
        unix_s: the clock of the deadlines.
    """

    def __init__(
        self,
        server: grpc.Server,
        methods: Mapping[str, Method],
        owners: int = 1,
        *,
        queue_calls_max: int = bounds.QUEUE_CALLS_MAX,
        request_wait_s: float = bounds.REQUEST_WAIT_S,
        queue_wait_s: float = bounds.QUEUE_WAIT_S,
        admit: Admit | None = None,
        throttle: Throttle | None = None,
        sealing: Sealing | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._queue_calls_max = queue_calls_max
        self._request_wait_s = request_wait_s
        self._admit = admit
        self._throttle = throttle or Throttle()
        self._sealing = sealing
        self._hold_s = bounds.SLOW_DOWN_HOLD_S
        # Refusals that are kept back, the oldest first.
        self._held: deque[tuple[float, Arrival, Exception]] = deque()
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s
        self._methods = [path.rpartition("/")[2] for path in methods]
        self._asks = [_Ask(number, path) for number, path in enumerate(methods)]
        self._owners = Owners(
            list(methods.values()),
            owners,
            self._answer,
            self._wake,
            wait_s=queue_wait_s,
            monotonic_s=monotonic_s,
            unix_s=unix_s,
        )
        inner: Any = server
        self._server = inner._cy_server
        for ask in self._asks:
            self._server.register_method(ask.path)
        self._queue = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._queue)
        # Calls whose request is still to come, the oldest first.
        self._silent: dict[int, Arrival] = {}
        # Calls whose answer is on its way, with the time of it, the oldest first.
        self._untaken: dict[int, tuple[float, Arrival]] = {}
        self._read: list[Arrival] = []
        """What has been drained in this pass."""
        self._full_at = max(1, queue_calls_max // 2)
        self._full_since_s: float | None = None
        """Since when so many wait; None when it has been less than half of that meanwhile."""
        self._while_full = 0
        self._owed: deque[_Ask] = deque()
        """What gRPC is to be asked for when there is room again."""
        self._crowded = _status(Exhausted("more calls come than can be decided: try again later"))
        self._stopping = False
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pickgate-lane", daemon=True)
        # Statistics, by the draining thread alone.
        self.calls = 0
        """Calls taken up."""
        self.over = 0
        """Of those, ended."""
        self.shed = 0
        """Of those, refused because more come than can be decided."""

    @property
    def names(self) -> list[str]:
        """The methods it serves, without their services."""
        return self._methods

    @property
    def open_calls(self) -> int:
        """Calls taken up and not ended."""
        return self.calls - self.over

    def statistics(self) -> dict[str, Any]:
        """Figures since the start. `batches` comes first: how many there were of each size, as decided.

        A figure may be a batch behind: nobody stops for it.
        """
        owners = self._owners
        return {
            "batches": {str(size): count for size, count in sorted(owners.sizes.copy().items())},
            "calls": self.calls,
            "open": self.open_calls,
            "waiting": owners.waiting,
            "shed": self.shed + owners.shed,
            "expired": owners.expired,
            "late": owners.late,
        }

    def start(self) -> None:
        """Begin to answer. The server has been started."""
        for ask in self._asks:
            for _ in range(bounds.REQUESTED_AHEAD):
                self._ask(ask)
        self._owners.start()
        self._thread.start()

    def hurry(self) -> None:
        """The server stops: a call waits for its request `bounds.REQUEST_WAIT_STOPPING_S` only, and no refusal is kept back.

        Nothing is left waiting in gRPC either.
        """
        self._request_wait_s = min(self._request_wait_s, bounds.REQUEST_WAIT_STOPPING_S)
        self._hold_s = 0.0
        # What waits in gRPC would be cancelled there: taken up, it is decided, or told to come again.
        self._full_at = 2 * bounds.PENDING_CALLS_MAX

    def stop(self) -> None:
        """End, when the server has stopped. Stopping twice changes nothing."""
        if not self._thread.is_alive():
            return
        # What still waits is decided, though its callers may have been cut off: they will ask again, with the same ids.
        self._stopping = True
        self._settled.wait(2 * limits.STORE_TIMEOUT_S)
        self._owners.stop()
        self._queue.shutdown()
        self._thread.join()

    # --- draining ---------------------------------------------------------------------------------------------
    def _run(self) -> None:
        going_on = True
        while going_on:
            try:
                going_on = self._drain()
                if going_on:
                    self._look()
            except Exception as error:
                # A defect, and yet not a deaf server: the calls in hand end, the lane goes on.
                _log.exception("draining the lane failed; going on")
                lost, self._read = self._read, []
                self._answer([(call, error) for call in lost])

    def _drain(self) -> bool:
        """Take what has arrived, wait for something if there is nothing to do, hand on what can be decided, answer some.

        False when the queue has been shut down, and nothing will come any more.
        """
        poll, owners = self._queue.poll, self._owners
        event = poll(0 if owners.busy else self._unix_s() + bounds.REQUEST_LOOK_S)
        now_s = self._monotonic_s()
        taken = 0
        while event.tag is not None:
            tag = event.tag
            if tag is _WAKE:
                # A batch is back. Its owner goes on with what is sorted; if that was all, the rest is sorted before anything else.
                owners.turn()
            elif type(tag) is _Ask:
                self._arrived(event, tag, now_s)
            elif tag.stage == _READING:
                self._came(event, tag)
            else:
                self._ended(tag)
            # The event holds its call, and the call its connection: let go before waiting.
            del event, tag
            taken += 1
            if taken == bounds.DRAINED_AT_ONCE:
                break
            event = poll(0)
        self._hand_on()
        owners.turn()
        if self._full_since_s is not None:
            self._make_good()
        if owners.has_answers:
            owners.answer(bounds.ANSWERED_AT_ONCE)
        elif not taken:
            owners.sort_ahead()
        if self._stopping and owners.idle:
            self._settled.set()
        return taken == bounds.DRAINED_AT_ONCE or bool(
            event.completion_type != cygrpc.CompletionType.queue_shutdown
        )

    def _hand_on(self) -> None:
        if self._read:
            calls, self._read = self._read, []
            self._owners.submit(calls)

    def _ask(self, ask: _Ask) -> None:
        """Ask gRPC for one more call."""
        try:
            self._server.request_registered_call(self._queue, self._queue, ask.path, ask)
        except ValueError:
            _log.debug("no more calls of %s: the server stops", ask.path)

    def _make_good(self) -> None:
        """Ask gRPC for what was not asked for while too many waited, as far as there is room now."""
        waiting = self._owners.waiting
        for _ in range(min(len(self._owed), self._full_at - waiting)):
            self._ask(self._owed.popleft())
        if not self._owed and waiting <= self._full_at // 2:
            self._full_since_s = None

    def _arrived(self, event: Any, ask: _Ask, now_s: float) -> None:
        if not event.success:
            return  # the server stops: no call will come for this request
        waiting = self._owners.waiting + len(self._read)
        if waiting < self._full_at:
            self._ask(ask)
        else:
            self._owed.append(ask)
            if self._full_since_s is None:
                self._full_since_s = now_s
        call = Arrival(event, ask.number, now_s)
        self.calls += 1
        if (
            waiting >= self._queue_calls_max
            or (self._full_since_s is not None and self._is_one_too_many(now_s - self._full_since_s))
            or not self._has_room(now_s)
        ):
            self.shed += 1
            self._refuse(call, self._crowded)
            return
        refusal = None if self._admit is None else self._admit(call)
        if refusal is not None:
            self._answer([(call, refusal)])
            return
        self._silent[id(call)] = call
        call.call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), call)

    def _is_one_too_many(self, full_s: float) -> bool:
        """Whether this call is one of those by which callers learn that a rush lasts."""
        if full_s < bounds.SHED_AFTER_S:
            return False
        self._while_full += 1
        return self._while_full % bounds.SHED_EVERY == 0

    def _has_room(self, now_s: float) -> bool:
        """Whether one more call may wait for its request; the oldest makes room if it has been silent for long.

        In a rush there are as many whose request has come and was not looked at yet: those are not to blame.
        """
        if len(self._silent) < bounds.SILENT_CALLS_MAX:
            return True
        number, oldest = next(iter(self._silent.items()))
        if now_s - oldest.came_s < bounds.SILENT_S_MIN:
            return False
        self._cancel(number)
        return True

    def _came(self, event: Any, call: Arrival) -> None:
        """A call's request is there, or will never be."""
        if self._silent.pop(id(call), None) is None:
            self.over += 1  # cancelled meanwhile, for its silence
            return
        message = event.batch_operations[0].message()
        if message is None:
            # Cancelled by its caller, or ended without a request. What gRPC itself answers to that (its specification of
            # statuses: a violation of cardinality).
            self._refuse(call, _Status(_CODES[grpc.StatusCode.UNIMPLEMENTED], _NO_REQUEST, ()))
            return
        try:
            translate.check_length(message, limits.MESSAGE_BYTES_MAX)
            if message[:1] == MARK and self._sealing is not None:
                message, call.sealed = self._sealing.open(self._asks[call.method].path.encode(), message)
        except Exception as error:
            self._answer([(call, error)])
            return
        call.message = message
        if self._throttle.slowing:
            refusal = self._throttle.refusal(self._methods[call.method], message, call.peer)
            if refusal is not None:
                self._hold(call, refusal)
                return
        self._read.append(call)

    def _hold(self, call: Arrival, refusal: Exception) -> None:
        """Keep a refusal back for a while: at a flood's full rate, refusing alone would take all of this thread."""
        call.message = b""
        if self._hold_s and len(self._held) < bounds.HELD_CALLS_MAX:
            self._held.append((self._monotonic_s() + self._hold_s, call, refusal))
        else:
            self._answer([(call, refusal)])

    def _ended(self, call: Arrival) -> None:
        self._untaken.pop(id(call), None)
        call.stage = _OVER
        call.let_go()
        self.over += 1

    def _look(self) -> None:
        """Look for calls that wait too long, for their requests, their owners or their callers, or long enough."""
        now_s = self._monotonic_s()
        while self._held and (self._held[0][0] <= now_s or not self._hold_s):
            _, held, refusal = self._held.popleft()
            self._answer([(held, refusal)])
        before_s = now_s - self._request_wait_s
        late = []
        for number, call in self._silent.items():
            if call.came_s > before_s:
                break
            late.append(number)
        for number in late:
            self._cancel(number)
        while self._untaken and self._is_left(now_s):
            _, left = self._untaken.pop(next(iter(self._untaken)))
            left.call.cancel()
        self._owners.sweep()

    def _is_left(self, now_s: float) -> bool:
        """Whether the oldest answer is given up: its caller does not take it, and the call stays for as long as its connection."""
        since_s, _ = next(iter(self._untaken.values()))
        crowded = len(self._untaken) > bounds.UNTAKEN_CALLS_MAX
        return now_s - since_s > (bounds.UNTAKEN_S_MIN if crowded else bounds.UNTAKEN_S_MAX)

    def _cancel(self, number: int) -> None:
        # Reading its request ends with nothing, and the call without an answer of ours.
        self._silent.pop(number).call.cancel()

    def _wake(self, call: Waiting) -> None:
        """On an owner's thread: have the draining thread take up a batch that has come back.

        A queue is woken by an operation that ends on it; one without parts ends at once. If `call`, of that batch, is over by now, the
        thread has taken the batch up without it.
        """
        assert isinstance(call, Arrival)
        inner = call.call
        if inner is not None:
            inner.start_server_batch((), _WAKE)

    # --- answering --------------------------------------------------------------------------------------------
    def _answer(self, done: Answered) -> None:
        """Answer calls, from any thread."""
        told: dict[int, _Status] = {}
        now_s = self._monotonic_s()
        for call, outcome in done:
            assert isinstance(call, Arrival)
            try:
                if type(outcome) is bytes:
                    if outcome[:2] in BAD:
                        self._throttle.note(self._methods[call.method], call.message, outcome, call.peer)
                    if call.sealed is not None:
                        outcome = Sealing.close(call.sealed, outcome)
                    self._reply(call, outcome, now_s)
                    continue
                if call.sealed is not None and isinstance(outcome, Exception):
                    outcome = quiet(outcome)
                # One error that many calls share is told, and logged, once.
                status = told.get(id(outcome))
                if status is None:
                    status = told[id(outcome)] = _status(outcome)
                self._refuse(call, status)
            except Exception:
                _log.exception("a call could not be answered")

    def _reply(self, call: Arrival, message: bytes, now_s: float) -> None:
        call.stage = _ANSWERING
        self._untaken[id(call)] = (now_s, call)
        call.call.start_server_batch(
            (
                _NO_METADATA,
                cygrpc.SendMessageOperation(message, _NO_FLAGS),
                _ALL_WELL,
                cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
            ),
            call,
        )

    def _refuse(self, call: Arrival, status: _Status) -> None:
        call.stage = _REFUSING
        self._untaken[id(call)] = (self._monotonic_s(), call)
        call.call.start_server_batch(
            (
                _NO_METADATA,
                cygrpc.SendStatusFromServerOperation(status.metadata, status.code, status.details, _NO_FLAGS),
                cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
            ),
            call,
        )


_NO_REQUEST: Final = b"the call came without its request message"
_TOO_LATE: Final = b"the deadline passed before the call was worked on"


def _status(error: Outcome) -> _Status:
    """Write an error as the ordinary handlers do, and how long to wait for those who should wait."""
    if isinstance(error, TooLate):
        return _Status(_CODES[grpc.StatusCode.DEADLINE_EXCEEDED], _TOO_LATE, ())
    assert isinstance(error, Exception)
    told = statuses.tell(error)
    details: tuple[tuple[str, str | bytes], ...] = (
        (_DETAILS_KEY, statuses.rich_status(told).SerializeToString()),
    )
    if isinstance(error, Exhausted):
        details = (*details, (_PUSHBACK_KEY, str(told.retry_after_ms)))
    return _Status(_CODES[told.code], told.message.encode(), details)
