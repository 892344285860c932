"""Terminals get their secrets of the SM profile (engine.sm_profile), encrypted to their SM2 keys."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final

from engine import keyring as keyrings
from engine.claims import Suite
from engine.control import Control
from engine.errors import InvalidInput, NoActiveKey
from engine.keyring import Keyring, Purpose
from engine.sm_profile import secret_of
from engine.terminals import Key, enrol_sm
from ext.codec import sm2_encrypt

_ACTOR: Final = "command line"


def public_key(text: str) -> bytes:
    """A terminal's SM2 key from 130 hex digits: 04, x, y. Raises InvalidInput."""
    try:
        key = bytes.fromhex(text)
        # What is no point of the curve is refused there.
        sm2_encrypt(key, b"\0")
    except ValueError:
        raise InvalidInput(
            "public-key is no SM2 public key; expected 130 hex digits: 04, x, y, a point of the curve",
            field="public-key",
        ) from None
    return key


def seal(key: bytes, secret: bytes) -> bytes:
    """A secret, encrypted to a terminal's key: C1 | C3 | C2 of GB/T 32918.4-2016."""
    return sm2_encrypt(key, secret)


def give(
    control: Control, terminal: Key, *, new_id: Callable[[], str] = lambda: str(uuid.uuid4())
) -> tuple[int, bytes]:
    """Give a terminal its next secret; its number and the secret. Makes the key that derives them, if there is none."""
    try:
        control.refresh().usable_keys().terminal_generation()
    except NoActiveKey:

        def create(keyring: Keyring, now_s: int, random: Callable[[int], bytes]) -> Keyring:
            return keyrings.create(
                keyring, Purpose.TERMINAL, None, Suite.SM, now_s=now_s, random=random, activate=True
            )

        control.change_keyring(create, request_id=new_id(), actor=_ACTOR)
    keys = control.refresh().usable_keys()
    generation = keys.terminal_generation()
    entry = control.change_terminal(
        terminal,
        enrol_sm(terminal, generation),
        verb="enrol_sm",
        body=(generation,),
        request_id=new_id(),
        actor=_ACTOR,
    )
    prf = keys.terminal_prf(entry.sm_generation)
    assert prf is not None  # it was usable a moment ago, and its generation was just written
    return entry.sm_number, secret_of(prf, terminal, entry.sm_number)
