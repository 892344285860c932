"""A reference wallet: books every settlement into its own database exactly once, and may be killed at any moment.

The feed is at-least-once: what was handed over may come again, after a crash of either side. Two things make it exactly once. The bookings
of a page and the cursor behind it are written in one transaction, so a page is booked whole and gone past, or not at all. And a booking's
key is the event and the place of the share in it, so a page that comes again under an older cursor changes nothing.

    python examples/wallet/wallet.py --database wallet.sqlite3 -- --data-dir pickgate-data

What stands behind `--` goes to `pickgate ledger settlements`.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS bookings (
    event TEXT NOT NULL,
    share INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    mall_id INTEGER NOT NULL,
    order_id TEXT NOT NULL,
    payee TEXT NOT NULL,
    role TEXT NOT NULL,
    level INTEGER NOT NULL,
    amount_fen INTEGER NOT NULL,
    PRIMARY KEY (event, share)
);
CREATE TABLE IF NOT EXISTS feed (id INTEGER PRIMARY KEY CHECK (id = 1), cursor TEXT NOT NULL);
INSERT OR IGNORE INTO feed VALUES (1, '');
"""


class Wallet:
    """The wallet's own books."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.executescript(SCHEMA)

    @property
    def cursor(self) -> str:
        """Behind which settlement to go on."""
        return str(self._connection.execute("SELECT cursor FROM feed").fetchone()[0])

    def book(self, settlements: Sequence[dict[str, Any]], cursor: str) -> int:
        """Book a page and go past it, in one transaction; gives how many shares were new."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            before = self._connection.total_changes
            for settlement in settlements:
                for place, share in enumerate(settlement["shares"]):
                    self._connection.execute(
                        "INSERT OR IGNORE INTO bookings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            settlement["event"],
                            place,
                            settlement["at_ms"],
                            settlement["mall_id"],
                            settlement["order_id"],
                            share["payee"],
                            share["role"],
                            share["level"],
                            share["amount_fen"],
                        ),
                    )
            new = self._connection.total_changes - before
            self._connection.execute("UPDATE feed SET cursor = ?", (cursor,))
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        return new

    def balances(self) -> dict[str, int]:
        """What each payee is owed, in fen."""
        rows = self._connection.execute(
            "SELECT payee, sum(amount_fen) FROM bookings GROUP BY payee ORDER BY payee"
        )
        return dict(rows.fetchall())


def ask(cursor: str, options: Sequence[str]) -> dict[str, Any]:
    """The next page of the feed."""
    command = [sys.executable, "-m", "server.cli", "ledger", "settlements", "--json", "--count", "500"]
    answer = subprocess.run(
        [*command, "--after", cursor, *options], check=True, stdout=subprocess.PIPE, text=True
    )
    page: dict[str, Any] = json.loads(answer.stdout)
    return page


def main(arguments: Sequence[str]) -> int:
    """Book what there is, then print the balances."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("options", nargs="*", help="of `pickgate ledger settlements`, behind --")
    given = parser.parse_args(arguments)
    wallet = Wallet(given.database)
    booked = 0
    while True:
        page = ask(wallet.cursor, given.options)
        booked += wallet.book(page["settlements"], page["cursor"])
        if page["complete"]:
            break
    print(f"booked {booked} shares")
    for payee, amount_fen in wallet.balances().items():
        print(f"{payee:>24} {amount_fen / 100:12.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
