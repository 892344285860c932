"""The twin of ext/answers.pyx in plain Python, to read and to compare with. See ext/answers.pyi."""

from collections.abc import Mapping, Sequence
from typing import Final

OFFSETS: Final = (
    *(
        "verdict",
        "at",
        "epoch",
        "seq",
        "terminal",
        "sku",
        "store",
        "cycle",
        "flavour",
        "flags",
        "exp",
        "bucket",
    ),
    *("n_lines", "order_len"),
)
FIELDS: Final = (
    *("request_id", "uid", "order_id", "lines", "at_ms", "terminal_id", "sku_id", "cycle", "event_id"),
    *("distance_bucket", "replayed", "version", "expires_at_ms", "pin_required", "proof_required"),
)
_TEXTS: Final = {"request_id", "uid", "order_id", "lines", "event_id"}
_VARINT, _LENGTH = 0, 2
_UID_BYTES: Final = 8
_LINE_BYTES: Final = 8
_SIZES: Final = (
    {name: 1 for name in OFFSETS}
    | {"at": 6, "seq": 6}
    | dict.fromkeys(("epoch", "terminal", "sku", "store", "exp"), 4)
)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


class Answers:
    """See ext/answers.pyi."""

    def __init__(
        self,
        offsets: Mapping[str, int],
        answer_bytes: int,
        fields: Mapping[str, int],
        begun: Mapping[int, bytes],
        *,
        bucket_unknown: int,
        static_version: int,
        proof_flag: int,
    ) -> None:
        if not 1 <= answer_bytes <= 65_535:
            raise ValueError(f"answers of {answer_bytes} bytes; expected 1 to 65535")
        for name in OFFSETS:
            if name not in offsets or not 0 <= offsets[name] <= answer_bytes - _SIZES[name]:
                raise ValueError(
                    f"{name} of an answer begins at {offsets.get(name)}; expected a place in {answer_bytes} bytes"
                )
        if unknown := set(fields) - set(FIELDS):
            raise ValueError(f"fields {sorted(unknown)} are not known; expected some of {', '.join(FIELDS)}")
        last = 0
        for name in FIELDS:
            if name in fields:
                if not last < fields[name] < 1 << 29:
                    raise ValueError(
                        f"field {name} has number {fields[name]}; expected more than {last}, which is before it"
                    )
                last = fields[name]
        for number, text in begun.items():
            if not 0 <= number < 256 or type(text) is not bytes:
                raise ValueError(f"a message of verdict {number!r}; expected bytes for 0 to 255")
        self._offsets = {name: offsets[name] for name in OFFSETS}
        self._answer_bytes = answer_bytes
        self._keys = {
            name: _varint(number << 3 | (_LENGTH if name in _TEXTS else _VARINT))
            for name, number in fields.items()
        }
        self._begun = dict(begun)
        self._bucket_unknown = bucket_unknown
        self._static_version = static_version
        self._proof_flag = proof_flag

    def _field(self, name: str, value: int | bytes) -> bytes:
        if not value or name not in self._keys:
            return b""
        if isinstance(value, bytes):
            return self._keys[name] + _varint(len(value)) + value
        return self._keys[name] + _varint(value)

    def _line(self, line: bytes) -> bytes:
        values = [int.from_bytes(piece, "big") for piece in (line[:4], line[4:6], line[6:])]
        body = b"".join(_varint(8 * n) + _varint(value) for n, value in enumerate(values, 1) if value)
        return self._keys["lines"] + _varint(len(body)) + body if "lines" in self._keys else b""

    def _one(self, answer: bytes, uid: bytes, request_id: bytes, stores: Mapping[int, bytes]) -> bytes | None:
        facts = answer[1 : 1 + self._answer_bytes]
        if len(facts) < self._answer_bytes or answer[:1] not in (b"A", b"R"):
            return None
        number = {
            name: int.from_bytes(facts[at : at + _SIZES[name]], "big") for name, at in self._offsets.items()
        }
        lines_end = 1 + self._answer_bytes + _LINE_BYTES * number["n_lines"]
        lines, order = answer[1 + self._answer_bytes : lines_end], answer[lines_end:]
        begun = self._begun.get(number["verdict"])
        if len(answer) < lines_end + number["order_len"] or begun is None:
            return None
        store, version, bucket = stores[number["store"]], number["flavour"] >> 4, number["bucket"]
        partition = int.from_bytes(uid[:2], "big") >> 6
        event = b"%d-%d-%d" % (partition, number["epoch"], number["seq"]) if number["epoch"] else b""
        shown = bucket != self._bucket_unknown and "distance_bucket" in self._keys
        return b"".join(
            (
                begun,
                self._field("request_id", request_id),
                self._field("uid", uid[:_UID_BYTES].hex().encode()),
                self._field("order_id", order[: number["order_len"]]),
                *(self._line(lines[at : at + _LINE_BYTES]) for at in range(0, len(lines), _LINE_BYTES)),
                self._field("at_ms", number["at"]),
                self._field("terminal_id", number["terminal"]),
                self._field("sku_id", number["sku"]),
                store,
                self._field("cycle", number["cycle"]),
                self._field("event_id", event),
                self._keys["distance_bucket"] + _varint(bucket) if shown else b"",
                self._field("replayed", int(answer[:1] == b"R")),
                self._field("version", version),
                self._field("expires_at_ms", number["exp"] * 1000),
                self._field("pin_required", int(version == self._static_version)),
                self._field("proof_required", int(number["flags"] & self._proof_flag != 0)),
            )
        )

    def write(
        self,
        answers: Sequence[object],
        uids: Sequence[bytes],
        request_ids: Sequence[bytes],
        stores: Mapping[int, bytes],
    ) -> list[bytes | None]:
        """See ext/answers.pyi."""
        if len(uids) != len(answers) or (request_ids and len(request_ids) != len(answers)):
            raise ValueError(
                f"{len(answers)} answers, {len(uids)} uids, {len(request_ids)} request ids; expected as many of each"
            )
        for n, uid in enumerate(uids):
            if len(uid) < _UID_BYTES:
                raise ValueError(f"uid {n} has {len(uid)} bytes; expected {_UID_BYTES} or more")
        return [
            self._one(answer, uid, request_ids[n] if request_ids else b"", stores)
            if isinstance(answer, bytes)
            else None
            for n, (answer, uid) in enumerate(zip(answers, uids, strict=True))
        ]
