"""Redeem and inspect for the hot lane: batches of wire bytes to the engine and back, see server.batches.Method.

A message that is plain (the scan kernel says which) becomes columns without a message object. Any other, and any that is out of
range, takes the ordinary way through server.translate, which reads everything and says what is wrong; both ways end in the same
attempts. So nothing is decided here, and a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engine import attempts, limits, redemption
from engine.attempts import Attempts
from engine.calls import InspectRequest, RedeemRequest
from engine.claims import partition_of
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import PickgateError
from engine.state import attempts as state
from engine.state.attempts import Attempt, Facts
from ext.messages import Scanned, Shape, scan_batch
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
_SHAPE: Final = Shape(_FIELDS)
_REQUEST_ID, _CODE, _PIN, _ACTOR = range(4)
"""Columns of texts."""
_POSITION: Final = [path for path, _ in _FIELDS].index((5,))
_WHOLE_POSITION: Final = 0b111 << _POSITION
"""Bits of `present`: the position with its latitude and its longitude."""
_DATUM_MAX: Final = 3


def _granted(found: Scanned, grants: Sequence[Grant | None]) -> npt.NDArray[np.bool_]:
    """Rows whose mall, store and terminal are within what their callers may do."""
    own = np.array([given[:3] if given else (0, 0, 0) for given in grants], np.float64).T
    granted: npt.NDArray[np.bool_] = ((own == 0.0) | (own == found.numbers[:3])).all(axis=0)
    return granted


def _actor(given: Grant | None) -> str:
    return given.actor if given else ""


class _Asked(NamedTuple):
    """An attempt with what its answer needs."""

    attempt: Attempt
    request_id: bytes
    """Empty to inspect."""
    store_id: int
    """Of the terminal: times in sentences are its store's."""


