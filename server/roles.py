"""Who may do what, and where: one table of method × role × scope, and nothing besides it.

A method without a row, and a role without an entry in a method's row, are refused. What a row grants is narrowed by the caller's own
claims: nobody gets beyond the mall, store or terminal that their certificate or token names. docs/access.md prints the table, and a
test compares both, and walks every method with every role through a running server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum, StrEnum, unique
from struct import Struct
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

from google.protobuf.message import Message

from engine.errors import PermissionDenied
from engine.stores import Store


@unique
class Role(StrEnum):
    """Who somebody is to pickgate."""

    TERMINAL = "terminal"
    """A device at the counter, known by its certificate."""
    OUTLET = "outlet"
    """The staff of one store."""
    FACTORY_STORE = "factory_store"
    """The staff of a factory store, which sends units to others of its region."""
    MALL = "mall"
    """A mall's backend."""
    PARTNER = "partner"
    """A third party that sells for a mall."""
    WALLET = "wallet"
    """The service that pays out."""
    WAREHOUSE = "warehouse"
    """Who brings goods to a mall's stores."""
    SALES = "sales"
    """A mall's people who look after its shelves and offers."""
    OPERATIONS = "operations"
    """Who sees and settles what went wrong."""
    ADMINISTRATOR = "administrator"
    """Who sets up malls, stores, policies and terminals. Hands out no goods, and settles nothing."""


@unique
class Scope(IntEnum):
    """How far a right goes."""

    TERMINAL = 1
    """The caller's own terminal."""
    STORE = 2
    """The caller's own store, for the caller's own mall."""
    MALL = 3
    """The caller's own mall."""
    ALL = 4
    """Everything, as far as the caller's claims don't name a mall."""


STORE_ROLES: Final = frozenset({Role.TERMINAL, Role.OUTLET, Role.FACTORY_STORE})
"""Roles that are always those of one store."""
MALL_ROLES: Final = frozenset({Role.MALL, Role.PARTNER, Role.SALES, Role.WAREHOUSE})
"""Roles that are always those of one mall, and of a store of it if one is named."""

_T, _O, _F, _M, _P = Role.TERMINAL, Role.OUTLET, Role.FACTORY_STORE, Role.MALL, Role.PARTNER
_WALLET, _WAREHOUSE, _SALES, _OPS, _ADMIN = (
    *(Role.WALLET, Role.WAREHOUSE, Role.SALES),
    *(Role.OPERATIONS, Role.ADMINISTRATOR),
)
_COUNTER: Final = {_T: Scope.TERMINAL, _O: Scope.STORE, _F: Scope.STORE}
_ORDERS: Final = {_M: Scope.MALL}
_SELLING: Final = {_M: Scope.MALL, _P: Scope.MALL}
_LOOKING: Final = {
    **{_O: Scope.STORE, _F: Scope.STORE, _M: Scope.MALL, _WAREHOUSE: Scope.MALL, _SALES: Scope.MALL},
    **{_OPS: Scope.ALL, _ADMIN: Scope.ALL},
}

