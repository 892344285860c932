"""Policies: what each level may state, who wins, and how a put comes into force."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Final, get_args

import pytest

from engine import limits
from engine.claims import Version
from engine.deployment import Deployment
from engine.errors import InvalidInput, RequestIdReused, TooManyItems
from engine.policies import (
    BUILT_IN,
    LEVELS_OF_FIELD,
    Level,
    Policies,
    Policy,
    ProofMethod,
    Tiers,
    strictest,
)
from engine.stores import CatalogueEntry, PickupMode
from tests.engine import shop as shops
from tests.engine.shop import MALL, OTHER_MALL, STORE, Clock, Shop

SKU: Final = 100
VALUES: Final[dict[str, tuple[Any, Any, Any]]] = {
    "code_ttl_s": (3600, 7200, 86_400),
    "hold_s": (600, 1200, 1800),
    "payload_life_s": (90, 120, 600),
    "reversal_window_s": (0, 600, 7200),
    "cycles_max": (1, 2, 3),
    "terminal_location": ("off", "optional", "required"),
    "customer_location": ("required", "optional", "off"),
    "pickup_mode": ("static", "valuable", "dynamic"),
    "customer_proof": ("off", "required", "off"),
    "proof_methods": (("two_staff",), ("face", "id_document"), ("id_document",)),
    "tiers": (Tiers(50, 20, 10, 5), Tiers(40, 20, 10, 5, 1), Tiers(20, 10, 5, 0)),
}
"""Of each field a value for the deployment, for the store and for the SKU, each another than what is built in, or than the
level above."""


def scope(level: Level) -> dict[str, Any]:
    return {"deployment": {}, "store": {"store_id": STORE}, "sku": {"mall_id": MALL, "sku_id": SKU}}[level]


def policy(level: Level, **fields: Any) -> Policy:
    return Policy(level, **scope(level), **fields)


# --- who wins -------------------------------------------------------------------------------------------------------------
def test_every_field_has_its_levels_a_built_in_value_and_values_to_test() -> None:
    ruled = {field.name for field in fields(Policy)} - {"level", "store_id", "mall_id", "sku_id"}
    assert ruled == set(LEVELS_OF_FIELD) == {field.name for field in fields(BUILT_IN)} == set(VALUES)


def test_what_is_built_in_holds_where_nobody_rules() -> None:
    resolved = Policies().resolve(STORE, MALL, SKU)
    assert resolved == BUILT_IN
    assert (resolved.code_ttl_s, resolved.hold_s, resolved.payload_life_s) == (48 * 3600, 900, 60)
    assert (resolved.reversal_window_s, resolved.cycles_max) == (3600, 10)
    assert (resolved.terminal_location, resolved.customer_location) == ("required", "off")
    assert resolved.tiers == Tiers(30, 10, 5, 1, 2)
    assert resolved.version is Version.DYNAMIC


@pytest.mark.parametrize("field", sorted(LEVELS_OF_FIELD))
def test_the_most_specific_level_that_states_a_field_wins(field: str) -> None:
    stated: list[Policy] = []
    expected = getattr(BUILT_IN, field)
    for level, value in zip(get_args(Level), VALUES[field], strict=True):
        if level in LEVELS_OF_FIELD[field]:
            stated.append(policy(level, **{field: value}))
            expected = value
        resolved = Policies(stated).resolve(STORE, MALL, SKU)
        assert getattr(resolved, field) == expected
        # Nothing else has moved.
        assert replace(resolved, **{field: getattr(BUILT_IN, field)}) == BUILT_IN
    if "deployment" in LEVELS_OF_FIELD[field] and len(stated) > 1:
        # In any order, and without the level between.
        assert getattr(Policies(reversed(stated)).resolve(STORE, MALL, SKU), field) == expected


@pytest.mark.parametrize("field", sorted(LEVELS_OF_FIELD))
@pytest.mark.parametrize("level", get_args(Level))
def test_a_field_stands_at_its_levels_only(level: Level, field: str) -> None:
    value = VALUES[field][0]
    if level in LEVELS_OF_FIELD[field]:
        assert getattr(policy(level, **{field: value}), field) == value
        return
    with pytest.raises(InvalidInput) as refused:
        policy(level, **{field: value})
    assert refused.value.field == field
    assert f"{field} is {value!r} in a {level}'s policy; expected" in refused.value.message


def test_a_policy_rules_its_own_scope_only() -> None:
    policies = Policies(
        [policy("store", hold_s=60), policy("sku", code_ttl_s=3600), policy("deployment", cycles_max=3)]
    )
    assert policies.resolve(STORE, MALL, SKU) == replace(BUILT_IN, hold_s=60, code_ttl_s=3600, cycles_max=3)
    assert policies.resolve(STORE + 1, MALL, SKU) == replace(BUILT_IN, code_ttl_s=3600, cycles_max=3)
    assert policies.resolve(STORE, OTHER_MALL, SKU) == replace(BUILT_IN, hold_s=60, cycles_max=3)
    assert policies.resolve(STORE, MALL, SKU + 1) == replace(BUILT_IN, hold_s=60, cycles_max=3)
    assert policies.resolve(STORE) == replace(BUILT_IN, hold_s=60, cycles_max=3)


def test_tiers_are_inherited_as_a_whole() -> None:
    policies = Policies(
        [policy("deployment", tiers=Tiers(50, 20, 10, 5)), policy("sku", tiers=Tiers(red_percent=15))]
    )
    assert policies.resolve(STORE, MALL, SKU).tiers == Tiers(30, 15, 5, 1, 2)


def test_the_store_itself_says_where_its_terminals_must_be() -> None:
    stores = {
        1: shops.store(1, terminal_location="off"),
        2: shops.store(2, terminal_location="inherit"),
        3: shops.store(3, terminal_location="required"),
    }
    policies = Policies([policy("deployment", terminal_location="optional")], stores)
    rules = [policies.resolve(store_id).terminal_location for store_id in (1, 2, 3)]
    assert rules == ["off", "optional", "required"]
    assert Policies([], stores).resolve(2).terminal_location == "required"


def test_the_catalogue_stands_between_the_sku_s_policy_and_the_store_s() -> None:
    catalogue = {(MALL, SKU): CatalogueEntry(MALL, SKU, "金条", pickup_mode="valuable")}
    store_rules = policy("store", pickup_mode="static")
    assert Policies([store_rules], {}, catalogue).resolve(STORE, MALL, SKU).version is Version.VALUABLE
    assert Policies([store_rules], {}, catalogue).resolve(STORE, MALL, SKU + 1).version is Version.STATIC
    overruled = Policies([store_rules, policy("sku", pickup_mode="dynamic")], {}, catalogue)
    assert overruled.resolve(STORE, MALL, SKU).version is Version.DYNAMIC


@pytest.mark.parametrize(
    ("mode", "version"),
    [("static", Version.STATIC), ("dynamic", Version.DYNAMIC), ("valuable", Version.VALUABLE)],
)
def test_modes_and_versions(mode: PickupMode, version: Version) -> None:
    assert Policies([policy("sku", pickup_mode=mode)]).resolve(STORE, MALL, SKU).version is version


# --- several lines --------------------------------------------------------------------------------------------------------
def test_a_code_of_several_lines_satisfies_each_of_them() -> None:
    policies = Policies(
        [
            policy("store", reversal_window_s=60, customer_location="optional"),
            policy("sku", code_ttl_s=3600, pickup_mode="static", proof_methods=("face", "two_staff")),
            Policy(
                "sku",
                mall_id=MALL,
                sku_id=101,
                hold_s=120,
                pickup_mode="valuable",
                customer_location="required",
                proof_methods=("id_document", "two_staff"),
            ),
        ]
    )
    terms = policies.resolve_lines(STORE, MALL, [SKU, 101, 102])
    assert (terms.code_ttl_s, terms.hold_s) == (3600, 120)
    assert (terms.customer_location, terms.pickup_mode, terms.version) == (
        "required",
        "valuable",
        Version.VALUABLE,
    )
    assert terms.proof_methods == ("two_staff",)
    assert (terms.reversal_window_s, terms.cycles_max) == (60, 10)
    alone = policies.resolve_lines(STORE, MALL, [SKU])
    assert (alone.code_ttl_s, alone.pickup_mode, alone.customer_location) == (3600, "static", "optional")


@pytest.mark.parametrize(
    ("first", "second"),
    [(("id_document",), ("two_staff",)), (("face", "id_document"), ("face", "two_staff"))],
)
def test_lines_that_have_no_proof_in_common_offer_none_and_never_face_alone(
    first: tuple[ProofMethod, ...], second: tuple[ProofMethod, ...]
) -> None:
    lines = [replace(BUILT_IN, proof_methods=methods) for methods in (first, second)]
    assert strictest(lines).proof_methods == ()


# --- what may be stated -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "field", "value", "expectation"),
    [
        ({"code_ttl_s": 59}, "code_ttl_s", "59", "60 to 34560000 seconds"),
        ({"code_ttl_s": limits.TTL_S_MAX + 1}, "code_ttl_s", "34560001", "60 to 34560000 seconds"),
        ({"code_ttl_s": True}, "code_ttl_s", "True", "60 to"),
        ({"code_ttl_s": 3600.0}, "code_ttl_s", "3600.0", "60 to"),
        ({"hold_s": 59}, "hold_s", "59", "60 to 86400 seconds"),
        ({"payload_life_s": 601}, "payload_life_s", "601", "60 to 600 seconds"),
        ({"reversal_window_s": -1}, "reversal_window_s", "-1", "0 to 2592000 seconds"),
        ({"cycles_max": 0}, "cycles_max", "0", "1 to 10 cycles"),
        ({"cycles_max": 11}, "cycles_max", "11", "1 to 10 cycles"),
        ({"terminal_location": "inherit"}, "terminal_location", "'inherit'", "off, optional or required"),
        ({"customer_location": "sometimes"}, "customer_location", "'sometimes'", "off, optional or required"),
        ({"pickup_mode": "face"}, "pickup_mode", "'face'", "dynamic, static or valuable"),
        ({"proof_methods": ()}, "proof_methods", "0 entries", "1 to 3"),
        ({"proof_methods": ("face",)}, "proof_methods", "face alone", "id_document or two_staff"),
        ({"proof_methods": ("face", "face")}, "proof_methods", "'face' again", "each once"),
        ({"proof_methods": ("selfie",)}, "proof_methods[0]", "'selfie'", "face, id_document or two_staff"),
        ({"store_id": 7}, "store_id", "7", "0 in a deployment's policy"),
        ({"level": "store"}, "store_id", "0", "1 to 4294967295"),
        ({"level": "store", "store_id": 7, "sku_id": 9}, "sku_id", "9", "0 in a store's policy"),
        ({"level": "sku", "sku_id": 9}, "mall_id", "0", "1 to 4294967295"),
        ({"level": "mall"}, "level", "'mall'", "deployment, store or sku"),
    ],
)
def test_a_wrong_value_is_refused_by_field_value_and_expectation(
    fields: dict[str, Any], field: str, value: str, expectation: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        Policy(**({"level": "deployment"} | fields))
    assert refused.value.field == field
    assert value in refused.value.message
    assert f"expected {expectation}" in refused.value.message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"emergency_percent": -1}, "tiers.emergency_percent"),
        ({"closed_percent": 1}, "tiers.closed_percent"),
        ({"closed_percent": 3}, "tiers.closed_percent"),
        ({"red_percent": 5}, "tiers.red_percent"),
        ({"tight_percent": 10}, "tiers.tight_percent"),
        ({"tight_percent": 99}, "tiers.tight_percent"),
        ({"hysteresis_percent": 21}, "tiers.hysteresis_percent"),
        ({"hysteresis_percent": 4}, "tiers.closed_percent"),
    ],
)
def test_tiers_rise_by_more_than_the_hysteresis(fields: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Tiers(**fields)
    assert refused.value.field == field


def test_a_policy_comes_back_as_it_was_put_and_what_a_newer_version_added_is_ignored() -> None:
    for level in get_args(Level):
        put = policy(level, **{f: v[0] for f, v in VALUES.items() if level in LEVELS_OF_FIELD[f]})
        assert Policy.from_json(put.to_json()) == put
    stored = json.loads(policy("deployment", tiers=Tiers()).to_json())
    stored["from_the_future"] = {"a": [1]}
    stored["tiers"]["from_the_future"] = 7
    del stored["hold_s"]
    assert Policy.from_json(json.dumps(stored).encode()) == policy("deployment", tiers=Tiers())


def test_scopes_have_different_names() -> None:
    names = [
        Policy("deployment").field,
        Policy("store", store_id=11).field,
        Policy("sku", mall_id=1, sku_id=1).field,
        Policy("sku", mall_id=11, sku_id=1).field,
    ]
    assert len(set(names)) == len(names)


# --- put into a deployment --------------------------------------------------------------------------------------------------
@pytest.fixture
def elsewhere(shop: Shop) -> Iterator[Deployment]:
    """The same deployment, as another process has it open."""
    with shops.open_deployment(shop.url, Clock(shop.clock.now_ms)) as deployment:
        yield deployment


def control_events(deployment: Deployment) -> list[dict[bytes, bytes]]:
    [entries] = deployment.connection.read([("XRANGE", b"{ctl}e", "-", "+")])
    return [
        fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        for _, fields in entries
    ]


def test_a_put_is_in_force_here_and_elsewhere_and_is_an_event(shop: Shop, elsewhere: Deployment) -> None:
    control = shop.deployment.control
    before = control.copy().version
    assert elsewhere.control.refresh().policies.resolve(STORE, MALL, SKU).hold_s == 900
    put = [policy("store", hold_s=120), policy("sku", pickup_mode="valuable")]
    version = control.put_policies(put, request_id="policy-01", actor="ops:li")
    assert version == before + 1 == control.copy().version
    for copy in (control.copy(), elsewhere.control.refresh()):
        resolved = copy.policies.resolve(STORE, MALL, SKU)
        assert (resolved.hold_s, resolved.pickup_mode) == (120, "valuable")
        assert copy.policies.resolve(STORE + 1, MALL, SKU).hold_s == 900
    assert control.policies() == tuple(put)
    event = control_events(shop.deployment)[-1]
    assert (event[b"kind"], event[b"actor"], event[b"version"]) == (b"policies", b"ops:li", b"%d" % version)
    assert Policy.from_json(event[put[0].field.encode()]) == put[0]


def test_a_put_replaces_and_an_empty_policy_takes_back(shop: Shop) -> None:
    control = shop.deployment.control
    control.put_policies([policy("store", hold_s=120, cycles_max=2)], request_id="policy-01", actor="ops")
    control.put_policies([policy("store", cycles_max=3)], request_id="policy-02", actor="ops")
    resolved = control.copy().policies.resolve(STORE, MALL, SKU)
    assert (resolved.hold_s, resolved.cycles_max) == (900, 3)
    control.put_policies([policy("store")], request_id="policy-03", actor="ops")
    assert control.copy().policies.resolve(STORE, MALL, SKU) == replace(
        BUILT_IN, terminal_location="optional"
    )
    assert control.policies() == ()


def test_a_retry_of_a_put_gets_the_first_version_and_another_body_is_refused(shop: Shop) -> None:
    control = shop.deployment.control
    first = control.put_policies([policy("store", hold_s=120)], request_id="policy-01", actor="ops")
    later = control.put_policies([policy("store", hold_s=240)], request_id="policy-02", actor="ops")
    assert control.put_policies([policy("store", hold_s=120)], request_id="policy-01", actor="ops") == first
    with pytest.raises(RequestIdReused):
        control.put_policies([policy("store", hold_s=130)], request_id="policy-01", actor="ops")
    assert control.copy().version == later
    assert control.copy().policies.resolve(STORE).hold_s == 240


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (Policy("store", store_id=999_999, hold_s=60), "store_id"),
        (Policy("sku", mall_id=MALL, sku_id=999_999, hold_s=60), "sku_id"),
        (Policy("sku", mall_id=77, sku_id=SKU, hold_s=60), "sku_id"),
    ],
)
def test_a_policy_of_what_is_not_there_is_refused_whole(shop: Shop, item: Policy, field: str) -> None:
    control = shop.deployment.control
    before = control.copy().version
    with pytest.raises(InvalidInput) as refused:
        control.put_policies([policy("deployment", hold_s=60), item], request_id="policy-01", actor="ops")
    assert refused.value.field == field
    assert control.refresh().version == before
    assert control.copy().policies.resolve(STORE).hold_s == 900


def test_a_put_is_bounded(shop: Shop) -> None:
    control = shop.deployment.control
    for items in ([], [policy("deployment")] * (limits.BATCH_MAX + 1)):
        with pytest.raises(TooManyItems):
            control.put_policies(items, request_id="policy-01", actor="ops")


def test_a_store_s_change_of_mind_is_resolved_anew(shop: Shop) -> None:
    control = shop.deployment.control
    control.put_policies([policy("deployment", terminal_location="off")], request_id="policy-01", actor="ops")
    assert control.copy().policies.resolve(STORE).terminal_location == "optional"
    shop.put_store(terminal_location="inherit")
    assert control.copy().policies.resolve(STORE).terminal_location == "off"
    control.put_catalogue(
        [CatalogueEntry(MALL, SKU, "金条", pickup_mode="valuable")], request_id="sku-0001", actor="ops"
    )
    assert control.copy().policies.resolve(STORE, MALL, SKU).pickup_mode == "valuable"
