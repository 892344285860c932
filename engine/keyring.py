"""Keys: who may seal, who may still open, and what happens to a key in its life.

A keyring is an immutable value; each function takes one and gives the next one, with its revision raised by one. Time and
randomness are arguments. Storage is the control partition's affair: it keeps what `dump` gives, and compares the revision
when it writes. `Keys` is what the verbs use: the usable keys of one keyring at one time, loaded into the kernels.

Why keys have the shape they have:

* kids are allocated in ascending order over all purposes and never given again, so a kid in an old payload can never
  mean another key; the record of a destroyed key stays, without its secrets;
* version and suite belong to the key, so a payload can't choose how it is checked;
* secrets are kept out of every repr and every error, also out of the chain of causes.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum, StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Final, TypeVar

from engine.claims import Suite, Version
from engine.errors import Exhausted, InvalidInput, KeyStateError, NoActiveKey, NotFound, SetupError
from engine.limits import (
    AFTERLIFE_S,
    CLOCK_SKEW_MS_MAX,
    CONTROL_AGE_S_MAX,
    PAYLOAD_LIFE_S_MAX,
    RENDER_AHEAD_S_MAX,
    STAMP_SKEW_S,
    TTL_S_MAX,
)
from engine.wrapping import Random, Unlock, exactly, unwrap, wrap
from ext.codec import KeyTable, Prf, public_of

KID_MAX: Final = 65_535
"""Two bytes in the payload; 0 is refused there."""
SECRET_BYTES: Final = 32
SIGNING_PRIVATE_BYTES: Final = 32
SIGNING_PUBLIC_BYTES: Final[Mapping[Suite, int]] = MappingProxyType({Suite.AES: 32, Suite.SM: 65})
"""Ed25519: 32 bytes (RFC 8032 section 5.1.5). SM2: uncompressed point (GB/T 32918.1-2016 section 4.2.9)."""
PIN_GENERATION_MAX: Final = 255
"""A code's record keeps the generation of its PIN key in one byte."""
GENERATIONS_USABLE_MAX: Final = 2
"""Usable uid, serial and PIN keys at a time. These are tried one after the other, so they must stay few."""
HANDOVER_S: Final = math.ceil(CONTROL_AGE_S_MAX + 2 * CLOCK_SKEW_MS_MAX / 1000)
"""How long a new key waits before it seals, while its predecessor still does.

Other processes may decide on a copy of the keyring that is CONTROL_AGE_S_MAX old, and two clocks may differ by twice
the skew allowed against the store's. A key that sealed at once would make codes that a neighbour refuses as forged.
"""

_FORMAT: Final = 1
_SM2_ORDER: Final = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
"""Order n of the SM2 curve, GB/T 32918.5-2017."""
_DRAWS_MAX: Final = 16
"""A draw is no SM2 key with probability 2**-32: sixteen in a row mean a broken random source."""


class Purpose(StrEnum):
    """What a key is for. Values are stored: never rename."""

    PAYLOAD = "payload"
    """Seals and opens payloads of one version and suite; for version 3 it signs too."""
    UID = "uid"
    """Derives uids from mall and request id."""
    SERIAL = "serial"
    """Derives the check digits of the typed form."""
    PIN = "pin"
    """Derives PINs."""
    TERMINAL = "terminal"
    """Derives the terminals' secrets of the SM profile (engine.sm_profile). There is none until the first terminal needs it."""


class KeyState(StrEnum):
    """Where a key is in its life. Values are stored: never rename."""

    PENDING = "pending"
    """Made, not used yet."""
    ACTIVE = "active"
    """Makes new codes; at most one per slot."""
    VERIFY_ONLY = "verify_only"
    """Makes nothing new, opens what it made until `usable_until_s`."""
    DISABLED = "disabled"
    """Emergency stop: opens nothing, never again."""
    DESTROYED = "destroyed"
    """Secrets wiped; only the history remains."""


