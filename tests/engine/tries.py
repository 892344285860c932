"""Attempts as the store takes them, made by hand: tests of the store's own rules need no payload and no policy."""

from __future__ import annotations

from engine.claims import Version
from engine.state import layouts
from engine.state.attempts import NO_PIN, Attempt
from engine.verdict import RedeemVerdict


def packed(
    uid: bytes,
    request: bytes,
    *,
    mall_id: int,
    store_id: int,
    version: Version = Version.DYNAMIC,
    pin: tuple[int, int] = (NO_PIN, NO_PIN),
    pin_generations: tuple[int, int] = (1, 0),
    distance_bucket: int = 255,
    body: bytes = b"body-one",
    actor: bytes = b"",
) -> Attempt:
    """One try to redeem all of a code at terminal 7, against which the pure policy found nothing."""
    row = layouts.REDEEM_ITEM.pack(
        *(uid, 0, 0, 0, 0, 0, request, body, mall_id, store_id, 7, version, 0, *pin, *pin_generations),
        *(RedeemVerdict.PROOF_REQUIRED.number, 0, 0, 0, distance_bucket, 0, bytes(12), 0, 0, len(actor)),
    )
    return row + actor
