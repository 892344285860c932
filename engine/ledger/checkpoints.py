"""Checkpoints: the folded state up to a place of each partition, hashed and signed, so that nobody has to fold from the beginning.

A statement names for each partition the last event that is folded, the rows up to it and its link, as the signed heads do, and the number,
size and hash of the pieces of the state (engine.ledger.folded). It is JSON: `deployment`, `chain`, `at_ms`, `checkpoint` (its number), `parts`,
an object from partition to [event, rows, link, pieces, bytes, hash], links and hashes in hex; signed by the key of the heads under the label
"pickgate checkpoint 1". The hash is the chain's, over each piece behind its length in eight bytes.

Nothing is taken from a checkpoint that is not signed or has another hash: it is named, and the one before is taken, or none.

The set-up (partition CONTROL) is not in it: it is small, never cut, and folded from its beginning.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import Connection, delete, func, insert, select

from engine.errors import LedgerConflict
from engine.ledger import cuts, database, folded
from engine.ledger.fold import Contradiction, Fold
from engine.ledger.heads import Unsound, is_signed, key_name, sign_text
from engine.ledger.ledger import Head, Ledger
from engine.ledger.tables import CHECKPOINT_PIECES, CHECKPOINTS
from engine.state.streams import CONTROL, Entry, Place

KEPT: Final = 3
"""Checkpoints that are kept, the furthest, besides the one that a cut stands on."""
PIECES_PER_WRITE: Final = 8
"""Some megabytes: the writer of events waits no longer than for that."""

_LABEL: Final = "pickgate checkpoint 1"
_FURTHEST: Final = (CHECKPOINTS.c.rows.desc(), CHECKPOINTS.c.number.desc())
_LEVEL: Final = 1
"""Of zlib: the fastest; records are half random bytes."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """What a checkpoint says of one partition."""

    head: Head
    """The last event that is folded."""
    pieces: int
    size: int
    """Of the pieces, in bytes, before compression."""
    digest: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed one."""

    number: int
    at_ms: int
    parts: Mapping[int, Part]

    @property
    def source(self) -> str:
        """What it is called in messages."""
        return f"checkpoint {self.number}"


@dataclass(slots=True)
class Begun:
    """Folds to go on with."""

    folds: dict[int, Fold]
    checkpoint: Checkpoint | None
    """Where they begin; None: at the beginning."""
    unsound: list[Unsound] = field(default_factory=list)
    """Checkpoints that were not taken, and why."""

    def head(self, ledger: Ledger, number: int) -> Head:
        """The head that a partition's fold stands at."""
        if self.checkpoint is None or number not in self.checkpoint.parts:
            return ledger.first_head(number)
        return self.checkpoint.parts[number].head


class _Bad(Exception):
    """A state that is not what was signed."""


# --- reading ------------------------------------------------------------------------------------------------------------
def read_all(
    connection: Connection, ledger: Ledger, key: Ed25519PublicKey | None
) -> list[Checkpoint | Unsound]:
    """What was signed, the furthest first; the states themselves are looked at by `check` and `begin`."""
    rows = connection.execute(select(CHECKPOINTS).order_by(*_FURTHEST)).all()
    return [_statement(ledger, row.number, row.statement, row.signature, key) for row in rows]


def _statement(
    ledger: Ledger, number: int, text: str, signature: bytes | str, key: Ed25519PublicKey | None
) -> Checkpoint | Unsound:
    source = f"checkpoint {number}"
    if key is None:
        return Unsound(source, "there is no public key to verify it with")
    if not is_signed(key, _LABEL, text, signature):
        return Unsound(source, f"it is not signed by the key {key_name(key)}")
    said = json.loads(text)
    if (said["deployment"], said["checkpoint"]) != (ledger.deployment_id, number):
        return Unsound(
            source, f"it was signed for checkpoint {said['checkpoint']} of deployment {said['deployment']}"
        )
    parts = {
        int(partition): Part(
            Head(Place(*map(int, place.split("-"))), rows, bytes.fromhex(link)),
            pieces,
            size,
            bytes.fromhex(digest),
        )
        for partition, (place, rows, link, pieces, size, digest) in said["parts"].items()
    }
    return Checkpoint(number, said["at_ms"], parts)


