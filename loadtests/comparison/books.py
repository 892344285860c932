"""Reads the comparison's store for the audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import redis

from loadtests.audit import Audit, Lines, Shelf, State
from loadtests.comparison.codes import EVENTS

PAGE: Final = 5_000
KEYS: Final = 1_000
"""Keys read at once."""


def read(socket: Path) -> Audit:
    """Read the store behind a socket, at rest."""
    made = Audit()
    with redis.Redis(unix_socket_path=str(socket)) as client:
        for fields in _events(made, client):
            _take(made, fields)
        _records(made, client)
        made.figures(_figures(client))
    return made


def _events(made: Audit, client: Any) -> Iterator[dict[str, str]]:
    first, count = "-", 0
    while entries := client.xrange(EVENTS, first, "+", count=PAGE):
        for _, fields in entries:
            count += 1
            yield {name.decode(): value.decode() for name, value in fields.items()}
        first = "(" + entries[-1][0].decode()
    added = client.xinfo_stream(EVENTS)["entries-added"] if count else 0
    if added != count:
        made.fault(f"{added} events were appended, {count} are there")


def _take(made: Audit, fields: dict[str, str]) -> None:
    match fields["type"]:
        case "received":
            shelf = (int(fields["mall"]), int(fields["store"]), int(fields["sku"]))
            made.receive(shelf, int(fields["count"]))
        case "issued":
            lines = [(sku, count) for sku, count, *_ in json.loads(fields["lines"])]
            made.issue(bytes.fromhex(fields["uid"]), int(fields["mall"]), int(fields["store"]), lines)
        case "redeemed":
            made.redeem(
                bytes.fromhex(fields["uid"]),
                [(sku, count) for sku, count, _ in json.loads(fields["lines"])],
            )
        case "expired":
            made.end(bytes.fromhex(fields["uid"]), State.EXPIRED)
        case other:
            made.fault(f"an event of type {other!r}: nothing that load tools cause")


def _records(made: Audit, client: Any) -> None:
    for keys in _pages(client, "code:*"):
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hmget(key, "state", "lines")
            for key, (state, lines) in zip(keys, pipeline.execute(), strict=True):
                left: Lines = [(sku, left) for sku, _, left in json.loads(lines)]
                made.record(bytes.fromhex(key.decode().removeprefix("code:")), State(state.decode()), left)


def _figures(client: Any) -> dict[Shelf, tuple[int, int]]:
    found: dict[Shelf, tuple[int, int]] = {}
    for keys in _pages(client, "stock:*"):
        for key in keys:
            _, mall_id, store_id = key.decode().split(":")
            figures = {name.decode(): int(value) for name, value in client.hgetall(key).items()}
            for sku in {int(name.partition(":")[2]) for name in figures}:
                figure = (figures.get(f"on_hand:{sku}", 0), figures.get(f"reserved:{sku}", 0))
                found[int(mall_id), int(store_id), sku] = figure
    return found


def _pages(client: Any, pattern: str) -> Iterator[list[bytes]]:
    """Keys that match, each once, some at a time. SCAN may give one twice."""
    keys = sorted(set(client.scan_iter(pattern, count=KEYS)))
    for first in range(0, len(keys), KEYS):
        yield keys[first : first + KEYS]
