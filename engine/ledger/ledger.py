"""One open ledger: appending what follows, and reading it back in order.

Rows are only ever added, behind the head of their partition. The head is moved by compare-and-set in the same transaction, so two
writers can't both extend one chain: the one that comes second finds the head moved, and looks again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from types import TracebackType
from typing import NamedTuple, Self

from sqlalchemy import Connection, Engine, and_, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from engine.errors import DeploymentMismatch
from engine.ledger import database, rows
from engine.ledger.chain import Chain
from engine.ledger.tables import EVENTS, FACTS, HEADS, ORDERS
from engine.state.streams import START, Entry, Place

PAGE_ROWS = 4_096
"""Rows of one read: about a megabyte."""


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
        orders = [order for row in made if (order := rows.order_row(row)) is not None]
        with database.writing(self.engine) as connection:
            # The heads first: whoever has moved them owns their partitions until the commit, in one order for all.
            for partition, head in moved.items():
                _move_head(connection, partition, heads[partition], head)
            connection.exec_driver_sql(self._insert_events, made)
            if orders:
                connection.exec_driver_sql(self._insert_orders, orders)
        return moved

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


def read_heads(connection: Connection) -> dict[int, Head]:
    """The head of every partition that has rows."""
    found = connection.execute(select(HEADS).order_by(HEADS.c.partition))
    return {
        partition: Head(Place(epoch, seq), count, bytes(link)) for partition, epoch, seq, count, link in found
    }


def read_rows(
    connection: Connection, partition: int, *, after: Place = START, upto: Place | None = None
) -> Iterator[Row]:
    """The rows of a partition in order, a page at a time."""
    number = tuple_(EVENTS.c.epoch, EVENTS.c.seq)
    columns = select(EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data, EVENTS.c.link)
    while True:
        wanted = and_(EVENTS.c.partition == partition, number > tuple_(*after))
        if upto is not None:
            wanted = and_(wanted, number <= tuple_(*upto))
        page = connection.execute(
            columns.where(wanted).order_by(EVENTS.c.epoch, EVENTS.c.seq).limit(PAGE_ROWS)
        ).all()
        for epoch, seq, data, link in page:
            yield Row(Entry(epoch, seq, database.raw(data)), database.raw(link))
        if len(page) < PAGE_ROWS:
            return
        after = Place(page[-1][0], page[-1][1])


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


def _move_head(connection: Connection, partition: int, before: Head, after: Head) -> None:
    values = {"epoch": after.place.epoch, "seq": after.place.seq, "rows": after.rows, "link": after.link}
    if before.rows == 0:
        try:
            with connection.begin_nested():
                connection.execute(insert(HEADS).values(partition=partition, **values))
        except IntegrityError:
            raise HeadMoved from None
        return
    changed = connection.execute(
        update(HEADS)
        .where(
            HEADS.c.partition == partition,
            HEADS.c.epoch == before.place.epoch,
            HEADS.c.seq == before.place.seq,
            HEADS.c.link == before.link,
        )
        .values(**values)
    )
    if changed.rowcount != 1:
        raise HeadMoved
