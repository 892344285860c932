"""`pickgate policies` and `pickgate providers`: put and list."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console as RichConsole
from rich.markup import escape

from engine.errors import InvalidInput
from engine.proof import ProviderKey
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import translate_rules
from server.commands import parameters
from server.commands.places import batches, entries, pages, report
from server.console import Console, command, table
from server.plain import enum_name, plain

_file = click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)
_METHODS: Final = ("face", "id_document", "two_staff")
_SCOPE: Final = ("level", "store_id", "mall_id", "sku_id")
_LOCATION_RULES: Final = ("off", "optional", "required")


# --- policies -------------------------------------------------------------------------------------------------------
@click.group("policies")
def policies() -> None:
    """What the deployment, a store or a SKU rules about its codes; what it leaves open is inherited."""


@policies.command("put")
@_file
@click.option("--level", type=click.Choice(["deployment", "store", "sku"]))
@click.option("--store", "store_id", type=parameters.ID, help="Scope of a store's policy.")
@click.option("--mall", "mall_id", type=parameters.ID, help="Scope of a SKU's policy, with --sku.")
@click.option("--sku", "sku_id", type=parameters.ID)
@click.option("--code-ttl-s", type=parameters.WHOLE_64, help="Life of a code that states none.")
@click.option("--hold-s", type=parameters.WHOLE_64, help="How long stock is held for an unpaid order.")
@click.option("--payload-life-s", type=parameters.WHOLE_64, help="How long a rendered payload is taken.")
@click.option("--reversal-window-s", type=parameters.WHOLE_64, help="How long a redemption can be reversed.")
@click.option("--cycles-max", type=parameters.WHOLE_32, help="How often a code may be redeemed and reversed.")
@click.option("--terminal-location", type=click.Choice(_LOCATION_RULES))
@click.option("--customer-location", type=click.Choice(_LOCATION_RULES))
@click.option("--pickup-mode", type=click.Choice(["static", "dynamic", "valuable"]))
@click.option(
    "--customer-proof", type=click.Choice(["off", "required"]), help="Off: valuables need no proof."
)
@click.option("--proof-method", "proof_methods", type=click.Choice(_METHODS), multiple=True)
@parameters.request_id
@parameters.actor
@command
def put_policies(
    console: Console,
    /,
    file: Path | None,
    request_id: str,
    actor: str,
    proof_methods: tuple[str, ...],
    **flags: Any,
) -> None:
    """Put policies from FILE (JSON, "-" for standard input), or one by options. Each is replaced whole.

    Tiers of stock are stated in a file.
    """
    items = entries(
        store_pb.Policy, file, {**flags, "proof_methods": list(proof_methods) or None}, "policies"
    )
    version, used = 0, ""
    with console.client(console.settings()) as client:
        for batch, batch_id in batches(items, request_id):
            put = store_pb.PutPoliciesRequest(policies=batch, request_id=batch_id, actor=actor)
            version = client.call(client.stores.PutPolicies, put).control_version
            used = used or batch_id
    report(console, "policies", len(items), version, used)


@policies.command("list")
@command
def list_policies(console: Console) -> None:
    """List the policies that rule something."""
    with console.client(console.settings()) as client:

        def fetch(token: str) -> tuple[list[store_pb.Policy], str]:
            page = client.call(client.stores.ListPolicies, store_pb.ListPoliciesRequest(page_token=token))
            return list(page.policies), page.next_page_token

        found = pages(fetch)

    def show(rich: RichConsole) -> None:
        made = table("Policies", "level", "#store", "#mall", "#SKU", "rules")
        for policy in found:
            made.add_row(
                enum_name(store_pb.PolicyLevel.DESCRIPTOR, policy.level).lower(),
                *(str(number or "") for number in (policy.store_id, policy.mall_id, policy.sku_id)),
                _ruled(policy),
            )
        rich.print(made)

    console.emit({"policies": [plain(policy) for policy in found]}, show)


def _ruled(policy: store_pb.Policy) -> str:
    """What a policy states, one field in a line."""
    lines = []
    stated = plain(policy)
    for field, _ in policy.ListFields():
        if field.name in _SCOPE:
            continue
        shown = stated[field.name]
        if isinstance(shown, dict):
            shown = ", ".join(f"{name.removesuffix('_percent')} {percent}" for name, percent in shown.items())
        elif isinstance(shown, list):
            shown = ", ".join(shown).lower()
        lines.append(f"{field.name} {str(shown).lower() if field.enum_type else shown}")
    return "\n".join(lines)


# --- providers ------------------------------------------------------------------------------------------------------
@click.group("providers")
def providers() -> None:
    """Who may vouch for a customer's identity, by proof tokens."""


