"""The memory allocator of the embedded store: mimalloc in front of a server that was built on the C library's malloc.

The wheel's server is such a build, and among a million codes the C library's heap is what a redemption pays for
(docs/adr/0043, docs/performance.md). A server built with an allocator of its own (jemalloc in distributions) is left alone.

The library is looked up among the files of the installed distribution and nowhere else: no variable and no setting names
what is loaded into the store.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

DISTRIBUTION: Final = "cmeel-mimalloc"
LIBRARY: Final = "libmimalloc.so.3"
"""Its soname: a release with another major number is another library, which nobody has tried."""

TRIAL_TIMEOUT_S: Final = 10.0

_OPTIONS: Final[Mapping[str, str]] = {
    # mimalloc asks for huge pages (madvise) even where the system leaves them to those who ask. While the append-only file
    # is rewritten, each first write to a page copies it: 2 MiB of it instead of 4 KiB.
    "MIMALLOC_ALLOW_THP": "0",
}
_SPLITS: Final = re.compile(r"[\s:$]")
"""ld.so(8): LD_PRELOAD is split at spaces and colons, and $ begins a token; nothing escapes them."""

_log = logging.getLogger(__name__)


class _Unusable(Exception):
    """Why the library can't be loaded; one sentence, which goes to the log."""


def variables_for(binary: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that load mimalloc into this store server; none where it has an allocator of its own.

    Where the library should be loaded and can't be, a warning says why, and the server does without.

    Args:
        binary: the server.
        environ: what it will be started with besides; nothing of the caller's own environment counts.
    """
    if _built_with(binary, environ) != "libc":
        return {}
    try:
        variables = {**_OPTIONS, "LD_PRELOAD": str(_library())}
        _try(binary, {**environ, **variables})
    except _Unusable as reason:
        warn(str(reason))
        return {}
    return variables


def loaded_from(pid: int) -> str:
    """Return the path of the mimalloc that is loaded into a process; '' if none is.

    Raises OSError if its maps can't be read: it has ended, or belongs to another user.
    """
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    # proc(5): five columns, then the path, which may have spaces.
    return next((line.split(maxsplit=5)[5] for line in maps.splitlines() if f"/{LIBRARY}" in line), "")


def warn(reason: str) -> None:
    """Say that the store runs on the C library's allocator, why, and what that costs."""
    _log.warning(
        "the embedded store runs on the C library's allocator, which costs time among many codes: %s", reason
    )


def _built_with(binary: Path, environ: Mapping[str, str]) -> str:
    """The allocator that a server was built with, as INFO calls it (libc, jemalloc-5.3.0); '' if it does not say."""
    match = re.search(rb"\bmalloc=(\S+)", _version(binary, environ).stdout)
    return match[1].decode("ascii", "replace") if match else ""


def _library() -> Path:
    """Find the library among the files of the installed distribution. Raises _Unusable."""
    try:
        files: Iterable[metadata.PackagePath] = metadata.files(DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        raise _Unusable(f"{DISTRIBUTION} is not installed; install it: pip install {DISTRIBUTION}") from None
    for file in files:
        if file.name == LIBRARY:
            path = Path(str(file.locate())).resolve()
            if not path.is_file():
                raise _Unusable(f"{path} is missing; install it again: pip install {DISTRIBUTION}")
            if _SPLITS.search(str(path)):
                raise _Unusable(f"{path} has a space, a colon or a $ in it, which LD_PRELOAD can't express")
            return path
    raise _Unusable(f"{DISTRIBUTION} has no {LIBRARY}; install the release that requirements.lock names")


def _try(binary: Path, environ: Mapping[str, str]) -> None:
    """Load the library into a run that starts no server. Raises _Unusable.

    A library whose own needs are missing (libatomic.so.1) would keep the store from starting at all; one that does not fit
    the binary is left out by the loader with a line on standard error.
    """
    done = _version(binary, environ)
    if done.returncode or done.stderr:
        text = done.stderr.decode("utf-8", "replace").strip() or f"exit status {done.returncode}"
        raise _Unusable(f"{environ['LD_PRELOAD']} can't be loaded: {text}")


def _version(binary: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    command = [str(binary), "--version"]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            timeout=TRIAL_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=dict(environ),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, b"", str(error).encode())
