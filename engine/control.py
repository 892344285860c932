"""This process' copy of the control partition (malls, stores, catalogue, policies, providers, terminals, keys), no older than 5 s.

A thread looks at the version each second and reads again only the kinds that changed. A verb that decides takes the whole copy
as one immutable value (`Control.copy`), which refuses when it is too old: a process that lost sight of the store must not hand
out goods by yesterday's keys.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from engine import keyring as keyrings
from engine import limits
from engine.errors import (
    Conflict,
    InvalidInput,
    KeyringLocked,
    LedgerBehind,
    NotFound,
    PickgateError,
    SetupError,
    StaleControl,
    TooManyItems,
    Unauthenticated,
    UnknownMall,
)
from engine.forgeries import Forgeries
from engine.freezes import Freeze, Shelf
from engine.idempotency import body_digest, request_digest
from engine.keyring import Keyring, Keys
from engine.nearest import StoreTable
from engine.policies import Level, Policies, Policy
from engine.proof import Provider
from engine.state import control as state
from engine.state.connection import Connection
from engine.stores import CatalogueEntry, Mall, Store, check_bundles, check_factories
from engine.terminals import Change, Key, Terminal
from engine.wrapping import Unlock

_log = logging.getLogger(__name__)

Random = Callable[[int], bytes]
_BLOB: Final = "blob"
_PUT_ROUNDS: Final = 16
"""How often a put that checks is repeated when somebody else put the same kind meanwhile. Puts are rare and done by people."""
_NEVER: Final = -1
"""A version that no kind ever has: a put that expects it can only be remembered, or refused."""

_Entries = Mall | Store | CatalogueEntry | Policy | Provider | Terminal | Freeze
_ENTRY_TYPES: Final[Mapping[str, type[_Entries]]] = {
    "malls": Mall,
    "stores": Store,
    "catalogue": CatalogueEntry,
    "policies": Policy,
    "providers": Provider,
    "terminals": Terminal,
    "freezes": Freeze,
}


@dataclass(frozen=True, slots=True)
class Copy:
    """The control partition at one version."""

    versions: Mapping[str, int]
    malls: Mapping[int, Mall]
    stores: Mapping[int, Store]
    catalogue: Mapping[tuple[int, int], CatalogueEntry]
    policies: Policies
    providers: Mapping[str, Provider]
    terminals: Mapping[Key, Terminal]
    freezes: Mapping[Shelf, Freeze]
    """The same object as long as none of them has changed."""
    table: StoreTable
    """The stores, ready for engine.nearest."""
    keyring: Keyring | None
    keys: Keys | None
    locked: KeyringLocked | None
    ledger: state.LedgerFacts
    checked_at_s: float
    """Monotonic time at which the store last confirmed these versions."""

    @property
    def version(self) -> int:
        """Version of the whole: what records call policy version."""
        return self.versions["version"]

    def usable_keys(self) -> Keys:
        """The keys to seal and open with. Raises KeyringLocked."""
        if self.keys is None:
            raise self.locked or KeyringLocked("the keyring is locked: give its passphrase")
        return self.keys


class Control:
    """Keeps the copy fresh, and writes changes."""

    def __init__(
        self,
        connection: Connection,
        deployment_id: str,
        unlock: Unlock | None,
        *,
        random: Random = os.urandom,
        monotonic_s: Callable[[], float] = time.monotonic,
        ledger_lag_s_max: float = limits.LEDGER_LAG_S_MAX,
    ) -> None:
        self._connection = connection
        self._ledger_lag_ms_max = ledger_lag_s_max * 1000
        self._alarm_told = ""
        self.forgeries = Forgeries(connection.now_ms)
        """Codes that were not genuine, told to the store by the thread that keeps the copy fresh."""
        self._deployment_id = deployment_id
        self._unlock = unlock
        self._random = random
        self._monotonic_s = monotonic_s
        self._refreshing = threading.Lock()
        self._copy: Copy | None = None
        self._revision_seen = 0
        """Highest revision of the keyring that was ever opened here. Outlives a time in which it is locked."""
        self._bounds_kept = True
        """Whether every partition has the bounds that the policies of the copy state."""
        self._entries: Mapping[str, Mapping[Any, Any]] = {}
        self._ending = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="pickgate-control", daemon=True)

    def start(self) -> None:
        """Read the first copy and begin to keep it fresh. Raises PickgateError."""
        self.refresh()
        self._watcher.start()

    def stop(self) -> None:
        """End the watching."""
        self._ending.set()
        if self._watcher.is_alive():
            self._watcher.join(limits.STORE_TIMEOUT_S * 2)
        try:
            self.forgeries.tell(self._connection, all_=True)
        except PickgateError as error:
            _log.warning("forged codes of the last minute are not in the audit: %s", error.message)

    def _watch(self) -> None:
        failing = False
        while not self._ending.wait(limits.CONTROL_POLL_S):
            try:
                self.refresh()
                self.forgeries.tell(self._connection)
            except PickgateError as error:
                if not failing:
                    _log.warning("the control partition can't be read: %s", error.message)
                failing = True
            except Exception:
                # A defect must not end the watching: the copy would grow old in silence and everything be refused.
                _log.exception("refreshing the copy of the control partition failed")
                failing = True
            else:
                if failing:
                    _log.warning("the control partition is readable again")
                failing = False

    def refresh(self) -> Copy:
        """Bring the copy up to date now. Raises StoreUnavailable."""
        with self._refreshing:
            asked_at_s = self._monotonic_s()
            versions, ledger = state.read_facts(self._connection)
            self._tell_alarm(ledger.alarm)
            old = self._copy
            entries: dict[str, Mapping[Any, Any]] = {}
            changed = set()
            for kind, entry_type in _ENTRY_TYPES.items():
                if old is not None and old.versions[kind] == versions[kind]:
                    entries[kind] = self._entries[kind]
                    continue
                changed.add(kind)
                stored = state.read_kind(self._connection, kind).values()
                items: Iterable[_Entries] = map(entry_type.from_json, stored)
                entries[kind] = {_key(item): item for item in items}
            if old is None or old.versions["keyring"] != versions["keyring"]:
                ring, keys, locked = self._open_keyring()
            else:
                ring, keys, locked = old.keyring, old.keys, old.locked
                due_s = keys.next_change_s if keys else None
                if ring is not None and due_s is not None and due_s <= self._now_s():
                    keys = Keys.build(ring, self._now_s())
            if old is None or changed & {"policies", "stores", "catalogue"}:
                policies = Policies(entries["policies"].values(), entries["stores"], entries["catalogue"])
            else:
                policies = old.policies
            if ("policies" in changed or not self._bounds_kept) and versions["policies"]:
                # A primary of a cluster that does not answer must not make the copy grow old for all others.
                self._bounds_kept = state.keep_bounds(
                    self._connection,
                    versions["policies"],
                    {policy.field: policy.tiers.pack() for policy in policies if policy.tiers is not None},
                )
            self._entries = entries
            self._copy = Copy(
                versions=versions,
                malls=entries["malls"],
                stores=entries["stores"],
                catalogue=entries["catalogue"],
                policies=policies,
                providers=entries["providers"],
                terminals=entries["terminals"],
                freezes=entries["freezes"],
                table=StoreTable(entries["stores"].values())
                if old is None or "stores" in changed
                else old.table,
                keyring=ring,
                keys=keys,
                locked=locked,
                ledger=ledger,
                checked_at_s=asked_at_s,
            )
            return self._copy

    def _tell_alarm(self, alarm: str) -> None:
        if alarm != self._alarm_told and alarm:
            _log.error("the ledger does not go on: %s", alarm)
        self._alarm_told = alarm

    def _now_s(self) -> int:
        return self._connection.now_ms() // 1000

    def _open_keyring(self) -> tuple[Keyring | None, Keys | None, KeyringLocked | None]:
        """The keyring now in the store. What can't be opened locks this process' verbs; reads go on."""
        blob = state.read_kind(self._connection, "keyring").get(_BLOB, b"")
        try:
            ring = keyrings.load(blob, self._unlock, self._deployment_id)
        except KeyringLocked as locked:
            return None, None, locked
        except SetupError as damaged:
            return None, None, KeyringLocked(damaged.message)
        if ring.revision < self._revision_seen:
            # A genuine but older blob would bring back keys that were disabled.
            return (
                None,
                None,
                KeyringLocked(
                    f"the keyring in the store has revision {ring.revision}, this process has seen"
                    f" {self._revision_seen}: somebody put an older one back; restore the newer one"
                ),
            )
        self._revision_seen = ring.revision
        return ring, Keys.build(ring, self._now_s()), None

    # --- reading ----------------------------------------------------------------------------------------------
    def copy(self) -> Copy:
        """The copy to decide on. Raises StaleControl when it is older than CONTROL_AGE_S_MAX."""
        copy = self._copy
        if copy is None or self._monotonic_s() - copy.checked_at_s > limits.CONTROL_AGE_S_MAX:
            raise StaleControl(
                f"this process has not seen the store for more than {limits.CONTROL_AGE_S_MAX:g} s, so its stores, catalogue"
                " and keys may be out of date: retry with the same request id; if it lasts, check that the store runs"
            )
        return copy

    def copy_to_change(self) -> Copy:
        """The copy to decide a change on. Raises StaleControl, and LedgerBehind while the ledger is too far behind.

        The change that is refused here is not lost: it did not happen. One that is taken while nothing writes the ledger could
        be, with the last copy of the store.
        """
        copy = self.copy()
        caught_up_ms = copy.ledger.caught_up_ms
        if caught_up_ms and self._connection.now_ms() - caught_up_ms > self._ledger_lag_ms_max:
            lag_s = (self._connection.now_ms() - caught_up_ms) / 1000
            raise LedgerBehind(
                f"the ledger is {lag_s:.0f} s behind, more than {self._ledger_lag_ms_max / 1000:g} s:"
                f" {copy.ledger.alarm or 'see that its writer (pickgate ledger run) and its database run'}"
            )
        return copy

    def malls(self) -> tuple[Mall, ...]:
        """All malls, by id."""
        return tuple(mall for _, mall in sorted(self.copy().malls.items()))

    def stores(self) -> tuple[Store, ...]:
        """All stores, by id."""
        return tuple(store for _, store in sorted(self.copy().stores.items()))

    def catalogue(self, mall_id: int) -> tuple[CatalogueEntry, ...]:
        """A mall's catalogue, by SKU."""
        found = self.copy().catalogue
        return tuple(found[key] for key in sorted(found) if key[0] == mall_id)

    def mall(self, mall_id: int) -> Mall | None:
        """One mall."""
        return self.copy().malls.get(mall_id)

    def store(self, store_id: int) -> Store | None:
        """One store."""
        return self.copy().stores.get(store_id)

    def sku(self, mall_id: int, sku_id: int) -> CatalogueEntry | None:
        """One SKU of a mall's catalogue."""
        return self.copy().catalogue.get((mall_id, sku_id))

    def policies(self) -> tuple[Policy, ...]:
        """All policies that rule something: the deployment's, then those of stores and of SKUs by id."""
        found = (policy for policy in self.copy().policies if not policy.empty)
        order = get_args(Level)
        return tuple(sorted(found, key=lambda p: (order.index(p.level), p.store_id, p.mall_id, p.sku_id)))

    def providers(self) -> tuple[Provider, ...]:
        """All providers of proof tokens, by id, revoked ones too."""
        return tuple(provider for _, provider in sorted(self.copy().providers.items()))

    def terminals(self) -> tuple[Terminal, ...]:
        """All terminals that have an entry, by mall, store and number."""
        return tuple(terminal for _, terminal in sorted(self.copy().terminals.items()))

    # --- writing ----------------------------------------------------------------------------------------------
    def put_malls(self, items: Sequence[Mall], *, request_id: str, actor: str) -> int:
        """Put malls whole, by id; gives the new version of the control partition. See `_put`."""
        return self._put("malls", items, request_id, actor)

    def put_stores(self, items: Sequence[Store], *, request_id: str, actor: str) -> int:
        """Put stores whole, by id. See `_put`.

        Raises UnknownMall too, when a store names a mall that is not there, and InvalidInput when a region would have two
        factory stores for one mall.
        """

        def check(copy: Copy) -> None:
            for item in items:
                for mall_id in item.mall_ids:
                    if mall_id not in copy.malls:
                        raise UnknownMall(
                            f"store {item.store_id} names mall {mall_id}, which is not registered: put the mall first",
                            field="mall_ids",
                        )
            check_factories(copy.stores, items)

        return self._put("stores", items, request_id, actor, check, among_its_kind=True)

    def put_catalogue(self, items: Sequence[CatalogueEntry], *, request_id: str, actor: str) -> int:
        """Put catalogue entries whole, by mall and SKU. See `_put`.

        Raises UnknownMall too, and InvalidInput for a bundle of what is not in the catalogue, or of bundles.
        """

        def check(copy: Copy) -> None:
            for item in items:
                if item.mall_id not in copy.malls:
                    raise UnknownMall(
                        f"mall {item.mall_id} is not registered: put the mall first", field="mall_id"
                    )
            check_bundles(copy.catalogue, items)

        return self._put("catalogue", items, request_id, actor, check, among_its_kind=True)

    def put_policies(self, items: Sequence[Policy], *, request_id: str, actor: str) -> int:
        """Put policies whole, by scope: what a policy ruled before and doesn't now is inherited again. See `_put`.

        Raises InvalidInput too, when a policy's store or SKU is not there.
        """

        def check(copy: Copy) -> None:
            for item in items:
                if item.level == "store" and item.store_id not in copy.stores:
                    raise InvalidInput(
                        f"store_id is {item.store_id}, which is not registered: put the store first",
                        field="store_id",
                    )
                if item.level == "sku" and (item.mall_id, item.sku_id) not in copy.catalogue:
                    raise InvalidInput(
                        f"sku_id is {item.sku_id}, which is not in the catalogue of mall {item.mall_id}: put it there first",
                        field="sku_id",
                    )

        return self._put("policies", items, request_id, actor, check)

    def put_providers(self, items: Sequence[Provider], *, request_id: str, actor: str) -> int:
        """Put providers of proof tokens whole, by id: a key that is left out no longer counts. See `_put`."""
        return self._put("providers", items, request_id, actor)

    def put_freezes(self, items: Sequence[Freeze], *, request_id: str, actor: str) -> int:
        """Freeze SKUs at stores, or lift that; a shelf that never was may be frozen too. See `_put`."""
        return self._put("freezes", items, request_id, actor)

    def freezes(self) -> tuple[Freeze, ...]:
        """What is frozen now, by mall, store and SKU."""
        return tuple(one for _, one in sorted(self.copy().freezes.items()) if one.frozen)

    def change_terminal(
        self, key: Key, change: Change, *, verb: str, body: Sequence[object], request_id: str, actor: str
    ) -> Terminal:
        """Change one terminal's entry, and give it as it is then.

        A retry with the same request id changes nothing more. `body`: what must agree with an earlier call of that id. Raises
        what `change` raises, RequestIdReused, StoreUnavailable, Conflict.
        """
        for _ in range(_PUT_ROUNDS):
            copy = self.refresh()
            item: Terminal | None = None
            refusal: PickgateError | None = None
            try:
                item = change(copy.terminals.get(key))
            except (InvalidInput, NotFound, Unauthenticated) as error:
                refusal = error
            # What is refused now may have been done before, under the same id.
            entries = [] if item is None else [(item.field, item.to_json())]
            try:
                state.put(
                    self._connection,
                    "terminals",
                    entries,
                    request=request_digest("deployment", verb, request_id),
                    body=body_digest(*map(str, (*key, *body))),
                    actor=actor,
                    expected_version=_NEVER if refusal else copy.versions["terminals"],
                )
            except Conflict:
                if refusal:
                    raise refusal from None
                continue
            return self.refresh().terminals[key]
        raise Conflict(
            "others keep changing the terminals: nothing was done; try again with the same request id"
        )

    def _put(
        self,
        kind: str,
        items: Sequence[_Entries],
        request_id: str,
        actor: str,
        check: Callable[[Copy], None] | None = None,
        *,
        among_its_kind: bool = False,
    ) -> int:
        """Put entries in one step, whole or not at all; a retry with the same request id gets the same version.

        `check` refuses what may not be put into a copy, by InvalidInput. With `among_its_kind` it looks at other entries of the
        kind, so the put happens only if those are still what it saw; what it sees of other kinds never goes away. Raises
        TooManyItems, RequestIdReused, StoreUnavailable, Conflict (others won't stop putting the same kind).
        """
        if not 1 <= len(items) <= limits.BATCH_MAX:
            raise TooManyItems(
                f"{len(items)} {kind} in one put; expected 1 to {limits.BATCH_MAX}", field=kind
            )
        entries = [(item.field, item.to_json()) for item in items]

        def put(expected_version: int | None) -> int:
            version = state.put(
                self._connection,
                kind,
                entries,
                request=request_digest("deployment", f"put_{kind}", request_id),
                body=body_digest(*(value for _, value in entries)),
                actor=actor,
                expected_version=expected_version,
            )
            self.refresh()
            return version

        if check is None:
            return put(None)
        for _ in range(_PUT_ROUNDS):
            copy = self.refresh()
            try:
                check(copy)
            except InvalidInput as refusal:
                # What was put before may have come to be refused since; a retry gets the first answer all the same.
                try:
                    return put(_NEVER)
                except Conflict:
                    raise refusal from None
            try:
                return put(copy.versions[kind] if among_its_kind else None)
            except Conflict:
                continue
        raise Conflict(
            f"others keep changing the {kind}: nothing was done; try again with the same request id"
        )

    def change_keyring(
        self, change: Callable[[Keyring, int, Random], Keyring], *, request_id: str, actor: str
    ) -> Keyring:
        """Apply `change(keyring, now_s, random)` and store the result, if nobody else changed the keyring meanwhile.

        Raises KeyringLocked, KeyStateError (from the change), Conflict, StoreUnavailable.
        """
        copy = self.refresh()
        copy.usable_keys()
        assert copy.keyring is not None
        assert self._unlock is not None
        changed = change(copy.keyring, self._now_s(), self._random)
        blob = keyrings.dump(changed, self._unlock, self._deployment_id, self._random)
        state.put(
            self._connection,
            "keyring",
            [(_BLOB, blob)],
            request=request_digest("deployment", "put_keyring", request_id),
            body=body_digest(changed.revision),
            actor=actor,
            expected_version=copy.versions["keyring"],
        )
        self.refresh()
        return changed

    def rewrap(self, unlock: Unlock, *, request_id: str, actor: str) -> Keyring:
        """Wrap the keyring anew with another provider's key: what this process still has opens it no longer.

        Raises KeyringLocked, SetupError, Conflict, StoreUnavailable.
        """
        copy = self.refresh()
        copy.usable_keys()
        self._unlock = unlock
        return self.change_keyring(
            lambda keyring, now_s, random: replace(keyring, revision=keyring.revision + 1),
            request_id=request_id,
            actor=actor,
        )


def _key(item: _Entries) -> int | str | tuple[int, int] | Shelf | Key:
    match item:
        case CatalogueEntry():
            return item.mall_id, item.sku_id
        case Mall():
            return item.mall_id
        case Terminal():
            return item.id
        case Store():
            return item.store_id
        case Freeze():
            return item.shelf
        case _:
            return item.field
