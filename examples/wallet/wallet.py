"""A reference wallet: books every settlement into its own database exactly once, over gRPC, and may be killed at any moment.

The feed is at-least-once: what was told may be told again, after a crash of either side. Two things make it exactly once. The bookings of a
batch and the cursor behind it are written in one transaction, so a batch is booked whole and gone past, or not at all. And a booking's key is
the event and the place of the share in it, so a batch that comes again under an older cursor changes nothing.

The wallet's own cursor is the one that counts. What it acknowledges is for those who look how far their wallets are, and may lag behind.

    python examples/wallet/wallet.py --target 127.0.0.1:7425 --wallet purse --database wallet.sqlite3

It needs gRPC and the generated stubs of the contract, and nothing else of pickgate.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

# Before grpc is imported: its own diagnostics would stand between the wallet's lines.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc

from pickgate.v1 import settlement_service_pb2 as settlement_pb
from pickgate.v1 import settlement_service_pb2_grpc as settlement_grpc

SCHEMA: Final = """
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
ACKNOWLEDGE_S: Final = 1.0
"""How often the cursor is acknowledged at most: each is a write to the ledger."""
TIMEOUT_S: Final = 10.0
WAIT_S_MIN: Final = 0.2
WAIT_S_MAX: Final = 5.0
"""Waits before another attempt double from the first to the second."""
AGAIN: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
"""Statuses of a stream that ended for reasons of the moment."""


class Wallet:
    """The wallet's own books."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        # A booking is on the disk before it is acknowledged.
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(SCHEMA)

    @property
    def cursor(self) -> str:
        """Up to where everything is booked; '' for nothing."""
        return str(self._connection.execute("SELECT cursor FROM feed").fetchone()[0])

    def book(self, settlements: Iterable[settlement_pb.Settlement], cursor: str) -> int:
        """Book a batch and go past it, in one transaction; gives how many shares were new."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            before = self._connection.total_changes
            for settlement in settlements:
                for place, share in enumerate(settlement.shares):
                    self._connection.execute(
                        "INSERT OR IGNORE INTO bookings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            settlement.event_id,
                            place,
                            settlement.at_ms,
                            settlement.mall_id,
                            settlement.order_id,
                            share.payee,
                            share.role,
                            share.level,
                            share.amount_fen,
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

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


Metadata = tuple[tuple[str, str], ...]
"""What goes with each call: the access token, where callers are known."""


def follow(
    wallet: Wallet,
    service: settlement_grpc.SettlementServiceStub,
    name: str,
    *,
    once: bool,
    metadata: Metadata = (),
) -> int:
    """Book what there is, and, unless `once`, what happens from then on; gives how many shares were new.

    Raises grpc.RpcError when the stream ends.
    """
    # A wallet with empty books begins at the beginning, whatever one of this name has acknowledged before it.
    cursor = wallet.cursor
    request = settlement_pb.SubscribeRequest(wallet=name, cursor=cursor, oldest=not cursor)
    booked, acknowledged_s = 0, float("-inf")
    told = service.Subscribe(request, metadata=metadata)
    try:
        for batch in told:
            booked += wallet.book(batch.settlements, batch.cursor)
            last = once and batch.caught_up
            if batch.cursor and (last or time.monotonic() - acknowledged_s >= ACKNOWLEDGE_S):
                _acknowledge(service, name, batch.cursor, metadata)
                acknowledged_s = time.monotonic()
            if last:
                break
    finally:
        told.cancel()  # type: ignore[no-untyped-call]
    return booked


def _acknowledge(
    service: settlement_grpc.SettlementServiceStub, name: str, cursor: str, metadata: Metadata
) -> None:
    """Say how far the books are. If that can't be said now, the next one says it too."""
    request = settlement_pb.AcknowledgeRequest(wallet=name, cursor=cursor)
    try:
        service.Acknowledge(request, timeout=TIMEOUT_S, metadata=metadata)
    except grpc.RpcError as error:
        # FAILED_PRECONDITION: these books were put back to an older state, and are behind what they once acknowledged.
        passing = (*AGAIN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.FAILED_PRECONDITION)
        if error.code() not in passing:
            raise


def main(arguments: Sequence[str]) -> int:
    """Book, then print the balances."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--target", default="127.0.0.1:7425", help="the server, host:port or unix:/path")
    parser.add_argument(
        "--ca-file", type=Path, help="who vouches for the server: TLS (default: none, on this machine)"
    )
    parser.add_argument(
        "--token-file", type=Path, help="holds an access token of the role wallet; read before each attempt"
    )
    parser.add_argument("--wallet", default="wallet", help="the name under which the cursor is acknowledged")
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--once", action="store_true", help="end when everything that is there is booked")
    given = parser.parse_args(arguments)
    wallet = Wallet(given.database)
    status = 0
    try:
        with _channel(given.target, given.ca_file) as channel:
            status = _book(wallet, settlement_grpc.SettlementServiceStub(channel), given)
    except KeyboardInterrupt:
        pass  # whoever ends it wants to know how it stands
    for payee, amount_fen in wallet.balances().items():
        print(f"{payee:>24} {amount_fen / 100:12.2f}")
    wallet.close()
    return status


def _book(wallet: Wallet, service: settlement_grpc.SettlementServiceStub, given: argparse.Namespace) -> int:
    """Follow the feed, through whatever ends a stream; gives the exit status."""
    booked, wait_s = 0, WAIT_S_MIN
    while True:
        before = wallet.cursor
        try:
            metadata = _metadata(given.token_file)
            booked += follow(wallet, service, given.wallet, once=given.once, metadata=metadata)
            print(f"booked {booked} shares")
            return 0
        except grpc.RpcError as error:
            if error.code() not in AGAIN:
                print(f"{error.code().name}: {error.details()}", file=sys.stderr)
                return 1
        # It got on: the server is back, and whatever comes next is another matter.
        wait_s = WAIT_S_MIN if wallet.cursor != before else min(2 * wait_s, WAIT_S_MAX)
        time.sleep(wait_s)


def _metadata(token_file: Path | None) -> Metadata:
    if token_file is None:
        return ()
    return (("authorization", f"Bearer {token_file.read_text(encoding='ascii').strip()}"),)


def _channel(target: str, ca_file: Path | None) -> grpc.Channel:
    # A server that is back is found within seconds, not within gRPC's own two minutes.
    options = (
        ("grpc.initial_reconnect_backoff_ms", int(WAIT_S_MIN * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(WAIT_S_MAX * 1000)),
    )
    if ca_file is None:
        return grpc.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(ca_file.read_bytes())
    return grpc.secure_channel(target, credentials, options=options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
