"""Answers of redeem and inspect as bytes, straight from what the script said.

At ten thousand a second a message object with twenty fields is a tenth of a core, to be serialised and thrown away. What the kernel
(ext.answers) writes with what is said here is what the protobuf library writes for translate.redeem_response and
translate.inspect_response, byte for byte (tests/server/test_written.py). A verdict whose sentences name facts goes that way in any
case, so a clerk's sentence is made in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.message import Message

from engine.claims import Version
from engine.state import layouts
from engine.stores import Store
from engine.verdict import InspectVerdict, RedeemVerdict, Verdict
from ext.lane import Answers
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from server.translate import NO_BUCKET

_LAYOUT: Final = layouts.REDEEM_ANSWER
_REDEEM_FIELDS: Final = (
    *("request_id", "uid", "order_id", "lines", "at_ms", "terminal_id", "sku_id", "cycle", "event_id"),
    *("distance_bucket", "replayed"),
)
_INSPECT_FIELDS: Final = (
    *("uid", "order_id", "lines", "at_ms", "terminal_id", "sku_id"),
    *("distance_bucket", "version", "expires_at_ms", "pin_required", "proof_required"),
)


def _sentences(
    verdicts: Iterable[Verdict], message: type[redemption_pb.RedeemResponse | redemption_pb.InspectResponse]
) -> dict[int, bytes]:
    """What each verdict whose sentences name no facts begins with: fields 1 to 4."""
    found = {}
    for verdict in verdicts:
        if "{" not in verdict.answer.zh + verdict.answer.en and verdict.name != "OUTSIDE_WINDOW":
            zh, en = verdict.say()
            begun = message(message_zh=zh, message_en=en)
            begun.verdict = verdict.number  # type: ignore[assignment]  # the numbers are the enum's
            begun.next_step = verdict.next  # type: ignore[assignment]
            found[verdict.number] = begun.SerializeToString()
    return found


def _answers(message: type[Message], fields: Iterable[str], begun: Mapping[int, bytes]) -> Answers:
    numbers = message.DESCRIPTOR.fields_by_name
    return Answers(
        {name: _LAYOUT.at(name) for name in _LAYOUT.names},
        _LAYOUT.size,
        {name: numbers[name].number for name in fields},
        begun,
        bucket_unknown=NO_BUCKET,
        static_version=Version.STATIC,
        proof_flag=layouts.FLAG_PROOF_NEEDED,
    )


_REDEEM_BEGUN: Final = _sentences(RedeemVerdict, redemption_pb.RedeemResponse)
_INSPECT_BEGUN: Final = _sentences(InspectVerdict, redemption_pb.InspectResponse)
REDEEM: Final = _answers(redemption_pb.RedeemResponse, _REDEEM_FIELDS, _REDEEM_BEGUN)
"""Writes RedeemResponses."""
INSPECT: Final = _answers(redemption_pb.InspectResponse, _INSPECT_FIELDS, _INSPECT_BEGUN)
"""Writes InspectResponses."""
INVALID_INSPECTION: Final = _INSPECT_BEGUN[InspectVerdict.INVALID_CODE.number]
"""The InspectResponse to a code that is not genuine."""


def invalid_redemption(request_id: bytes) -> bytes:
    """The RedeemResponse to a code that is not genuine."""
    named = redemption_pb.RedeemResponse(request_id=request_id.decode())
    return _REDEEM_BEGUN[RedeemVerdict.INVALID_CODE.number] + named.SerializeToString()


class Stores(dict[int, bytes]):
    """What an answer says of each store, fields store_id and store_name, by the store's id: for Answers.write.

    Written when first asked for.
    """

    def __init__(self, stores: Mapping[int, Store]) -> None:
        super().__init__()
        self.stores = stores
        """Those of the set-up, by their ids."""

    def __missing__(self, store_id: int) -> bytes:
        store = self.stores.get(store_id)
        fields = redemption_pb.RedeemResponse(store_id=store_id, store_name=store.name if store else "")
        self[store_id] = written = fields.SerializeToString()
        return written
