"""A client of the services: typed calls, retries with the same request id, errors with their reason.

What comes back UNAVAILABLE is tried again, with the same request and so with the same request_id, which the engine
answers with the first answer if there was one. Nothing else is tried again: every other status stays what it is.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Final, Self, TypeVar, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from pickgate.v1 import code_event_service_pb2_grpc as event_grpc
from pickgate.v1 import code_service_pb2_grpc as code_grpc
from pickgate.v1 import ledger_service_pb2_grpc as ledger_grpc
from pickgate.v1 import redemption_service_pb2_grpc as redemption_grpc
from pickgate.v1 import review_service_pb2_grpc as review_grpc
from pickgate.v1 import settlement_service_pb2_grpc as settlement_grpc
from pickgate.v1 import stock_service_pb2_grpc as stock_grpc
from pickgate.v1 import store_service_pb2_grpc as store_grpc
from pickgate.v1 import terminal_service_pb2_grpc as terminal_grpc
from server import bounds

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

_RETRIED: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""Not decided, and not ours to give up: CANCELLED is what a call gets that a stopping server had not taken up yet."""


class CallFailed(Exception):
    """A call came back with a status other than OK.

    Attributes: code (the gRPC status), reason (stable slug, "" when the server gave none), message, field (path of the
    field at fault, or ""), error_id (what the server's log has it under, or ""), tries.
    """

    def __init__(
        self, code: grpc.StatusCode, reason: str, message: str, field: str, error_id: str, tries: int
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field
        self.error_id = error_id
        self.tries = tries


def new_request_id() -> str:
    """Make a request id for one intended change."""
    return str(uuid.uuid4())


class Client:
    """Calls to one server; thread-safe. Use it as a context manager, or call `close`.

    Args:
        address: host:port or unix:/path.
        credentials: for TLS (server.tls.client_credentials); None: without, on this machine.
        token: an access token, sent with each call; "" for none.
        timeout_s: for one try.
        tries: how often a call is sent at most, 1 or more.
        sleep, jitter: how to wait between tries, and a number 0 .. 1 that spreads the waits of many clients.
        asking: told each request before it is sent the first time.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str = "",
        timeout_s: float = bounds.CLIENT_TIMEOUT_S_DEFAULT,
        tries: int = bounds.CLIENT_TRIES_DEFAULT,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        asking: Callable[[Message], object] = lambda request: None,
    ) -> None:
        self._timeout_s = timeout_s
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._tries = tries
        self._sleep = sleep
        self._jitter = jitter
        self._asking = asking
        options = (
            # Answers of bulk calls and long lists are larger than gRPC's default of 4 MiB.
            ("grpc.max_receive_message_length", -1),
            # Only `call` tries again: it knows what is safe.
            ("grpc.enable_retries", 0),
            # A server that just came up again is tried within our own back-off, not within gRPC's of up to 2 min.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        )
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=options)
        self.redemption = redemption_grpc.RedemptionServiceStub(self._channel)
        self.codes = code_grpc.CodeServiceStub(self._channel)
        self.stock = stock_grpc.StockServiceStub(self._channel)
        self.stores = store_grpc.StoreServiceStub(self._channel)
        self.reviews = review_grpc.ReviewServiceStub(self._channel)
        self.settlements = settlement_grpc.SettlementServiceStub(self._channel)
        self.code_events = event_grpc.CodeEventServiceStub(self._channel)
        self.ledger = ledger_grpc.LedgerServiceStub(self._channel)
        self.terminals = terminal_grpc.TerminalServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def call(self, method: grpc.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """Call a method of one of the stubs, `client.call(client.redemption.Redeem, request)`. Raises CallFailed."""
        self._asking(request)
        tries, waited_s = 0, 0.0
        while True:
            tries += 1
            try:
                return method(request, timeout=self._timeout_s, metadata=self._metadata)
            except grpc.RpcError as error:
                failed, retry_after_s = _failed(error, tries)
            wait_s = min(
                max(retry_after_s, bounds.CLIENT_WAIT_S_MIN * 2 ** (tries - 1)), bounds.CLIENT_WAIT_S_MAX
            )
            waited_s += wait_s
            if failed.code not in _RETRIED or tries >= self._tries or waited_s > bounds.CLIENT_WAITS_S_MAX:
                raise failed
            self._sleep(wait_s * (1 + self._jitter() / 4))

    def stream(self, method: grpc.UnaryStreamMultiCallable[Q, R], request: Q) -> Generator[R, None, None]:
        """Call a method that answers with a stream, `client.stream(client.stock.WatchStock, request)`; it has no time limit.

        It ends when the server ends it, by CallFailed, or when the iterator is closed. Nothing is tried again: what happens
        between two streams, the levels at the beginning of the second tell.
        """
        answers = method(request, metadata=self._metadata)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise _failed(error, 1)[0] from None
        finally:
            answers.cancel()  # type: ignore[no-untyped-call]

    def healthy(self) -> bool:
        """Ask the health service whether the server serves. Raises CallFailed when it can't be asked."""
        status = self.call(self._health.Check, health_pb2.HealthCheckRequest()).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _failed(error: grpc.RpcError, tries: int) -> tuple[CallFailed, float]:
    """Read a failed call: what it says, and after how many seconds the server advises to retry (0: no advice)."""
    # What a stub raises is both; the published types don't say so.
    call = cast(grpc.Call, error)
    code = call.code()
    message = call.details() or code.name
    reason, field, error_id, retry_after_s = "", "", "", 0.0
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # not one of ours: a proxy's, with details that don't fit its status
        status = None
    for detail in status.details if status else ():
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            reason, error_id = info.reason, info.metadata.get("error_id", "")
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return CallFailed(code, reason, message, field, error_id, tries), retry_after_s
