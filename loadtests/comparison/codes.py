"""Codes and stock of the comparison: one script call each, one command each where nothing must be atomic."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from importlib import resources
from typing import Any, Final

from redis.exceptions import NoScriptError

from loadtests.comparison.client import Client

EVENTS: Final = "events"
ATTEMPTS: Final = "attempts"
EXPIRIES: Final = "expiries"
AFTERLIFE_S: Final = 72 * 3600
REMEMBERED_S: Final = 5 * 24 * 3600
_UID_SHAPE: Final = 1 << 33
"""docs/format.md: the 21 bits behind the partition of a dynamic code are never all zero."""


class RequestIdReused(Exception):
    """A known request id came with another body."""


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def body_digest(*parts: object) -> bytes:
    """What must agree when a request id comes again."""
    return hashlib.sha256(repr(parts).encode()).digest()[:16]


class Script:
    """One Lua script, called by its digest and loaded where it is not known."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._source = resources.files(__package__).joinpath("lua", f"{name}.lua").read_text("utf-8")
        self._sha = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, keys: list[str], *args: Any) -> Any:
        """Run it."""
        try:
            return await self._client.evalsha(self._sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._client.eval(self._source, len(keys), *keys, *args)


def code_key(uid: str) -> str:
    """The hash of one code."""
    return f"code:{uid}"


def stock_key(mall_id: int, store_id: int) -> str:
    """The hash of a store's stock for a mall, `on_hand:<sku>` and `reserved:<sku>`."""
    return f"stock:{mall_id}:{store_id}"


class Codes:
    """The verbs. Answers are dicts as the scripts write them, with `replayed`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._redeem = Script(client, "redeem")
        self._issue = Script(client, "issue")
        self._receive = Script(client, "receive")
        self._expire = Script(client, "expire")

    async def redeem(
        self,
        uid: str,
        *,
        at_ms: int,
        mall_id: int,
        store_id: int,
        terminal_id: int,
        request_id: str,
        wanted: list[tuple[int, int]],
        stale: bool,
        place: int,
        bucket: int,
        actor: str,
    ) -> dict[str, Any]:
        """One try to redeem. Raises RequestIdReused."""
        answer = await self._redeem(
            [
                code_key(uid),
                stock_key(mall_id, store_id),
                f"redeem:{mall_id}:{store_id}:{terminal_id}:{request_id}",
                EVENTS,
                ATTEMPTS,
                EXPIRIES,
            ],
            at_ms,
            body_digest(uid, wanted),
            uid,
            mall_id,
            store_id,
            terminal_id,
            request_id,
            int(stale),
            place,
            json.dumps(wanted) if wanted else "[]",
            AFTERLIFE_S,
            actor,
            bucket,
        )
        return _read(answer)

    async def issue(
        self,
        *,
        mall_id: int,
        store_id: int,
        order_id: str,
        lines: list[tuple[int, int]],
        ttl_s: int,
        request_id: str,
        channel: int,
        amount_fen: int,
        actor: str,
    ) -> dict[str, Any]:
        """Make a code and reserve its stock. Raises RequestIdReused."""
        digest = body_digest(store_id, order_id, lines, ttl_s, channel, amount_fen)
        while True:
            at_ms = now_ms()
            uid = (secrets.randbits(54) | _UID_SHAPE).to_bytes(8, "big").hex()
            answer = await self._issue(
                [
                    code_key(uid),
                    stock_key(mall_id, store_id),
                    f"issue:{mall_id}:{request_id}",
                    EVENTS,
                    EXPIRIES,
                ],
                at_ms,
                digest,
                uid,
                mall_id,
                store_id,
                order_id,
                json.dumps(lines),
                (at_ms // 1000 + ttl_s) * 1000,
                request_id,
                channel,
                amount_fen,
                actor,
                REMEMBERED_S,
            )
            if answer[0] != b"TAKEN":
                return _read(answer)

    async def receive(
        self, *, mall_id: int, store_id: int, sku_id: int, count: int, request_id: str, actor: str
    ) -> dict[str, Any]:
        """Book units that came in. Raises RequestIdReused."""
        answer = await self._receive(
            [stock_key(mall_id, store_id), f"receive:{mall_id}:{request_id}", EVENTS],
            now_ms(),
            body_digest(store_id, sku_id, count),
            mall_id,
            store_id,
            sku_id,
            count,
            request_id,
            actor,
            REMEMBERED_S,
        )
        return _read(answer)

    async def record(self, uid: str) -> dict[str, str]:
        """A code's record; empty if there is none."""
        found = await self._client.hgetall(code_key(uid))
        return {name.decode(): value.decode() for name, value in found.items()}

    async def stock(self, mall_id: int, store_id: int) -> dict[int, tuple[int, int]]:
        """on_hand and reserved by SKU."""
        found = await self._client.hgetall(stock_key(mall_id, store_id))
        figures = {name.decode(): int(value) for name, value in found.items()}
        skus = sorted({int(name.partition(":")[2]) for name in figures})
        return {sku: (figures.get(f"on_hand:{sku}", 0), figures.get(f"reserved:{sku}", 0)) for sku in skus}

    async def expire_due(self, count_max: int = 100) -> int:
        """Let codes expire whose time is over, at most `count_max`; gives how many were due."""
        at_ms = now_ms()
        due = await self._client.zrange(EXPIRIES, "-inf", at_ms, byscore=True, offset=0, num=count_max)
        for uid in (item.decode() for item in due):
            record = await self.record(uid)
            keys = [
                code_key(uid),
                stock_key(int(record["mall"]), int(record["store"])),
                EVENTS,
                EXPIRIES,
            ]
            await self._expire(keys, at_ms, uid, AFTERLIFE_S)
        return len(due)


def _read(answer: list[bytes]) -> dict[str, Any]:
    if answer[0] == b"REUSED":
        raise RequestIdReused
    facts: dict[str, Any] = json.loads(answer[1])
    facts["replayed"] = answer[0] == b"AGAIN"
    return facts