def begin(
    ledger: Ledger,
    key: Ed25519PublicKey | None,
    partitions: Collection[int],
    *,
    remember: bool,
    upto: Mapping[int, Place] | None = None,
) -> Begun:
    """Folds of the latest sound checkpoint, empty ones where there is none. One that is not sound is named in the log.

    key: that checkpoints must be signed by; None: none is taken. upto: places that no fold may be behind of. Raises LedgerConflict when
    the beginning of the ledger was cut off and no checkpoint stands for it, LedgerUnavailable.
    """
    unsound: list[Unsound] = []
    with database.snapshot(ledger.engine) as connection:
        cut = cuts.read_cut(connection, ledger, key)
        for found in read_all(connection, ledger, key):
            if isinstance(found, Unsound):
                unsound.append(found)
            elif _lies_before(found, upto):
                try:
                    folds = {
                        number: _read_fold(connection, ledger, found, number, remember)
                        for number in partitions
                    }
                except _Bad as bad:
                    unsound.append(Unsound(found.source, str(bad)))
                else:
                    _tell(unsound, found.source)
                    return Begun(folds, found, unsound)
    _tell(unsound, "the beginning")
    if cut is not None and any(head.rows for head in cut.heads.values()):
        raise LedgerConflict(
            "the beginning of the ledger was cut off, and no sound checkpoint stands for it"
            + "".join(f"; {bad.source}: {bad.why}" for bad in unsound)
            + ": name the public key of the heads, or use a sound copy of the ledger"
        )
    return Begun({number: Fold(number, remember=remember) for number in partitions}, None, unsound)


def _lies_before(checkpoint: Checkpoint, upto: Mapping[int, Place] | None) -> bool:
    return upto is None or all(
        part.head.place <= upto[number] for number, part in checkpoint.parts.items() if number in upto
    )


def _tell(unsound: Sequence[Unsound], instead: str) -> None:
    for bad in unsound:
        _log.error("%s is not used: %s; going on from %s", bad.source, bad.why, instead)


def _read_fold(
    connection: Connection, ledger: Ledger, checkpoint: Checkpoint, number: int, remember: bool
) -> Fold:
    part = checkpoint.parts.get(number)
    if part is None:
        return Fold(number, remember=remember)  # it had no events
    try:
        fold = folded.load(_pieces(connection, ledger, checkpoint, number, part), remember=remember)
    except folded.Malformed as error:
        raise _Bad(f"partition {number}: its state is malformed ({error})") from error
    if (fold.partition, fold.place) != (number, part.head.place):
        raise _Bad(f"partition {number}: its state is of another place")
    return fold


def check(connection: Connection, ledger: Ledger, checkpoint: Checkpoint) -> Unsound | None:
    """Whether the states are what was signed: every piece is read and hashed."""
    try:
        for number, part in checkpoint.parts.items():
            for _ in _pieces(connection, ledger, checkpoint, number, part):
                pass
    except _Bad as bad:
        return Unsound(checkpoint.source, str(bad))
    return None


def _pieces(
    connection: Connection, ledger: Ledger, checkpoint: Checkpoint, number: int, part: Part
) -> Iterator[bytes]:
    """The pieces of a partition's state. Raises _Bad, at the latest behind the last of them."""
    digest = ledger.chain.hasher()
    wanted = select(CHECKPOINT_PIECES.c.data).where(
        CHECKPOINT_PIECES.c.number == checkpoint.number, CHECKPOINT_PIECES.c.partition == number
    )
    for piece in range(part.pieces):
        data = connection.execute(wanted.where(CHECKPOINT_PIECES.c.piece == piece)).scalar()
        if data is None:
            raise _Bad(f"partition {number}: piece {piece} of its state is missing")
        try:
            raw = zlib.decompress(database.raw(data))
        except zlib.error:
            raise _Bad(f"partition {number}: piece {piece} of its state was changed") from None
        digest.update(len(raw).to_bytes(8, "big") + raw)
        yield raw
    if digest.digest() != part.digest:
        raise _Bad(f"partition {number}: its state has another hash than was signed")


# --- writing ------------------------------------------------------------------------------------------------------------
def fold_on(ledger: Ledger, fold: Fold, head: Head, upto: Place) -> Head:
    """Fold a partition's rows behind `head` up to a place, seeing that each is linked; gives the head there.

    Raises LedgerConflict, naming the row, when the ledger contradicts itself; LedgerUnavailable.
    """
    link, rows = head.link, head.rows
    number = fold.partition
    for row in ledger.rows(number, after=fold.place, upto=upto):
        try:
            fold.add(row.entry)
            link = ledger.chain.link(link, number, row.entry)
        except (Contradiction, TypeError) as found:
            raise _conflict(number, row.entry, str(found)) from None
        if link != row.link:
            raise _conflict(number, row.entry, "the chain breaks here")
        rows += 1
    return Head(fold.place, rows, link)