class _Verb:
    """What redeem and inspect have in common."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    # --- sort -------------------------------------------------------------------------------------------------
    def sort(self, batch: Sequence[bytes], grants: Sequence[Grant | None] = ()) -> list[Sorted | Outcome]:
        """See server.batches.Method."""
        results: list[Sorted | Outcome] = [b""] * len(batch)
        found = scan_batch(_SHAPE, batch)
        plain = self._plain(found)
        if grants:
            # Whoever asks for another's takes the ordinary way too, and is refused there.
            plain &= _granted(found, grants)
        at = np.flatnonzero(plain).tolist()
        if at:
            columns = self._scanned([batch[n] for n in at], found, at)
            if grants:
                columns = replace(columns, actors=[_actor(grants[n]) for n in at])
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
        for row, (n, attempt) in enumerate(zip(at, attempts.prepare(self._deployment, columns), strict=True)):
            request_id = columns.request_ids[row].encode() if columns.request_ids else b""
            if attempt is None:
                results[n] = self._invalid(request_id)
            else:
                asked = _Asked(attempt, request_id, columns.store_ids[row])
                results[n] = Sorted(connection.owner_of(partition_of(attempt.uid)), asked)

    def _plain(self, found: Scanned) -> npt.NDArray[np.bool_]:
        """Rows that server.translate would take as they are, all but their codes checked."""
        code_chars = found.ends[_CODE] - found.starts[_CODE]
        positions = found.present >> _POSITION & 1 != 0
        latitude_deg, longitude_deg, accuracy_m, datum = found.numbers[3:]
        placed = (
            (found.present & _WHOLE_POSITION == _WHOLE_POSITION)
            & (np.abs(latitude_deg) <= 90.0)
            & (np.abs(longitude_deg) <= 180.0)
            & (accuracy_m >= 0.0)
            & (accuracy_m < math.inf)
            & (datum >= 1)
            & (datum <= _DATUM_MAX)
        )
        plain: npt.NDArray[np.bool_] = (
            found.plain
            & (found.numbers[:3] >= 1).all(axis=0)
            & (code_chars >= 1)
            & (code_chars <= bounds.CODE_CHARS_MAX)
            & (placed | ~positions)
            & self._texts_plain(found)
        )
        return plain

    def _read(self, data: bytes, given: Grant | None) -> Any:
        raise NotImplementedError

    def _columns(self, requests: Sequence[Any]) -> Attempts:
        raise NotImplementedError

    def _texts_plain(self, found: Scanned) -> npt.NDArray[np.bool_]:
        raise NotImplementedError

    def _scanned(self, batch: Sequence[bytes], found: Scanned, at: Sequence[int]) -> Attempts:
        mall_ids, store_ids, terminal_ids = found.numbers[:3, at].astype(np.int64).tolist()
        return Attempts(
            mall_ids,
            store_ids,
            terminal_ids,
            self._texts(batch, found, at, _CODE),
            found.numbers[3:, at],
            *self._rest(batch, found, at),
        )

    @staticmethod
    def _texts(batch: Sequence[bytes], found: Scanned, at: Sequence[int], column: int) -> list[bytes]:
        spans = zip(batch, found.starts[column, at].tolist(), found.ends[column, at].tolist(), strict=True)
        return [message[start:end] for message, start, end in spans]

    def _rest(self, batch: Sequence[bytes], found: Scanned, at: Sequence[int]) -> tuple[Any, ...]:
        """The columns of Attempts from request_ids on."""
        raise NotImplementedError

    # --- decide -----------------------------------------------------------------------------------------------
    def begin(self, owner: int, batch: Sequence[_Asked]) -> _Work:
        """See server.batches.Method."""
        return _Work(self, self._deployment, batch)

    def written(self, copy: Copy, asked: _Asked, facts: Facts | PickgateError) -> Outcome:
        """The answer of one attempt."""
        if isinstance(facts, PickgateError):
            return facts
        try:
            store = copy.stores.get(facts.store_id)
            quick = self._write(asked, facts, store.name if store else "")
            return self._write_slowly(copy, asked, facts) if quick is None else quick
        except Exception as error:
            return error

    def _time_zone(self, copy: Copy, asked: _Asked) -> str:
        store = copy.stores.get(asked.store_id)
        return translate.TIME_ZONE_DEFAULT if store is None else store.time_zone

    def _invalid(self, request_id: bytes) -> bytes:
        raise NotImplementedError

    def _write(self, asked: _Asked, facts: Facts, store_name: str) -> bytes | None:
        raise NotImplementedError

    def _write_slowly(self, copy: Copy, asked: _Asked, facts: Facts) -> bytes:
        raise NotImplementedError


class _Work:
    """One batch of attempts; see server.batches.Work."""

    def __init__(self, verb: _Verb, deployment: Deployment, batch: Sequence[_Asked]) -> None:
        self._verb, self._batch, self._connection = verb, batch, deployment.connection
        # Taken now: once it is decided, nothing may stand between the callers and their answers.
        self._copy = deployment.control.copy()
        self._packed = state.pack(self._connection, [asked.attempt for asked in batch])
        self._replies: Sequence[Any] = ()

    def wait(self) -> None:
        self._replies = self._connection.exchange(self._packed.packed)

    def outcomes(self) -> Iterator[Outcome]:
        for asked, facts in zip(self._batch, state.unpack(self._packed, self._replies), strict=True):
            yield self._verb.written(self._copy, asked, facts)


class Redeem(_Verb):
    """RedemptionService.Redeem."""

    def _read(self, data: bytes, given: Grant | None) -> RedeemRequest:
        message = translate.parse(redemption_pb.RedeemRequest, data, limits.MESSAGE_BYTES_MAX)
        roles.enter(given, message, self._deployment.control.store)
        return translate.redeem_request(message)

    def _columns(self, requests: Sequence[RedeemRequest]) -> Attempts:
        return attempts.of_redemptions(requests)

    def _texts_plain(self, found: Scanned) -> npt.NDArray[np.bool_]:
        chars = found.ends - found.starts
        plain: npt.NDArray[np.bool_] = (
            (chars[_REQUEST_ID] >= limits.REQUEST_ID_CHARS_MIN)
            & (chars[_REQUEST_ID] <= limits.REQUEST_ID_CHARS_MAX)
            & (chars[_ACTOR] <= limits.ACTOR_CHARS_MAX)
            # A PIN's shape is the ordinary way's to judge.
            & (chars[_PIN] == 0)
        )
        return plain

    def _rest(self, batch: Sequence[bytes], found: Scanned, at: Sequence[int]) -> tuple[Any, ...]:
        return (
            [text.decode("ascii") for text in self._texts(batch, found, at, _REQUEST_ID)],
            [text.decode("ascii") for text in self._texts(batch, found, at, _ACTOR)],
        )

    def _invalid(self, request_id: bytes) -> bytes:
        return written.invalid_redemption(request_id)

    def _write(self, asked: _Asked, facts: Facts, store_name: str) -> bytes | None:
        return written.redemption(asked.request_id, asked.attempt, facts, store_name)

    def _write_slowly(self, copy: Copy, asked: _Asked, facts: Facts) -> bytes:
        answer = redemption.redeem_answer(self._deployment, copy, asked.attempt, facts)
        response = translate.redeem_response(asked.request_id.decode(), answer, self._time_zone(copy, asked))
        return response.SerializeToString()


class Inspect(_Verb):
    """RedemptionService.Inspect."""

    def _read(self, data: bytes, given: Grant | None) -> InspectRequest:
        message = translate.parse(redemption_pb.InspectRequest, data, limits.MESSAGE_BYTES_MAX)
        roles.enter(given, message, self._deployment.control.store)
        return translate.inspect_request(message)

    def _columns(self, requests: Sequence[InspectRequest]) -> Attempts:
        return attempts.of_inspections(requests)

    def _texts_plain(self, found: Scanned) -> npt.NDArray[np.bool_]:
        return found.plain

    def _rest(self, batch: Sequence[bytes], found: Scanned, at: Sequence[int]) -> tuple[Any, ...]:
        return (), [""] * len(batch)

    def _invalid(self, request_id: bytes) -> bytes:
        return written.INVALID_INSPECTION

    def _write(self, asked: _Asked, facts: Facts, store_name: str) -> bytes | None:
        return written.inspection(asked.attempt, facts, store_name)

    def _write_slowly(self, copy: Copy, asked: _Asked, facts: Facts) -> bytes:
        answer = redemption.inspect_answer(self._deployment, copy, asked.attempt, facts)
        return translate.inspect_response(answer, self._time_zone(copy, asked)).SerializeToString()
