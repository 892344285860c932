"""The kernels: everything that touches every byte of every code, and nothing that knows why.

The layering law: ``server -> engine -> ext``. A module of this package imports nothing of ``engine`` or ``server``;
it takes flat buffers and sizes, works in batches with the GIL released, and knows no clock, no file, no socket and
no store. Meaning (is this code fresh, is it for this store) belongs to ``engine``.

Each kernel exists twice: compiled (``ext/*.pyx`` on libcrypto) and as an independent twin in plain Python
(``ext/reference.py``). Both have the same public names, and the same tests run on both.

``PURE`` is the one place where it is decided which of the two serves: the environment variable ``PICKGATE_PURE`` set
to ``1`` selects the twin. Nothing falls back silently: without that variable a kernel that has not been built is an
``ImportError``. Callers import the chosen functions from :mod:`ext.codec` and :mod:`ext.place`.
"""

import os
from typing import Final

_choice = os.environ.get("PICKGATE_PURE", "")
if _choice not in ("", "0", "1"):
    raise ImportError(
        f"PICKGATE_PURE is {_choice!r}; set it to 1 for the pure Python twin, or to 0 for the kernels"
    )

PURE: Final[bool] = _choice == "1"
"""True when the pure Python twin was asked for."""