TRANSITIONS: Final[Mapping[KeyState, frozenset[KeyState]]] = MappingProxyType(
    {
        KeyState.PENDING: frozenset({KeyState.ACTIVE, KeyState.DISABLED, KeyState.DESTROYED}),
        KeyState.ACTIVE: frozenset({KeyState.VERIFY_ONLY, KeyState.DISABLED}),
        KeyState.VERIFY_ONLY: frozenset({KeyState.DISABLED, KeyState.DESTROYED}),
        KeyState.DISABLED: frozenset({KeyState.DESTROYED}),
        KeyState.DESTROYED: frozenset(),
    }
)
"""Every allowed change of state. An active key is not destroyed: rotate or disable it first."""

Slot = tuple[Purpose, Version | None, Suite | None]
"""What has one active key at a time: (payload, version, suite), or a purpose alone, whose keys may change suite."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key. Times are unix seconds, 0 where it has not happened. Raises SetupError if the fields contradict.

    version: set for payload keys only. suite: of the payload, or the PRF's (1 HMAC-SHA-256, 2 HMAC-SM3).
    generation: 1, 2, ... within the key's slot. usable_until_s: last second in which a verify-only key opens codes,
    or in which a disabled one could have; 0 while it has no end. secret: 32 bytes. signing_private, signing_public:
    version 3 only, Ed25519 or SM2 by suite; the public one outlives destruction, so old signatures stay provable.
    """

    kid: int
    purpose: Purpose
    version: Version | None
    suite: Suite
    state: KeyState
    generation: int
    created_at_s: int
    activated_at_s: int = 0
    retired_at_s: int = 0
    usable_until_s: int = 0
    secret: bytes = field(default=b"", repr=False)
    signing_private: bytes = field(default=b"", repr=False)
    signing_public: bytes = b""

    def __post_init__(self) -> None:
        wiped = self.state is KeyState.DESTROYED
        signs = self.version is Version.VALUABLE
        generation_max = PIN_GENERATION_MAX if self.purpose is Purpose.PIN else KID_MAX
        sound = (
            1 <= self.kid <= KID_MAX
            and 1 <= self.generation <= generation_max
            and (self.version is not None) == (self.purpose is Purpose.PAYLOAD)
            and len(self.secret) == (0 if wiped else SECRET_BYTES)
            and len(self.signing_private) == (SIGNING_PRIVATE_BYTES if signs and not wiped else 0)
            and len(self.signing_public) == (SIGNING_PUBLIC_BYTES[self.suite] if signs else 0)
            and min(self.created_at_s, self.activated_at_s, self.retired_at_s, self.usable_until_s) >= 0
            and self._times_fit_state()
        )
        if not sound:
            raise SetupError(
                f"the keyring's record of key {self.kid} contradicts itself; restore it from a backup"
            )

    def _times_fit_state(self) -> bool:
        if self.state is KeyState.PENDING:
            return self.activated_at_s == self.retired_at_s == self.usable_until_s == 0
        if self.state is KeyState.ACTIVE:
            return self.activated_at_s > 0 and self.retired_at_s == self.usable_until_s == 0
        if self.state is KeyState.VERIFY_ONLY:
            return self.activated_at_s > 0 and self.retired_at_s > 0 and self.usable_until_s > 0
        return True

    @property
    def slot(self) -> Slot:
        """The slot it belongs to."""
        return slot_of(self.purpose, self.version, self.suite)

    def usable(self, now_s: int) -> bool:
        """True while it opens what it made."""
        return self.state is KeyState.ACTIVE or (
            self.state is KeyState.VERIFY_ONLY and now_s <= self.usable_until_s
        )

    def __str__(self) -> str:
        version = "" if self.version is None else f" version {int(self.version)}"
        return f"key {self.kid} ({self.purpose}{version}, suite {int(self.suite)}, {self.state})"


