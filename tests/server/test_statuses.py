from __future__ import annotations

import logging

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from engine import errors
from engine.errors import InvalidInput, PickgateError
from server import statuses


def every_error(kind: type[PickgateError] = PickgateError) -> list[type[PickgateError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in every_error(child))]


def unpacked(status: status_pb2.Status) -> dict[str, object]:
    found: dict[str, object] = {}
    for detail in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            if detail.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_row_of_its_own_and_full_details(kind: type[PickgateError]) -> None:
    assert kind in statuses.TABLE
    told = statuses.tell(kind("the inside of it", field="a.field"), new_id=lambda: "0123456789ab")
    status = statuses.rich_status(told)
    details = unpacked(status)

    assert told.code is statuses.TABLE[kind].code
    assert status.code == told.code.value[0] != 0
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (kind.slug, "pickgate")
    retriable = issubclass(kind, errors.Unavailable | errors.Exhausted)
    assert ("RetryInfo" in details) is retriable
    if statuses.TABLE[kind].for_clients:
        assert "the inside of it" not in str(status)
        assert "BadRequest" not in details
        assert info.metadata["error_id"] == "0123456789ab"
    else:
        assert status.message == "the inside of it"
        assert "BadRequest" in details
        assert "error_id" not in info.metadata


def test_the_table_has_no_row_for_what_is_no_error() -> None:
    assert set(statuses.TABLE) == set(every_error())


def test_slugs_are_unique() -> None:
    slugs = [kind.slug for kind in every_error()]
    assert len(set(slugs)) == len(slugs)


def test_only_what_may_be_retried_unchanged_is_unavailable() -> None:
    unavailable = {kind for kind, row in statuses.TABLE.items() if row.code is grpc.StatusCode.UNAVAILABLE}
    assert unavailable == set(every_error(errors.Unavailable))


def test_an_unknown_exception_tells_an_id_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        told = statuses.tell(ValueError("secret in /etc/path"), new_id=lambda: "feedfacecafe")
    status = statuses.rich_status(told)
    assert told.code is grpc.StatusCode.INTERNAL
    assert "secret" not in str(status)
    assert "ValueError" not in str(status)
    assert "feedfacecafe" in str(status)
    assert "feedfacecafe" in caplog.text
    assert "secret in /etc/path" in caplog.text


def test_a_hidden_message_is_in_the_log_under_its_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        told = statuses.tell(errors.StoreUnavailable("socket /run/x is gone"))
    assert "/run/x" not in told.message
    assert told.error_id
    assert f"{told.error_id}: socket /run/x is gone" in caplog.text


def test_an_error_of_the_input_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        statuses.tell(InvalidInput("count is 0", field="count"))
    assert not caplog.records


def test_retry_advice_is_in_seconds_and_nanoseconds() -> None:
    details = unpacked(statuses.rich_status(statuses.tell(errors.KeyringLocked(""))))
    retry = details["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (5, 0)
    details = unpacked(statuses.rich_status(statuses.tell(errors.StoreUnavailable(""))))
    retry = details["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (0, 200_000_000)


def test_an_item_of_a_batch_tells_the_same() -> None:
    item = statuses.item_error(statuses.tell(InvalidInput("count is 0", field="lines[0].count")))
    assert (item.reason, item.message, item.field, item.retry_after_ms) == (
        "INVALID_INPUT",
        "count is 0",
        "lines[0].count",
        0,
    )
    item = statuses.item_error(statuses.tell(errors.StoreUnavailable("inside")))
    assert item.retry_after_ms == 200
    assert "inside" not in item.message
