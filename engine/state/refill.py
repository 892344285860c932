"""Filling an empty store with what a ledger knows: the counterpart of what the scripts keep, key by key (engine.state.keys).

The store is empty before, and holds no deployment until the last step: its constants come last, as when a deployment is created. Cut off
in between, it is emptied and filled again. Every partition is said to have been with another server, so whoever opens it first begins a
new epoch there: no number that the lost store may have given behind the ledger's last can be given with another meaning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from engine.errors import DeploymentMismatch
from engine.state.connection import Connection
from engine.state.keys import ControlKeys, PartitionKeys
from engine.state.register import BUCKET_TTL_S
from engine.state.streams import Entry, Place, unpack_fields

REBUILT_RUN_ID: Final = "rebuilt"
"""In place of the server's run_id: no server's."""
COMMANDS_MAX: Final = 500
"""Commands of one write: some hundred kilobytes."""

Command = tuple[bytes | str | int, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What one partition shall hold."""

    place: Place
    last_seen_ms: int
    stock: Mapping[tuple[int, int, int], bytes]
    """By mall, store and SKU."""
    records: Mapping[bytes, bytes]
    answers: Mapping[bytes, bytes]
    """By request digest: those that live as long as their code."""
    lasting: Sequence[tuple[bytes, bytes, int]]
    """Key, answer and remaining lifetime in ms: those of stock changes and arrivals."""
    register: Mapping[bytes, Mapping[bytes, bytes]]
    """By key: request ids, and the bodies that must agree."""
    evidence: Mapping[bytes, bytes]
    reviews: Mapping[bytes, int]
    transit: Mapping[bytes, bytes]
    due: Mapping[int, bytes]
    """By minute: the uids to look at."""
    swept: int
    """The last minute that needs no look any more."""
    tail: Sequence[Entry]
    """The last events, so that the ledger finds its place again."""


def is_empty(connection: Connection) -> bool:
    """Whether the store holds nothing at all. Raises StoreUnavailable."""
    return connection.is_empty()


def fill_partition(connection: Connection, names: PartitionKeys, held: Contents) -> None:
    """Write one partition. Raises StoreUnavailable."""
    epoch, seq = max(held.place.epoch, 1), held.place.seq
    commands: list[Command] = [
        ("HSET", names.meta, "epoch", epoch, "seq", seq, "last_seen", held.last_seen_ms, "run_id", REBUILT_RUN_ID, "swept", held.swept)
    ]  # fmt: skip
    commands += [("XADD", names.events, b"%d-%d" % entry[:2], "e", entry.data) for entry in held.tail]
    stock: dict[bytes, list[bytes | str | int]] = {}
    for (mall, store, sku), figures in held.stock.items():
        stock.setdefault(names.stock(mall, store), []).extend((sku, figures))
    commands += [("HSET", key, *flat) for key, flat in stock.items()]
    commands += _buckets(names.record, held.records)
    commands += _buckets(names.answers, held.answers)
    commands += [("HSET", names.evidence, uid, tries) for uid, tries in held.evidence.items()]
    commands += [("ZADD", names.reviews, at_ms, uid) for uid, at_ms in held.reviews.items()]
    commands += [("HSET", names.transit, key, units) for key, units in held.transit.items()]
    for key, entries in held.register.items():
        commands.append(("HSET", key, *chain.from_iterable(entries.items())))
        commands.append(("EXPIRE", key, BUCKET_TTL_S))
    commands += [("SET", key, answer, "PX", left_ms) for key, answer, left_ms in held.lasting]
    commands += [("SET", names.due(minute), uids) for minute, uids in held.due.items()]
    _write(connection, commands)


def _buckets(names: Callable[[bytes], bytes], entries: Mapping[bytes, bytes]) -> list[Command]:
    """Put entries into their buckets, one command for each bucket."""
    found: dict[bytes, list[bytes]] = {}
    for field, value in entries.items():
        found.setdefault(names(field), []).extend((field, value))
    return [("HSET", bucket, *flat) for bucket, flat in found.items()]


def fill_control(
    connection: Connection, constants: bytes, keyring: bytes, events: Sequence[Entry], tail: Sequence[Entry]
) -> None:
    """Write the control partition: every entry as its last event has it. Last of all the constants. Raises StoreUnavailable."""
    names = ControlKeys()
    if "partitions" not in json.loads(constants):
        raise DeploymentMismatch("the ledger holds no constants of a deployment that could be rebuilt")
    versions: dict[bytes, int] = {}
    entries: dict[bytes, dict[bytes, bytes]] = {}
    last_seen = 0
    for event in events:
        pairs = unpack_fields(event.data)
        said = dict(reversed(pairs))
        last_seen = max(last_seen, int(said.get(b"at", b"0")))
        kind = said[b"kind"]
        if b"version" in said:
            versions[kind] = int(said[b"version"])
            # The script's own four fields come first; a keyring's event carries no entries.
            entries.setdefault(kind, {}).update(pairs[4:])
    commands: list[Command] = [
        ("XADD", names.events, b"%d-0" % entry.seq, *chain.from_iterable(unpack_fields(entry.data)))
        for entry in tail
    ]
    for kind, found in entries.items():
        for field, value in found.items():
            commands.append(("HSET", names.kind(kind.decode()), field, value))
    commands.append(("HSET", names.keyring, "blob", keyring))
    _write(connection, commands)
    flat = [part for kind, version in versions.items() for part in (kind, version)]
    whole = events[-1].seq if events else 1
    facts: Command = ("constants", constants, "version", whole, "keyring", 1, *flat, "last_seen", last_seen)
    connection.write([("HSET", names.meta, *facts)])


def _write(connection: Connection, commands: Sequence[Command]) -> None:
    for start in range(0, len(commands), COMMANDS_MAX):
        connection.write(commands[start : start + COMMANDS_MAX])