TABLE: Final[Mapping[str, Mapping[Role, Scope]]] = MappingProxyType(
    {
        "RedemptionService.Inspect": MappingProxyType({**_COUNTER, _OPS: Scope.ALL}),
        "RedemptionService.Redeem": MappingProxyType(_COUNTER),
        "RedemptionService.RedeemBatch": MappingProxyType(_COUNTER),
        "RedemptionService.Reverse": MappingProxyType(_COUNTER),
        "CodeService.Issue": MappingProxyType(_SELLING),
        "CodeService.IssueBatch": MappingProxyType(_ORDERS),
        "CodeService.Hold": MappingProxyType(_SELLING),
        "CodeService.Confirm": MappingProxyType(_SELLING),
        "CodeService.Extend": MappingProxyType({**_ORDERS, _OPS: Scope.ALL}),
        "CodeService.Render": MappingProxyType(_SELLING),
        "CodeService.Void": MappingProxyType({**_ORDERS, _OPS: Scope.ALL}),
        "CodeService.GetCode": MappingProxyType({**_ORDERS, _OPS: Scope.ALL}),
        "CodeService.GetCodeByRequestId": MappingProxyType({**_ORDERS, _OPS: Scope.ALL}),
        "StockService.ReceiveStock": MappingProxyType(
            {_O: Scope.STORE, _F: Scope.STORE, _M: Scope.MALL, _WAREHOUSE: Scope.MALL}
        ),
        "StockService.AdjustStock": MappingProxyType(
            {_O: Scope.STORE, _F: Scope.STORE, _M: Scope.MALL, _WAREHOUSE: Scope.MALL, _OPS: Scope.ALL}
        ),
        "StockService.SetBaseline": MappingProxyType({_M: Scope.MALL, _SALES: Scope.MALL, _OPS: Scope.ALL}),
        "StockService.ReadStock": MappingProxyType({**_LOOKING, _T: Scope.STORE, _P: Scope.MALL}),
        "StockService.TransferStock": MappingProxyType(
            {_F: Scope.STORE, _M: Scope.MALL, _WAREHOUSE: Scope.MALL, _OPS: Scope.ALL}
        ),
        "StockService.WatchStock": MappingProxyType(_LOOKING),
        "StoreService.PutMalls": MappingProxyType({_ADMIN: Scope.ALL}),
        "StoreService.PutStores": MappingProxyType({_ADMIN: Scope.ALL}),
        "StoreService.PutCatalogue": MappingProxyType({_M: Scope.MALL, _ADMIN: Scope.ALL}),
        "StoreService.ListMalls": MappingProxyType({_OPS: Scope.ALL, _ADMIN: Scope.ALL}),
        "StoreService.ListStores": MappingProxyType(
            {
                _M: Scope.MALL,
                _P: Scope.MALL,
                _WAREHOUSE: Scope.MALL,
                _SALES: Scope.MALL,
                _OPS: Scope.ALL,
                _ADMIN: Scope.ALL,
            }
        ),
        "StoreService.GetStore": MappingProxyType({**_LOOKING, _T: Scope.STORE, _P: Scope.MALL}),
        "StoreService.ListCatalogue": MappingProxyType(
            {**_LOOKING, _T: Scope.MALL, _O: Scope.MALL, _F: Scope.MALL, _P: Scope.MALL}
        ),
        "StoreService.PutPolicies": MappingProxyType({_ADMIN: Scope.ALL}),
        "StoreService.ListPolicies": MappingProxyType({_OPS: Scope.ALL, _ADMIN: Scope.ALL}),
        "StoreService.PutProviders": MappingProxyType({_ADMIN: Scope.ALL}),
        "StoreService.ListProviders": MappingProxyType({_OPS: Scope.ALL, _ADMIN: Scope.ALL}),
        "StoreService.NearestStores": MappingProxyType(
            {_M: Scope.MALL, _P: Scope.MALL, _SALES: Scope.MALL, _OPS: Scope.ALL}
        ),
        "ReviewService.ListReviews": MappingProxyType({_OPS: Scope.ALL}),
        "ReviewService.Decide": MappingProxyType({_OPS: Scope.ALL}),
        "SettlementService.Subscribe": MappingProxyType({_WALLET: Scope.ALL}),
        "SettlementService.Acknowledge": MappingProxyType({_WALLET: Scope.ALL}),
        "SettlementService.GetByOrder": MappingProxyType(
            {_M: Scope.MALL, _WALLET: Scope.ALL, _OPS: Scope.ALL}
        ),
        "CodeEventService.SubscribeCodeEvents": MappingProxyType(_ORDERS),
        "CodeEventService.AcknowledgeCodeEvents": MappingProxyType(_ORDERS),
        "LedgerService.GetLedgerStatus": MappingProxyType({_OPS: Scope.ALL, _ADMIN: Scope.ALL}),
        "LedgerService.ListReconciliations": MappingProxyType({_OPS: Scope.ALL}),
        "LedgerService.GetReconciliation": MappingProxyType({_OPS: Scope.ALL}),
        "LedgerService.StartReconciliation": MappingProxyType({_OPS: Scope.ALL}),
        "LedgerService.GetOperation": MappingProxyType({_OPS: Scope.ALL}),
        "LedgerService.SearchAudit": MappingProxyType({_OPS: Scope.ALL}),
        "LedgerService.VerifyChain": MappingProxyType({_OPS: Scope.ALL}),
        "TerminalService.InviteTerminal": MappingProxyType({_ADMIN: Scope.ALL}),
        "TerminalService.RotateCertificate": MappingProxyType({_T: Scope.TERMINAL}),
        "TerminalService.ListTerminals": MappingProxyType(
            {_M: Scope.MALL, _OPS: Scope.ALL, _ADMIN: Scope.ALL}
        ),
        "TerminalService.SuspendTerminal": MappingProxyType(
            {_M: Scope.MALL, _OPS: Scope.ALL, _ADMIN: Scope.ALL}
        ),
        "TerminalService.ResumeTerminal": MappingProxyType({_ADMIN: Scope.ALL}),
        "TerminalService.RevokeTerminal": MappingProxyType({_OPS: Scope.ALL, _ADMIN: Scope.ALL}),
    }
)
"""By "Service.Method"."""