@dataclass(frozen=True, slots=True)
class Keyring:
    """All keys there are and were: records by ascending kid, the next kid to give, and the number of changes.

    Raises SetupError if the records contradict each other.
    """

    records: tuple[KeyRecord, ...] = ()
    next_kid: int = 1
    revision: int = 0

    def __post_init__(self) -> None:
        kids = [record.kid for record in self.records]
        generations = [(record.slot, record.generation) for record in self.records]
        active = [record.slot for record in self.records if record.state is KeyState.ACTIVE]
        sound = (
            all(earlier < later for earlier, later in pairwise([0, *kids, self.next_kid]))
            and self.next_kid <= KID_MAX + 1
            and self.revision >= 0
            and len(set(generations)) == len(generations)
            and len(set(active)) == len(active)
        )
        if not sound:
            raise SetupError("the keyring's records contradict each other; restore it from a backup")

    def record(self, kid: int) -> KeyRecord:
        """The record of a kid. Raises NotFound."""
        for record in self.records:
            if record.kid == kid:
                return record
        raise NotFound(f"there is no key {kid}; `pickgate keys list` shows those there are", field="kid")

    def active(self, slot: Slot) -> KeyRecord | None:
        """The active key of a slot, if it has one."""
        for record in self.records:
            if record.slot == slot and record.state is KeyState.ACTIVE:
                return record
        return None


def slot_of(purpose: Purpose, version: Version | None, suite: Suite) -> Slot:
    """Slot of a key. Raises InvalidInput for a payload key without version, or a version with another purpose."""
    if purpose is Purpose.PAYLOAD:
        if version is None:
            raise InvalidInput("a payload key needs a version: 1, 2 or 3", field="version")
        return (purpose, version, suite)
    if version is not None:
        raise InvalidInput(
            f"a {purpose} key has no version, {int(version)} was given; leave it out", field="version"
        )
    return (purpose, None, None)


# --- the life of a key --------------------------------------------------------------------------------------------


def initial(now_s: int, random: Random, *, suite: Suite = Suite.AES) -> Keyring:
    """A complete first keyring at revision 1: an active key for each version and suite, and for uid, serial and PIN.

    `suite` is that of the uid, serial and PIN keys. Raises SetupError if `random` is not usable.
    """
    keyring = Keyring()
    for version in Version:
        for payload_suite in Suite:
            keyring = create(
                keyring, Purpose.PAYLOAD, version, payload_suite, now_s=now_s, random=random, activate=True
            )
    for purpose in (Purpose.UID, Purpose.SERIAL, Purpose.PIN):
        keyring = create(keyring, purpose, None, suite, now_s=now_s, random=random, activate=True)
    return replace(keyring, revision=1)


def create(
    keyring: Keyring,
    purpose: Purpose,
    version: Version | None,
    suite: Suite,
    *,
    now_s: int,
    random: Random,
    activate: bool,
) -> Keyring:
    """Make a key, the last of the new keyring's records: pending, or active at once if its slot has no active key.

    Raises InvalidInput (version and purpose don't fit), KeyStateError (`activate` while another key is active: rotate
    instead), Exhausted (no kid or no PIN generation is left), SetupError (`random` is not usable).
    """
    slot = slot_of(purpose, version, suite)
    standing = keyring.active(slot)
    if activate and standing is not None:
        raise KeyStateError(
            f"{standing} makes the codes of this kind; rotate it instead of creating an active one"
        )
    grown = _with_new(keyring, purpose, version, suite, now_s, random)
    return _activated(grown, grown.records[-1], now_s) if activate else grown


def activate(keyring: Keyring, kid: int, *, now_s: int) -> Keyring:
    """Let a pending key take over; the active key of its slot, if there is one, becomes verify-only.

    Raises NotFound, or KeyStateError (not pending; or more than GENERATIONS_USABLE_MAX would be usable).
    """
    return replace(_activated(keyring, keyring.record(kid), now_s), revision=keyring.revision + 1)


def rotate(
    keyring: Keyring,
    purpose: Purpose,
    version: Version | None,
    suite: Suite,
    *,
    now_s: int,
    random: Random,
) -> Keyring:
    """Make a new active key, the last of the new keyring's records; its predecessor, if any, becomes verify-only.

    The predecessor stays usable for as long as anything it made may be shown (see `lifetime_after_retirement_s`). New
    codes are made with the new key after HANDOVER_S. For uid, serial and PIN `suite` may differ from the predecessor's.
    Raises as `create`, and KeyStateError while a previous uid, serial or PIN key is still usable.
    """
    grown = _with_new(keyring, purpose, version, suite, now_s, random)
    return _activated(grown, grown.records[-1], now_s)


