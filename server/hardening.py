"""What a process that holds keys gives up at its start: core dumps, and being looked into by others of its user."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
from typing import Final

_log = logging.getLogger(__name__)

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
"""prctl(2)."""


def keep_memory_private() -> None:
    """Write no core dumps, and let no other process of the same user attach or read this one's memory.

    By RLIMIT_CORE, which processes started from here inherit, and by PR_SET_DUMPABLE, which holds also where the kernel pipes cores to
    a program and then ignores the limit (core(5)). Root can still look. What is swapped out is the machine's affair.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        _log.warning("core dumps can't be switched off: %s", os.strerror(ctypes.get_errno()))


def is_memory_private() -> bool:
    """Whether `keep_memory_private` is in force here."""
    dumpable = ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    return dumpable == 0 and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
