"""Secrets of the SM profile (engine.sm_profile) for terminals that enrol: who derives them, and how they are given out."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Final

from engine import keyring as keyrings
from engine.claims import Suite
from engine.control import Control
from engine.errors import Conflict, InvalidInput, NoActiveKey
from engine.keyring import Keyring, Purpose
from engine.sm_profile import secret_of
from engine.terminals import Secret, Terminal, digest_of
from ext.codec import sm2_encrypt

PUBLIC_KEY_BYTES: Final = 65


def check_public_key(key: bytes, field: str) -> None:
    """A terminal's SM2 key: 04, x, y, a point of the curve. Raises InvalidInput."""
    try:
        # What is no point of the curve is refused there.
        sm2_encrypt(key, b"\0")
    except ValueError:
        raise InvalidInput(
            f"{field} is no SM2 public key; expected {PUBLIC_KEY_BYTES} bytes: 04, x, y, a point of the curve",
            field=field,
        ) from None


def prepare(
    control: Control, key: bytes, *, actor: str, new_id: Callable[[], str] = lambda: str(uuid.uuid4())
) -> Secret:
    """What an enrolment with an SM2 key needs to know. Makes the key that derives secrets, if there is none.

    actor: whom the record names for that. Raises StaleControl, KeyringLocked, NoActiveKey, StoreUnavailable.
    """
    try:
        generation = control.copy().usable_keys().terminal_generation()
    except NoActiveKey:

        def create(keyring: Keyring, now_s: int, random: Callable[[int], bytes]) -> Keyring:
            if keyring.active((Purpose.TERMINAL, None, None)) is not None:
                raise _IsThere
            return keyrings.create(
                keyring, Purpose.TERMINAL, None, Suite.SM, now_s=now_s, random=random, activate=True
            )

        # Unless somebody else is faster.
        with contextlib.suppress(_IsThere, Conflict):
            control.change_keyring(create, request_id=new_id(), actor=actor)
        generation = control.refresh().usable_keys().terminal_generation()
    return Secret(digest_of(key), generation)


class _IsThere(Exception):
    """Breaks off the making of a key that is there."""


def seal(control: Control, entry: Terminal, key: bytes) -> bytes:
    """The newest secret of a terminal, encrypted to its SM2 key: C1 | C3 | C2 of GB/T 32918.4-2016."""
    prf = control.copy().usable_keys().terminal_prf(entry.sm_generation)
    if prf is None:
        raise NoActiveKey(
            "the key that derived the terminal's secret is disabled: enrol the terminal again with another invitation"
        )
    return sm2_encrypt(key, secret_of(prf, entry.id, entry.sm_number))
