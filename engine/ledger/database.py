"""The ledger's database: SQLite in a file, or PostgreSQL; made and brought up to date by migrations when it is opened."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from engine.errors import ConfigError, Exhausted, LedgerUnavailable, SetupError

BUSY_TIMEOUT_S: Final = 10
"""How long a statement waits for another writer of the same SQLite file."""
CONNECT_TIMEOUT_S: Final = 5
REVISION: Final = "0008"
"""Of the tables that this version reads and writes: the newest of engine.ledger.migrations."""
_QUERY_CANCELED: Final = "57014"
"""PostgreSQL, appendix A: query_canceled."""
_STEPS_BETWEEN_LOOKS: Final = 20_000
"""Steps of SQLite's virtual machine between two looks at the clock: under a millisecond."""
_DRIVERS: Final = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}


def parse_url(url: str) -> URL:
    """Read `sqlite:////absolute/path` or `postgresql://user@host/database`. Raises ConfigError, never showing a password."""
    expected = "expected sqlite:////absolute/path or postgresql://user:password@host/database"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(f"ledger_url can't be read; {expected}", field="ledger_url") from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ConfigError(f"ledger_url begins with {parsed.drivername!r}; {expected}", field="ledger_url")
    if driver.startswith("sqlite") and not (parsed.database or "").startswith("/"):
        raise ConfigError(f"ledger_url names no absolute path; {expected}", field="ledger_url")
    return parsed.set(drivername=driver)


def sqlite_url(path: Path) -> str:
    """The URL of a ledger in a file."""
    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn failures of the database into errors of ours; what the driver says may name a host or a path, never a password."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        reason = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        raise LedgerUnavailable(
            f"the ledger's database can't be used ({reason}): check that it runs and has room; nothing is lost, the store keeps "
            "what the ledger does not have yet"
        ) from error
    except SQLAlchemyError as error:
        raise LedgerUnavailable(f"the ledger's database can't be used ({type(error).__name__})") from error


def connect(url: str, *, create: bool) -> Engine:
    """Open a database and bring its tables up to date.

    create: make the file of an SQLite ledger that is not there. Raises ConfigError, SetupError (no such file, or a ledger that a newer
    version made), LedgerUnavailable.
    """
    parsed = parse_url(url)
    if parsed.drivername.startswith("sqlite"):
        engine = _open_sqlite(parsed, create=create)
    else:
        engine = create_engine(
            # Positional parameters, as SQLite's: rows go to either driver as plain tuples (Ledger.append).
            parsed,
            paramstyle="format",
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
        )
    try:
        _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _open_sqlite(url: URL, *, create: bool) -> Engine:
    path = Path(url.database or "")
    if not path.exists():
        if not create:
            raise SetupError(f"there is no ledger at {path}", field="ledger_url")
        try:
            # Closed to others from its first moment on; SQLite gives its side files the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise SetupError(
                f"the ledger {path} can't be made: {error.strerror}", field="ledger_url"
            ) from None
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    def configure(connection: Any, _record: object) -> None:
        # The driver's own way of beginning transactions leaves reads outside of them (SQLAlchemy, "SQLite transactions").
        connection.isolation_level = None
        # Somebody may have put text, and no UTF-8, where bytes belong: that is for `verify` to tell, not for the driver to choke on.
        connection.text_factory = lambda data: data.decode(errors="surrogateescape")
        for pragma in ("synchronous=FULL", "cache_size=-32768"):
            connection.execute(f"PRAGMA {pragma}")

    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes then would fail when another wrote in between.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
    _use_wal(engine)
    return engine


def _use_wal(engine: Engine) -> None:
    """Let readers and the writer go on beside one another: a property of the file, set once.

    Setting it does not wait for others as statements do, so it is tried again while another process opens the same new file.
    """
    give_up_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with translated(), contextlib.closing(engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA journal_mode=WAL").close()
            return
        except LedgerUnavailable as error:
            if not _is_busy(error.__cause__) or time.monotonic() > give_up_s:
                raise
        time.sleep(0.02)


def _is_busy(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY


@contextlib.contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: committed at the end, rolled back when it fails. Raises LedgerUnavailable."""
    with translated(), engine.execution_options(writes=True).begin() as connection:
        yield connection


@contextlib.contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A transaction that reads: all of it sees the database as it is at its first statement. Raises LedgerUnavailable."""
    if engine.dialect.name != "sqlite":  # which does so anyway
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with translated(), engine.connect() as connection:
        yield connection


@contextlib.contextmanager
def bounded_snapshot(engine: Engine, time_s: float) -> Iterator[Connection]:
    """As `snapshot`, for what may take long: a statement that is not done within the time is given up.

    Raises Exhausted then, LedgerUnavailable.
    """
    with snapshot(engine) as connection:
        try:
            with _time_limit(connection, time_s):
                yield connection
        except DBAPIError as error:
            if not _was_given_up(error):
                raise
            raise Exhausted(
                f"the ledger did not find it within {time_s:g} s: ask for less, by a code, an order, a store or a shorter time"
            ) from error


@contextlib.contextmanager
def _time_limit(connection: Connection, time_s: float) -> Iterator[None]:
    if connection.dialect.name != "sqlite":
        connection.execute(text(f"SET LOCAL statement_timeout = {int(time_s * 1000)}"))
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    end_s = time.monotonic() + time_s
    driver.set_progress_handler(lambda: time.monotonic() > end_s, _STEPS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)


def _was_given_up(error: DBAPIError) -> bool:
    """Whether a statement was ended by its time limit."""
    cause: Any = error.orig
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT
    return getattr(cause, "sqlstate", "") == _QUERY_CANCELED


def raw(value: bytes | memoryview | str) -> bytes:
    """Bytes of a column that should hold bytes, whatever somebody has put there."""
    return value.encode(errors="surrogateescape") if isinstance(value, str) else bytes(value)


def _migrate(engine: Engine) -> None:
    with translated(), engine.connect() as connection:
        if revision(connection) == REVISION:
            return
    # Only now: a process that finds its tables up to date, as nearly all do, has no use for what makes them.
    from engine.ledger import migrating

    migrating.migrate(engine)


def revision(connection: Connection) -> str | None:
    """Of the tables, as Alembic keeps it; None where there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
