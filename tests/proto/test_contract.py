"""The contract and the engine say the same: numbers of enums both ways, and a method behind every method."""

from __future__ import annotations

from enum import Enum

import pytest
from google.protobuf.descriptor import EnumDescriptor

from engine import claims, verdict
from ext.datum import Datum
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import services
from server.plain import enum_prefix

FILES = (types_pb, redemption_pb, code_pb, stock_pb, store_pb)

TWINS = [
    pytest.param(contract.DESCRIPTOR, engine, id=engine.__name__)
    for contract, engine in (
        (types_pb.Version, claims.Version),
        (types_pb.Suite, claims.Suite),
        (types_pb.Channel, claims.Channel),
        (types_pb.CodeState, claims.State),
        (types_pb.Datum, Datum),
        (types_pb.NextStep, verdict.Next),
        (redemption_pb.InspectVerdict, verdict.InspectVerdict),
        (redemption_pb.RedeemVerdict, verdict.RedeemVerdict),
        (code_pb.IssueVerdict, verdict.IssueVerdict),
        (code_pb.RenderVerdict, verdict.RenderVerdict),
        (code_pb.VoidVerdict, verdict.VoidVerdict),
        (stock_pb.StockVerdict, verdict.StockVerdict),
    )
]


def all_enums() -> list[EnumDescriptor]:
    return [enum for file in FILES for enum in file.DESCRIPTOR.enum_types_by_name.values()]


@pytest.mark.parametrize(("contract", "engine"), TWINS)
def test_every_value_has_the_same_name_and_number_on_both_sides(
    contract: EnumDescriptor, engine: type[Enum]
) -> None:
    wire = {value.name.removeprefix(enum_prefix(contract)): value.number for value in contract.values}
    assert wire.pop("UNSPECIFIED") == 0
    assert wire == {member.name: int(member.value) for member in engine}


def test_every_verdict_of_the_engine_is_in_the_contract() -> None:
    in_contract = {param.values[1] for param in TWINS}
    assert set(verdict.Verdict.__subclasses__()) <= in_contract


def test_refusals_of_inspect_have_the_numbers_of_redeem() -> None:
    redeem = {
        value.name.removeprefix("REDEEM_"): value.number
        for value in redemption_pb.RedeemVerdict.DESCRIPTOR.values
    }
    for value in redemption_pb.InspectVerdict.DESCRIPTOR.values:
        if value.number != redemption_pb.INSPECT_VERDICT_REDEEMABLE:
            assert redeem[value.name.removeprefix("INSPECT_")] == value.number


@pytest.mark.parametrize("enum", all_enums(), ids=lambda enum: enum.name)
def test_zero_says_nothing_in_every_enum(enum: EnumDescriptor) -> None:
    assert enum.values_by_number[0].name == enum_prefix(enum) + "UNSPECIFIED"


def test_the_server_has_every_method_and_no_other() -> None:
    contract = {
        f"{service.name}.{method.name}": method.input_type.full_name
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    served = {name: method.request.DESCRIPTOR.full_name for name, method in services.METHODS.items()}
    assert served == contract


def test_every_answer_of_a_verb_carries_verdict_sentences_and_next_step() -> None:
    carrying = [
        message
        for file in FILES
        for message in file.DESCRIPTOR.message_types_by_name.values()
        if "verdict" in message.fields_by_name
    ]
    assert len(carrying) == 6
    for message in carrying:
        assert [message.fields_by_number[number].name for number in range(1, 5)] == [
            "verdict",
            "message_zh",
            "message_en",
            "next_step",
        ]