def disable(keyring: Keyring, kid: int, *, now_s: int) -> Keyring:
    """Emergency stop: from the next `Keys` on it opens nothing, and it never will again.

    Raises NotFound, or KeyStateError (already disabled or destroyed).
    """
    record = keyring.record(kid)
    changes: dict[str, int] = {}
    if record.state is KeyState.ACTIVE:
        changes = {"retired_at_s": now_s, "usable_until_s": now_s}
    elif record.state is KeyState.VERIFY_ONLY:
        changes = {"usable_until_s": min(record.usable_until_s, now_s)}
    return _next(keyring, _moved(record, KeyState.DISABLED, **changes))


def destroy(keyring: Keyring, kid: int, *, now_s: int) -> Keyring:
    """Wipe a key's secrets from the keyring; its record stays, so that its kid is never given again.

    Allowed for pending and disabled keys, and for verify-only keys past their last usable second; others raise
    KeyStateError, an unknown kid NotFound. Copies of earlier blobs (backups, the store's append-only file) keep the
    wrapped secret until they are gone themselves.
    """
    record = keyring.record(kid)
    if record.usable(now_s) and record.state is KeyState.VERIFY_ONLY:
        raise KeyStateError(
            f"{record} still opens codes until {_utc(record.usable_until_s)}; wait, or disable it first",
            field="kid",
        )
    return _next(keyring, _moved(record, KeyState.DESTROYED, secret=b"", signing_private=b""))


@dataclass(frozen=True, slots=True)
class KeySummary:
    """What may be shown of a key: its record without key material, and whether it opens codes now."""

    kid: int
    purpose: Purpose
    version: Version | None
    suite: Suite
    state: KeyState
    generation: int
    created_at_s: int
    activated_at_s: int
    retired_at_s: int
    usable_until_s: int
    usable: bool


def list_keys(keyring: Keyring, now_s: int) -> tuple[KeySummary, ...]:
    """Every key there is and was, by ascending kid, without key material."""
    return tuple(
        KeySummary(
            kid=record.kid,
            purpose=record.purpose,
            version=record.version,
            suite=record.suite,
            state=record.state,
            generation=record.generation,
            created_at_s=record.created_at_s,
            activated_at_s=record.activated_at_s,
            retired_at_s=record.retired_at_s,
            usable_until_s=record.usable_until_s,
            usable=record.usable(now_s),
        )
        for record in keyring.records
    )


def lifetime_after_retirement_s(purpose: Purpose, version: Version | None) -> int:
    """Seconds a key must stay usable after its successor took over: as long as anything it made may be shown.

    Dynamic payloads: rendered ahead by at most a day, and shown for their life. Static payloads, serials and PINs: the
    longest life of a code. Uids: that and the afterlife, in which a retried issue must still find its record. In all
    cases twice the handover more: once because the old key still seals during it, once for clocks that differ.
    """
    handover_s = 2 * HANDOVER_S
    if purpose is Purpose.UID:
        return TTL_S_MAX + AFTERLIFE_S + handover_s
    if purpose is Purpose.PAYLOAD and version is not Version.STATIC:
        return PAYLOAD_LIFE_S_MAX + STAMP_SKEW_S + RENDER_AHEAD_S_MAX + handover_s
    return TTL_S_MAX + handover_s


