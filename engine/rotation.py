"""Rotation on schedule: keys of dynamic and valuable codes are replaced when they have been active for long enough.

Static codes, serials, PINs and uids live as long as the longest code, 400 days, and at most two of the latter three are usable at
a time: those are rotated by people (`pickgate keys rotate`). The others cost nothing to replace: what a retired one sealed opens
for a day, and nobody is refused (engine.keyring, docs/adr/0021).
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from typing import Final

from engine import keyring as keyrings
from engine import limits
from engine.claims import Version
from engine.control import Control
from engine.errors import Conflict, KeyringLocked, PickgateError
from engine.keyring import KeyRecord, Keyring, KeyState, Purpose
from engine.wrapping import Random

_log = logging.getLogger(__name__)

LOOK_S: Final = 60.0
"""Between two looks at the ages."""
_ACTOR: Final = "schedule"


def due(keyring: Keyring, now_s: int, age_s: int) -> list[KeyRecord]:
    """Active payload keys of versions 2 and 3 that have been active for `age_s` seconds."""
    return [
        record
        for record in keyring.records
        if record.state is KeyState.ACTIVE
        and record.purpose is Purpose.PAYLOAD
        and record.version is not Version.STATIC
        and now_s - record.activated_at_s >= age_s
    ]


def over(keyring: Keyring, now_s: int) -> list[KeyRecord]:
    """Retired keys that can't open anything any more, and still have their secrets."""
    return [
        record
        for record in keyring.records
        if record.state is KeyState.VERIFY_ONLY and not record.usable(now_s)
    ]


def rotated(keyring: Keyring, now_s: int, random: Random, age_s: int) -> Keyring:
    """The keyring with what is due replaced, and the secrets wiped of what is over."""
    for record in due(keyring, now_s, age_s):
        keyring = keyrings.rotate(
            keyring, record.purpose, record.version, record.suite, now_s=now_s, random=random
        )
    for record in over(keyring, now_s):
        keyring = keyrings.destroy(keyring, record.kid, now_s=now_s)
    return keyring


def rotate_due(
    control: Control,
    now_ms: Callable[[], int],
    age_s: int,
    *,
    new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
) -> int:
    """Rotate what is due, if anything is; gives how many keys were made. Raises KeyringLocked, StoreUnavailable.

    Any number of processes may do so at the same time: one of them changes the keyring, the others find nothing due.
    """
    copy = control.refresh()
    copy.usable_keys()
    assert copy.keyring is not None
    now_s = now_ms() // 1000
    if not due(copy.keyring, now_s, age_s) and not over(copy.keyring, now_s):
        return 0
    made = 0

    def change(keyring: Keyring, at_s: int, random: Random) -> Keyring:
        # As it is now: somebody else may have rotated since it was looked at.
        nonlocal made
        changed = rotated(keyring, at_s, random, age_s)
        if changed is keyring:
            raise _NothingDue
        made = changed.next_kid - keyring.next_kid
        return changed

    try:
        control.change_keyring(change, request_id=new_id(), actor=_ACTOR)
    except (Conflict, _NothingDue):
        return 0  # somebody else did it
    return made


class _NothingDue(Exception):
    """Breaks off a change of the keyring that would change nothing."""


class Rotator:
    """Looks each minute whether a key is due, in a thread of its own."""

    def __init__(
        self, control: Control, now_ms: Callable[[], int], age_s: int = limits.KEY_AGE_S_DEFAULT
    ) -> None:
        self._control = control
        self._now_ms = now_ms
        self._age_s = age_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pickgate-rotator", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the look that is going on."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        failing = False
        while not self._ending.wait(LOOK_S):
            try:
                made = rotate_due(self._control, self._now_ms, self._age_s)
            except KeyringLocked:
                failing = True  # health says so
            except PickgateError as error:
                if not failing:
                    _log.warning("keys can't be rotated, trying again: %s", error.message)
                failing = True
            except Exception:
                # A defect here must not end the rotation for good.
                _log.exception("keys can't be rotated, trying again")
                failing = True
            else:
                failing = False
                if made:
                    _log.info("rotated %d keys", made)
