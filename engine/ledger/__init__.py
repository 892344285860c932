"""The ledger: every change of state in SQL, chained, provable, and the source that a lost store is rebuilt from.

The only place that talks SQL (tests/test_import_law.py): SQLAlchemy Core over SQLite or PostgreSQL, migrations by Alembic. What
it reads of the store comes through engine/state/streams.py.
"""
