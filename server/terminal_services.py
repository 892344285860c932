"""TerminalService: invitations, enrolment, certificates, secrets, states. As server.services: parse, translate, ask, translate back."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from engine import limits, sm_enrolment, terminals
from engine.deployment import Deployment
from engine.errors import InvalidInput, SetupError, Unauthenticated, UnknownMall
from engine.sm_profile import Sealed
from engine.state import sightings
from engine.terminals import Key, Terminal
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds, checks
from server.authority import TerminalId
from server.issuing import Issuing, Signed
from server.roles import Grant

Q = TypeVar("Q", bound=Message)


class Desk(NamedTuple):
    """What the methods need.

    issuing: the CA, if there is one. given: what the caller may do, None where nobody is known. sealed: how the request was sealed in
    the SM profile, None where it was not.
    """

    deployment: Deployment
    issuing: Issuing | None
    given: Grant | None
    sealed: Sealed | None = None


class TerminalMethod(NamedTuple, Generic[Q]):
    """One method: the message it takes, its implementation, and the largest request in bytes."""

    request: type[Q]
    call: Callable[[Desk, Q], Message]
    bytes_max: int = limits.MESSAGE_BYTES_MAX


_STATES: Final = {
    name: terminal_pb.TerminalState.Value(f"TERMINAL_STATE_{name.upper()}") for name in terminals.STATES
}


def _key(message: types_pb.Terminal) -> Key:
    return (
        checks.identifier(message.mall_id, "terminal.mall_id"),
        checks.identifier(message.store_id, "terminal.store_id"),
        checks.identifier(message.terminal_id, "terminal.terminal_id"),
    )


def _entries(desk: Desk, found: Sequence[Terminal]) -> list[terminal_pb.TerminalEntry]:
    seen = sightings.read(desk.deployment.connection, [one.field for one in found])
    now_s = desk.deployment.now_ms() // 1000
    return [
        terminal_pb.TerminalEntry(
            terminal=types_pb.Terminal(
                mall_id=one.mall_id, store_id=one.store_id, terminal_id=one.terminal_id
            ),
            name=one.name,
            state=_STATES[one.state],
            # A used one is only good for the key that used it.
            invitation_expires_at_ms=one.invitation_until_s * 1000
            if one.invitation and not one.key and one.invitation_until_s >= now_s
            else 0,
            certificate_expires_at_ms=one.certificate_until_s * 1000,
            last_seen_ms=at_s * 1000,
            reason=one.reason,
            sm_number=one.sm_number,
        )
        for one, at_s in zip(found, seen, strict=True)
    ]


def _invite(desk: Desk, message: terminal_pb.InviteTerminalRequest) -> Message:
    key = mall_id, store_id, _ = _key(message.terminal)
    request_id = checks.request_id(message.request_id)
    valid_s = checks.whole(message.valid_s, "valid_s", 0, terminals.INVITATION_S_MAX, "seconds")
    if 0 < valid_s < terminals.INVITATION_S_MIN:
        checks.refuse(
            "valid_s", valid_s, f"0, or {terminals.INVITATION_S_MIN} .. {terminals.INVITATION_S_MAX} seconds"
        )
    terminals.check_digest(message.token_sha256, "token_sha256")
    control = desk.deployment.control
    if control.mall(mall_id) is None:
        raise UnknownMall(f"mall {mall_id} is not registered: put it first", field="terminal.mall_id")
    store = control.store(store_id)
    if store is None or mall_id not in store.mall_ids:
        raise InvalidInput(
            f"there is no store {store_id} that serves mall {mall_id}", field="terminal.store_id"
        )
    terminal = Terminal(
        *key,
        name=checks.text(message.name, "name", limits.NAME_CHARS_MAX),
        invitation=message.token_sha256,
        invitation_until_s=desk.deployment.now_ms() // 1000 + (valid_s or terminals.INVITATION_S_DEFAULT),
        reason=checks.text(message.reason, "reason", limits.REASON_CHARS_MAX),
    )
    entry = control.change_terminal(
        key,
        terminals.invite(terminal),
        verb="invite_terminal",
        body=(message.token_sha256, valid_s, message.name),
        request_id=request_id,
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )
    return terminal_pb.InviteTerminalResponse(request_id=request_id, entry=_entries(desk, [entry])[0])


def _signed(desk: Desk, csr_pem: str, key: Key) -> Signed:
    if desk.issuing is None:
        raise SetupError(
            "a terminal asked for a certificate, and no issuing_cert_file and issuing_key_file are configured"
        )
    return desk.issuing.sign(csr_pem, TerminalId(*key))


def _actor(key: Key) -> str:
    return "terminal:{}/{}/{}".format(*key)


def _enrol(desk: Desk, message: terminal_pb.EnrolTerminalRequest) -> Message:
    key = _key(message.terminal)
    token = message.token
    if len(token) > bounds.INVITATION_CHARS_MAX:
        checks.refuse("token", "too long", f"at most {bounds.INVITATION_CHARS_MAX} characters")
    now_s = desk.deployment.now_ms() // 1000
    control = desk.deployment.control
    # Looked at before anything is signed: who has no invitation costs no signature. Whether it was used, the change says.
    terminals.check_invitation(control.copy().terminals.get(key), token, None, now_s)
    public_key = message.sm_public_key
    if not message.csr_pem and not public_key:
        checks.refuse("csr_pem", "", "a request for a certificate; or an sm_public_key, or both")
    if public_key:
        sm_enrolment.check_public_key(public_key, "sm_public_key")
    signed = _signed(desk, message.csr_pem, key) if message.csr_pem else None
    secret = sm_enrolment.prepare(control, public_key, actor=_actor(key)) if public_key else None
    issued = None if signed is None else signed.issued
    entry = control.change_terminal(
        key,
        terminals.enrol(token, now_s, issued, secret),
        verb="enrol_terminal",
        body=("" if issued is None else issued.thumbprint, "" if secret is None else secret.key),
        # Another certificate or secret each time: nothing to remember. The token's own key makes a repetition safe.
        request_id=str(uuid.uuid4()),
        actor=_actor(key),
    )
    response = terminal_pb.EnrolTerminalResponse()
    if signed is not None:
        response.certificate_pem, response.ca_pem = signed.certificate_pem, signed.ca_pem
        response.expires_at_ms = signed.issued.until_s * 1000
    if secret is not None:
        response.sm_number = entry.sm_number
        response.sm_sealed_secret = sm_enrolment.seal(control, entry, public_key)
    return response


def _rotate(desk: Desk, message: terminal_pb.RotateCertificateRequest) -> Message:
    key = _key(message.terminal)
    if desk.given is None or not desk.given.thumbprint:
        raise Unauthenticated(
            "a terminal rotates its certificate with its present one: ask on a port of listen_mtls"
        )
    signed = _signed(desk, message.csr_pem, key)
    desk.deployment.control.change_terminal(
        key,
        terminals.rotate(desk.given.thumbprint, signed.issued),
        verb="rotate_terminal",
        body=(signed.issued.thumbprint,),
        request_id=str(uuid.uuid4()),
        actor=_actor(key),
    )
    return terminal_pb.RotateCertificateResponse(
        certificate_pem=signed.certificate_pem,
        ca_pem=signed.ca_pem,
        expires_at_ms=signed.issued.until_s * 1000,
    )


def _rotate_secret(desk: Desk, message: terminal_pb.RotateSecretRequest) -> Message:
    key = _key(message.terminal)
    request_id = checks.request_id(message.request_id)
    # That the terminal which sealed it is the one it names, server.sealing has seen to.
    if desk.sealed is None:
        raise Unauthenticated(
            "a terminal asks for its next secret under its present one: seal the request by the SM profile"
        )
    sm_enrolment.check_public_key(message.sm_public_key, "sm_public_key")
    control = desk.deployment.control
    secret = sm_enrolment.prepare(control, message.sm_public_key, actor=_actor(key))
    entry = control.change_terminal(
        key,
        terminals.rotate_secret(desk.sealed.number, secret.generation),
        verb="rotate_secret",
        body=(secret.key,),
        request_id=request_id,
        actor=_actor(key),
    )
    return terminal_pb.RotateSecretResponse(
        request_id=request_id,
        sm_number=entry.sm_number,
        sm_sealed_secret=sm_enrolment.seal(control, entry, message.sm_public_key),
    )


def _list(desk: Desk, message: terminal_pb.ListTerminalsRequest) -> Message:
    size = (
        checks.whole(message.page_size, "page_size", 0, bounds.PAGE_ITEMS_MAX, "items")
        or bounds.PAGE_ITEMS_MAX
    )
    after = _after(message.page_token)
    mall_id, store_id = message.mall_id, message.store_id
    found = [
        one
        for one in desk.deployment.control.terminals()
        if one.id > after and mall_id in (0, one.mall_id) and store_id in (0, one.store_id)
    ]
    page = found[:size]
    return terminal_pb.ListTerminalsResponse(
        entries=_entries(desk, page), next_page_token=page[-1].field if len(found) > size else ""
    )


def _after(token: str) -> Key:
    if not token:
        return (0, 0, 0)
    parts = token.split(":")
    if (
        len(token) > bounds.PAGE_TOKEN_CHARS_MAX
        or len(parts) != 3
        or not all(part.isascii() and part.isdigit() for part in parts)
    ):
        checks.refuse("page_token", token, "the next_page_token of an earlier answer, or nothing")
    mall_id, store_id, terminal_id = map(int, parts)
    return mall_id, store_id, terminal_id


def _set_state(desk: Desk, message: Any, state: Any, verb: str) -> tuple[str, terminal_pb.TerminalEntry]:
    key = _key(message.terminal)
    request_id = checks.request_id(message.request_id)
    reason = checks.text(message.reason, "reason", limits.REASON_CHARS_MAX)
    entry = desk.deployment.control.change_terminal(
        key,
        terminals.set_state(key, state, reason),
        verb=f"{verb}_terminal",
        body=(reason,),
        request_id=request_id,
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )
    return request_id, _entries(desk, [entry])[0]


def _suspend(desk: Desk, message: terminal_pb.SuspendTerminalRequest) -> Message:
    request_id, entry = _set_state(desk, message, "suspended", "suspend")
    return terminal_pb.SuspendTerminalResponse(request_id=request_id, entry=entry)


def _resume(desk: Desk, message: terminal_pb.ResumeTerminalRequest) -> Message:
    request_id, entry = _set_state(desk, message, "active", "resume")
    return terminal_pb.ResumeTerminalResponse(request_id=request_id, entry=entry)


def _revoke(desk: Desk, message: terminal_pb.RevokeTerminalRequest) -> Message:
    request_id, entry = _set_state(desk, message, "revoked", "revoke")
    return terminal_pb.RevokeTerminalResponse(request_id=request_id, entry=entry)


METHODS: Final[Mapping[str, TerminalMethod[Any]]] = {
    "TerminalService.InviteTerminal": TerminalMethod(terminal_pb.InviteTerminalRequest, _invite),
    "TerminalService.EnrolTerminal": TerminalMethod(terminal_pb.EnrolTerminalRequest, _enrol),
    "TerminalService.RotateCertificate": TerminalMethod(terminal_pb.RotateCertificateRequest, _rotate),
    "TerminalService.RotateSecret": TerminalMethod(terminal_pb.RotateSecretRequest, _rotate_secret),
    "TerminalService.ListTerminals": TerminalMethod(terminal_pb.ListTerminalsRequest, _list),
    "TerminalService.SuspendTerminal": TerminalMethod(terminal_pb.SuspendTerminalRequest, _suspend),
    "TerminalService.ResumeTerminal": TerminalMethod(terminal_pb.ResumeTerminalRequest, _resume),
    "TerminalService.RevokeTerminal": TerminalMethod(terminal_pb.RevokeTerminalRequest, _revoke),
}
"""Every method, by "Service.Method"."""
