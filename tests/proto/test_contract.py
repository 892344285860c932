"""The contract and the engine say the same: numbers of enums both ways, and a method behind every method."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, get_args

import pytest
from google.protobuf.descriptor import EnumDescriptor

from engine import claims, policies, stores, verdict
from engine.ledger import code_events, operations
from engine.ledger.consumers import Feed
from ext.datum import Datum
from pickgate.v1 import code_event_service_pb2 as event_pb
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import review_service_pb2 as review_pb
from pickgate.v1 import settlement_service_pb2 as settlement_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from pickgate.v1 import types_pb2 as types_pb
from server import ledger_services, services, terminal_services, translate_ledger, translate_rules
from server.plain import enum_prefix

FILES = (
    types_pb,
    redemption_pb,
    code_pb,
    stock_pb,
    store_pb,
    review_pb,
    settlement_pb,
    event_pb,
    ledger_pb,
    terminal_pb,
)

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
        (redemption_pb.ReverseVerdict, verdict.ReverseVerdict),
        (code_pb.IssueVerdict, verdict.IssueVerdict),
        (code_pb.HoldVerdict, verdict.HoldVerdict),
        (code_pb.ConfirmVerdict, verdict.ConfirmVerdict),
        (code_pb.ExtendVerdict, verdict.ExtendVerdict),
        (code_pb.RenderVerdict, verdict.RenderVerdict),
        (code_pb.VoidVerdict, verdict.VoidVerdict),
        (stock_pb.StockVerdict, verdict.StockVerdict),
        (stock_pb.TransferVerdict, verdict.TransferVerdict),
        (review_pb.ReviewVerdict, verdict.ReviewVerdict),
        (review_pb.Decision, claims.Decision),
        (ledger_pb.OperationState, operations.State),
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


def test_code_events_have_the_numbers_of_the_events_that_are_stored() -> None:
    wire = {value.name: value.number for value in event_pb.CodeEventType.DESCRIPTOR.values}
    assert wire.pop("CODE_EVENT_TYPE_UNSPECIFIED") == 0
    assert wire == {f"CODE_EVENT_TYPE_{type_.name}": type_.value for type_ in code_events.TYPES}


def test_every_feed_has_a_kind() -> None:
    names = {kind: ledger_pb.FeedKind.Name(number) for kind, number in translate_ledger._FEED_KINDS.items()}
    assert names == {one: f"FEED_KIND_{one.name}" for one in Feed}


def test_tiers_are_those_of_the_engine_behind_a_zero_that_says_nothing() -> None:
    wire = {value.name: value.number for value in types_pb.StockTier.DESCRIPTOR.values}
    assert wire.pop("STOCK_TIER_UNSPECIFIED") == 0
    assert wire == {f"STOCK_TIER_{tier.name}": tier + 1 for tier in claims.Tier}


@pytest.mark.parametrize(
    ("contract", "words", "engine"),
    [
        (store_pb.TerminalLocation, translate_rules.TERMINAL_LOCATIONS, stores.TerminalLocation),
        (store_pb.LocationRule, translate_rules.LOCATION_RULES, policies.LocationRule),
        (types_pb.PickupMode, translate_rules.PICKUP_MODES, stores.PickupMode),
        (types_pb.ProofMethod, translate_rules.PROOF_METHODS, policies.ProofMethod),
        (store_pb.PolicyLevel, translate_rules.LEVELS, policies.Level),
    ],
    ids=lambda value: (
        getattr(value, "__name__", "") or getattr(getattr(value, "DESCRIPTOR", None), "name", "")
    ),
)
def test_every_word_of_the_engine_has_its_number(
    contract: Any, words: Mapping[int, str], engine: object
) -> None:
    assert sorted(words.values()) == sorted(get_args(engine))
    names = {value.number: value.name for value in contract.DESCRIPTOR.values if value.number}
    assert {
        number: f"{enum_prefix(contract.DESCRIPTOR)}{word.upper()}" for number, word in words.items()
    } == names


def test_a_pickup_mode_has_the_number_of_its_version() -> None:
    for number, word in translate_rules.PICKUP_MODES.items():
        assert policies.VERSION_OF_MODE[word] == number


def test_refusals_of_hold_have_the_numbers_of_issue() -> None:
    issue = {one.name: one.number for one in verdict.IssueVerdict}
    for one in verdict.HoldVerdict:
        if one is not verdict.HoldVerdict.HELD:
            assert issue[one.name] == one.number


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
    served = {name: method.request for name, method in services.METHODS.items()}
    served |= {name: stream.request for name, stream in services.STREAMS.items()}
    served |= {name: method.request for name, method in ledger_services.METHODS.items()}
    served |= {name: stream.request for name, stream in ledger_services.STREAMS.items()}
    served |= {name: method.request for name, method in terminal_services.METHODS.items()}
    assert {name: request.DESCRIPTOR.full_name for name, request in served.items()} == contract
    streaming = {
        f"{service.name}.{method.name}"
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.server_streaming
    }
    assert {*services.STREAMS, *ledger_services.STREAMS} == streaming


def test_every_answer_of_a_verb_carries_verdict_sentences_and_next_step() -> None:
    carrying = [
        message
        for file in FILES
        for message in file.DESCRIPTOR.message_types_by_name.values()
        if "verdict" in message.fields_by_name
    ]
    assert len(carrying) == 12
    for message in carrying:
        assert [message.fields_by_number[number].name for number in range(1, 5)] == [
            "verdict",
            "message_zh",
            "message_en",
            "next_step",
        ]
