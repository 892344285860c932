"""Attempts: tries to redeem or inspect, column by column, on their way from the caller to the script.

    columns → open (kernels) → standing of the store, place (kernels) → second factor → packed rows

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

from engine import limits, policies, policy, proof, serial
from engine.calls import InspectRequest, RedeemRequest
from engine.claims import Line, Version, partition_of
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import TooManyItems
from engine.idempotency import body_digest, request_digest
from engine.keyring import Keys
from engine.standings import Standing
from engine.state import layouts
from engine.state.attempts import NO_PIN, Attempt
from engine.verdict import RedeemVerdict
from ext.codec import OpenStatus, open_text_batch, pack

_NOBODY: Final = bytes(12)
_DATUM: Final = 3
"""Row of `Attempts.places` that holds the datum."""


@dataclass(frozen=True, slots=True, eq=False)
class Attempts:
    """A batch of n attempts. Lists have n entries; mappings have one for each attempt that says something of the kind.

    The ranges are those of engine.calls.RedeemRequest, and have been checked.
    """

    mall_ids: Sequence[int]
    store_ids: Sequence[int]
    terminal_ids: Sequence[int]
    codes: Sequence[bytes]
    """As scanned or typed, in UTF-8."""
    places: npt.NDArray[np.float64]
    """4 × n: latitude and longitude in degrees, accuracy in metres, datum; datum 0: no position was stated."""
    request_ids: Sequence[str]
    """Empty to inspect, which changes nothing."""
    actors: Sequence[str]
    lines: Mapping[int, Sequence[Line]] = field(default_factory=dict)
    pins: Mapping[int, str] = field(default_factory=dict, repr=False)
    proof_tokens: Mapping[int, str] = field(default_factory=dict, repr=False)

    @property
    def dry(self) -> bool:
        """Whether they only inspect."""
        return not self.request_ids


def places_of(requests: Sequence[RedeemRequest | InspectRequest]) -> npt.NDArray[np.float64]:
    """The column `Attempts.places` of requests."""
    rows = [
        (at.latitude_deg, at.longitude_deg, at.accuracy_m, at.datum) if at else (0.0, 0.0, 0.0, 0)
        for at in (request.position for request in requests)
    ]
    return np.array(rows, np.float64).reshape(len(rows), 4).T


def of_redemptions(requests: Sequence[RedeemRequest]) -> Attempts:
    """The columns of tries to redeem."""
    return Attempts(
        [request.terminal.mall_id for request in requests],
        [request.terminal.store_id for request in requests],
        [request.terminal.terminal_id for request in requests],
        [request.code.encode("utf-8", "surrogatepass") for request in requests],
        places_of(requests),
        [request.request_id for request in requests],
        [request.actor for request in requests],
        {n: request.lines for n, request in enumerate(requests) if request.lines},
        {n: request.pin for n, request in enumerate(requests) if request.pin},
        {n: request.proof_token for n, request in enumerate(requests) if request.proof_token},
    )


def of_inspections(requests: Sequence[InspectRequest]) -> Attempts:
    """The columns of inspections."""
    return Attempts(
        [request.terminal.mall_id for request in requests],
        [request.terminal.store_id for request in requests],
        [request.terminal.terminal_id for request in requests],
        [request.code.encode("utf-8", "surrogatepass") for request in requests],
        places_of(requests),
        (),
        [""] * len(requests),
    )


# --- opening --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """What the codes of a batch say: rows of the genuine ones, and columns for those."""

    rows: list[int]
    uids: list[bytes]
    versions: list[int]
    stale: list[bool]


def _open(deployment: Deployment, copy: Copy, texts: Sequence[bytes], now_s: int) -> _Opened:
    """Prove codes genuine, scanned payloads and typed serials alike; whatever is wrong with a code, it is only left out."""
    keys = copy.usable_keys()
    partitions = deployment.constants.partitions
    typed = [n for n, text in enumerate(texts) if text[:1].isdigit()]
    scanned = [n for n in range(len(texts)) if n not in set(typed)] if typed else list(range(len(texts)))
    opened = _Opened([], [], [], [])
    if scanned:
        claims = open_text_batch(keys.payload_table, *pack([texts[n] for n in scanned]))
        good = np.flatnonzero(claims["status"] == OpenStatus.OK)
        uids = claims["uid"][good].tobytes()
        lives_s = [
            deployment.standings(copy, now_s).of(store_id).payload_life_s
            for store_id in claims["store"][good].tolist()
        ]
        stale = policy.are_stale(
            claims["stamp"][good],
            claims["exp"][good],
            claims["version"][good],
            now_s,
            np.array(lives_s, np.int64),
        )
        for at, n, version, is_stale in zip(
            range(0, len(uids), 8),
            good.tolist(),
            claims["version"][good].tolist(),
            stale.tolist(),
            strict=True,
        ):
            uid = uids[at : at + 8]
            if partition_of(uid) < partitions:
                opened.rows.append(scanned[n])
                opened.uids.append(uid)
                opened.versions.append(version)
                opened.stale.append(is_stale)
    for n in typed:
        found = (
            serial.uid_of_typed(texts[n].decode("utf-8", "replace"), keys.serial_prfs)
            if keys.serial_prfs
            else None
        )
        if found is not None and partition_of(found) < partitions:
            opened.rows.append(n)
            opened.uids.append(found)
            opened.versions.append(Version.STATIC)
            opened.stale.append(False)
    return opened


# --- the pure policy ------------------------------------------------------------------------------------------------
def _judge_places(
    standings: Sequence[Standing], places: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    datums = places[_DATUM].astype(np.intp)
    stores = np.array(
        [standing.positions[datum] for standing, datum in zip(standings, datums.tolist(), strict=True)],
        np.float64,
    ).reshape(len(standings), 2)
    return policy.judge_columns(
        policy.Places(
            stated=datums != 0,
            latitude_deg=places[0],
            longitude_deg=places[1],
            accuracy_m=places[2],
            store_latitude_deg=np.ascontiguousarray(stores[:, 0]),
            store_longitude_deg=np.ascontiguousarray(stores[:, 1]),
            radius_m=np.array([standing.radius_m for standing in standings], np.float64),
            rules=np.array([standing.rule for standing in standings], np.uint8),
        )
    )


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
    if len(attempts.codes) > limits.WRITE_ITEMS_MAX:
        raise TooManyItems(
            f"{len(attempts.codes)} codes in one batch; expected at most {limits.WRITE_ITEMS_MAX}",
            field="codes",
        )
    copy = deployment.control.copy() if attempts.dry else deployment.control.copy_to_change()
    keys = copy.usable_keys()
    now_ms = deployment.now_ms()
    opened = _open(deployment, copy, attempts.codes, now_ms // 1000)
    prepared: list[Attempt | None] = [None] * len(attempts.codes)
    if not opened.rows:
        return prepared
    rows = _rows(deployment, copy, attempts, opened, now_ms)
    proof_digests: dict[int, bytes] = {}
    for n, (row, uid) in enumerate(zip(opened.rows, opened.uids, strict=True)):
        if pin := opened.versions[n] == Version.STATIC and attempts.pins.get(row):
            rows["pin_1"][n], rows["pin_2"][n] = _judge_pin(keys, uid, pin)
        elif token := opened.versions[n] == Version.VALUABLE and attempts.proof_tokens.get(row):
            finding, digest, method = _judge_proof(copy, uid, token, now_ms)
            rows["proof"][n], rows["proof_method"][n] = finding, method
            if digest:
                rows["proof_digest"][n], proof_digests[row] = digest, digest
    return _packed(attempts, opened, rows, proof_digests, prepared)


def _rows(
    deployment: Deployment, copy: Copy, attempts: Attempts, opened: _Opened, now_ms: int
) -> npt.NDArray[np.void]:
    """Rows of layouts.REDEEM_ITEM for the genuine codes, but for what second factors and digests put in."""
    at = opened.rows
    standing_of = deployment.standings(copy, now_ms // 1000).of
    standings = [standing_of(attempts.store_ids[n]) for n in at]
    places, buckets = _judge_places(standings, attempts.places[:, at])
    generation_1, generation_2, *_ = (*copy.usable_keys().pin_generations, 0, 0)
    rows = np.zeros(len(at), layouts.REDEEM_ITEM.dtype)
    rows["mall"] = [attempts.mall_ids[n] for n in at]
    rows["store"] = [attempts.store_ids[n] for n in at]
    rows["terminal"] = [attempts.terminal_ids[n] for n in at]
    rows["version"] = opened.versions
    rows["stale"] = opened.stale
    rows["pin_1"] = rows["pin_2"] = NO_PIN
    if not attempts.dry:
        rows["generation_1"], rows["generation_2"] = generation_1, generation_2
    rows["proof"] = RedeemVerdict.PROOF_REQUIRED.number
    rows["place"] = places
    rows["closed"] = [standing.closed for standing in standings]
    rows["window"] = [standing.window for standing in standings]
    rows["bucket"] = buckets
    rows["dry"] = attempts.dry
    return rows


def _packed(
    attempts: Attempts,
    opened: _Opened,
    rows: npt.NDArray[np.void],
    proof_digests: Mapping[int, bytes],
    prepared: list[Attempt | None],
) -> list[Attempt | None]:
    tails: list[bytes] = []
    requests: list[bytes] = []
    bodies: list[bytes] = []
    for row, uid in zip(opened.rows, opened.uids, strict=True):
        lines = attempts.lines.get(row, ())
        actor = attempts.actors[row].encode()
        tails.append(
            b"".join(layouts.WANTED.pack(line.sku_id, line.count) for line in lines) + actor
            if lines
            else actor
        )
        if attempts.dry:
            continue
        terminal = f"terminal:{attempts.mall_ids[row]}:{attempts.store_ids[row]}:{attempts.terminal_ids[row]}"
        requests.append(request_digest(terminal, "redeem", attempts.request_ids[row]))
        bodies.append(body_digest(uid, sorted((line.sku_id, line.count) for line in lines)))
    rows["uid"] = np.frombuffer(b"".join(opened.uids), "V8")
    rows["actor_len"] = [len(attempts.actors[row].encode()) for row in opened.rows]
    if attempts.lines:
        rows["n_lines"] = [len(attempts.lines.get(row, ())) for row in opened.rows]
    if not attempts.dry:
        rows["request"] = np.frombuffer(b"".join(requests), "V12")
        rows["body"] = np.frombuffer(b"".join(bodies), "V8")
    packed, size = rows.tobytes(), layouts.REDEEM_ITEM.size
    for n, (row, uid, tail) in enumerate(zip(opened.rows, opened.uids, tails, strict=True)):
        prepared[row] = Attempt(
            uid,
            _NOBODY if attempts.dry else requests[n],
            attempts.mall_ids[row],
            attempts.store_ids[row],
            packed[n * size : (n + 1) * size] + tail,
            proof_digests.get(row, b""),
        )
    return prepared
