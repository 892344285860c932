from __future__ import annotations

import json

import pytest

from engine.errors import InvalidInput
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server.plain import enum_name, message_of, plain


def test_what_is_written_can_be_read_again() -> None:
    store = store_pb.Store(
        store_id=1,
        name="店",
        mall_ids=[7, 8],
        latitude_deg=0.0,
        longitude_deg=-0.5,
        datum=types_pb.DATUM_BD09,
        terminal_location=store_pb.TERMINAL_LOCATION_OFF,
        closed=True,
    )
    written = json.loads(json.dumps(plain(store)))
    assert written["datum"] == "BD09"
    assert written["terminal_location"] == "OFF"
    assert written["latitude_deg"] == 0.0
    assert message_of(store_pb.Store, written, "stores[0]") == store


def test_large_numbers_stay_numbers_and_absence_stays_absence() -> None:
    written = plain(types_pb.Code(issued_at_ms=2**53 + 1, lines=[types_pb.LineState(sku_id=1)]))
    assert written["issued_at_ms"] == 2**53 + 1
    assert written["lines"] == [{"sku_id": 1, "count": 0, "left": 0}]
    assert "latitude_deg" not in plain(store_pb.Store())
    assert plain(code_pb.IssueOutcome()) == {}


def test_an_enum_is_read_in_any_case_with_or_without_its_prefix_or_as_number() -> None:
    for value in ("dynamic", "DYNAMIC", "VERSION_DYNAMIC", 2):
        request = message_of(code_pb.IssueRequest, {"version": value}, "x")
        assert request.version == types_pb.VERSION_DYNAMIC


def test_a_number_of_a_later_release_is_shown_as_such() -> None:
    assert enum_name(types_pb.Version.DESCRIPTOR, 77) == "77"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "e"),
        ("text", "e"),
        ({"orderid": "A"}, "e.orderid"),
        ({"order_id": 5}, "e.order_id"),
        ({"mall_id": "7"}, "e.mall_id"),
        ({"mall_id": -1}, "e.mall_id"),
        ({"mall_id": 2**32}, "e.mall_id"),
        ({"mall_id": True}, "e.mall_id"),
        ({"mall_id": 1.5}, "e.mall_id"),
        ({"mall_id": None}, "e.mall_id"),
        ({"ttl_s": 2**63}, "e.ttl_s"),
        ({"version": "fancy"}, "e.version"),
        ({"lines": {"sku_id": 1}}, "e.lines"),
        ({"lines": [{"sku_id": 1}, 5]}, "e.lines[1]"),
        ({"lines": [{"sku": 1}]}, "e.lines[0].sku"),
    ],
)
def test_a_mistake_names_its_place(value: object, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        message_of(code_pb.IssueRequest, value, "e")
    assert caught.value.field == field
    assert "expected" in caught.value.message
