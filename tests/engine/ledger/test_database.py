"""Opening a ledger: made once, brought up to date, whose it is, and what an unusable database says."""

from __future__ import annotations

import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from engine.errors import ConfigError, DeploymentMismatch, Exhausted, LedgerUnavailable, SetupError
from engine.ledger import database, migrating
from engine.ledger.ledger import Ledger
from engine.ledger.tables import METADATA

DEPLOYMENT = "0e9b5d6e-2f0c-4d0c-9d52-0f2d2b8f0a11"


def is_no_part_of_another(name: str | None, kind: str, _parents: object) -> bool:
    """Tables that PostgreSQL divides the events into have no description of their own."""
    return kind != "table" or not re.fullmatch(r"events_(control|days|\d{8})", name or "")


def test_migrations_make_the_tables_that_the_code_has(ledger_url: str) -> None:
    with (
        Ledger.open(ledger_url, deployment_id=DEPLOYMENT, create=True) as ledger,
        ledger.engine.connect() as connection,
    ):
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "include_name": is_no_part_of_another}
        )
        assert compare_metadata(context, METADATA) == []
        script = ScriptDirectory.from_config(migrating.config(connection))
        assert context.get_current_revision() == script.get_current_head() == database.REVISION


def test_opening_again_finds_the_same_ledger(ledger_url: str) -> None:
    for _ in range(2):
        with Ledger.open(ledger_url, deployment_id=DEPLOYMENT, create=True, algorithm="sm3") as ledger:
            assert (ledger.chain.algorithm, ledger.heads()) == ("sm3", {})
    with Ledger.open(ledger_url) as ledger:
        assert ledger.chain.algorithm == "sm3"


def test_many_that_open_a_new_ledger_at_once_make_one(ledger_url: str) -> None:
    def open_one(_: int) -> str:
        with Ledger.open(ledger_url, deployment_id=DEPLOYMENT, create=True) as ledger:
            return ledger.chain.algorithm

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_one, range(4))) == ["sha256"] * 4


def test_the_ledger_of_another_deployment_is_refused(ledger_url: str) -> None:
    Ledger.open(ledger_url, deployment_id=DEPLOYMENT, create=True).close()
    with pytest.raises(DeploymentMismatch, match="belongs to deployment 0e9b5d6e"):
        Ledger.open(ledger_url, deployment_id="another")


def test_another_chain_than_the_ledgers_is_refused(ledger_url: str) -> None:
    Ledger.open(ledger_url, deployment_id=DEPLOYMENT, create=True).close()
    with pytest.raises(DeploymentMismatch, match="chained by sha256, the configuration says sm3"):
        Ledger.open(ledger_url, deployment_id=DEPLOYMENT, algorithm="sm3")


def test_tables_of_a_newer_version_are_refused(ledger_url: str) -> None:
    with (
        Ledger.open(ledger_url, deployment_id=DEPLOYMENT, create=True) as ledger,
        ledger.engine.begin() as connection,
    ):
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SetupError, match="version 9999"):
        Ledger.open(ledger_url, deployment_id=DEPLOYMENT)


def test_a_ledger_nobody_has_written_to_is_named(ledger_url: str) -> None:
    if ledger_url.startswith("sqlite"):
        with pytest.raises(SetupError, match="there is no ledger at"):
            Ledger.open(ledger_url)
    else:
        with pytest.raises(DeploymentMismatch, match="the ledger is empty"):
            Ledger.open(ledger_url)


def test_the_file_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    with Ledger.open(database.sqlite_url(path), deployment_id=DEPLOYMENT, create=True) as ledger:
        ledger.heads()
        for file in tmp_path.glob("ledger.sqlite3*"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("nonsense", "can't be read"),
        ("mysql://user:secret@host/db", "begins with 'mysql'"),
        ("sqlite:///relative.sqlite3", "no absolute path"),
        ("sqlite://", "no absolute path"),
    ],
)
def test_a_wrong_address_is_told_without_its_password(url: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        Ledger.open(url, deployment_id=DEPLOYMENT, create=True)
    assert "secret" not in caught.value.message
    assert caught.value.field == "ledger_url"


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(b"not a database, " * 100)
    with pytest.raises(LedgerUnavailable, match="file is not a database"):
        Ledger.open(database.sqlite_url(path), deployment_id=DEPLOYMENT, create=True)


def test_a_server_that_does_not_answer_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="can't be used") as caught:
        Ledger.open(f"postgresql://user:secret@/db?host={tmp_path}", deployment_id=DEPLOYMENT)
    assert "secret" not in caught.value.message


def test_what_takes_too_long_is_given_up_and_the_connection_is_good_again(ledger_url: str) -> None:
    forever = text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0"
    )
    with Ledger.open(ledger_url, deployment_id=DEPLOYMENT, create=True) as ledger:
        for _ in range(2):
            with (
                pytest.raises(Exhausted, match=r"did not find it within 0[.]2 s: ask for less"),
                database.bounded_snapshot(ledger.engine, 0.2) as connection,
            ):
                connection.execute(forever).all()
        with database.bounded_snapshot(ledger.engine, 5.0) as connection:
            assert connection.execute(text("SELECT count(*) FROM facts")).scalar() == 2
        with database.snapshot(ledger.engine) as connection:
            assert connection.execute(text("SELECT count(*) FROM facts")).scalar() == 2
        with pytest.raises(LedgerUnavailable), database.bounded_snapshot(ledger.engine, 5.0) as connection:
            connection.execute(text("SELECT * FROM no_such_table"))
