"""The kernels equal their twin on random codes: 100,000 of each kind with PICKGATE_SOAK=1, else a tenth of it."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from ext.claims import PAYLOAD_SIZE, pack
from ext.status import OpenStatus
from tests.ext.twins import KINDS, NATIVE, REFERENCE, SOAK, full_table, kid_of, opened_as, random_claims

CODES = 100_000 if SOAK else 10_000
CHUNK = 2_500


def compare(version: int, suite: int, chunk: int) -> int:
    """One chunk of random codes: how many were compared.

    Both seal the same rows and must make the same bytes (but for the kernel's signatures of SM2, which are fresh),
    each opens what the other sealed, as bytes and as text, and both read the same rows from it. Then one bit of each
    code is turned: both refuse it, for the same reason.
    """
    kid, size = kid_of(version, suite), PAYLOAD_SIZE[version]
    native, reference = full_table(NATIVE), full_table(REFERENCE)
    claims = random_claims(version, CHUNK, 1_000 + chunk)
    expected = opened_as(version, suite, claims).tolist()
    offsets = np.arange(CHUNK + 1, dtype=np.uint32) * size

    by_native = NATIVE.seal_batch(native, kid, claims)
    by_reference = REFERENCE.seal_batch(reference, kid, claims)
    if (version, suite) == (3, 2):
        clear = [
            np.frombuffer(made, np.uint8).reshape(CHUNK, size)[:, :51] for made in (by_native, by_reference)
        ]
        assert (clear[0] == clear[1]).all()
    else:
        assert by_native == by_reference
    assert REFERENCE.open_batch(reference, by_native, offsets).tolist() == expected
    assert NATIVE.open_batch(native, by_reference, offsets).tolist() == expected

    texts = ["PG" + text for text in NATIVE.encode_batch(by_reference, size)]
    assert texts == ["PG" + text for text in REFERENCE.encode_batch(by_reference, size)]
    # Text is undone before anything is verified: of the slow signatures a tenth says as much as all.
    some = CHUNK // 10 if version == 3 else CHUNK
    opened = NATIVE.open_text_batch(native, *pack([text.encode() for text in texts[:some]]))
    assert opened.tolist() == expected[:some]

    turned = bytearray(by_reference)
    rng = np.random.default_rng([chunk, version, suite])
    for start, bit in zip(offsets.tolist(), rng.integers(0, size * 8, CHUNK).tolist(), strict=False):
        turned[start + bit // 8] ^= 1 << bit % 8
    refusals = NATIVE.open_batch(native, turned, offsets)
    assert OpenStatus.OK not in refusals["status"]
    assert refusals.tobytes() == REFERENCE.open_batch(reference, turned, offsets).tobytes()
    return CHUNK


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_native_equals_reference(version: int, suite: int) -> None:
    # The twin's SM2 signatures take two milliseconds each.
    codes = CODES if SOAK or (version, suite) != (3, 2) else CHUNK
    chunks = codes // CHUNK
    if not SOAK:
        compared = sum(compare(version, suite, chunk) for chunk in range(chunks))
    else:
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            compared = sum(pool.map(compare, [version] * chunks, [suite] * chunks, range(chunks)))
    assert compared == codes
