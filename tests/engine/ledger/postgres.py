"""A real PostgreSQL for tests: found on this machine, started on a folder of its own, reached by a unix socket only."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg

USER: Final = "ledger"
_numbers = itertools.count(1)


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl: of PATH, else Debian's newest; None when there is none."""
    on_path = shutil.which("initdb")
    if on_path and (Path(on_path).resolve().parent / "pg_ctl").exists():
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    return debian[-1].parent if debian else None


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Start a server; gives the folder of its socket. It ends with the context."""
    found = binaries()
    assert found is not None
    # The server refuses to run as root, and the tests' own folder is closed to everybody else.
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    place = Path(tempfile.mkdtemp(prefix="pickgate-pg-"))
    try:
        os.chown(place, owner.pw_uid, owner.pw_gid)
        data = place / "data"

        def run(*words: str) -> None:
            done = subprocess.run(
                words,
                user=owner.pw_uid,
                group=owner.pw_gid,
                extra_groups=[] if os.geteuid() == 0 else None,
                cwd=place,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr

        run(
            str(found / "initdb"),
            "-D",
            str(data),
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        )
        options = (
            f"-c listen_addresses= -c unix_socket_directories={place} -c fsync=off -c max_connections=40"
        )
        control = (str(found / "pg_ctl"), "-D", str(data), "-w", "-l", str(place / "log"))
        run(*control, "-o", options, "start")
        try:
            yield place
        finally:
            run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def new_database(socket_folder: Path) -> str:
    """Make an empty database; gives its URL."""
    name = f"ledger_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(
        host=str(socket_folder), user=USER, dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"postgresql://{USER}@/{name}?host={socket_folder}"