def _with_new(
    keyring: Keyring, purpose: Purpose, version: Version | None, suite: Suite, now_s: int, random: Random
) -> Keyring:
    """The keyring with one pending key more."""
    slot = slot_of(purpose, version, suite)
    if keyring.next_kid > KID_MAX:
        raise Exhausted(
            f"all {KID_MAX} key ids are given, and none is ever given again; move to a new deployment",
            field="kid",
        )
    generation = 1 + max((record.generation for record in keyring.records if record.slot == slot), default=0)
    if purpose is Purpose.PIN and generation > PIN_GENERATION_MAX:
        raise Exhausted(
            f"all {PIN_GENERATION_MAX} generations of PIN keys are given; move to a new deployment",
            field="purpose",
        )
    secret = exactly(random, SECRET_BYTES)
    if any(record.secret == secret for record in keyring.records):
        raise SetupError("the random source gave the secret of an earlier key again: it can't be used")
    signing_private = signing_public = b""
    if version is Version.VALUABLE:
        signing_private = _signing_private(suite, random)
        signing_public = public_of(suite, signing_private)
    record = KeyRecord(
        kid=keyring.next_kid,
        purpose=purpose,
        version=version,
        suite=suite,
        state=KeyState.PENDING,
        generation=generation,
        created_at_s=now_s,
        secret=secret,
        signing_private=signing_private,
        signing_public=signing_public,
    )
    return Keyring((*keyring.records, record), keyring.next_kid + 1, keyring.revision + 1)


def _signing_private(suite: Suite, random: Random) -> bytes:
    """A private key: any 32 bytes for Ed25519 (RFC 8032 section 5.1.5), 1 .. n - 2 for SM2 (GB/T 32918.1 section 6.1)."""
    for _ in range(_DRAWS_MAX):
        drawn = exactly(random, SIGNING_PRIVATE_BYTES)
        # Drawn again rather than reduced: a reduced scalar would be biased.
        if suite is Suite.AES or 1 <= int.from_bytes(drawn, "big") <= _SM2_ORDER - 2:
            return drawn
    raise SetupError("the random source gives no SM2 private key: it can't be used")


def _activated(keyring: Keyring, record: KeyRecord, now_s: int) -> Keyring:
    """Pending to active, with the predecessor's retirement; the revision stays."""
    outgoing = keyring.active(record.slot)
    # Handovers go by the order of activation, so that order must hold although operators' clocks differ.
    at_s = now_s if outgoing is None else max(now_s, outgoing.activated_at_s + 1)
    # Before anything else: a key in the wrong state is the caller's mistake, whatever its neighbours are.
    incoming = _moved(record, KeyState.ACTIVE, activated_at_s=at_s)
    if record.purpose is not Purpose.PAYLOAD:
        _check_generations(keyring, record.slot, outgoing, now_s)
    changed = [incoming]
    if outgoing is not None:
        until_s = at_s + lifetime_after_retirement_s(outgoing.purpose, outgoing.version)
        changed.append(_moved(outgoing, KeyState.VERIFY_ONLY, retired_at_s=at_s, usable_until_s=until_s))
    return replace(keyring, records=_replaced(keyring, changed))


def _check_generations(keyring: Keyring, slot: Slot, outgoing: KeyRecord | None, now_s: int) -> None:
    usable = [record for record in keyring.records if record.slot == slot and record.usable(now_s)]
    if len(usable) < GENERATIONS_USABLE_MAX:
        return
    previous = [record for record in usable if record is not outgoing]
    earliest_s = min(record.usable_until_s for record in previous)
    raise KeyStateError(
        f"{previous[0]} is still needed until {_utc(earliest_s)}, and at most {GENERATIONS_USABLE_MAX} such keys are "
        "usable at a time; wait, or disable it (then the codes it made are refused)"
    )


def _moved(record: KeyRecord, state: KeyState, **changes: int | bytes) -> KeyRecord:
    if state not in TRANSITIONS[record.state]:
        allowed = ", ".join(sorted(TRANSITIONS[record.state])) or "nothing else"
        raise KeyStateError(f"{record} can't become {state}; it can become {allowed}", field="kid")
    # The type checker can't follow keyword names through replace().
    return replace(record, state=state, **changes)  # type: ignore[arg-type]


def _replaced(keyring: Keyring, changed: Iterable[KeyRecord]) -> tuple[KeyRecord, ...]:
    by_kid = {record.kid: record for record in changed}
    return tuple(by_kid.get(record.kid, record) for record in keyring.records)


