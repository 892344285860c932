"""Seal and open pickup payloads in batches: the formats of docs/format.md, on libcrypto, the GIL released.

Rows are those of :data:`ext.claims.CLAIMS`. A single code is a batch of one.
"""

from collections.abc import Sequence
from typing import NoReturn, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

@final
class KeyTable:
    """The keys that payloads are sealed and opened with, by kid, each keyed once.

    The look-up is exact: a payload is tried with the key that its kid names and with no other. May be used from many
    threads at once; one batch runs at a time, and a key removed meanwhile is gone from the next batch on. Secrets are
    wiped when a key is removed and when the table is freed; nothing gives them back, shows or serialises them.
    """

    def __init__(self) -> None: ...
    def __len__(self) -> int:
        """How many keys there are."""

    def __contains__(self, kid: object, /) -> bool: ...
    def add(
        self,
        kid: int,
        version: int,
        suite: int,
        secret: bytes,
        public_key: bytes | None = None,
        private_key: bytes | None = None,
    ) -> None:
        """Add a key that seals and opens this version and suite, and no other.

        kid: 1 to 65535, not taken. secret: 32 bytes. public_key, private_key: version 3 only, as :mod:`ext.sign` has
        them; with the public key alone the key opens and can't seal, with the private key alone the public one is
        computed. Anything else raises ``ValueError``.
        """

    def remove(self, kid: int) -> None:
        """Forget a key and wipe it. Raises ``KeyError`` if there is none of this kid."""

    def __reduce__(self) -> NoReturn: ...

def seal_batch(keys: KeyTable, kid: int, claims: npt.NDArray[np.void]) -> bytes:
    """The payloads of n rows under one key, back to back: n * 31, 47 or 115 bytes, by the key's version.

    claims: one-dimensional, of dtype CLAIMS. The key decides version, suite and kid, so these three fields are not
    read, nor is status, nor any field that the version doesn't carry. Two payloads of one uid and stamp must be the
    same: the caller moves the stamp on when the sealed part changes (docs/format.md, "The counter block").

    Raises ``KeyError`` for an unknown kid, and ``ValueError`` for a uid that is not one of the version (F9), a flag
    that is set (F10), or a version 3 key without its private key.
    """

def seal_text_batch(keys: KeyTable, kid: int, claims: npt.NDArray[np.void]) -> list[str]:
    """As :func:`seal_batch`, in text form: n strings of 52, 78 or 186 characters."""

def open_batch(
    keys: KeyTable, data: Buffer, offsets: npt.NDArray[np.uint32] | npt.NDArray[np.uint64] | Sequence[int]
) -> npt.NDArray[np.void]:
    """Check n binary payloads (F1, F5 to F10) and give their claims: n rows of dtype CLAIMS.

    data: contiguous bytes; payload i is ``data[offsets[i]:offsets[i + 1]]``, of any length and content. offsets:
    n + 1 integers that never fall and end inside data; anything else raises ``ValueError``. A payload never raises:
    it gets a status, and when that is not OK every field but version and suite is zero, and those too unless the
    header was one of the formats'.
    """

def open_text_batch(
    keys: KeyTable, text: Buffer, offsets: npt.NDArray[np.uint32] | npt.NDArray[np.uint64] | Sequence[int]
) -> npt.NDArray[np.void]:
    """Check n payloads in text form (F1 to F10) and give their claims; as :func:`open_batch`.

    text: contiguous bytes, expected to be ASCII; whatever else they are is refused (F1 to F3).
    """