def _conflict(number: int, entry: Entry, why: str) -> LedgerConflict:
    return LedgerConflict(
        f"partition {number}, row {Place(entry.epoch, entry.seq)}: {why}; verify the ledger, and go on from a sound copy"
    )


def take(ledger: Ledger, key: Ed25519PrivateKey, *, at_ms: int) -> Checkpoint:
    """Fold what is there on from the latest sound checkpoint, and keep the state, signed; gives the checkpoint.

    at_ms: the time now. Raises LedgerConflict when the ledger contradicts itself, LedgerUnavailable.
    """
    heads = {number: head for number, head in ledger.heads().items() if number != CONTROL}
    begun = begin(ledger, key.public_key(), heads, remember=True)
    reached = {
        number: fold_on(ledger, begun.folds[number], begun.head(ledger, number), head.place)
        for number, head in heads.items()
    }
    checkpoint = keep(ledger, key, begun.folds, reached, at_ms=at_ms)
    drop_old(ledger)
    return checkpoint


def keep(
    ledger: Ledger,
    key: Ed25519PrivateKey,
    folds: Mapping[int, Fold],
    heads: Mapping[int, Head],
    *,
    at_ms: int,
) -> Checkpoint:
    """Write the state of folds that stand at these heads, signed. The folds are pruned by it. Raises LedgerUnavailable."""
    arrived = {arrival for fold in folds.values() for arrival in fold.over()}
    number = _next_number(ledger)
    parts = {}
    for partition, fold in sorted(folds.items()):
        fold.prune(arrived=arrived)
        parts[partition] = _write(ledger, number, fold, heads[partition])
    told = {
        str(partition): [
            str(part.head.place),
            part.head.rows,
            part.head.link.hex(),
            part.pieces,
            part.size,
            part.digest.hex(),
        ]
        for partition, part in parts.items()
    }
    about = {"deployment": ledger.deployment_id, "chain": ledger.chain.algorithm, "at_ms": at_ms}
    statement = json.dumps({**about, "checkpoint": number, "parts": told}, separators=(",", ":"))
    signature = sign_text(key, _LABEL, statement)
    with database.writing(ledger.engine) as connection:
        connection.execute(
            insert(CHECKPOINTS).values(
                number=number,
                at_ms=at_ms,
                rows=sum(part.head.rows for part in parts.values()),
                statement=statement,
                signature=signature,
            )
        )
    return Checkpoint(number, at_ms, parts)


def _next_number(ledger: Ledger) -> int:
    """One that no earlier checkpoint has, nor one that was cut off while it was written."""
    with database.snapshot(ledger.engine) as connection:
        numbers = [
            connection.execute(select(func.max(table.c.number))).scalar()
            for table in (CHECKPOINTS, CHECKPOINT_PIECES)
        ]
    return 1 + max(number or 0 for number in numbers)


def _write(ledger: Ledger, number: int, fold: Fold, head: Head) -> Part:
    digest = ledger.chain.hasher()
    size = pieces = 0
    waiting: list[dict[str, int | bytes]] = []

    def write() -> None:
        with database.writing(ledger.engine) as connection:
            connection.execute(insert(CHECKPOINT_PIECES), waiting)
        waiting.clear()

    for raw in folded.dump(fold):
        digest.update(len(raw).to_bytes(8, "big") + raw)
        data = zlib.compress(raw, _LEVEL)
        waiting.append({"number": number, "partition": fold.partition, "piece": pieces, "data": data})
        size, pieces = size + len(raw), pieces + 1
        if len(waiting) == PIECES_PER_WRITE:
            write()
    if waiting:
        write()
    return Part(head, pieces, size, digest.digest())


def drop_old(ledger: Ledger) -> None:
    """Keep those that are furthest, and the one that a cut stands on; pieces of one that was never finished go too.

    Raises LedgerUnavailable.
    """
    with database.writing(ledger.engine) as connection:
        newest = connection.execute(select(func.max(CHECKPOINTS.c.number))).scalar() or 0
        furthest = select(CHECKPOINTS.c.number).order_by(*_FURTHEST).limit(KEPT)
        wanted = set(connection.execute(furthest).scalars())
        cut = cuts.read_cut(connection, ledger, None)
        if cut is not None:
            wanted.add(cut.base)
        for table in (CHECKPOINT_PIECES, CHECKPOINTS):
            connection.execute(delete(table).where(table.c.number.notin_(wanted), table.c.number < newest))
