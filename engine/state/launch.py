"""Exec a program that ends when the thread that started it ends.

Run by path, ``python -I -S launch.py <parent pid> [NAME=VALUE ...] -- <program> <arguments...>``: it imports nothing of
ours, so it costs one bare interpreter start. The variables are for the program alone: a library that it preloads is no
concern of this interpreter. Linux only: prctl(2), PR_SET_PDEATHSIG, which survives execve(2) of a program without set-uid bits.

It exists because a killed process (kill -9, out of memory) can't stop its children: the kernel has to do it. The signal is
sent when the *thread* that forked ends, so the caller forks from a thread that lives as long as its process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""linux/prctl.h."""

EXIT_PARENT_GONE = 70
"""The parent ended before the kernel could be told to watch it; nothing was started."""


def main(argv: list[str]) -> int:
    """Arrange the end, then become what follows `--`. Returns only if that failed; the exit status is then not zero."""
    parent_pid, divide = int(argv[1]), argv.index("--")
    variables = dict(pair.split("=", 1) for pair in argv[2:divide])
    command = argv[divide + 1 :]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        print(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 1
    # The parent may have died between fork and prctl: then no signal will come.
    if os.getppid() != parent_pid:
        return EXIT_PARENT_GONE
    # A server that blocks SIGTERM in its threads (to take it with sigwait) would hand the blocked mask down, and the
    # signal arranged above would never arrive.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o077)
    os.execve(command[0], command, {**os.environ, **variables})


if __name__ == "__main__":
    sys.exit(main(sys.argv))
