"""What operations have put: kept in this process, and as serialised messages in one hash of the store."""

from __future__ import annotations

from typing import Final

from loadtests.comparison.client import Client
from pickgate.v1 import store_service_pb2 as store_pb

KEY: Final = "setup"
PAYLOAD_LIFE_S_DEFAULT: Final = 60
CODE_TTL_S_DEFAULT: Final = 48 * 3600


class Setup:
    """Malls, stores, catalogue and the deployment's policy."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.malls: dict[int, store_pb.Mall] = {}
        self.stores: dict[int, store_pb.Store] = {}
        self.catalogue: dict[tuple[int, int], store_pb.CatalogueEntry] = {}
        self.payload_life_s = PAYLOAD_LIFE_S_DEFAULT
        self.code_ttl_s = CODE_TTL_S_DEFAULT
        self.version = 0

    async def load(self) -> None:
        """Read everything from the store."""
        for name, data in (await self._client.hgetall(KEY)).items():
            self._take(name.decode(), data)

    async def put(self, entries: dict[str, bytes]) -> int:
        """Put serialised entries by name (`mall:1`, `store:2001`, `sku:1:101`, `policy:1`); gives the version."""
        self.version = await self._client.hincrby("setup-version", "version", 1)
        await self._client.hset(KEY, mapping=entries)
        for name, data in entries.items():
            self._take(name, data)
        return self.version

    def _take(self, name: str, data: bytes) -> None:
        kind, _, rest = name.partition(":")
        if kind == "mall":
            self.malls[int(rest)] = store_pb.Mall.FromString(data)
        elif kind == "store":
            self.stores[int(rest)] = store_pb.Store.FromString(data)
        elif kind == "sku":
            mall_id, sku_id = map(int, rest.split(":"))
            self.catalogue[mall_id, sku_id] = store_pb.CatalogueEntry.FromString(data)
        else:
            policy = store_pb.Policy.FromString(data)
            if policy.HasField("payload_life_s"):
                self.payload_life_s = policy.payload_life_s
            if policy.HasField("code_ttl_s"):
                self.code_ttl_s = policy.code_ttl_s

    def serves(self, mall_id: int, store_id: int) -> store_pb.Store | None:
        """The store, if it serves the mall."""
        store = self.stores.get(store_id)
        return store if store is not None and mall_id in store.mall_ids else None
