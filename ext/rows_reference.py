"""The twin of ext/rows.pyx in plain Python, to read and to compare with. See ext/rows.pyi."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ext.claims import CLAIMS, pack
from ext.geo_reference import DISTANCE_BUCKET_UNKNOWN, distance_batch, distance_bucket, within_batch
from ext.standing import STANDING

_WIDTHS: Final = {
    **{"uid": 8, "request": 12, "body": 8, "mall": 4, "store": 4, "terminal": 4, "actor_len": 2},
    **dict.fromkeys(("version", "stale", "generation_1", "generation_2"), 1),
    **dict.fromkeys(("place", "closed", "window", "bucket", "dry"), 1),
}
_RULE_NEVER, _RULE_ALWAYS = 0, 2
_DATUM_MAX: Final = 3


def _spans(
    buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> Iterable[tuple[int, int]]:
    if len(starts) != len(ends):
        raise ValueError(f"{len(starts)} starts and {len(ends)} ends of spans; expected as many of both")
    spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
    for n, (start, end) in enumerate(spans):
        if not 0 <= start <= end <= len(buffer):
            raise ValueError(f"span {n} is {start} to {end}; expected a piece of {len(buffer)} bytes")
    return spans


def slices(buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[bytes]:
    """See ext/rows.pyi."""
    return [buffer[start:end] for start, end in _spans(buffer, starts, ends)]


def gather(
    buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[bytes, npt.NDArray[np.uint64]]:
    """See ext/rows.pyi."""
    return pack(slices(buffer, starts, ends))


def join_rows(
    rows: bytes, width: int, buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> list[bytes]:
    """See ext/rows.pyi."""
    tails = slices(buffer, starts, ends)
    if width < 0 or len(rows) != len(tails) * width:
        raise ValueError(f"{len(rows)} bytes of rows; expected {len(tails)} of {width} bytes")
    return [rows[n * width : (n + 1) * width] + tail for n, tail in enumerate(tails)]


def digests(
    head: bytes,
    numbers: npt.NDArray[np.uint32],
    middle: bytes,
    buffer: bytes,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    tail: bytes,
    size: int,
) -> bytes:
    """See ext/rows.pyi."""
    if not 1 <= size <= sha256().digest_size:
        raise ValueError(f"digests of {size} bytes; expected 1 to {sha256().digest_size}")
    texts = slices(buffer, starts, ends)
    if numbers.shape[1] != len(texts):
        raise ValueError(f"numbers of {numbers.shape[1]} texts; expected {len(texts)}")
    callers = [":".join(map(str, column)).encode() for column in numbers.T.tolist()]
    return b"".join(
        sha256(head + caller + middle + text + tail).digest()[:size]
        for caller, text in zip(callers, texts, strict=True)
    )


class Judge:
    """See ext/rows.pyi."""

    def __init__(
        self,
        blank: bytes,
        at: Mapping[str, int],
        *,
        skew_s: int,
        static_version: int,
        accuracy_m_max: float,
        allowance_m_max: float,
        location_required: int,
        location_unreliable: int,
        out_of_range: int,
    ) -> None:
        for name, width in _WIDTHS.items():
            if not 0 <= at[name] <= len(blank) - width:
                raise ValueError(f"{name} is at {at[name]}; expected a place in a row of {len(blank)} bytes")
        self._blank = blank
        self._at = {name: at[name] for name in _WIDTHS}
        self._skew_s = skew_s
        self._static_version = static_version
        self._accuracy_m_max = accuracy_m_max
        self._allowance_m_max = allowance_m_max
        self._location_required = location_required
        self._location_unreliable = location_unreliable
        self._out_of_range = out_of_range

    def rows(
        self,
        claims: npt.NDArray[np.void],
        table: npt.NDArray[np.void],
        own: list[int],
        codes: list[int],
        terminals: npt.NDArray[np.uint32],
        places: npt.NDArray[np.float64],
        requests: bytes,
        bodies: bytes,
        actor_chars: npt.NDArray[np.int64],
        generations: Sequence[int] | None,
        now_s: int,
    ) -> bytes:
        """See ext/rows.pyi."""
        if claims.dtype != CLAIMS or table.dtype != STANDING:
            raise TypeError(f"rows of {claims.dtype} and {table.dtype}; expected CLAIMS and STANDING")
        count = len(claims)
        lengths = {len(own), len(codes), terminals.shape[1], places.shape[1], len(actor_chars)}
        if generations is not None:
            lengths |= {len(requests) / 12, len(bodies) / 8}
        if lengths != {count} or (terminals.shape[0], places.shape[0]) != (3, 4):
            raise ValueError(f"columns of {count} attempts have to be as many")
        rows = []
        for n in range(count):
            if not (0 <= own[n] < len(table) and 0 <= codes[n] < len(table)):
                raise ValueError(
                    f"attempt {n} is at rows {own[n]} and {codes[n]}; expected rows of {len(table)} standings"
                )
            if not 0 <= places[3, n] <= _DATUM_MAX:
                raise ValueError(f"datum {places[3, n]} of attempt {n}; expected 0 to {_DATUM_MAX}")
            code, standing = claims[n], table[own[n]]
            finding, bucket = self._find(standing, *places[:, n].tolist())
            fields: dict[str, Any] = {
                "uid": code["uid"].tobytes(),
                "mall": terminals[0, n],
                "store": terminals[1, n],
                "terminal": terminals[2, n],
                "version": code["version"],
                "stale": self._is_stale(code, int(table[codes[n]]["payload_life_s"]), now_s),
                "place": finding,
                "bucket": bucket,
                "closed": standing["closed"],
                "window": standing["window"],
                "actor_len": actor_chars[n],
            }
            if generations is None:
                fields["dry"] = 1
            else:
                fields["generation_1"], fields["generation_2"] = generations
                fields["request"] = requests[12 * n : 12 * n + 12]
                fields["body"] = bodies[8 * n : 8 * n + 8]
            row = bytearray(self._blank)
            for name, value in fields.items():
                width = _WIDTHS[name]
                data = value if isinstance(value, bytes) else int(value).to_bytes(width)
                row[self._at[name] : self._at[name] + width] = data
            rows.append(bytes(row))
        return b"".join(rows)

    def _is_stale(self, code: Any, life_s: int, now_s: int) -> bool:
        if int(code["exp"]) <= now_s:
            return True
        age_s = now_s - int(code["stamp"])
        return code["version"] != self._static_version and not (
            -self._skew_s <= age_s <= life_s + self._skew_s
        )

    def _find(
        self, standing: Any, latitude_deg: float, longitude_deg: float, accuracy_m: float, datum: float
    ) -> tuple[int, int]:
        if standing["rule"] == _RULE_NEVER:
            return 0, DISTANCE_BUCKET_UNKNOWN
        if datum == 0:
            return (
                self._location_required if standing["rule"] == _RULE_ALWAYS else 0
            ), DISTANCE_BUCKET_UNKNOWN
        if accuracy_m > self._accuracy_m_max:
            return self._location_unreliable, DISTANCE_BUCKET_UNKNOWN
        at = ([latitude_deg], [longitude_deg])
        latitude, longitude = standing["positions"][int(datum)].tolist()
        radius_m = float(standing["radius_m"]) + min(accuracy_m, self._allowance_m_max)
        [inside] = within_batch(*at, [latitude], [longitude], [radius_m]).tolist()
        [metres] = distance_batch(*at, latitude, longitude).tolist()
        return 0 if inside else self._out_of_range, distance_bucket(metres)
