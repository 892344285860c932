"""Verifying the chain: every row, its link, what its columns repeat, and what was signed of it. The first bad row is named.

In one snapshot of the database, so a ledger can be verified while it is written. Of each partition: numbers count without a gap;
each link is the hash of the one before and the row; columns and the table of orders say what the bytes say; every signed head is the
link of its row, and so is the place of every checkpoint, whose states have the hash that was signed; the table of heads names the last
row. Behind the first bad row nothing of a partition can be told. Where the beginning was cut off, the signed cut says from which link the
rest goes on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection, and_, select, tuple_

from engine.errors import InvalidInput
from engine.ledger import checkpoints, cuts, database, rows
from engine.ledger.checkpoints import Checkpoint
from engine.ledger.cuts import Cut
from engine.ledger.heads import SignedHeads, Statement, Unsound
from engine.ledger.ledger import PAGE_ROWS, Head, Ledger, read_heads
from engine.ledger.rows import EventRow
from engine.ledger.tables import EVENTS, ORDERS
from engine.state.streams import CONTROL, START, Entry, Place, follows, next_place

_ORDER_COLUMNS: Final = tuple(column.name for column in ORDERS.columns)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, at the first place where it shows."""

    partition: int
    place: Place | None
    """The row; None: of no row."""
    why: str

    def __str__(self) -> str:
        where = "the control partition" if self.partition == CONTROL else f"partition {self.partition}"
        return f"{where}, {f'row {self.place}' if self.place else 'as a whole'}: {self.why}"


@dataclass
class Report:
    """What was looked at, and what was found."""

    rows: int = 0
    partitions: int = 0
    statements: int = 0
    """Statements of signed heads that were compared."""
    compared: int = 0
    """Signed heads of partitions that rows were compared with, those of checkpoints too; a head that several statements name counts once."""
    signed_at_ms: int = 0
    """Time of the newest of them."""
    faults: list[Fault] = field(default_factory=list)
    checkpoints: int = 0
    """Sound ones."""
    cut: Cut | None = None
    """Where the ledger begins, if not at the beginning."""
    unsound: list[Unsound] = field(default_factory=list)
    """Lines among the signed heads that nobody signed; checkpoints and cuts that are not what was signed."""

    @property
    def sound(self) -> bool:
        """True when nothing is wrong."""
        return not self.faults and not self.unsound


@dataclass(frozen=True, slots=True)
class Range:
    """Which rows to verify: of one partition or all, from and to a place, both included."""

    partition: int | None = None
    first: Place | None = None
    last: Place | None = None
    latest: bool = False
    """Only what lies behind the latest sound checkpoint; what it stands for is trusted."""

    def __post_init__(self) -> None:
        if self.partition is None and (self.first or self.last):
            raise InvalidInput("a range of rows is of one partition: name it", field="partition")
        if self.latest and self.first:
            raise InvalidInput(
                "rows are verified from an event on, or from the latest checkpoint", field="from"
            )


_Signed: TypeAlias = dict[int, dict[Place, dict[bytes, tuple[Head, str]]]]
"""What was signed: of each partition and place the heads by their links, with who said so. Two of one place differ only when somebody has
calculated the history anew in between: each is compared."""


def _note(signed: _Signed, number: int, head: Head, source: str) -> None:
    signed.setdefault(number, {}).setdefault(head.place, {})[head.link] = (head, source)


def verify(
    ledger: Ledger,
    statements: Iterable[Statement | Unsound] = (),
    only: Range = Range(),
    *,
    key: Ed25519PublicKey | None = None,
    with_checkpoints: bool = True,
) -> Report:
    """Verify rows against their chain, signed heads and checkpoints.

    key: that checkpoints and cuts must be signed by; without one no checkpoint is looked at, and a cut is believed by nobody.
    with_checkpoints: False leaves them out, whose states take as long as they are large. Raises LedgerUnavailable.
    """
    report = Report()
    signed: _Signed = {}
    for statement in statements:
        if isinstance(statement, Unsound):
            report.unsound.append(statement)
            continue
        if statement.deployment_id != ledger.deployment_id:
            report.unsound.append(
                Unsound(statement.source, f"it is of another deployment, {statement.deployment_id}")
            )
            continue
        report.statements += 1
        report.signed_at_ms = max(report.signed_at_ms, statement.at_ms)
        for number, head in statement.heads.items():
            _note(signed, number, head, statement.source)
    with database.snapshot(ledger.engine) as connection:
        latest = _checkpoints(connection, ledger, key if with_checkpoints else None, signed, report)
        report.cut = cuts.read_cut(connection, ledger, key)
        # Who has no key, and asks for a piece of one partition, asks for its rows only.
        rows_only = key is None and only.partition is not None
        if report.cut is not None and report.cut.unsound is not None and not rows_only:
            report.unsound.append(report.cut.unsound)
        begins = dict(report.cut.heads) if report.cut else {}
        if only.latest and latest is not None:
            begins |= {number: part.head for number, part in latest.parts.items()}
        heads = read_heads(connection)
        numbers = {*heads, *signed, *_numbers_with_rows(connection)}
        for number in sorted(numbers if only.partition is None else {only.partition}):
            report.partitions += 1
            walk = _Walk(ledger, connection, number, signed.get(number, {}), only, begins.get(number))
            fault = walk.run(heads.get(number))
            report.rows += walk.rows
            report.compared += walk.compared
            if fault is not None:
                report.faults.append(fault)
    return report


