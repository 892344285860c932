from __future__ import annotations

from pathlib import Path

import pytest
import zxingcpp
from PIL import Image

from engine.errors import InvalidInput
from server import qr

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def payload(chars: int) -> str:
    return "PG" + (ALPHABET * 6)[: chars - 2]


@pytest.mark.parametrize(("chars", "version"), [(52, 3), (78, 4), (186, 8)])
def test_each_payload_fits_its_size_at_level_m_and_reads_back(
    chars: int, version: int, tmp_path: Path
) -> None:
    code = qr.make(payload(chars))
    assert (code.version, code.error, code.mode) == (version, "M", "alphanumeric")
    path = tmp_path / "code.png"
    qr.save(code, path, "png")
    (found,) = zxingcpp.read_barcodes(Image.open(path))
    assert found.text == payload(chars)


def test_svg_and_terminal(tmp_path: Path) -> None:
    code = qr.make(payload(78))
    qr.save(code, tmp_path / "code.svg", "svg")
    assert "<svg" in (tmp_path / "code.svg").read_text()
    drawn = qr.for_terminal(code)
    assert len(drawn.splitlines()) >= (33 + 8) // 2


def test_what_the_mode_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        qr.make("pg-lower-case")
    with pytest.raises(InvalidInput, match="can't be written"):
        qr.save(qr.make("PG0"), tmp_path / "absent" / "code.png", "png")
