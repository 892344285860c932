"""Attempts: tries to redeem or inspect, column by column, on their way from the caller to the script.

    columns → open (kernels) → standing of the store, place (kernels) → second factor → rows (kernels)

Nothing here asks the store. Columns instead of values, because at thousands of calls a second making a value for each is what
would take the time; `engine.redemption` has the same verbs for values, over this.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, get_args

import numpy as np
import numpy.typing as npt

from engine import limits, policies, proof, serial
from engine.calls import InspectRequest, RedeemRequest
from engine.claims import UID_BYTES, Line, Version, partition_of
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import TooManyItems
from engine.idempotency import body_digest, terminal_digests, uid_digests
from engine.keyring import Keys
from engine.state import layouts
from engine.state.attempts import NO_PIN, Attempt
from engine.verdict import RedeemVerdict
from ext.claims import CLAIMS
from ext.codec import OpenStatus, open_text_batch, pack
from ext.lane import Judge, gather, join_rows, slices

_ITEM: Final = layouts.REDEEM_ITEM
_BLANK: Final = np.zeros(1, _ITEM.dtype)
"""An attempt without a PIN and a proof, against which nothing is found."""
_BLANK["pin_1"] = _BLANK["pin_2"] = NO_PIN
_BLANK["proof"] = RedeemVerdict.PROOF_REQUIRED.number
JUDGE: Final = Judge(
    _BLANK.tobytes(),
    {name: _ITEM.at(name) for name in _ITEM.names},
    skew_s=limits.STAMP_SKEW_S,
    static_version=Version.STATIC,
    accuracy_m_max=limits.ACCURACY_M_MAX,
    allowance_m_max=limits.ACCURACY_ALLOWANCE_M_MAX,
    location_required=RedeemVerdict.LOCATION_REQUIRED.number,
    location_unreliable=RedeemVerdict.LOCATION_UNRELIABLE.number,
    out_of_range=RedeemVerdict.OUT_OF_RANGE.number,
)
"""The same rules as engine.policy has for values; a test compares them."""
_NEVER_S: Final = 2**32 - 1
"""Expiry of a code whose text has none: the record knows."""
_ZERO: Final = np.uint8(ord("0"))
_OPEN_OK: Final = int(OpenStatus.OK)
"""A number: NumPy compares with a member of an enum ten times as slowly."""
_UID_HEAD: Final = np.dtype({"names": ["head"], "formats": [">u2"], "itemsize": UID_BYTES})
"""The first two bytes of a uid."""


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """n texts in one buffer: text i is buffer[starts[i]:ends[i]], in UTF-8."""

    buffer: bytes
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> Texts:
        """The column of these texts."""
        buffer, offsets = pack(texts)
        ends = offsets.astype(np.int64)
        return cls(buffer, ends[:-1], ends[1:])

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: npt.NDArray[np.intp]) -> Texts:
        """Those of some rows."""
        return Texts(self.buffer, self.starts[rows], self.ends[rows])

    def each(self) -> list[bytes]:
        """Each by itself."""
        return slices(self.buffer, self.starts, self.ends)


@dataclass(frozen=True, slots=True, eq=False)
class Attempts:
    """A batch of n attempts. Mappings have one entry for each attempt that says something of the kind.

    The ranges are those of engine.calls.RedeemRequest, and have been checked.
    """

    terminals: npt.NDArray[np.uint32]
    """3 × n: mall, store, terminal."""
    codes: Texts
    """As scanned or typed."""
    places: npt.NDArray[np.float64]
    """4 × n: latitude and longitude in degrees, accuracy in metres, datum; datum 0: no position was stated."""
    request_ids: Texts | None
    """None to inspect, which changes nothing."""
    actors: Texts
    lines: Mapping[int, Sequence[Line]] = field(default_factory=dict)
    pins: Mapping[int, str] = field(default_factory=dict, repr=False)
    proof_tokens: Mapping[int, str] = field(default_factory=dict, repr=False)

    @property
    def dry(self) -> bool:
        """Whether they only inspect."""
        return self.request_ids is None


def _terminals_of(requests: Sequence[RedeemRequest | InspectRequest]) -> npt.NDArray[np.uint32]:
    rows = [(at.mall_id, at.store_id, at.terminal_id) for at in (request.terminal for request in requests)]
    return np.array(rows, np.uint32).reshape(len(rows), 3).T


def _codes_of(requests: Sequence[RedeemRequest | InspectRequest]) -> Texts:
    return Texts.of([request.code.encode("utf-8", "surrogatepass") for request in requests])


def _places_of(requests: Sequence[RedeemRequest | InspectRequest]) -> npt.NDArray[np.float64]:
    rows = [
        (at.latitude_deg, at.longitude_deg, at.accuracy_m, at.datum) if at else (0.0, 0.0, 0.0, 0)
        for at in (request.position for request in requests)
    ]
    return np.array(rows, np.float64).reshape(len(rows), 4).T


def of_redemptions(requests: Sequence[RedeemRequest]) -> Attempts:
    """The columns of tries to redeem."""
    return Attempts(
        _terminals_of(requests),
        _codes_of(requests),
        _places_of(requests),
        Texts.of([request.request_id.encode() for request in requests]),
        Texts.of([request.actor.encode() for request in requests]),
        {n: request.lines for n, request in enumerate(requests) if request.lines},
        {n: request.pin for n, request in enumerate(requests) if request.pin},
        {n: request.proof_token for n, request in enumerate(requests) if request.proof_token},
    )


def of_inspections(requests: Sequence[InspectRequest]) -> Attempts:
    """The columns of inspections."""
    return Attempts(
        _terminals_of(requests),
        _codes_of(requests),
        _places_of(requests),
        None,
        Texts.of([b""] * len(requests)),
    )


# --- opening --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """What the codes of a batch say: rows of the m genuine ones, and columns for those."""

    rows: npt.NDArray[np.intp]
    whole: bool
    """Whether those are all rows of the batch, in its order."""
    claims: npt.NDArray[np.void]
    """m rows of ext.claims.CLAIMS; of a typed code there are the uid and a version that does not go stale."""

    def uid(self, n: int) -> bytes:
        return bytes(self.claims["uid"][n].tobytes())


def _open(deployment: Deployment, copy: Copy, codes: Texts) -> _Opened:
    """Prove codes genuine, scanned payloads and typed serials alike; whatever is wrong with a code, it is only left out."""
    # Below "0" they come out above nine, being bytes.
    are_typed = np.frombuffer(codes.buffer, np.uint8)[codes.starts] - _ZERO < 10
    if not are_typed.any():
        return _open_scanned(deployment, copy, codes, None)
    scanned = _open_scanned(deployment, copy, codes, np.flatnonzero(~are_typed))
    typed = _open_typed(deployment, copy, codes, np.flatnonzero(are_typed))
    claims = np.zeros(len(scanned.rows) + len(typed.rows), CLAIMS)
    claims[: len(scanned.rows)], claims[len(scanned.rows) :] = scanned.claims, typed.claims
    return _Opened(np.concatenate((scanned.rows, typed.rows)), False, claims)


def _open_scanned(
    deployment: Deployment, copy: Copy, codes: Texts, rows: npt.NDArray[np.intp] | None
) -> _Opened:
    """Open payloads; rows: which of the codes, or None for all."""
    texts = codes if rows is None else codes.take(rows)
    claims = open_text_batch(
        copy.usable_keys().payload_table, *gather(texts.buffer, texts.starts, texts.ends)
    )
    # The upper ten bits of a uid are its partition (engine.claims).
    partitions = claims["uid"].view(_UID_HEAD)["head"] >> 6
    are_good = (claims["status"] == _OPEN_OK) & (partitions < deployment.constants.partitions)
    if rows is None:
        rows = np.arange(len(texts))
    if are_good.all():
        return _Opened(rows, True, claims)
    return _Opened(rows[are_good], False, claims[are_good])


def _open_typed(deployment: Deployment, copy: Copy, codes: Texts, rows: npt.NDArray[np.intp]) -> _Opened:
    prfs = copy.usable_keys().serial_prfs
    uids: list[bytes] = []
    good: list[int] = []
    for row, text in zip(rows.tolist(), codes.take(rows).each(), strict=True):
        found = serial.uid_of_typed(text.decode("utf-8", "replace"), prfs) if prfs else None
        if found is not None and partition_of(found) < deployment.constants.partitions:
            good.append(row)
            uids.append(found)
    claims = np.zeros(len(good), CLAIMS)
    claims["uid"] = np.frombuffer(b"".join(uids), "V8")
    claims["version"] = Version.STATIC
    claims["exp"] = _NEVER_S
    return _Opened(np.array(good, np.intp), False, claims)


# --- the pure policy ------------------------------------------------------------------------------------------------
def _judge_pin(keys: Keys, uid: bytes, pin: str) -> tuple[int, int]:
    """Generations of the PIN key under which this PIN is right (0: none); which one counts, the record says."""
    right = [0, 0]
    for n, generation in enumerate(keys.pin_generations[:2]):
        if hmac.compare_digest(serial.pin_of(keys.pin_prf(generation), uid, generation), pin):
            right[n] = generation
    return right[0], right[1]


def _judge_proof(copy: Copy, uid: bytes, token: str, now_ms: int) -> tuple[int, bytes, int]:
    """What a proof token says: the number of the verdict against it or 0, its digest and the flag of its method.

    Whether the code needs one, and of which method, its record says.
    """
    found = proof.check(token, copy.providers, uid=uid, offered=get_args(policies.ProofMethod), now_ms=now_ms)
    if isinstance(found, proof.ProofRefusal):
        return RedeemVerdict.PROOF_REJECTED.number, b"", 0
    return 0, found.digest, layouts.FLAG_METHODS[found.method]


# --- packing --------------------------------------------------------------------------------------------------------
def prepare(deployment: Deployment, attempts: Attempts) -> list[Attempt | None]:
    """Do all that needs no store: one packed attempt each, or None where the code is not genuine (INVALID_CODE).

    Raises TooManyItems, StaleControl, KeyringLocked, LedgerBehind (unless they only inspect) for the batch.
    """
    count = len(attempts.codes)
    if count > limits.WRITE_ITEMS_MAX:
        raise TooManyItems(
            f"{count} codes in one batch; expected at most {limits.WRITE_ITEMS_MAX}", field="codes"
        )
    copy = deployment.control.copy() if attempts.dry else deployment.control.copy_to_change()
    copy.usable_keys()
    prepared: list[Attempt | None] = [None] * count
    if not count:
        return prepared
    now_ms = deployment.now_ms()
    opened = _open(deployment, copy, attempts.codes)
    if len(opened.rows) < count:
        forged = np.setdiff1d(np.arange(count), opened.rows)
        deployment.forgeries.note(
            attempts.terminals[:, forged].T.tolist(), attempts.codes.take(forged).each(), dry=attempts.dry
        )
    packed = _packed(deployment, copy, attempts, opened, now_ms)
    if opened.whole:
        return packed
    for row, attempt in zip(opened.rows.tolist(), packed, strict=True):
        prepared[row] = attempt
    return prepared


def _packed(
    deployment: Deployment, copy: Copy, attempts: Attempts, opened: _Opened, now_ms: int
) -> list[Attempt | None]:
    """The genuine codes' attempts."""
    at, claims = opened.rows, opened.claims
    terminals, places, ids, actors = (
        attempts.terminals,
        attempts.places,
        attempts.request_ids,
        attempts.actors,
    )
    if not opened.whole:
        terminals, places, actors = terminals[:, at], places[:, at], actors.take(at)
        ids = None if ids is None else ids.take(at)
    standings = deployment.standings(copy, now_ms // 1000)
    own, of_codes = terminals[1].tolist(), claims["store"].tolist()
    own_rows = standings.rows(own)
    code_rows = own_rows if own == of_codes else standings.rows(of_codes)
    requests = bodies = b""
    generations = None
    if ids is not None:
        requests = terminal_digests(terminals, "redeem", ids.buffer, ids.starts, ids.ends)
        bodies = uid_digests(claims["uid"].tobytes(), [])
        generations = (*copy.usable_keys().pin_generations, 0, 0)[:2]
    rows = JUDGE.rows(
        *(claims, standings.table, own_rows, code_rows, terminals, places, requests, bodies),
        actors.ends - actors.starts,
        generations,
        now_ms // 1000,
    )
    if attempts.lines or attempts.pins or attempts.proof_tokens:
        table = np.frombuffer(bytearray(rows), _ITEM.dtype)
        _judge_factors(copy, attempts, opened, table, now_ms)
        wanted = _write_wanted(attempts, opened, table)
        packed = join_rows(table.tobytes(), _ITEM.size, actors.buffer, actors.starts, actors.ends)
        for n, lines in wanted.items():
            packed[n] = packed[n][: _ITEM.size] + lines + packed[n][_ITEM.size :]
    else:
        packed = join_rows(rows, _ITEM.size, actors.buffer, actors.starts, actors.ends)
    return list[Attempt | None](packed)


def _judge_factors(
    copy: Copy, attempts: Attempts, opened: _Opened, rows: npt.NDArray[np.void], now_ms: int
) -> None:
    """Put into the rows what PINs and proof tokens say."""
    keys = copy.usable_keys()
    versions = opened.claims["version"].tolist()
    for n, (row, version) in enumerate(zip(opened.rows.tolist(), versions, strict=True)):
        if pin := version == Version.STATIC and attempts.pins.get(row):
            rows["pin_1"][n], rows["pin_2"][n] = _judge_pin(keys, opened.uid(n), pin)
        elif token := version == Version.VALUABLE and attempts.proof_tokens.get(row):
            finding, digest, method = _judge_proof(copy, opened.uid(n), token, now_ms)
            rows["proof"][n], rows["proof_method"][n] = finding, method
            if digest:
                rows["proof_digest"][n] = np.void(digest)


def _write_wanted(attempts: Attempts, opened: _Opened, rows: npt.NDArray[np.void]) -> dict[int, bytes]:
    """Put into the rows what wanted lines say; gives what stands behind each row."""
    wanted: dict[int, bytes] = {}
    for n, row in enumerate(opened.rows.tolist()):
        if lines := attempts.lines.get(row):
            wanted[n] = b"".join(layouts.WANTED.pack(line.sku_id, line.count) for line in lines)
            rows["n_lines"][n] = len(lines)
            if not attempts.dry:
                pairs = sorted((line.sku_id, line.count) for line in lines)
                rows["body"][n] = np.void(body_digest(opened.uid(n), pairs))
    return wanted
