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
from typing import Final, Literal, NamedTuple, TypeAlias

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
    without one. key: digest of the public key that used it, '' while nobody has. certificates: thumbprints (SHA-256 of the DER,
    hex) that count, the newest last; none: any of the CA's. certificate_until_s: when the newest ends. reason: of the last change.
    sm_number: how often it was given a secret of the SM profile (engine.sm_profile), the last of which counts; 0: never.
    sm_generation: of the key that this secret is derived by.
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

    def __post_init__(self) -> None:
        check_id(self.mall_id, "mall_id")
        check_id(self.store_id, "store_id")
        check_id(self.terminal_id, "terminal_id")
        check_choice(self.state, "state", STATES)
        check_text(self.name, "name", limits.NAME_CHARS_MAX, chars_min=0)
        check_text(self.reason, "reason", limits.REASON_CHARS_MAX, chars_min=0)
        check_whole(self.invitation_until_s, "invitation_until_s", 0, limits.EXPIRES_AT_S_MAX)
        check_whole(self.sm_number, "sm_number", 0, limits.ID_MAX)
        check_whole(self.sm_generation, "sm_generation", 0, limits.ID_MAX)
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


def enrol(token: str, issued: Issued, now_s: int) -> Change:
    """Use an invitation. Raises Unauthenticated, for whatever is wrong, with one answer."""

    def change(present: Terminal | None) -> Terminal:
        check_invitation(present, token, issued.key, now_s)
        assert present is not None
        return replace(
            present,
            state="suspended" if present.state == "suspended" else "active",
            key=issued.key,
            certificates=(issued.thumbprint,),
            certificate_until_s=issued.until_s,
        )

    return change


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


def enrol_sm(key: Key, generation: int) -> Change:
    """Give it the next secret of the SM profile, derived by the keyring's terminal key of `generation`; the one before counts no more.

    Raises InvalidInput for one that is invited, suspended or revoked: making it active would let its earlier certificates count.
    """

    def change(present: Terminal | None) -> Terminal:
        if present is not None and present.state != "active":
            raise InvalidInput(
                f"the terminal is {present.state}; only an active one, or one without an entry, gets a secret: let it enrol, or"
                " resume it",
                field="terminal",
            )
        if present is None:
            present = Terminal(*key)
        return replace(present, state="active", sm_number=present.sm_number + 1, sm_generation=generation)

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
        ended: dict[str, str | int] = {}
        if state == "revoked":
            ended = {"invitation": "", "invitation_until_s": 0}
            if present.sm_number:
                # One that nobody has: what it had must not open again when it is invited anew.
                ended["sm_number"] = present.sm_number + 1
        return replace(present, state=state, reason=reason, **ended)  # type: ignore[arg-type]

    return change
