"""The twin of ext/script_calls.pyx in plain Python, to read and to compare with. See ext/script_calls.pyi."""

from collections.abc import Sequence
from typing import Final

KINDS: Final = ("bucket", "bucket?", "pair", "number")
POINTERS_MAX: Final = 8
_KEYS_MAX: Final = 65_535
_OPTIONAL_BYTES: Final = 12
_SOURCE_BYTES: Final = dict(zip(KINDS, (4, _OPTIONAL_BYTES, 8, 0), strict=True))


class Pointers:
    """See ext/script_calls.pyi."""

    def __init__(
        self, row_bytes: int, bucket_mask: int, pointers: Sequence[tuple[int, str, int, bytes]]
    ) -> None:
        if not 2 <= row_bytes <= 65_535:
            raise ValueError(f"rows of {row_bytes} bytes; expected 2 to 65535")
        if not 0 <= bucket_mask < 2**32:
            raise ValueError(f"the mask of buckets is {bucket_mask}; expected 32 bits")
        if len(pointers) > POINTERS_MAX:
            raise ValueError(f"{len(pointers)} pointers of a row; expected at most {POINTERS_MAX}")
        for place_at, kind, source_at, letter in pointers:
            if kind not in KINDS:
                raise ValueError(f"the kind of a pointer is {kind!r}; expected one of {', '.join(KINDS)}")
            if not 0 <= place_at <= row_bytes - 2:
                raise ValueError(f"a place at byte {place_at} of a row of {row_bytes}")
            if not 0 <= source_at <= row_bytes - _SOURCE_BYTES[kind]:
                raise ValueError(f"a source at byte {source_at} of a row of {row_bytes}")
            if len(letter) != 1:
                raise ValueError(f"a letter of {len(letter)} bytes; expected one")
        kinds: dict[bytes, str] = {}
        for _, kind, _, letter in pointers:
            if kinds.setdefault(letter, kind.rstrip("?")) != kind.rstrip("?"):
                raise ValueError(f"letter {letter!r} names keys of two kinds")
        self.row_bytes = row_bytes
        self.bucket_mask = bucket_mask
        self.pointers = list(pointers)

    def name(self, kind: str, source_at: int, number: int, row: bytes) -> bytes | None:
        """What follows the letter of a key that a row names; None when it names none."""
        first, second = (int.from_bytes(row[at : at + 4], "big") for at in (source_at, source_at + 4))
        if kind == "pair":
            return b"%d:%d" % (first, second)
        if kind == "number":
            return b"%d" % number
        if kind == "bucket?" and not any(row[source_at : source_at + _OPTIONAL_BYTES]):
            return None
        return b"%x" % (first & self.bucket_mask)


def group_rows(rows: Sequence[bytes], group_max: int) -> list[tuple[int, list[int]]]:
    """See ext/script_calls.pyi."""
    if group_max < 1:
        raise ValueError(f"groups of {group_max} rows; expected 1 or more")
    groups: list[tuple[int, list[int]]] = []
    last: dict[int, list[int]] = {}
    for n, row in enumerate(rows):
        if len(row) < 2:
            raise ValueError(f"row {n} has less than two bytes")
        partition = int.from_bytes(row[:2], "big") >> 6
        members = last.get(partition)
        if members is None or len(members) == group_max:
            members = last[partition] = []
            groups.append((partition, members))
        members.append(n)
    return groups


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def script_call(
    pointers: Pointers,
    sha: bytes,
    prefix: bytes,
    own_keys: Sequence[bytes],
    number: int,
    args: Sequence[bytes],
    rows: Sequence[bytes],
) -> bytes:
    """See ext/script_calls.pyi."""
    if len(own_keys) + len(rows) * len(pointers.pointers) > _KEYS_MAX:
        most = len(own_keys) + len(rows) * len(pointers.pointers)
        raise ValueError(f"{most} keys of one call; expected at most {_KEYS_MAX}")
    keys = list(own_keys)
    places: dict[bytes, int] = {}
    written = []
    for row in rows:
        if len(row) < pointers.row_bytes:
            raise ValueError(f"a row of {len(row)} bytes; expected {pointers.row_bytes} or more")
        placed = bytearray(row)
        for place_at, kind, source_at, letter in pointers.pointers:
            name = pointers.name(kind, source_at, number, bytes(placed))
            place = 1
            if name is not None:
                key = prefix + letter + name
                if key not in places:
                    keys.append(key)
                    places[key] = len(keys)
                place = places[key]
            placed[place_at : place_at + 2] = place.to_bytes(2, "big")
        written.append(bytes(placed))
    parts = [b"EVALSHA", sha, b"%d" % len(keys), *keys, *args, *written]
    return b"*%d\r\n" % len(parts) + b"".join(map(_bulk, parts))
