"""What lets somebody redeem is not in the text of a request or an answer: those end in logs and tracebacks."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from engine import calls
from engine.calls import RedeemRequest
from engine.claims import Terminal

SECRET = "246801"
HOLDERS = [kind for kind in vars(calls).values() if is_dataclass(kind) and isinstance(kind, type)]


@pytest.mark.parametrize("name", ["pin", "proof_token"])
def test_no_request_or_answer_shows_it(name: str) -> None:
    shown = [
        f"{kind.__name__}.{field.name}"
        for kind in HOLDERS
        for field in fields(kind)
        if field.name == name and field.repr
    ]
    assert not shown


def test_a_redemption_written_down_keeps_its_secrets() -> None:
    more: dict[str, Any] = {"pin": SECRET, "proof_token": "a.b.c"}
    request = RedeemRequest(Terminal(1, 2, 3), "request-1", "0000111122223333", **more)
    assert request.pin == SECRET
    assert SECRET not in repr(request)
    assert "a.b.c" not in repr(request)
    assert "request-1" in repr(request)