def _next(keyring: Keyring, changed: KeyRecord) -> Keyring:
    return replace(keyring, records=_replaced(keyring, [changed]), revision=keyring.revision + 1)


def _utc(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# --- at rest ------------------------------------------------------------------------------------------------------


def dump(keyring: Keyring, unlock: Unlock, deployment_id: str, random: Random) -> bytes:
    """The keyring as a wrapped blob for one deployment (see engine.wrapping).

    Whoever stores it compares the stored revision with that of the keyring the change started from.
    """
    return wrap(_to_json(keyring), unlock, deployment_id, random)


def load(blob: bytes, unlock: Unlock | None, deployment_id: str) -> Keyring:
    """The keyring of a blob. Raises KeyringLocked or SetupError (see engine.wrapping.unwrap)."""
    return _from_json(unwrap(blob, unlock, deployment_id))


def _to_json(keyring: Keyring) -> bytes:
    document = {
        "format": _FORMAT,
        "revision": keyring.revision,
        "next_kid": keyring.next_kid,
        "records": [
            {
                "kid": record.kid,
                "purpose": record.purpose.value,
                "version": None if record.version is None else int(record.version),
                "suite": int(record.suite),
                "state": record.state.value,
                "generation": record.generation,
                "created_at_s": record.created_at_s,
                "activated_at_s": record.activated_at_s,
                "retired_at_s": record.retired_at_s,
                "usable_until_s": record.usable_until_s,
                "secret": b64encode(record.secret).decode(),
                "signing_private": b64encode(record.signing_private).decode(),
                "signing_public": b64encode(record.signing_public).decode(),
            }
            for record in keyring.records
        ],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _from_json(plain: bytes) -> Keyring:
    """Strict: exactly the fields of `_to_json`, each of its exact type.

    No error carries content, and none is raised while another is handled: a JSONDecodeError holds the whole document
    with every secret in it, and an error tracker would follow the chain to it.
    """
    document = _parsed(plain)
    if not isinstance(document, dict):
        raise _damaged("not an object")
    if document.get("format") != _FORMAT or type(document["format"]) is not int:
        raise SetupError(
            f"the keyring inside the blob is not of format {_FORMAT}; use the release that wrote it, or a later one"
        )
    if set(document) != {"format", "revision", "next_kid", "records"}:
        raise _damaged("other fields than expected")
    records = document["records"]
    if not isinstance(records, list):
        raise _damaged("records are no list")
    return Keyring(
        tuple(_record_of(record) for record in records),
        _integer(document, "next_kid"),
        _integer(document, "revision"),
    )


_RECORD_FIELDS: Final = frozenset(KeyRecord.__slots__)


def _record_of(item: object) -> KeyRecord:
    if not isinstance(item, dict) or set(item) != _RECORD_FIELDS:
        raise _damaged("a record has other fields than expected")
    version = None if item["version"] is None else _member(Version, _integer(item, "version"), "version")
    return KeyRecord(
        kid=_integer(item, "kid"),
        purpose=_member(Purpose, item["purpose"], "purpose"),
        version=version,
        suite=_member(Suite, _integer(item, "suite"), "suite"),
        state=_member(KeyState, item["state"], "state"),
        generation=_integer(item, "generation"),
        created_at_s=_integer(item, "created_at_s"),
        activated_at_s=_integer(item, "activated_at_s"),
        retired_at_s=_integer(item, "retired_at_s"),
        usable_until_s=_integer(item, "usable_until_s"),
        secret=_bytes(item, "secret"),
        signing_private=_bytes(item, "signing_private"),
        signing_public=_bytes(item, "signing_public"),
    )


def _parsed(plain: bytes) -> object:
    try:
        document: object = json.loads(plain, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        document = None
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field stands twice")
    return fields


def _integer(fields: dict[str, object], name: str) -> int:
    value = fields[name]
    # bool is an int to isinstance.
    if type(value) is not int:
        raise _damaged(f"{name} is no integer")
    return value


_Member = TypeVar("_Member", bound=Enum)


def _member(kind: type[_Member], value: object, name: str) -> _Member:
    for member in kind:
        if member.value == value:
            return member
    raise _damaged(f"{name} is unknown")


def _bytes(fields: dict[str, object], name: str) -> bytes:
    value = fields[name]
    if isinstance(value, str):
        try:
            decoded = b64decode(value, validate=True)
        except (Base64Error, ValueError):
            pass
        else:
            # Spare bits that are not zero decode as well; one value has one spelling.
            if b64encode(decoded).decode() == value:
                return decoded
    raise _damaged(f"{name} is no base64")


def _damaged(what: str) -> SetupError:
    return SetupError(f"the keyring inside the blob is damaged: {what}; restore it from a backup")


# --- in use -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Prfs:
    """Keyed functions of one purpose by generation, the one that makes new codes first."""

    by_generation: Mapping[int, Prf]
    maker: int
    """Generation for new codes; 0 when the slot has no active key."""


class Keys:
    """The usable keys of one keyring at one time, loaded into the kernels. Not changed once built; for many threads.

    Build it anew when the keyring's revision changes, and when the time reaches `next_change_s`.

    payload_table: every usable payload key. uid_prfs, serial_prfs: the usable keys, at most two, the one that makes
    new codes first; to find or check what exists. uid_prfs_disabled: disabled uid keys, only ever to find the codes of requests
    that come again. pin_generations: generations of the usable PIN keys, likewise.
    next_change_s: unix second from which another `Keys` is due although the keyring stays the same; None for never.
    """

    __slots__ = (
        "_prfs",
        "_sealing",
        "built_at_s",
        "next_change_s",
        "payload_table",
        "pin_generations",
        "revision",
        "serial_prfs",
        "uid_prfs",
        "uid_prfs_disabled",
    )

    def __init__(self, keyring: Keyring, now_s: int) -> None:
        by_slot: dict[Slot, list[KeyRecord]] = {}
        for record in keyring.records:
            if record.usable(now_s):
                by_slot.setdefault(record.slot, []).append(record)
        makers = {slot: _maker(records, now_s) for slot, records in by_slot.items()}
        changes_s = [change_s for records in by_slot.values() for change_s in _changes_s(records, now_s)]

        self.revision = keyring.revision
        self.built_at_s = now_s
        self.next_change_s = min(changes_s, default=None)
        self.payload_table = KeyTable()
        self._sealing: dict[tuple[Version, Suite], int] = {}
        for slot, records in by_slot.items():
            if slot[0] is Purpose.PAYLOAD:
                self._load(records, makers[slot])
        self._prfs = {
            purpose: _prfs(by_slot.get((purpose, None, None), []), makers.get((purpose, None, None)))
            for purpose in (Purpose.UID, Purpose.SERIAL, Purpose.PIN, Purpose.TERMINAL)
        }
        self.uid_prfs = tuple(self._prfs[Purpose.UID].by_generation.values())
        self.uid_prfs_disabled = tuple(
            Prf(record.suite, record.secret)
            for record in keyring.records
            if record.purpose is Purpose.UID and record.state is KeyState.DISABLED
        )[-GENERATIONS_USABLE_MAX:]
        self.serial_prfs = tuple(self._prfs[Purpose.SERIAL].by_generation.values())
        self.pin_generations = tuple(self._prfs[Purpose.PIN].by_generation)

    @classmethod
    def build(cls, keyring: Keyring, now_s: int) -> Keys:
        """The usable keys of `keyring` at `now_s` (unix seconds)."""
        return cls(keyring, now_s)

    def active_kid(self, version: Version, suite: Suite) -> int:
        """Kid that seals new payloads of a version and suite: during a handover still the predecessor's.

        Raises NoActiveKey.
        """
        kid = self._sealing.get((version, suite))
        if kid is None:
            raise NoActiveKey(
                f"no active payload key for version {int(version)}, suite {int(suite)}; "
                "make one with `pickgate keys rotate`",
                field="suite",
            )
        return kid

    def active_uid_prf(self) -> Prf:
        """Function that derives the uids of new codes. Raises NoActiveKey."""
        return self._maker_of(Purpose.UID)

    def active_serial_prf(self) -> Prf:
        """Function that derives the check digits of typed forms that are shown now. Raises NoActiveKey."""
        return self._maker_of(Purpose.SERIAL)

    def active_pin_generation(self) -> int:
        """Generation of the PIN key for new codes, 1 .. 255; kept in the code's record. Raises NoActiveKey."""
        self._maker_of(Purpose.PIN)
        return self._prfs[Purpose.PIN].maker

    def pin_prf(self, generation: int) -> Prf:
        """Function that derives the PINs of a generation. Raises NoActiveKey when that key is not usable (any more)."""
        prf = self._prfs[Purpose.PIN].by_generation.get(generation)
        if prf is None:
            raise NoActiveKey(
                f"the PIN key of generation {generation} is not usable: disabled, ended or unknown; void the code and "
                "issue it again"
            )
        return prf

    def terminal_generation(self) -> int:
        """Generation of the key that derives terminals' secrets now. Raises NoActiveKey."""
        self._maker_of(Purpose.TERMINAL)
        return self._prfs[Purpose.TERMINAL].maker

    @property
    def newest_terminal_generation(self) -> int:
        """The same; 0 where there is none."""
        return self._prfs[Purpose.TERMINAL].maker

    def terminal_prf(self, generation: int) -> Prf | None:
        """Function that derives the terminals' secrets of a generation; None when that key is not usable (any more)."""
        return self._prfs[Purpose.TERMINAL].by_generation.get(generation)

    def __repr__(self) -> str:
        return f"Keys(revision={self.revision}, built_at_s={self.built_at_s}, next_change_s={self.next_change_s})"

    def _load(self, records: list[KeyRecord], maker: KeyRecord | None) -> None:
        for record in records:
            assert record.version is not None  # by the record's own check: these are payload keys
            if record is maker:
                self._sealing[record.version, record.suite] = record.kid
            # A key that only verifies gets no private key: then no mistake can sign with it.
            self.payload_table.add(
                record.kid,
                record.version,
                record.suite,
                record.secret,
                record.signing_public or None,
                record.signing_private if record is maker and record.signing_private else None,
            )

    def _maker_of(self, purpose: Purpose) -> Prf:
        prfs = self._prfs[purpose]
        if not prfs.maker:
            raise NoActiveKey(f"no active {purpose} key; make one with `pickgate keys rotate`")
        return prfs.by_generation[prfs.maker]


def _maker(records: list[KeyRecord], now_s: int) -> KeyRecord | None:
    """The key of a slot's usable ones that makes new codes: during a handover the retired one that is known for longest.

    None without an active key: a retired key must not come back to life because its successor was disabled.
    """
    if all(record.state is not KeyState.ACTIVE for record in records):
        return None
    ready = [
        record
        for record in records
        if record.state is KeyState.ACTIVE or now_s < record.retired_at_s + HANDOVER_S
    ]
    return min(ready, key=lambda record: record.activated_at_s)


def _changes_s(records: list[KeyRecord], now_s: int) -> list[int]:
    """Times at which the usable keys of a slot change their role by themselves: ends of use, and of a handover."""
    times_s = [record.usable_until_s + 1 for record in records if record.state is KeyState.VERIFY_ONLY]
    maker = _maker(records, now_s)
    if maker is not None and maker.state is not KeyState.ACTIVE:
        times_s.append(maker.retired_at_s + HANDOVER_S)
    return times_s


def _prfs(records: list[KeyRecord], maker: KeyRecord | None) -> _Prfs:
    # Latest generation first behind the maker: what was made lately is asked for most.
    ordered = sorted(records, key=lambda record: (record is not maker, -record.generation))
    return _Prfs(
        {record.generation: Prf(record.suite, record.secret) for record in ordered},
        0 if maker is None else maker.generation,
    )