def _checkpoints(
    connection: Connection,
    ledger: Ledger,
    key: Ed25519PublicKey | None,
    signed: _Signed,
    report: Report,
) -> Checkpoint | None:
    """Look at every checkpoint, and let their heads be compared with the rows; gives the latest sound one."""
    latest = None
    for found in checkpoints.read_all(connection, ledger, key) if key is not None else ():
        unsound = found if isinstance(found, Unsound) else checkpoints.check(connection, ledger, found)
        if unsound is not None or isinstance(found, Unsound):
            report.unsound += [unsound] if unsound else []
            continue
        report.checkpoints += 1
        latest = latest or found
        for number, part in found.parts.items():
            _note(signed, number, part.head, found.source)
    return latest


def verify_piece(
    ledger: Ledger,
    partition: int,
    *,
    first: Place | None,
    last: Place | None,
    rows_max: int,
    signed: SignedHeads | None = None,
) -> tuple[Report, Place | None]:
    """Verify the next rows of a partition, at most rows_max; gives the place at which the next call goes on, None at the end.

    first, last: of the range, both included; None: from the first or to the last there is. signed: heads that the rows are compared
    with, the newest of those that lie among them; at the end of the partition also those that lie beyond. Checkpoints are not looked at.
    Raises LedgerUnavailable, SetupError.
    """
    number = tuple_(EVENTS.c.epoch, EVENTS.c.seq)
    wanted = EVENTS.c.partition == partition
    if first is not None:
        wanted = and_(wanted, number >= tuple_(*first))
    if last is not None:
        wanted = and_(wanted, number <= tuple_(*last))
    with database.snapshot(ledger.engine) as connection:
        found = connection.execute(
            select(EVENTS.c.epoch, EVENTS.c.seq)
            .where(wanted)
            .order_by(EVENTS.c.epoch, EVENTS.c.seq)
            .limit(2)
            .offset(rows_max - 1)
        ).all()
    following = None
    if len(found) == 2:
        (last, following) = (Place(row.epoch, row.seq) for row in found)

    def is_there(place: Place) -> bool:
        return (first is None or place >= first) and (last is None or place <= last)

    statements = signed.newest(partition, is_there) if signed is not None else ()
    key = signed.key if signed is not None else None
    only = Range(partition, first, last)
    return verify(ledger, statements, only, key=key, with_checkpoints=False), following


def _numbers_with_rows(connection: Connection) -> list[int]:
    return [
        number
        for rows_of in (EVENTS, ORDERS)
        for number in connection.execute(select(rows_of.c.partition).distinct()).scalars()
    ]