ANYBODY: Final = frozenset({"TerminalService.EnrolTerminal", "TerminalService.RotateSecret"})
"""Methods whose request itself proves who asks: by an invitation's token, by the secret that seals it."""

_ACTOR_ASKED_FOR: Final = frozenset({"SearchAuditRequest"})
"""Requests whose `actor` is not who asks, but whose deeds are asked for."""

DENIED: Final = "this caller may not do this"
"""What a caller reads; which row or scope it was is not said."""


class Place(NamedTuple):
    """Whom a request is about; 0 where it does not say, which is as much as all."""

    mall_id: int = 0
    store_id: int = 0
    terminal_id: int = 0


StoreOf: TypeAlias = Callable[[int], Store | None]
"""Gives a store by its id."""


_ROW: Final = Struct("=3d")


class Grant(NamedTuple):
    """What one caller may do by one method: where, with 0 for everywhere, and whom the record names for it."""

    mall_id: int
    store_id: int
    terminal_id: int
    actor: str
    thumbprint: str = ""
    """Of the caller's certificate: SHA-256 of its DER, in hex; '' without one."""
    row: bytes = b""
    """Mall, store and terminal once more, as three doubles: what the hot lane makes a column of. Set by `grant`."""

    def covers(self, place: Place, store_of: StoreOf) -> bool:
        """Whether a place is within it."""
        mall_id, store_id, terminal_id = place
        if self.mall_id and self.mall_id != mall_id:
            # A store that is named without a mall: the caller's own is one that serves the caller's mall.
            store = None if mall_id or not store_id else store_of(store_id)
            if store is None or self.mall_id not in store.mall_ids:
                return False
        return (not self.store_id or self.store_id == store_id) and (
            not self.terminal_id or self.terminal_id == terminal_id
        )


def grant(method: str, role: Role, place: Place, actor: str, thumbprint: str = "") -> Grant | None:
    """What a caller of a role, whose claims name `place`, may do by a method; None: nothing."""
    scope = TABLE.get(method, {}).get(role)
    if scope is None:
        return None
    named = Grant(*place, actor, thumbprint)
    if role in STORE_ROLES:
        wanted = {
            Scope.TERMINAL: named,
            Scope.STORE: named._replace(terminal_id=0),
            Scope.MALL: named._replace(store_id=0, terminal_id=0),
        }.get(scope)
    else:
        # Their claims name no more than is theirs.
        wanted = named
    if wanted is None:
        return None
    needed = {Scope.TERMINAL: 3, Scope.STORE: 2, Scope.MALL: 1, Scope.ALL: 0}[scope]
    return wanted._replace(row=_ROW.pack(*wanted[:3])) if all(wanted[:needed]) else None


def places(message: Message) -> Iterator[Place]:
    """Whom a request is about, all of it; one that does not say is about everything."""
    one: Any = message
    names = message.DESCRIPTOR.fields_by_name
    if "requests" in names:
        for item in one.requests:
            yield from places(item)
    elif "terminal" in names:
        yield Place(one.terminal.mall_id, one.terminal.store_id, one.terminal.terminal_id)
    elif "entries" in names:
        for entry in one.entries:
            yield Place(entry.mall_id)
    elif "store_ids" in names:
        for store_id in one.store_ids or (0,):
            yield Place(one.mall_id, store_id)
    elif "from_store_id" in names:
        yield Place(one.mall_id, one.from_store_id)
    else:
        yield Place(getattr(one, "mall_id", 0), getattr(one, "store_id", 0))


def enter(given: Grant | None, message: Message, store_of: StoreOf) -> None:
    """Hold a request against what its caller may do, and write into it who that is. Raises PermissionDenied.

    given: None where callers are not known (server.gate), and nothing is looked at.
    """
    if given is None:
        return
    for place in places(message):
        if not given.covers(place, store_of):
            raise PermissionDenied(DENIED)
    name(given, message)


def name(given: Grant, message: Message) -> None:
    """Write the caller into a request: what it says itself is not looked at."""
    one: Any = message
    names = message.DESCRIPTOR.fields_by_name
    if "actor" in names and message.DESCRIPTOR.name not in _ACTOR_ASKED_FOR:
        one.actor = given.actor
    if "requests" in names:
        for item in one.requests:
            name(given, item)
