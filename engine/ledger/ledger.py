"""One open ledger: appending what follows, and reading it back in order.

Rows are only ever added, behind the head of their partition. The head is moved by compare-and-set in the same transaction, so two
writers can't both extend one chain: the one that comes second finds the head moved, and looks again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from types import TracebackType
from typing import Final, NamedTuple, Self

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    bindparam,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError

from engine.errors import DeploymentMismatch
from engine.ledger import database, day_tables, rows
from engine.ledger.chain import Chain
from engine.ledger.tables import DAYS, EVENTS, FACTS, HEADS, ORDERS
from engine.state.streams import CONTROL, START, Entry, Place

PAGE_ROWS = 4_096
"""Rows of one read: about a megabyte."""
DAY_MS: Final = 86_400_000


class HeadMoved(Exception):
    """Somebody else appended meanwhile; nothing was written."""


class Head(NamedTuple):
    """The last row of a partition, and how many there are."""

    place: Place
    rows: int
    link: bytes


class Row(NamedTuple):
    """One row as the chain sees it."""

    entry: Entry
    link: bytes


class Setup(NamedTuple):
    """What a rebuild needs besides events."""

    constants: bytes
    """JSON, as the control partition holds it."""
    keyring: bytes
    """Wrapped: of no use without its passphrase."""

    @property
    def tags(self) -> list[bytes]:
        """The hash tags of the partitions."""
        return [tag.encode("ascii") for tag in json.loads(self.constants)["tags"]]


class Ledger:
    """An open ledger. Use it as a context manager, or close it."""

    def __init__(self, engine: Engine, chain: Chain, deployment_id: str) -> None:
        self.engine = engine
        self.deployment_id = deployment_id
        self.chain = chain
        # Rows are tuples in the order of the columns and go to the driver as they are: taking a dict apart for each of thousands
        # of rows would cost more than the database does.
        self._insert_events = str(insert(EVENTS).compile(dialect=engine.dialect))
        self._insert_orders = str(insert(ORDERS).compile(dialect=engine.dialect))
        self._move_heads = str(_MOVE_HEAD.compile(dialect=engine.dialect))
        self._days: dict[int, int] = {}
        """The last day of each partition that this process knows to be in the table of days."""
        self._day_tables: set[int] = set()
        """Days that this process knows to have a table (engine.ledger.day_tables)."""

    @classmethod
    def open(
        cls, url: str, *, deployment_id: str = "", algorithm: str | None = None, create: bool = False
    ) -> Self:
        """Open the ledger of a deployment; with `create`, make it when it is not there.

        deployment_id: whose ledger it must be; '' takes what is there, and needs one. algorithm: of engine.ledger.chain, for a new
        ledger (None: SHA-256); one that is there must agree. Raises ConfigError, SetupError, DeploymentMismatch, LedgerUnavailable.
        """
        engine = database.connect(url, create=create and bool(deployment_id))
        try:
            with database.snapshot(engine) as connection:
                facts = _facts(connection)
            if not facts and deployment_id:
                with database.writing(engine) as connection:
                    facts = _facts(connection) or _begin_ledger(
                        connection, deployment_id, algorithm or "sha256"
                    )
            if not facts:
                raise DeploymentMismatch("the ledger is empty: no deployment has written to it yet")
            if deployment_id and facts["deployment_id"] != deployment_id:
                raise DeploymentMismatch(
                    f"the ledger belongs to deployment {facts['deployment_id']}, the store holds {deployment_id}: name"
                    " another ledger by ledger_url, or put the store back that it belongs to",
                    field="ledger_url",
                )
            if algorithm is not None and facts["chain"] != algorithm:
                raise DeploymentMismatch(
                    f"the ledger is chained by {facts['chain']}, the configuration says {algorithm}: it is fixed when a"
                    " ledger is made; correct the configuration",
                    field="ledger_chain",
                )
            return cls(engine, Chain(facts["chain"], facts["deployment_id"]), facts["deployment_id"])
        except BaseException:
            engine.dispose()
            raise

    def close(self) -> None:
        """Close its connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- writing ----------------------------------------------------------------------------------------------
    def first_head(self, partition: int) -> Head:
        """The head of a partition without rows."""
        return Head(START, 0, self.chain.first(partition))

    def heads(self) -> dict[int, Head]:
        """The head of every partition that has rows. Raises LedgerUnavailable."""
        with database.translated(), self.engine.connect() as connection:
            return read_heads(connection)

    def append(self, heads: Mapping[int, Head], entries: Mapping[int, Sequence[Entry]]) -> dict[int, Head]:
        """Append entries behind the heads given, all of them or none; gives the new heads of those partitions.

        The entries must follow the head and one another (engine.ledger.writer checks). When this returns they are on the
        database's disk. Raises HeadMoved, LedgerUnavailable.
        """
        moved: dict[int, Head] = {}
        made: list[rows.EventRow] = []
        for partition, following in sorted(entries.items()):
            head = heads[partition]
            links = list(self.chain.links(head.link, partition, following))
            made += map(rows.event_row, repeat(partition), following, links)
            place = Place(following[-1].epoch, following[-1].seq)
            moved[partition] = Head(place, head.rows + len(following), links[-1])
        self._make_day_tables({row.at_ms // DAY_MS for row in made if row.partition != CONTROL})
        orders = [order for row in made if row.type in rows.MAKING and (order := rows.order_row(row))]
        known, self._days = self._days, {}  # of no use if this fails: another may have been faster
        with database.writing(self.engine) as connection:
            # The heads first: whoever has moved them owns their partitions until the commit, in one order for all.
            self._move(connection, {partition: (heads[partition], head) for partition, head in moved.items()})
            connection.exec_driver_sql(self._insert_events, made)
            if orders:
                connection.exec_driver_sql(self._insert_orders, orders)
            _keep_days(connection, made, known)
        self._days = known
        return moved

    def _move(self, connection: Connection, moves: Mapping[int, tuple[Head, Head]]) -> None:
        """Move heads from where they must be; all in one statement, since a live round has a few events of every partition."""
        for partition, (before, after) in moves.items():
            if before.rows == 0:
                _begin_partition(connection, partition, after)
        values = [
            (*after.place, after.rows, after.link, partition, *before.place, before.link)
            for partition, (before, after) in moves.items()
            if before.rows
        ]
        if values and connection.exec_driver_sql(self._move_heads, values).rowcount != len(values):
            raise HeadMoved

    def make_ahead(self, now_ms: int) -> None:
        """Make what the coming days need, so that no event has to wait for it. Raises LedgerUnavailable."""
        today = now_ms // DAY_MS
        self._make_day_tables(set(range(today, today + day_tables.AHEAD_DAYS + 1)))

    def _make_day_tables(self, days: set[int]) -> None:
        if days <= self._day_tables or self.engine.dialect.name == "sqlite":
            return
        with database.writing(self.engine) as connection:
            day_tables.make(connection, days)
        self._day_tables |= days

    def keep_setup(self, constants: bytes, keyring: bytes) -> None:
        """Keep what no event carries and a rebuild needs: the deployment's constants, and its keyring, wrapped as it is.

        Raises LedgerUnavailable.
        """
        if not constants:
            return  # a store that was made for something else than a deployment: there is nothing to rebuild
        values = {"constants": constants.decode(), "keyring": keyring.hex()}
        with database.writing(self.engine) as connection:
            known = _facts(connection)
            for name, value in values.items():
                if name not in known:
                    connection.execute(insert(FACTS).values(name=name, value=value))
                elif known[name] != value:
                    connection.execute(update(FACTS).where(FACTS.c.name == name).values(value=value))

    # --- reading ----------------------------------------------------------------------------------------------
    def setup(self) -> Setup | None:
        """What `keep_setup` kept; None when nothing was. Raises LedgerUnavailable."""
        with database.snapshot(self.engine) as connection:
            known = _facts(connection)
        if "constants" not in known:
            return None
        return Setup(known["constants"].encode(), bytes.fromhex(known["keyring"]))

    def rows(self, partition: int, *, after: Place = START, upto: Place | None = None) -> Iterator[Row]:
        """The rows of a partition in order, behind `after` and up to `upto`, both as they are when they are reached.

        Raises LedgerUnavailable.
        """
        with database.translated(), self.engine.connect() as connection:
            yield from read_rows(connection, partition, after=after, upto=upto)


def _keep_days(connection: Connection, made: Sequence[rows.EventRow], known: dict[int, int]) -> None:
    """Note the first event of each day."""
    first: list[dict[str, int]] = []
    for row in made:
        day = row.at_ms // DAY_MS
        if row.partition not in known:
            newest = select(func.max(DAYS.c.day)).where(DAYS.c.partition == row.partition)
            known[row.partition] = connection.execute(newest).scalar() or 0
        if day > known[row.partition]:
            known[row.partition] = day
            first.append({"partition": row.partition, "day": day, "epoch": row.epoch, "seq": row.seq})
    if first:
        connection.execute(insert(DAYS), first)


def read_heads(connection: Connection) -> dict[int, Head]:
    """The head of every partition that has rows."""
    found = connection.execute(select(HEADS).order_by(HEADS.c.partition))
    return {
        partition: Head(Place(epoch, seq), count, bytes(link)) for partition, epoch, seq, count, link in found
    }


def read_tail(connection: Connection, partition: int, count: int) -> list[Entry]:
    """The last `count` events of a partition, in order."""
    found = connection.execute(
        select(EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data)
        .where(EVENTS.c.partition == partition)
        .order_by(EVENTS.c.epoch.desc(), EVENTS.c.seq.desc())
        .limit(count)
    ).all()
    return [Entry(epoch, seq, database.raw(data)) for epoch, seq, data in reversed(found)]


def read_rows(
    connection: Connection, partition: int, *, after: Place = START, upto: Place | None = None
) -> Iterator[Row]:
    """The rows of a partition in order, a page at a time."""
    number = tuple_(EVENTS.c.epoch, EVENTS.c.seq)
    columns = select(EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data, EVENTS.c.link)
    for span in _spans(connection, partition, after):
        while True:
            wanted = and_(EVENTS.c.partition == partition, number > tuple_(*after), *span)
            if upto is not None:
                wanted = and_(wanted, number <= tuple_(*upto))
            page = connection.execute(
                columns.where(wanted).order_by(EVENTS.c.epoch, EVENTS.c.seq).limit(PAGE_ROWS)
            ).all()
            for epoch, seq, data, link in page:
                yield Row(Entry(epoch, seq, database.raw(data)), database.raw(link))
            if page:
                after = Place(page[-1][0], page[-1][1])
            if len(page) < PAGE_ROWS:
                break
        if upto is not None and after >= upto:
            return


def _spans(connection: Connection, partition: int, after: Place) -> list[list[ColumnElement[bool]]]:
    """Conditions that divide a partition's rows behind a place so that each is of one day's table; one without any on SQLite."""
    if partition == CONTROL or not day_tables.are_there(connection):
        return [[]]
    begins_ms = since_ms(connection, partition, after)
    days = connection.execute(
        select(DAYS.c.day)
        .where(DAYS.c.partition == partition, DAYS.c.day >= begins_ms // DAY_MS)
        .order_by(DAYS.c.day)
    ).scalars()
    return [[EVENTS.c.at_ms >= day * DAY_MS, EVENTS.c.at_ms < (day + 1) * DAY_MS] for day in days]


def since_ms(connection: Connection, partition: int, place: Place) -> int:
    """A time, unix ms, before which no event behind a place lies: where the day of the place begins."""
    day = connection.execute(
        select(func.max(DAYS.c.day)).where(
            DAYS.c.partition == partition, tuple_(DAYS.c.epoch, DAYS.c.seq) <= tuple_(*place)
        )
    ).scalar()
    return (day or 0) * DAY_MS


def _facts(connection: Connection) -> dict[str, str]:
    return {name: value for name, value in connection.execute(select(FACTS))}


def _begin_ledger(connection: Connection, deployment_id: str, algorithm: str) -> dict[str, str]:
    """Write whose ledger it is. Another process may do so at the same moment: then its word stands."""
    facts = {"deployment_id": deployment_id, "chain": Chain(algorithm, deployment_id).algorithm}
    try:
        with connection.begin_nested():
            connection.execute(
                insert(FACTS), [{"name": name, "value": value} for name, value in facts.items()]
            )
    except IntegrityError:
        pass
    return _facts(connection)


_MOVE_HEAD: Final = (
    update(HEADS)
    .where(
        HEADS.c.partition == bindparam("of"),
        HEADS.c.epoch == bindparam("from_epoch"),
        HEADS.c.seq == bindparam("from_seq"),
        HEADS.c.link == bindparam("from_link"),
    )
    .values({name: bindparam(f"to_{name}") for name in ("epoch", "seq", "rows", "link")})
)


def _begin_partition(connection: Connection, partition: int, head: Head) -> None:
    values = {"epoch": head.place.epoch, "seq": head.place.seq, "rows": head.rows, "link": head.link}
    try:
        with connection.begin_nested():
            connection.execute(insert(HEADS).values(partition=partition, **values))
    except IntegrityError:
        raise HeadMoved from None
