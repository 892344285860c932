"""The control partition: what is not per store. Deployment constants, malls, stores, catalogue, wrapped keyring.

Each process keeps a copy (engine.deployment); here is only how it is read and written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine import limits
from engine.errors import Conflict, DeploymentMismatch, PickgateError, RequestIdReused
from engine.state import scripts
from engine.state.connection import Call, Connection, emptied
from engine.state.keys import ControlKeys, spread_tags
from engine.state.streams import FACTS

KINDS = ("malls", "stores", "catalogue", "policies", "providers", "terminals", "freezes", "keyring")
FORMAT = 1
"""Number of the state's layout. A store with another number is not touched."""

_KEYS = ControlKeys()


@dataclass(frozen=True, slots=True)
class Constants:
    """What is fixed when a deployment is created."""

    deployment_id: str
    partitions: int
    tags: tuple[str, ...]
    clock_compared: bool
    created_at_ms: int
    format: int = FORMAT


def create(
    connection: Connection, *, deployment_id: str, partitions: int, clock_compared: bool, keyring: bytes
) -> Constants:
    """Create a deployment in an empty store: partitions first, then the constants, whose presence means "complete".

    Raises DeploymentMismatch when the store holds one already, StoreUnavailable.
    """
    if read_constants(connection) is not None:
        raise DeploymentMismatch("the store holds a deployment already: open it, or use another store")
    constants = Constants(
        deployment_id=deployment_id,
        partitions=partitions,
        tags=tuple(tag.decode("ascii") for tag in spread_tags(partitions)),
        clock_compared=clock_compared,
        created_at_ms=connection.now_ms(),
    )
    connection.use_partitions([tag.encode() for tag in constants.tags], create=True)
    args = (json.dumps(asdict(constants)).encode(), keyring)
    [entered] = connection.run([Call(scripts.CREATE, (_KEYS.meta, _KEYS.events, _KEYS.keyring), args)])
    if isinstance(entered, PickgateError):
        raise entered
    if not entered:
        raise DeploymentMismatch("somebody else created a deployment in this store meanwhile: open it")
    return constants


def read_constants(connection: Connection) -> Constants | None:
    """Constants of the deployment in this store, None if it holds none. Raises DeploymentMismatch, StoreUnavailable."""
    [text] = connection.read([("HGET", _KEYS.meta, "constants")])
    if text is None:
        return None
    fields: dict[str, Any] = json.loads(text)
    if fields.get("format") != FORMAT:
        raise DeploymentMismatch(
            f"the store holds a deployment of format {fields.get('format')}, this version reads format {FORMAT}:"
            " use the version of pickgate that made it"
        )
    fields["tags"] = tuple(fields["tags"])
    return Constants(**fields)


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """What the ledger's writer last said of itself (engine.state.streams.Streams.publish)."""

    caught_up_ms: int
    """Unix ms before which every event is in the ledger; 0: no ledger has ever followed this deployment."""
    alarm: str
    """Why it does not go on; '' while it does."""


def read_facts(connection: Connection) -> tuple[Mapping[str, int], LedgerFacts]:
    """Version of the whole ("version") and of each kind that was ever put, and how the ledger is. Raises StoreUnavailable."""
    names = ("version", *KINDS)
    [values] = connection.read([("HMGET", _KEYS.meta, *names, *FACTS.values())])
    if values[0] is None:
        raise emptied("there is no deployment in this store")
    caught_up, alarm = values[len(names) :]
    versions = {name: int(value or 0) for name, value in zip(names, values[: len(names)], strict=True)}
    return versions, LedgerFacts(int(caught_up or 0), (alarm or b"").decode())


def read_kind(connection: Connection, kind: str) -> dict[str, bytes]:
    """All entries of one kind, by field. Raises StoreUnavailable."""
    [pairs] = connection.read([("HGETALL", _KEYS.kind(kind))])
    items = pairs.items() if isinstance(pairs, dict) else zip(pairs[::2], pairs[1::2], strict=True)
    return {field.decode(): value for field, value in items}


def put(
    connection: Connection,
    kind: str,
    entries: Sequence[tuple[str, bytes]],
    *,
    request: bytes,
    body: bytes,
    actor: str,
    expected_version: int | None = None,
) -> int:
    """Put entries of one kind (at most BATCH_MAX) in one step; gives the new version, or the first one's for a retry.

    The event in the control stream carries the entries, but never the keyring's blob. Raises RequestIdReused, Conflict (the
    kind has not the expected version), StoreUnavailable.
    """
    args: list[bytes | int] = [
        kind.encode("ascii"),
        b"" if expected_version is None else b"%d" % expected_version,
        body,
        actor.encode(),
        int(kind != "keyring"),
    ]
    for field, value in entries:
        args += [field.encode(), value]
    assert len(entries) <= limits.BATCH_MAX
    keys = (_KEYS.meta, _KEYS.events, _KEYS.kind(kind), _KEYS.answer(request))
    [reply] = connection.run([Call(scripts.CONTROL, keys, args)])
    if isinstance(reply, PickgateError):
        raise reply
    if reply[0] == b"X":
        raise RequestIdReused(
            "this request id was used before for another change: nothing was done; use a new id for a new change",
            field="request_id",
        )
    if reply[0] == b"V":
        raise Conflict(
            f"somebody changed the {kind} meanwhile (version {int(reply[1])}): read it again, then repeat"
        )
    return int(reply[1])


def keep_bounds(connection: Connection, version: int, bounds: Mapping[str, bytes]) -> bool:
    """Bring the bounds of tiers, as policies of this version state them, to every partition.

    bounds: by the policy's scope ("deployment", "store:7", "sku:1:100"), packed as layouts.TIERS.

    Returns False when those of one owner among several did not get them: bring them again. Raises StoreUnavailable.
    """
    flat = [part for scope, packed in bounds.items() for part in (scope.encode("ascii"), packed)]
    calls = [Call(scripts.BOUNDS, names.own, [version, *flat]) for names in connection.partitions]
    outcomes = connection.run(calls)
    errors = [outcome for outcome in outcomes if isinstance(outcome, PickgateError)]
    if errors and (connection.owners == 1 or len(errors) == len(outcomes)):
        raise errors[0]
    return not errors
