"""What a store holds, taken once and put back before each test: the same bytes as those of making it again, in a tenth of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import redis

from tests.engine import shop as shops
from tests.engine.shop import Clock

Contents = dict[bytes, tuple[int, bytes]]
"""Each key with the milliseconds that it lives, 0: for good, and with what DUMP says of it."""


def take(url: str) -> Contents:
    """All that one server holds."""
    with redis.Redis.from_url(url) as client:
        keys: list[bytes] = sorted(client.scan_iter(count=1_000))
        asking = client.pipeline(transaction=False)
        for key in keys:
            asking.pttl(key)
            asking.dump(key)
        said = asking.execute()
    return {
        key: (max(life_ms, 0), dump) for key, life_ms, dump in zip(keys, said[::2], said[1::2], strict=True)
    }


def put_back(url: str, contents: Contents) -> None:
    """Have a server hold this and nothing else. It keeps the scripts that it knows."""
    with redis.Redis.from_url(url) as client:
        writing = client.pipeline(transaction=False)
        writing.flushall()
        for key, (life_ms, dump) in contents.items():
            writing.restore(key, life_ms, dump)
        writing.execute()


class Furnished:
    """A furnished deployment in the servers at `urls`, reached by `url`: made when it is first asked for, copied from then on.

    No epoch begins with that: each partition is again in the server that it was made in. `empty` empties the servers.
    """

    def __init__(self, url: str, urls: Sequence[str], empty: Callable[[], None]) -> None:
        self.url: Final = url
        self._urls = urls
        self._empty = empty
        self._contents: list[Contents] = []

    def renew(self) -> None:
        """Have it as it was made."""
        if not self._contents:
            self._empty()
            clock = Clock()
            shops.create(self.url, clock)
            with shops.open_deployment(self.url, clock) as deployment:
                shops.furnish(deployment)
            self._contents = [take(url) for url in self._urls]
        for url, contents in zip(self._urls, self._contents, strict=True):
            put_back(url, contents)
