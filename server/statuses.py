"""Errors of the engine as gRPC statuses: one table, one row per error there is (a test loops over all of them).

A status carries google.rpc.ErrorInfo (domain "pickgate", reason = the error's slug), google.rpc.BadRequest where a field of
the request is at fault, and google.rpc.RetryInfo where a retry with the same request id helps.
Source of the details: https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto, AIP-193.

What a client reads is never an exception's own text, except where that text was written for clients (the column
`for_clients`): the others may name files, addresses or settings of this process. Those go to the log, under an id that the
client gets too.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from engine import errors
from engine.errors import PickgateError
from pickgate.v1 import types_pb2 as types_pb

DOMAIN: Final = "pickgate"

_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """How one class of errors is told: its status, and the sentence for clients ('' = the error's own)."""

    code: grpc.StatusCode
    for_clients: str = ""


_SETUP: Final = Row(
    grpc.StatusCode.FAILED_PRECONDITION,
    "the service is not set up correctly; its operator finds the reason in the log",
)

TABLE: Final[dict[type[PickgateError], Row]] = {
    PickgateError: Row(grpc.StatusCode.INTERNAL, "internal error; its operator finds the reason in the log"),
    errors.InvalidInput: Row(grpc.StatusCode.INVALID_ARGUMENT),
    errors.UnknownMall: Row(grpc.StatusCode.INVALID_ARGUMENT),
    errors.TooManyItems: Row(grpc.StatusCode.INVALID_ARGUMENT),
    errors.RequestIdReused: Row(grpc.StatusCode.ALREADY_EXISTS),
    errors.NotFound: Row(grpc.StatusCode.NOT_FOUND),
    errors.Unauthenticated: Row(grpc.StatusCode.UNAUTHENTICATED),
    errors.PermissionDenied: Row(grpc.StatusCode.PERMISSION_DENIED),
    errors.ConsumerTaken: Row(grpc.StatusCode.PERMISSION_DENIED),
    errors.Conflict: Row(grpc.StatusCode.ABORTED),
    errors.Exhausted: Row(grpc.StatusCode.RESOURCE_EXHAUSTED),
    errors.Unavailable: Row(
        grpc.StatusCode.UNAVAILABLE, "not decided now; retry with the same request_id, that is always safe"
    ),
    # What it says is of the caller's own goods.
    errors.StockFull: Row(grpc.StatusCode.UNAVAILABLE),
    errors.StoreUnavailable: Row(
        grpc.StatusCode.UNAVAILABLE,
        "the store can't be reached; what was asked may or may not have happened: retry with the same request_id, "
        "that is always safe",
    ),
    errors.ClockSkew: Row(
        grpc.StatusCode.UNAVAILABLE,
        "the service's clock and its store's differ too much; nothing was written: retry with the same request_id",
    ),
    errors.NotReplicated: Row(
        grpc.StatusCode.UNAVAILABLE,
        "the change did not reach enough copies in time and may still happen: retry with the same request_id",
    ),
    errors.StaleControl: Row(
        grpc.StatusCode.UNAVAILABLE,
        "the service's copy of stores and keys is too old to decide on; nothing was written: retry with the same "
        "request_id",
    ),
    errors.KeyringLocked: Row(
        grpc.StatusCode.UNAVAILABLE,
        "the keyring is locked; nothing was written: its operator must give the passphrase",
    ),
    errors.NoActiveKey: Row(
        grpc.StatusCode.UNAVAILABLE,
        "there is no active key for this version and suite; nothing was written: its operator must create one",
    ),
    errors.LedgerUnavailable: Row(
        grpc.StatusCode.UNAVAILABLE, "the ledger can't be reached; nothing was written: try again later"
    ),
    errors.LedgerBehind: Row(
        grpc.StatusCode.UNAVAILABLE,
        "the ledger is too far behind, so no change is taken; nothing was written: retry with the same request_id",
    ),
    errors.Stopping: Row(grpc.StatusCode.UNAVAILABLE),
    errors.CursorBack: Row(grpc.StatusCode.FAILED_PRECONDITION),
    errors.CursorAhead: Row(grpc.StatusCode.OUT_OF_RANGE),
    errors.CursorCut: Row(grpc.StatusCode.OUT_OF_RANGE),
    errors.LedgerOff: Row(grpc.StatusCode.FAILED_PRECONDITION),
    errors.SlowDown: Row(grpc.StatusCode.RESOURCE_EXHAUSTED),
    errors.SetupError: _SETUP,
    errors.ConfigError: _SETUP,
    errors.StoreSettings: _SETUP,
    errors.DeploymentMismatch: _SETUP,
    errors.LedgerConflict: _SETUP,
    errors.StoreBinaryMissing: _SETUP,
    errors.StoreInUse: _SETUP,
    errors.KeyStateError: _SETUP,
}


class Told(NamedTuple):
    """An error as clients read it."""

    code: grpc.StatusCode
    reason: str
    message: str
    field: str
    retry_after_ms: int
    error_id: str
    """Set when the log says more, under this id."""


def tell(error: BaseException, *, new_id: Callable[[], str] = lambda: uuid.uuid4().hex[:12]) -> Told:
    """Say how clients read `error`; what they must not read is logged here."""
    if not isinstance(error, PickgateError):
        error_id = new_id()
        _log.error("internal error %s", error_id, exc_info=error)
        row = TABLE[PickgateError]
        return Told(row.code, PickgateError.slug, row.for_clients, "", 0, error_id)
    row = _row(type(error))
    error_id = ""
    if row.for_clients:
        error_id = new_id()
        if row.code is grpc.StatusCode.INTERNAL:
            _log.error("%s %s", error.slug, error_id, exc_info=error)
        else:
            _log.warning("%s %s: %s", error.slug, error_id, error.message)
    return Told(
        code=row.code,
        reason=error.slug,
        message=row.for_clients or error.message,
        # A set-up's field is a configuration key, nothing of the request.
        field="" if row.for_clients else error.field,
        retry_after_ms=getattr(error, "retry_after_ms", 0),
        error_id=error_id,
    )


def rich_status(told: Told) -> status_pb2.Status:
    """Write an error as google.rpc.Status with its details."""
    info = error_details_pb2.ErrorInfo(reason=told.reason, domain=DOMAIN)
    if told.error_id:
        info.metadata["error_id"] = told.error_id
    details = [_packed(info)]
    if told.field:
        details.append(
            _packed(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=told.field, description=told.message
                        )
                    ]
                )
            )
        )
    if told.retry_after_ms:
        delay = Duration(seconds=told.retry_after_ms // 1000, nanos=told.retry_after_ms % 1000 * 1_000_000)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    # The numbers of google.rpc.Code are those of grpc.StatusCode.
    return status_pb2.Status(code=told.code.value[0], message=told.message, details=details)


def item_error(told: Told) -> types_pb.ItemError:
    """Write an error of one item of a batch."""
    return types_pb.ItemError(
        reason=told.reason,
        message=told.message,
        field=told.field,
        retry_after_ms=told.retry_after_ms,
    )


def _row(kind: type[PickgateError]) -> Row:
    for base in kind.__mro__:
        if base in TABLE:
            return TABLE[base]
    raise AssertionError("every error descends from PickgateError")


def _packed(
    detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
