"""Mutated codes: a hundredth of the ten million in the short form, a tenth in the long; and what the command would notice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from ext.codec import OpenStatus, open_text_batch
from server import written
from tests.bench import mutations, refusals
from tests.bench.mutations import REQUEST_ID, Findings
from tests.engine.shop import Shop

SOAK = os.environ.get("PICKGATE_SOAK") == "1"


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with ExitStack() as stack:
        yield mutations.open_shop(stack)


def test_none_is_accepted_and_all_get_one_answer(shop: Shop) -> None:
    found = mutations.run(shop, mutations.COUNT // (10 if SOAK else 100), seed=2)
    assert mutations.sound(found), mutations.as_text(found)
    assert found.count >= mutations.COUNT // 100
    assert found.answered > 500
    # Every check refused something, but for the two behind a right tag and signature, which no mutation gets past.
    assert set(found.statuses) == {
        *("LENGTH", "PREFIX", "ALPHABET", "SPARE_BITS", "HEADER", "KID", "TAG", "SIGNATURE")
    }
    assert len(found.kinds) == 2 * len(mutations.OF_BYTES) + len(mutations.OF_TEXTS)


@pytest.mark.parametrize(
    "bad",
    [
        Findings(accepted=[b"PG"], answers={written.invalid_redemption(REQUEST_ID.encode())}),
        Findings(answers={written.invalid_redemption(REQUEST_ID.encode()), b"another"}),
        Findings(answers={b"another"}),
        Findings(),
    ],
)
def test_one_that_is_accepted_or_answered_otherwise_is_noticed(bad: Findings) -> None:
    assert not mutations.sound(bad)


def test_a_key_that_forgets_to_look_at_tags_would_be_noticed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test: an opener that lets one byte of the tag go."""

    def careless(table: object, text: bytes, offsets: object) -> object:
        claims = open_text_batch(table, text, offsets)  # type: ignore[arg-type]
        claims["status"][claims["status"] == OpenStatus.TAG] = OpenStatus.OK
        return claims

    monkeypatch.setattr(mutations, "open_text_batch", careless)
    assert not mutations.sound(mutations.run(shop, 20_000, seed=3))


def test_effect_sizes() -> None:
    few, more = np.array([1, 2, 3]), np.array([11, 12, 13])
    assert refusals.superiority(more, few) == 1.0
    assert refusals.superiority(few, more) == 0.0
    assert refusals.superiority(few, few) == 0.5


def test_each_way_to_be_wrong_is_that_one(shop: Shop) -> None:
    genuine = mutations.issue(shop)
    seen = set()
    for rows in genuine.texts.values():
        seen |= set(refusals.wrong(rows[0].tobytes().decode()))
    assert seen == {
        *("wrong tag", "unknown kid", "wrong header", "wrong alphabet", "wrong length", "wrong signature")
    }