class _Walk:
    """One partition, row by row."""

    def __init__(
        self,
        ledger: Ledger,
        connection: Connection,
        number: int,
        signed: Mapping[Place, Mapping[bytes, tuple[Head, str]]],
        only: Range,
        begins: Head | None,
    ) -> None:
        """begins: the row that the first one follows; None: the beginning."""
        self._chain = ledger.chain
        self._connection = connection
        self._number = number
        self._only = only
        self.rows = 0
        self.compared = 0
        begins = begins or ledger.first_head(number)
        self._before, self._link = begins.place, begins.link
        self._signed = {place: said for place, said in signed.items() if place > begins.place}

    def run(self, head: Head | None) -> Fault | None:
        """The first fault, None when there is none."""
        if self._only.first is not None:
            self._begin_at(self._only.first)
        elif (fault := self._before_all()) is not None:
            return fault
        while page := self._page():
            orders = self._orders(page)
            for row in page:
                if (fault := self._row(row, orders)) is not None:
                    return fault
            if len(page) < PAGE_ROWS:
                break
        if self._only.last is not None:
            return None
        return self._end(head)

    def _before_all(self) -> Fault | None:
        """No row has a number before the first that there can be: whoever asks by code or order would find it all the same."""
        for rows_of in (EVENTS, ORDERS):
            found = self._connection.execute(
                select(rows_of.c.epoch, rows_of.c.seq)
                .where(
                    rows_of.c.partition == self._number,
                    tuple_(rows_of.c.epoch, rows_of.c.seq) <= tuple_(*START),
                )
                .limit(1)
            ).first()
            if found is not None:
                return Fault(
                    self._number,
                    Place(found.epoch, found.seq),
                    f"no event has this number; somebody has put it into the table {rows_of.name}",
                )
        return None

    def _begin_at(self, first: Place) -> None:
        """Trust the row before the range."""
        number = tuple_(EVENTS.c.epoch, EVENTS.c.seq)
        found = self._connection.execute(
            select(EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.link)
            .where(EVENTS.c.partition == self._number, number < tuple_(*first))
            .order_by(EVENTS.c.epoch.desc(), EVENTS.c.seq.desc())
            .limit(1)
        ).first()
        if found is not None:
            self._before, self._link = Place(found.epoch, found.seq), bytes(found.link)

    def _page(self) -> list[EventRow]:
        number = tuple_(EVENTS.c.epoch, EVENTS.c.seq)
        wanted = and_(EVENTS.c.partition == self._number, number > tuple_(*self._before))
        if self._only.last is not None:
            wanted = and_(wanted, number <= tuple_(*self._only.last))
        found = self._connection.execute(
            select(EVENTS).where(wanted).order_by(EVENTS.c.epoch, EVENTS.c.seq).limit(PAGE_ROWS)
        )
        return [EventRow(*map(_plain, row)) for row in found]

    def _orders(self, page: Sequence[EventRow]) -> dict[Place, tuple[Any, ...]]:
        number = tuple_(ORDERS.c.epoch, ORDERS.c.seq)
        found = self._connection.execute(
            select(ORDERS).where(
                ORDERS.c.partition == self._number,
                number > tuple_(*self._before),
                number <= tuple_(page[-1].epoch, page[-1].seq),
            )
        )
        return {Place(row.epoch, row.seq): tuple(map(_plain, row)) for row in found}

    def _row(self, row: EventRow, orders: Mapping[Place, tuple[Any, ...]]) -> Fault | None:
        place = Place(row.epoch, row.seq)
        entry = Entry(row.epoch, row.seq, row.data)
        if not follows(self._before, entry):
            return Fault(
                self._number,
                next_place(self._before),
                f"it is missing: {place} follows {self._before if self._before.seq else 'the beginning'}",
            )
        try:
            link = self._chain.link(self._link, self._number, entry)
        except TypeError:  # SQLite holds whatever is put into a column: text, for one
            link = b""
        if link != row.link:
            return Fault(
                self._number,
                place,
                "its bytes or its link were changed, or it stands in another's place: the chain breaks here",
            )
        if (why := self._columns(row, orders.get(place))) is not None:
            return Fault(self._number, place, why)
        self.rows += 1
        self._before, self._link = place, link
        for head, source in self._signed.pop(place, {}).values():
            self.compared += 1
            if head.link != link:
                return Fault(
                    self._number,
                    place,
                    f"its link is not the one that was signed ({source}): rows up to here were written anew",
                )
        return None

    def _columns(self, row: EventRow, order: tuple[Any, ...] | None) -> str | None:
        """What the columns say otherwise than the bytes."""
        try:
            meant = rows.event_row(self._number, Entry(row.epoch, row.seq, row.data), row.link)
            wanted = rows.order_row(meant)
        except (ValueError, KeyError, IndexError, struct.error) as error:
            return f"its bytes are no event ({error})"
        for name, found, said in zip(EventRow._fields, row, meant, strict=True):
            if found != said:
                return f"its column {name} says {found!r}, its bytes say {said!r}"
        if order != wanted:
            differing = next(
                (
                    name
                    for name, found, said in zip(_ORDER_COLUMNS, order or (), wanted or (), strict=False)
                    if found != said
                ),
                "row",
            )
            return f"the table of orders has another {differing} than its bytes"
        return None

    def _end(self, head: Head | None) -> Fault | None:
        """Behind the last row: nothing that was signed may lie beyond, and the table of heads must agree."""
        beyond = {place: said for place, said in self._signed.items() if place > self._before}
        if beyond:
            self.compared += sum(map(len, beyond.values()))
            place = max(beyond)
            signed, source = next(iter(beyond[place].values()))
            return Fault(
                self._number,
                next_place(self._before),
                f"the tail is cut off: {place} was signed as its last row, the {signed.rows}th ({source}), and the ledger ends"
                f" with {self._before if self._before.seq else 'nothing'}",
            )
        place = head.place if head is not None else START
        if place != self._before or (head is not None and head.link != self._link):
            return Fault(
                self._number,
                place if place > self._before else Place(max(self._before.epoch, 1), self._before.seq),
                f"the table of heads ends with {place if place.seq else 'nothing'}, the rows end with"
                f" {self._before if self._before.seq else 'nothing'}: rows were cut off or added, or the head was changed",
            )
        return self._orders_beyond()

    def _orders_beyond(self) -> Fault | None:
        """Behind the last row the table of orders has none either."""
        number = tuple_(ORDERS.c.epoch, ORDERS.c.seq)
        found = self._connection.execute(
            select(ORDERS.c.epoch, ORDERS.c.seq)
            .where(ORDERS.c.partition == self._number, number > tuple_(*self._before))
            .limit(1)
        ).first()
        if found is None:
            return None
        return Fault(
            self._number,
            Place(found.epoch, found.seq),
            "the table of orders has it, and there is no such event",
        )


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value
