"""Terminals: which may ask, with which certificates; invited with a one-time token, suspended, revoked.

An entry of the control partition, so a change is an event there and in force in every process within five seconds. A terminal
without an entry is known by its certificate's CA alone: an organisation with a CA of its own need not enrol here. Once it has an
entry, the entry rules.

    invited ─ enrol ─→ active ⇄ suspended        any ─ revoke ─→ revoked (only a new invitation brings it back)

The token of an invitation is made by whoever invites and never stored: the entry has its SHA-256. With 160 random bits nobody
finds it by trying. It is good once: for one key, within its time. The same key may ask again, as long as the invitation lasts, so
an answer that was lost costs nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from engine import limits
from engine.entries import Entry, check_choice, check_id, check_number_of, check_text, check_whole
from engine.errors import InvalidInput, NotFound, Unauthenticated

State = Literal["invited", "active", "suspended", "revoked"]
STATES: Final = ("invited", "active", "suspended", "revoked")

Key: TypeAlias = tuple[int, int, int]
"""mall, store, terminal."""

INVITATION_S_DEFAULT: Final = 3600
INVITATION_S_MIN: Final = 60
INVITATION_S_MAX: Final = 7 * 24 * 3600
CERTIFICATES_KEPT: Final = 2
"""Certificates of one terminal that count at a time: the one it has, and the next."""
DIGEST_CHARS: Final = 64
"""A SHA-256 in hex."""
TOKEN_CHARS: Final = 32
"""Of an invitation: 160 random bits in base32 (RFC 4648)."""
_NOT_INVITED: Final = "the invitation is not good: it was used, has ended, or never was; ask for a new one"


def digest_of(secret: bytes) -> str:
    """SHA-256 in hex: of an invitation's token, a key, or a certificate (its thumbprint)."""
    return hashlib.sha256(secret).hexdigest()


@dataclass(frozen=True)
class Terminal(Entry):
    """One terminal.

    name: for people. invitation, invitation_until_s: digest of the token, and the unix second until which it is good; '' and 0
    without one. key: digest of the public keys that used it, '' while nobody has. certificates: thumbprints (SHA-256 of the DER,
    hex) that count, the newest last; none: any of the CA's; of one that enrolled for a secret alone `key`, which is no certificate's.
    certificate_until_s: when the newest ends. reason: of the last change.
    sm_number: of its newest secret of the SM profile (engine.sm_profile), counted from 1; 0: it never had one. sm_generation: of the
    key that this secret is derived by. sm_before, sm_before_generation: the same of the secret that asked for it and counts on beside
    it; 0 without one.
    """

    mall_id: int
    store_id: int
    terminal_id: int
    state: State = "invited"
    name: str = ""
    invitation: str = ""
    invitation_until_s: int = 0
    key: str = ""
    certificates: tuple[str, ...] = ()
    certificate_until_s: int = 0
    reason: str = ""
    sm_number: int = 0
    sm_generation: int = 0
    sm_before: int = 0
    sm_before_generation: int = 0

    def __post_init__(self) -> None:
        check_id(self.mall_id, "mall_id")
        check_id(self.store_id, "store_id")
        check_id(self.terminal_id, "terminal_id")
        check_choice(self.state, "state", STATES)
        check_text(self.name, "name", limits.NAME_CHARS_MAX, chars_min=0)
        check_text(self.reason, "reason", limits.REASON_CHARS_MAX, chars_min=0)
        check_whole(self.invitation_until_s, "invitation_until_s", 0, limits.EXPIRES_AT_S_MAX)
        for name in ("sm_number", "sm_generation", "sm_before", "sm_before_generation"):
            check_whole(getattr(self, name), name, 0, limits.ID_MAX)
        check_number_of(self.certificates, "certificates", 0, CERTIFICATES_KEPT)
        for digest in (self.invitation, self.key, *self.certificates):
            check_digest(digest, "digest", optional=True)

    @property
    def id(self) -> Key:
        """Its mall, store and number."""
        return self.mall_id, self.store_id, self.terminal_id

    @property
    def field(self) -> str:
        """Its field in the control partition."""
        return f"{self.mall_id}:{self.store_id}:{self.terminal_id}"

    def admits(self, thumbprint: str) -> bool:
        """Whether it may ask, with this certificate."""
        return self.state == "active" and (not self.certificates or thumbprint in self.certificates)

    def secret_generation(self, number: int) -> int:
        """Generation of the key that derives its secret of this number; 0 for one that does not count."""
        if self.state != "active" or not number:
            return 0
        kept = {self.sm_before: self.sm_before_generation, self.sm_number: self.sm_generation}
        return kept.get(number, 0)


def check_digest(value: str, field: str, *, optional: bool = False) -> None:
    """A SHA-256 in lower-case hex. Raises InvalidInput."""
    if optional and not value:
        return
    if len(value) != DIGEST_CHARS or not set(value) <= set("0123456789abcdef"):
        raise InvalidInput(
            f"{field} is no SHA-256; expected {DIGEST_CHARS} lower-case hex digits", field=field
        )


