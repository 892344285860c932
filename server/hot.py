"""Redeem and inspect for the hot lane: batches of wire bytes to the engine and back, see server.batches.Method.

A message that is plain (the scan kernel says which) becomes columns without a message object. Any other, and any that is out of
range, takes the ordinary way through server.translate, which reads everything and says what is wrong; both ways end in the same
attempts. So nothing is decided here, and a test compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from engine import attempts, limits, redemption
from engine.attempts import Attempts, Texts
from engine.calls import InspectRequest, RedeemRequest
from engine.claims import partition_of
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import PickgateError
from engine.state import attempts as state
from engine.state.attempts import Attempt, Facts
from ext.datum import Datum
from ext.lane import Answers, Scanned, Shape, scan_batch
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from server import bounds, roles, translate, written
from server.batches import Outcome, Sorted
from server.roles import Grant

_FIELDS: Final = (
    ((1,), "message"),
    ((1, 1), "uint32"),
    ((1, 2), "uint32"),
    ((1, 3), "uint32"),
    ((2,), "text"),
    ((3,), "text"),
    ((4,), "text"),
    ((7,), "text"),
    ((5,), "message"),
    ((5, 1), "double"),
    ((5, 2), "double"),
    ((5, 3), "double"),
    ((5, 4), "enum"),
)
"""Of RedeemRequest. Lines and proofs are left to the ordinary way. InspectRequest has the same numbers, and what it has not is an
unknown field there, which is not looked at."""
_REQUEST_ID, _CODE, _PIN, _ACTOR = range(4)
"""Columns of texts."""
_NUMBER: Final = (1, 2**32 - 1)
_RANGES: Final[dict[tuple[int, ...], tuple[float, float]]] = {
    **{(1, number): _NUMBER for number in (1, 2, 3)},
    (3,): (1, bounds.CODE_CHARS_MAX),
    (5, 1): (-90.0, 90.0),
    (5, 2): (-180.0, 180.0),
    (5, 3): (0.0, sys.float_info.max),
    (5, 4): (min(Datum), max(Datum)),
}
"""What server.translate takes as it is, all but the code checked. Whatever is out of it goes the ordinary way."""
_NEEDED: Final = ((1,), (5, 1), (5, 2))


def _granted(found: Scanned, grants: Sequence[Grant | None]) -> npt.NDArray[np.bool_]:
    """Rows whose mall, store and terminal are within what their callers may do."""
    rows = b"".join([given.row for given in grants if given is not None])
    own = np.frombuffer(rows, np.float64).reshape(-1, 3).T
    granted: npt.NDArray[np.bool_] = ((own == 0.0) | (own == found.numbers[:3])).all(axis=0)
    return granted


def _actor(given: Grant | None) -> bytes:
    return given.actor.encode() if given else b""


_Asked: TypeAlias = tuple[Attempt, bytes]
"""An attempt, and the request id that its answer repeats; empty to inspect."""


class _Verb:
    """What redeem and inspect have in common."""

    _changes: ClassVar[bool]
    """Whether it has request ids."""
    _answers: ClassVar[Answers]
    _shape: ClassVar[Shape]
    """Of the messages that take the quick way."""
    weigh: Callable[[Any], int] | None = None

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._stores = written.Stores({})

    # --- sort -------------------------------------------------------------------------------------------------
    def sort(self, batch: Sequence[bytes], grants: Sequence[Grant | None] = ()) -> list[Sorted | Outcome]:
        """See server.batches.Method."""
        results: list[Sorted | Outcome] = [b""] * len(batch)
        found = scan_batch(self._shape, batch)
        plain = found.plain
        if grants:
            # Whoever asks for another's takes the ordinary way too, and is refused there.
            plain &= _granted(found, grants)
        at = range(len(batch)) if plain.all() else np.flatnonzero(plain).tolist()
        if at:
            columns = self._scanned(found, None if len(at) == len(batch) else at)
            if grants:
                columns = replace(columns, actors=Texts.of([_actor(grants[n]) for n in at]))
            self._prepare(columns, at, results)
        if len(at) < len(batch):
            self._sort_others(batch, grants, np.flatnonzero(~plain).tolist(), results)
        return results

    def _sort_others(
        self,
        batch: Sequence[bytes],
        grants: Sequence[Grant | None],
        rows: Sequence[int],
        results: list[Sorted | Outcome],
    ) -> None:
        """The ordinary way: each by itself, its error its own."""
        sound: list[Any] = []
        at: list[int] = []
        for n in rows:
            try:
                sound.append(self._read(batch[n], grants[n] if grants else None))
                at.append(n)
            except Exception as error:
                results[n] = error
        if sound:
            self._prepare(self._columns(sound), at, results)

    def _prepare(self, columns: Attempts, at: Sequence[int], results: list[Sorted | Outcome]) -> None:
        connection = self._deployment.connection
        owner_of, several = connection.owner_of, connection.owners > 1
        prepared = attempts.prepare(self._deployment, columns)
        ids = columns.request_ids
        request_ids = [b""] * len(prepared) if ids is None else ids.each()
        for n, attempt, request_id in zip(at, prepared, request_ids, strict=True):
            if attempt is None:
                results[n] = self._invalid(request_id)
            else:
                owner = owner_of(partition_of(attempt)) if several else 0
                results[n] = Sorted(owner, (attempt, request_id))

    def _read(self, data: bytes, given: Grant | None) -> Any:
        raise NotImplementedError

    def _columns(self, requests: Sequence[Any]) -> Attempts:
        raise NotImplementedError

    def _scanned(self, found: Scanned, at: Sequence[int] | None) -> Attempts:
        """The columns of some rows, or of all."""
        numbers, starts, ends = found.numbers, found.starts, found.ends
        if at is not None:
            # Not by an index: what that gives has its columns, not its rows, in one piece, which no kernel takes.
            numbers, starts, ends = numbers.take(at, 1), starts.take(at, 1), ends.take(at, 1)

        def texts(column: int) -> Texts:
            return Texts(found.wire, starts[column], ends[column])

        return Attempts(
            numbers[:3].astype(np.uint32),
            texts(_CODE),
            numbers[3:],
            texts(_REQUEST_ID) if self._changes else None,
            texts(_ACTOR),
        )

    # --- decide -----------------------------------------------------------------------------------------------
    def begin(self, owner: int, batch: Sequence[_Asked]) -> _Work:
        """See server.batches.Method."""
        return _Work(self, self._deployment, batch)

    def written(
        self, copy: Copy, batch: Sequence[_Asked], replies: Sequence[bytes | PickgateError]
    ) -> Iterator[Outcome]:
        """The answers of attempts: at once where that can be, else one by one."""
        tried = [attempt for attempt, _ in batch]
        request_ids = [request_id for _, request_id in batch] if self._changes else ()
        stores = self._stores
        if stores.stores is not copy.stores:
            stores = self._stores = written.Stores(copy.stores)
        quick = self._answers.write(replies, tried, request_ids, stores)
        for asked, reply, answer in zip(batch, replies, quick, strict=True):
            yield self._written_slowly(copy, asked, reply) if answer is None else answer

    def _written_slowly(self, copy: Copy, asked: _Asked, reply: bytes | PickgateError) -> Outcome:
        try:
            facts = state.facts_of(reply)
            return facts if isinstance(facts, PickgateError) else self._write(copy, asked, facts)
        except Exception as error:
            return error

    def _time_zone(self, copy: Copy, asked: _Asked) -> str:
        """Times in sentences are those of the terminal's store."""
        store = copy.stores.get(state.store_of(asked[0]))
        return translate.TIME_ZONE_DEFAULT if store is None else store.time_zone

    def _invalid(self, request_id: bytes) -> bytes:
        raise NotImplementedError

    def _write(self, copy: Copy, asked: _Asked, facts: Facts) -> bytes:
        raise NotImplementedError


