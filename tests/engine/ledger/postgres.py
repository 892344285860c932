"""A real PostgreSQL for tests: found on this machine, started on a folder of its own, reached by a unix socket only.

One server for each worker of pytest, and one database in it that has the ledger's tables, emptied for each test.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg

from engine.ledger import database

USER: Final = "ledger"
MIGRATED: Final = "migrated"
START_TIMEOUT_S: Final = 60.0

# Run as whoever we are; becomes the server's user first, because a change of user takes the parent's watch away (prctl(2)).
_BECOME: Final = """
import ctypes, os, signal, sys
uid, gid, parent, *command = sys.argv[1:]
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(int(gid)); os.setuid(int(uid))
ctypes.CDLL(None).prctl(1, int(signal.SIGQUIT), 0, 0, 0)
if os.getppid() == int(parent):
    os.umask(0o077)
    os.execv(command[0], command)
"""
_CHEAP: Final = (
    "listen_addresses=",
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "autovacuum=off",
    "shared_buffers=32MB",
    "max_connections=40",
)
"""Settings: the folder is thrown away."""
_numbers = itertools.count(1)


def binaries() -> Path | None:
    """The folder with initdb and postgres: of PATH, else Debian's newest; None when there is none."""
    on_path = shutil.which("initdb")
    if on_path and (Path(on_path).resolve().parent / "postgres").exists():
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    return debian[-1].parent if debian else None


@contextlib.contextmanager
def running() -> Iterator[Path]:
    """Start a server; gives the folder of its socket. It ends with the context, and with this process however that ends."""
    found = binaries()
    assert found is not None
    # The server refuses to run as root, and the tests' own folder is closed to everybody else.
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    place = Path(tempfile.mkdtemp(prefix="pickgate-pg-"))
    try:
        os.chown(place, owner.pw_uid, owner.pw_gid)
        data = place / "data"

        become = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            _BECOME,
            *map(str, (owner.pw_uid, owner.pw_gid, os.getpid())),
        ]

        def start(*words: str) -> subprocess.Popen[bytes]:
            with open(place / "log", "ab") as log:
                return subprocess.Popen(
                    [*become, *words],
                    cwd=place,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

        words = ("-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N", "-D", str(data))
        assert start(str(found / "initdb"), *words).wait(120) == 0, (place / "log").read_text()
        settings = [f"unix_socket_directories={place}", *_CHEAP]
        flags = [part for setting in settings for part in ("-c", setting)]
        server = start(str(found / "postgres"), "-D", str(data), *flags)
        try:
            _wait_until_it_answers(server, place)
            database.connect(empty_database(place, MIGRATED), create=True).dispose()
            yield place
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(60)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _wait_until_it_answers(server: subprocess.Popen[bytes], place: Path) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(host=str(place), user=USER, dbname="postgres").close()
            return
        except psycopg.OperationalError:
            gone = server.poll() is not None or time.monotonic() > give_up_s
            assert not gone, (place / "log").read_text()
        time.sleep(0.05)


def _url(place: Path, name: str) -> str:
    return f"postgresql://{USER}@/{name}?host={place}"


def empty_database(place: Path, name: str = "") -> str:
    """Make a database without tables; gives its URL."""
    name = name or f"ledger_{next(_numbers)}"
    with psycopg.connect(host=str(place), user=USER, dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return _url(place, name)


def migrated_database(place: Path) -> str:
    """Empty the tables of the database that has them; gives its URL. A new database for each test would cost ten times that."""
    with psycopg.connect(
        host=str(place), user=USER, dbname=MIGRATED, options="-c lock_timeout=20s"
    ) as connection:
        found = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
            " AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'"
        ).fetchall()
        names = ", ".join(f'"{name}"' for (name,) in found)
        connection.execute(f"TRUNCATE {names} RESTART IDENTITY".encode())
    return _url(place, MIGRATED)
