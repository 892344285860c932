"""The SM profile (engine.sm_profile) at the server's two lanes: bodies are opened before anything looks at them, answers sealed last.

Everything between is what it is for any caller, identity and rights included; besides, the terminal that a request names must be the
one whose secret sealed it. Statuses have no body that could be sealed, so a sealed call's errors say their reason and nothing of the
request.
"""

from __future__ import annotations

import copy
from typing import Any, Final, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from engine import limits
from engine.errors import PermissionDenied, PickgateError
from engine.sm_profile import ENVELOPE_BYTES, MAGIC, MARK, Opened, Opener, Sealed, seal_answer
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from server import services, statuses
from server.handlers import Behaviour, WrappedHandlers

__all__ = ["MARK", "SealedHandlers", "Sealing", "quiet"]

_QUIET: Final = "see the reason: a sealed call's errors say no more"
_NOT_ITS_OWN: Final = "a sealed request must name the terminal that sealed it"
_TERMINALS: Final[dict[bytes, type[Message]]] = {
    f"/pickgate.v1.{name}".encode(): kind
    for name, kind in (
        ("RedemptionService/Redeem", redemption_pb.RedeemRequest),
        ("RedemptionService/Inspect", redemption_pb.InspectRequest),
        ("RedemptionService/Reverse", redemption_pb.ReverseRequest),
        ("RedemptionService/RedeemBatch", redemption_pb.RedeemBatchRequest),
        ("TerminalService/RotateSecret", terminal_pb.RotateSecretRequest),
    )
}
"""The methods whose requests name terminals that ask for themselves."""


class Sealing:
    """Opens requests and seals answers; for many threads."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    def open(self, path: bytes, envelope: bytes) -> Opened:
        """Raises what Opener.open raises, and PermissionDenied when the request names another terminal."""
        opened = self._opener.open(path, envelope)
        kind = _TERMINALS.get(path)
        if kind is not None:
            try:
                message: Any = kind.FromString(opened.body)
            except DecodeError:
                return opened  # the method itself says so
            for one in message.requests if kind is redemption_pb.RedeemBatchRequest else (message,):
                at = one.terminal
                if (at.mall_id, at.store_id, at.terminal_id) != opened.sealed.terminal:
                    raise PermissionDenied(_NOT_ITS_OWN)
        return opened

    @staticmethod
    def close(request: Sealed, answer: bytes) -> bytes:
        """The answer, sealed."""
        return seal_answer(request, answer)

    @property
    def refused(self) -> int:
        """Envelopes that did not open or did not count."""
        return self._opener.refused


def quiet(error: Exception) -> Exception:
    """The error as a sealed call's caller may read it on the wire: its kind, and nothing of the request."""
    if not isinstance(error, PickgateError):
        return error  # nothing of it is told anyway
    told = copy.copy(error)
    told.message, told.field, told.args = _QUIET, "", (_QUIET,)
    return told


class SealedContext:
    """A sealed call's context, which keeps what its statuses would say of the request to itself."""

    def __init__(self, context: grpc.ServicerContext, sealed: Sealed) -> None:
        self._context = context
        self.sealed = sealed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def abort_with_status(self, status: Any) -> None:
        details = dict(status.trailing_metadata or ())
        rich = status_pb2.Status.FromString(details.get("grpc-status-details-bin", b""))
        rich.message = _QUIET
        kept = [detail for detail in rich.details if not detail.type_url.endswith(".BadRequest")]
        del rich.details[:]
        rich.details.extend(kept)
        self._context.abort_with_status(rpc_status.to_status(rich))


class SealedHandlers(WrappedHandlers):
    """The same for the ordinary handlers."""

    def __init__(self, sealing: Sealing) -> None:
        super().__init__()
        self._sealing = sealing

    def _concerns(self, path: str) -> bool:
        return path.startswith(f"/{services.PACKAGE}.")

    def _wrapped(self, path: str, behaviour: Behaviour) -> Behaviour:
        sealing = self._sealing
        known = services.METHODS.get(path.removeprefix(f"/{services.PACKAGE}.").replace("/", "."))
        bytes_max = limits.MESSAGE_BYTES_MAX if known is None else known.bytes_max

        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            # One that is too long is the method's to refuse, who knows its bound.
            if data[:1] != MARK or len(data) > bytes_max + ENVELOPE_BYTES * data.startswith(MAGIC):
                return behaviour(data, context)
            try:
                opened = sealing.open(path.encode(), data)
            except Exception as error:
                context.abort_with_status(rpc_status.to_status(statuses.rich_status(statuses.tell(error))))
                raise
            inner = cast(grpc.ServicerContext, SealedContext(context, opened.sealed))
            return sealing.close(opened.sealed, behaviour(opened.body, inner))

        return handle