Change: TypeAlias = Callable[[Terminal | None], Terminal]
"""Makes the next entry of one terminal of the present one; raises what refuses it."""


class Issued(NamedTuple):
    """A certificate that is about to be given out: digest of its key, its thumbprint, and when it ends."""

    key: str
    thumbprint: str
    until_s: int


class Secret(NamedTuple):
    """A secret of the SM profile that is about to be given out: digest of the SM2 key that it is for, and who derives it."""

    key: str
    generation: int


def invite(terminal: Terminal) -> Change:
    """A new invitation, as `terminal` has it. What the terminal has goes on until somebody enrols with it, unless it was revoked."""

    def change(present: Terminal | None) -> Terminal:
        if present is None:
            return terminal
        if present.state in ("invited", "revoked"):
            # Secrets of the SM profile are counted on: a number that was given once is never given again.
            return replace(terminal, sm_number=present.sm_number, sm_generation=present.sm_generation)
        return replace(
            present,
            name=terminal.name or present.name,
            invitation=terminal.invitation,
            invitation_until_s=terminal.invitation_until_s,
            key="",
            reason=terminal.reason,
        )

    return change


def enrol(token: str, now_s: int, issued: Issued | None, secret: Secret | None) -> Change:
    """Use an invitation for a certificate, a secret, or both; what it had before counts no more.

    Raises Unauthenticated, for whatever is wrong, with one answer.
    """
    keys = [given.key for given in (issued, secret) if given is not None]
    key = keys[0] if len(keys) == 1 else digest_of("".join(keys).encode())

    def change(present: Terminal | None) -> Terminal:
        check_invitation(present, token, key, now_s)
        assert present is not None
        return replace(
            present,
            state="suspended" if present.state == "suspended" else "active",
            key=key,
            certificates=(key if issued is None else issued.thumbprint,),
            certificate_until_s=0 if issued is None else issued.until_s,
            **_next_secret(present, 0 if secret is None else secret.generation),
        )

    return change


def _next_secret(present: Terminal, generation: int) -> dict[str, Any]:
    """Fields of one whose secrets of before count no more: a number that was given once is never given again. generation 0: none."""
    if not generation and not present.sm_number:
        return {}
    # Without a secret the number is of one that nobody has.
    return {
        "sm_number": present.sm_number + 1,
        "sm_generation": generation or present.sm_generation,
        "sm_before": 0,
        "sm_before_generation": 0,
    }


def check_invitation(present: Terminal | None, token: str, key: str | None, now_s: int) -> None:
    """Whether a token may be used for a key now; None for a key that is not known yet. Raises Unauthenticated."""
    wanted = present.invitation if present is not None else ""
    given = digest_of(token.encode("utf-8", "surrogatepass"))
    if (
        present is None
        or not hmac.compare_digest(given, wanted or digest_of(b""))
        or not wanted
        or now_s > present.invitation_until_s
        or (key is not None and present.key not in ("", key))
        or present.state == "revoked"
    ):
        raise Unauthenticated(_NOT_INVITED)


def rotate(thumbprint: str, issued: Issued) -> Change:
    """A new certificate for one that asks with its present one, which counts on beside it: until the next rotation."""

    def change(present: Terminal | None) -> Terminal:
        if present is None or not present.admits(thumbprint):
            raise Unauthenticated("the terminal is not enrolled, or not active: enrol it")
        return replace(
            present, certificates=(thumbprint, issued.thumbprint), certificate_until_s=issued.until_s
        )

    return change


def rotate_secret(number: int, generation: int) -> Change:
    """A new secret for one that asks with its secret of that number, which counts on beside it: until the next rotation."""

    def change(present: Terminal | None) -> Terminal:
        before = 0 if present is None else present.secret_generation(number)
        if present is None or not before:
            raise Unauthenticated("the terminal's secret counts no more: enrol it")
        return replace(
            present,
            **_next_secret(present, generation) | {"sm_before": number, "sm_before_generation": before},
        )

    return change


def set_state(key: Key, state: Literal["active", "suspended", "revoked"], reason: str) -> Change:
    """Suspend, resume ("active") or revoke. Revoking also ends an invitation. Raises NotFound, InvalidInput.

    One that is known by its CA alone can be suspended and revoked too: it gets its entry by that.
    """

    def change(present: Terminal | None) -> Terminal:
        if present is None:
            if state == "active":
                raise NotFound(
                    "there is no terminal {2} of store {1} of mall {0}".format(*key), field="terminal"
                )
            present = Terminal(*key)
        if state == "active" and present.state not in ("active", "suspended"):
            raise InvalidInput(
                f"the terminal is {present.state}; only a suspended one is resumed: invite it",
                field="terminal",
            )
        if state == "suspended" and present.state == "revoked":
            raise InvalidInput("the terminal is revoked, which is more than suspended", field="terminal")
        ended: dict[str, Any] = {}
        if state == "revoked":
            # What it had must not open again when it is invited anew.
            ended = {"invitation": "", "invitation_until_s": 0, **_next_secret(present, 0)}
        return replace(present, state=state, reason=reason, **ended)

    return change