class _Work:
    """One batch of attempts; see server.batches.Work."""

    def __init__(self, verb: _Verb, deployment: Deployment, batch: Sequence[_Asked]) -> None:
        self._verb, self._batch, self._connection = verb, batch, deployment.connection
        # Taken now: once it is decided, nothing may stand between the callers and their answers.
        self._copy = deployment.control.copy()
        self._packed = state.pack(self._connection, [attempt for attempt, _ in batch])
        self._replies: Sequence[Any] = ()

    def wait(self) -> None:
        self._replies = self._connection.exchange(self._packed.packed)

    def outcomes(self) -> Iterator[Outcome]:
        return self._verb.written(self._copy, self._batch, state.unpack(self._packed, self._replies))


class Redeem(_Verb):
    """RedemptionService.Redeem."""

    _changes = True
    _answers = written.REDEEM
    _shape = Shape(
        _FIELDS,
        {
            **_RANGES,
            (2,): (limits.REQUEST_ID_CHARS_MIN, limits.REQUEST_ID_CHARS_MAX),
            # A PIN's shape is the ordinary way's to judge.
            (4,): (0, 0),
            (7,): (0, limits.ACTOR_CHARS_MAX),
        },
        _NEEDED,
    )

    def _read(self, data: bytes, given: Grant | None) -> RedeemRequest:
        message = translate.parse(redemption_pb.RedeemRequest, data, limits.MESSAGE_BYTES_MAX)
        roles.enter(given, message, self._deployment.control.store)
        return translate.redeem_request(message)

    def _columns(self, requests: Sequence[RedeemRequest]) -> Attempts:
        return attempts.of_redemptions(requests)

    def _invalid(self, request_id: bytes) -> bytes:
        return written.invalid_redemption(request_id)

    def _write(self, copy: Copy, asked: _Asked, facts: Facts) -> bytes:
        attempt, request_id = asked
        answer = redemption.redeem_answer(self._deployment, copy, attempt, facts)
        response = translate.redeem_response(request_id.decode(), answer, self._time_zone(copy, asked))
        return response.SerializeToString()


class Inspect(_Verb):
    """RedemptionService.Inspect."""

    _changes = False
    _answers = written.INSPECT
    _shape = Shape(_FIELDS, _RANGES, _NEEDED)

    def _read(self, data: bytes, given: Grant | None) -> InspectRequest:
        message = translate.parse(redemption_pb.InspectRequest, data, limits.MESSAGE_BYTES_MAX)
        roles.enter(given, message, self._deployment.control.store)
        return translate.inspect_request(message)

    def _columns(self, requests: Sequence[InspectRequest]) -> Attempts:
        return attempts.of_inspections(requests)

    def _invalid(self, request_id: bytes) -> bytes:
        return written.INVALID_INSPECTION

    def _write(self, copy: Copy, asked: _Asked, facts: Facts) -> bytes:
        answer = redemption.inspect_answer(self._deployment, copy, asked[0], facts)
        return translate.inspect_response(answer, self._time_zone(copy, asked)).SerializeToString()
