"""Terminals that have a secret of the SM profile: invited, and enrolled with an SM2 key, as TerminalService does it."""

from __future__ import annotations

import itertools
from typing import Final

from engine import sm_enrolment, terminals
from engine.deployment import Deployment
from engine.terminals import Change, Key, Terminal
from ext import sm2_reference

_PRIVATE: Final = bytes(range(1, 33))
PUBLIC: Final = sm2_reference.public_of(_PRIVATE)
"""The SM2 key of all of them."""
_numbers = itertools.count(1)


def opened(sealed_secret: bytes) -> bytes:
    """What a terminal makes of what it is given."""
    return sm2_reference.decrypt(_PRIVATE, sealed_secret)


def change(deployment: Deployment, terminal: Key, made: Change, verb: str) -> Terminal:
    """Apply a change to a terminal's entry, each time a new one."""
    return deployment.control.change_terminal(
        terminal, made, verb=verb, body=(), request_id=f"{verb}-{next(_numbers):08}", actor="test"
    )


def invite(deployment: Deployment, terminal: Key) -> str:
    """A fresh invitation's token."""
    token = f"token-{next(_numbers)}"
    invited = Terminal(
        *terminal,
        invitation=terminals.digest_of(token.encode()),
        invitation_until_s=deployment.now_ms() // 1000 + 60,
    )
    change(deployment, terminal, terminals.invite(invited), "invite")
    return token


def give(deployment: Deployment, terminal: Key) -> tuple[int, bytes]:
    """A terminal's next secret and its number."""
    token = invite(deployment, terminal)
    secret = sm_enrolment.prepare(deployment.control, PUBLIC, actor="test")
    enrolling = terminals.enrol(token, deployment.now_ms() // 1000, None, secret)
    entry = change(deployment, terminal, enrolling, "enrol")
    return entry.sm_number, opened(sm_enrolment.seal(deployment.control, entry, PUBLIC))
