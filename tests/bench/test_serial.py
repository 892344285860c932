"""The typed form: made and checked with the kernel's keyed PRF, its twin's, and a new HMAC for each code."""

import random
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac

from engine.serial import typed_of, uid_of_typed
from ext import primitives, reference
from ext.claims import Suite
from tests.bench.conftest import Measure

COUNT = 1024


class PlainPrf:
    """A Prf that keys an HMAC of `cryptography` for each message."""

    def __init__(self, suite: int, key: bytes) -> None:
        self._key = key
        self._digest: hashes.HashAlgorithm = hashes.SHA256() if suite == Suite.AES else hashes.SM3()

    def one(self, message: bytes) -> bytes:
        """Return the function of one message, 32 bytes."""
        mac = hmac.HMAC(self._key, self._digest)
        mac.update(message)
        return mac.finalize()


PRFS: dict[str, Any] = {"kernel": primitives.Prf, "reference": reference.Prf, "plain": PlainPrf}


@pytest.mark.parametrize("suite", [pytest.param(suite, id=suite.name) for suite in Suite])
@pytest.mark.parametrize("implementation", list(PRFS))
def test_typed_serial(measure: Measure, suite: Suite, implementation: str) -> None:
    draw = random.Random(13)
    prf = PRFS[implementation](suite, draw.randbytes(32))
    uids = [(draw.randrange(1024) << 54 | draw.getrandbits(33)).to_bytes(8) for _ in range(COUNT)]
    typed = [typed_of(uid, prf) for uid in uids]

    made = measure(
        "typed serial",
        f"made and checked, {suite.name}",
        implementation,
        COUNT,
        lambda: [uid_of_typed(typed_of(uid, prf), [prf]) for uid in uids],
    )
    assert made == uids
    assert all(uid_of_typed(text[:-1] + str((int(text[-1]) + 1) % 10), [prf]) is None for text in typed)
