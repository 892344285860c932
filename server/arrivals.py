"""Calls whose request is still to come: a bound on how long one may wait for it.

gRPC hands a call over when its headers are there, and a thread then waits for its message. A caller that sends headers and
nothing more (a frozen phone, a cut line, ill will) would keep that thread for as long as its connection lives, and a few of them
would keep all. So every method of the server, health and reflection included, waits for a message no longer than
`bounds.REQUEST_WAIT_S`; then the call is cancelled and its thread is free.

This is done by registering each method as one that takes a stream of requests, which on the wire is the same: only then
the handler has the call in hand while its message is awaited.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import grpc

from server import bounds

Q = TypeVar("Q")
A = TypeVar("A")

# A grpc.RpcMethodHandler; the published types leave out its fields.
_Handler: TypeAlias = Any


class Arrivals(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic for type checkers only
    """Bounds the wait for each request of each method. Needs `start`, then `stop` when the server has stopped.

    Args:
        wait_s: how long a call may wait for a message of its caller.
        monotonic_s: the clock of the waits.
    """

    def __init__(
        self, wait_s: float = bounds.REQUEST_WAIT_S, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._wait_s = wait_s
        self._monotonic_s = monotonic_s
        # In the order of their beginning, and so of their end: a dict keeps it.
        self._waiting: dict[int, tuple[float, grpc.ServicerContext]] = {}
        self._guard = threading.Lock()
        self._numbers = itertools.count()
        self._made: dict[str, _Handler] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="pickgate-arrivals", daemon=True)

    def start(self) -> None:
        """Begin to look for calls that wait too long."""
        self._thread.start()

    def hurry(self) -> None:
        """From now on a call may wait for `bounds.REQUEST_WAIT_STOPPING_S` only: the server stops."""
        self._wait_s = min(self._wait_s, bounds.REQUEST_WAIT_STOPPING_S)

    def stop(self) -> None:
        """End the looking. Stopping twice, or without a start, changes nothing."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], _Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Give the bounded twin of a method's handler; called by gRPC for each call."""
        method = handler_call_details.method
        made = self._made.get(method)
        if made is None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None  # no such method, and nothing that a caller could fill the memory with
            made = self._made[method] = self._bounded(handler)
        return made

    # --- twins --------------------------------------------------------------------------------------------------
    def _bounded(self, handler: Any) -> _Handler:
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(self._one(handler.unary_unary), **codec)
        if handler.unary_stream:
            return grpc.stream_stream_rpc_method_handler(self._one(handler.unary_stream), **codec)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._many(handler.stream_unary), **codec)
        return grpc.stream_stream_rpc_method_handler(self._many(handler.stream_stream), **codec)

    def _one(self, behaviour: Callable[..., A]) -> Callable[..., A]:
        """The twin of a method that takes one request."""

        def call(requests: Iterator[Any], context: grpc.ServicerContext, *send: Any) -> A:
            try:
                request = self._next(requests, context)
            except StopIteration:
                # What gRPC itself answers to it (its specification of statuses: a violation of cardinality).
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "the call came without its request message")
            return behaviour(request, context, *send)

        return _like(behaviour, call)

    def _many(self, behaviour: Callable[..., A]) -> Callable[..., A]:
        """The twin of a method that takes a stream of requests: each must come in time."""

        def call(requests: Iterator[Any], context: grpc.ServicerContext, *send: Any) -> A:
            return behaviour(self._each(requests, context), context, *send)

        return _like(behaviour, call)

    def _each(self, requests: Iterator[Q], context: grpc.ServicerContext) -> Iterator[Q]:
        while True:
            try:
                request = self._next(requests, context)
            except StopIteration:
                return
            yield request

    # --- waiting ------------------------------------------------------------------------------------------------
    def _next(self, requests: Iterator[Q], context: grpc.ServicerContext) -> Q:
        """The next message. Raises StopIteration at the stream's end, grpc.RpcError when the call was cancelled."""
        number = next(self._numbers)
        with self._guard:
            self._waiting[number] = (self._monotonic_s(), context)
        try:
            return next(requests)
        finally:
            with self._guard:
                self._waiting.pop(number, None)

    def _look(self) -> None:
        while not self._stopped.wait(bounds.REQUEST_LOOK_S):
            self._cancel_late()

    def _cancel_late(self) -> None:
        late = []
        with self._guard:
            began_before_s = self._monotonic_s() - self._wait_s
            for number, (began_s, context) in self._waiting.items():
                if began_s > began_before_s:
                    break
                late.append((number, context))
            for number, _ in late:
                del self._waiting[number]
        for _, context in late:
            # The thread that waits wakes up with an error, and the call ends without an answer of ours.
            context.cancel()  # type: ignore[no-untyped-call]


def _like(behaviour: Callable[..., A], twin: Callable[..., A]) -> Callable[..., A]:
    """Carry over gRPC's own switches: which threads work on it, and whether it answers by a callback."""
    for switch in ("experimental_thread_pool", "experimental_non_blocking"):
        if hasattr(behaviour, switch):
            setattr(twin, switch, getattr(behaviour, switch))
    return twin