@providers.command("put")
@_file
@click.option("--id", "provider_id", help="What its tokens carry as iss.")
@click.option("--name")
@click.option(
    "--jwk",
    "jwks",
    type=click.Path(path_type=Path),
    multiple=True,
    help="File with a public key as JWK (Ed25519 or P-256); repeatable.",
)
@click.option(
    "--method", "methods", type=click.Choice(_METHODS), multiple=True, help="How it may vouch; repeatable."
)
@click.option("--revoked", is_flag=True, help="None of its tokens counts any more.")
@parameters.request_id
@parameters.actor
@command
def put_providers(
    console: Console,
    file: Path | None,
    provider_id: str | None,
    name: str | None,
    jwks: tuple[Path, ...],
    methods: tuple[str, ...],
    revoked: bool,
    request_id: str,
    actor: str,
) -> None:
    """Put providers from FILE (JSON, "-" for standard input), or one by options. Each is replaced whole."""
    flags = {
        "provider_id": provider_id,
        "name": name,
        "keys": [key for path in jwks for key in _keys(path)] or None,
        "methods": list(methods) or None,
        "revoked": revoked,
    }
    items = entries(store_pb.Provider, file, flags, "providers")
    version, used = 0, ""
    with console.client(console.settings()) as client:
        for batch, batch_id in batches(items, request_id):
            put = store_pb.PutProvidersRequest(providers=batch, request_id=batch_id, actor=actor)
            version = client.call(client.stores.PutProviders, put).control_version
            used = used or batch_id
    report(console, "providers", len(items), version, used)


def _keys(path: Path) -> list[dict[str, Any]]:
    """The keys of a file: a JWK, a list of them, or a JWK set ({"keys": […]})."""
    found = []
    for jwk in parameters.read_entries(path, "keys"):
        if not isinstance(jwk, dict):
            raise InvalidInput(
                f"{path} holds no JWK; expected an object with kty, crv, x and kid", field="jwk"
            )
        key = ProviderKey.from_jwk(jwk)
        alg = enum_name(
            store_pb.ProofAlgorithm.DESCRIPTOR, translate_rules.number(key.alg, translate_rules.ALGORITHMS)
        )
        found.append({"kid": key.kid, "alg": alg, "x": key.x, "y": key.y})
    return found


@providers.command("list")
@command
def list_providers(console: Console) -> None:
    """List the providers, revoked ones too."""
    with console.client(console.settings()) as client:

        def fetch(token: str) -> tuple[list[store_pb.Provider], str]:
            page = client.call(client.stores.ListProviders, store_pb.ListProvidersRequest(page_token=token))
            return list(page.providers), page.next_page_token

        found = pages(fetch)

    def show(rich: RichConsole) -> None:
        made = table("Providers of proof tokens", "id", "name", "keys", "methods", "state")
        for provider in found:
            made.add_row(
                escape(provider.provider_id),
                escape(provider.name),
                "\n".join(
                    f"{escape(key.kid)} {enum_name(store_pb.ProofAlgorithm.DESCRIPTOR, key.alg)}"
                    for key in provider.keys
                ),
                ", ".join(
                    enum_name(types_pb.ProofMethod.DESCRIPTOR, one).lower() for one in provider.methods
                ),
                "revoked" if provider.revoked else "counts",
            )
        rich.print(made)

    console.emit({"providers": [plain(provider) for provider in found]}, show)
