"""QR codes of payloads: on a terminal, as PNG, as SVG. Error level M, alphanumeric mode (ISO/IEC 18004).

Level M mends 15 % of a code: a cracked screen, a reflection. A payload's alphabet lies within the alphanumeric mode, which needs
5.5 bits for a character instead of 8, so the code stays two versions smaller and reads from further away.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final, Literal

import segno

from engine.errors import InvalidInput

SCALE_PX: Final = 8
"""Pixels of one module: about 330 px for a dynamic code, sharp on a phone and on a receipt."""
BORDER_MODULES: Final = 4
"""The quiet zone that the standard asks for."""


def make(text: str) -> segno.QRCode:
    """Make the QR code of a payload. Raises InvalidInput for text outside the alphanumeric mode."""
    try:
        return segno.make_qr(text, error="m", mode="alphanumeric", boost_error=False)
    except ValueError as error:
        raise InvalidInput(f"no QR code can be made of this text: {error}", field="text") from None


def for_terminal(code: segno.QRCode) -> str:
    """Draw a code with half blocks, two modules in one character's height, with its quiet zone."""
    drawn = io.StringIO()
    code.terminal(out=drawn, border=BORDER_MODULES, compact=True)
    return drawn.getvalue()


def save(code: segno.QRCode, path: Path, kind: Literal["png", "svg"]) -> None:
    """Write a code to a file. Raises InvalidInput when it can't be written."""
    try:
        code.save(str(path), kind=kind, scale=SCALE_PX, border=BORDER_MODULES)
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}", field=kind) from None
