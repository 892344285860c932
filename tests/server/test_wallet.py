"""The reference wallet: killed in the middle of its bookings, time after time, its balances are the ledger's to the fen."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from engine import issuance, redemption
from engine.calls import IssueRequest, RedeemRequest, ReverseRequest
from engine.claims import Line, Split, Suite, Terminal, Version
from engine.deployment import Deployment
from engine.errors import PickgateError
from engine.ledger import settlement
from examples.wallet.wallet import Wallet
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from pickgate.v1 import settlement_service_pb2 as settlement_pb
from server.config import parse_listen
from server.gate import Gate
from server.issuers import Issuers
from server.roles import Role
from server.serve import Server
from server.tls import Certificates
from tests.race import shop
from tests.race.serving import Serving, until
from tests.race.shop import Shop
from tests.server.books import BOUND_S, Books
from tests.server.conftest import MALL, NEAR_STORE, SKU, TERMINAL
from tests.server.tokens import Idp
from tests.server.trust import DOMAIN, Trust

ROOT: Final = Path(__file__).parents[2]
SOAK: Final = os.environ.get("PICKGATE_SOAK") == "1"
SETTLEMENTS: Final = 10_000 if SOAK else 1_500
KILLS: Final = 100 if SOAK else 8
AT_ONCE: Final = 60
"""Codes that are traded at once; each settles two or three times."""
AMOUNTS: Final = (7_000, 999, 1)
OURS: Final = Terminal(MALL, NEAR_STORE, TERMINAL)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto")))}


def run(books: Books, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The wallet as somebody runs it, until everything that is there is booked."""
    given = ["--target", books.house.unix, "--database", str(path), "--once", *words]
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "wallet" / "wallet.py"), *given],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Trade:
    """Codes of three units that are picked up in two parts; some are brought back. Its own books know what is owed."""

    def __init__(self, deployment: Deployment, terminal: Terminal = OURS, sku_id: int = SKU) -> None:
        self.deployment = deployment
        self._terminal = terminal
        self._sku_id = sku_id
        self._draw = random.Random(7)
        self._codes = 0
        self.settlements = 0
        self.owed: Counter[str] = Counter()

    def go_on(self, codes: int) -> None:
        """Issue so many codes, and do to each what becomes of it."""
        numbers = range(self._codes, self._codes + codes)
        self._codes += codes
        payees = {n: [f"user:{self._draw.randrange(9)}" for _ in AMOUNTS] for n in numbers}
        requests = [
            IssueRequest(
                mall_id=self._terminal.mall_id,
                request_id=f"trade-{n:06}",
                store_id=self._terminal.store_id,
                order_id=f"TRADE-{n}",
                lines=(Line(self._sku_id, 3),),
                version=Version.STATIC,
                suite=Suite.AES,
                amount_fen=8_000,
                splits=tuple(
                    Split(payee, "role", place, amount)
                    for place, (payee, amount) in enumerate(zip(payees[n], AMOUNTS, strict=True))
                ),
            )
            for n in numbers
        ]
        made = dict(zip(numbers, issuance.issue(self.deployment, requests), strict=True))
        codes_of = {}
        for n, answer in made.items():
            assert not isinstance(answer, PickgateError)
            codes_of[n] = answer
        out = dict.fromkeys(numbers, 0)
        whole = [n for n in numbers if self._draw.random() < 0.8]
        for units, which in ((1, list(numbers)), (2, whole)):
            outcomes = redemption.redeem(
                self.deployment,
                [
                    RedeemRequest(
                        self._terminal,
                        f"redeem-{units}-{n:06}",
                        codes_of[n].typed,
                        pin=codes_of[n].pin,
                        lines=(Line(self._sku_id, units),),
                    )
                    for n in which
                ],
            )
            for n, outcome in zip(which, outcomes, strict=True):
                assert not isinstance(outcome, PickgateError)
                assert outcome.verdict.name == "REDEEMED"
                out[n] += units
        returned = [n for n in numbers if self._draw.random() < 0.4]
        reversals = [ReverseRequest(self._terminal, f"reverse-{n:06}", codes_of[n].uid) for n in returned]
        for n, reversal in zip(returned, redemption.reverse(self.deployment, reversals), strict=True):
            assert not isinstance(reversal, PickgateError)
            assert reversal.verdict.name == "REVERSED"
            out[n] = 0
        self.settlements += len(numbers) + len(whole) + len(returned)
        for n in numbers:
            for payee, amount in zip(payees[n], AMOUNTS, strict=True):
                self.owed[payee] += amount * out[n] // 3


def balances_of(ledger_settlements: Sequence[settlement.Settlement]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for one in ledger_settlements:
        for share in one.shares:
            found[share.payee] += share.amount_fen
    return dict(sorted(found.items()))


def all_settlements(books: Books) -> list[settlement.Settlement]:
    found: list[settlement.Settlement] = []
    page = settlement.page(books.ledger, {}, count=1_000)
    found += page.items
    while not page.complete:
        page = settlement.page(books.ledger, page.cursor, count=1_000, first_partition=page.next_partition)
        found += page.items
    return found


# --- its books --------------------------------------------------------------------------------------------------------
def settlements(count: int) -> list[settlement_pb.Settlement]:
    draw = random.Random(11)
    return [
        settlement_pb.Settlement(
            event_id=f"{n % 4}-1-{n}",
            shares=[
                settlement_pb.Share(payee=f"user:{draw.randrange(9)}", amount_fen=draw.randrange(-9, 99))
                for _ in range(3)
            ],
        )
        for n in range(count)
    ]


def test_a_batch_that_comes_again_is_booked_once(tmp_path: Path) -> None:
    wallet = Wallet(tmp_path / "wallet.sqlite3")
    told = settlements(100)
    assert wallet.book(told, "0:1-5") == 300
    once = wallet.balances()
    assert wallet.book(told, "0:1-6") == 0
    assert (wallet.balances(), wallet.cursor) == (once, "0:1-6")
    assert sum(once.values()) == sum(share.amount_fen for one in told for share in one.shares)
    wallet.close()


def test_a_batch_is_booked_whole_or_not_at_all(tmp_path: Path) -> None:
    wallet = Wallet(tmp_path / "wallet.sqlite3")
    wallet.book(settlements(2), "0:1-1")
    before = wallet.balances()

    def torn() -> Iterator[settlement_pb.Settlement]:
        yield from settlements(5)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        wallet.book(torn(), "0:1-9")
    assert (wallet.balances(), wallet.cursor) == (before, "0:1-1")
    wallet.close()


# --- over gRPC --------------------------------------------------------------------------------------------------------
def test_it_books_and_acknowledges(books: Books, tmp_path: Path) -> None:
    trade = Trade(books.house.deployment)
    trade.go_on(5)
    books.write()
    path = tmp_path / "wallet.sqlite3"
    done = run(books, path, "--wallet", "purse")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"booked {3 * trade.settlements} shares\n")
    wallet = Wallet(path)
    assert wallet.balances() == dict(sorted(trade.owed.items()))
    status = books.house.client.call(
        books.house.client.ledger.GetLedgerStatus, ledger_pb.GetLedgerStatusRequest()
    )
    assert [(one.name, one.cursor) for one in status.consumers] == [("purse", wallet.cursor)]
    wallet.close()
    # Another one of that name, with empty books, has all of it again; the first has nothing new.
    assert run(books, tmp_path / "second.sqlite3", "--wallet", "purse").stdout == done.stdout
    assert run(books, path, "--wallet", "purse").stdout.startswith("booked 0 shares\n")


def test_books_that_were_put_back_to_a_backup_are_brought_up_to_date(books: Books, tmp_path: Path) -> None:
    """Its cursor is then behind what it acknowledged: it is told again what it lacks, and goes on."""
    trade = Trade(books.house.deployment)
    trade.go_on(3)
    books.write()
    path, backup = tmp_path / "wallet.sqlite3", tmp_path / "backup.sqlite3"
    run(books, path)
    with_three = Wallet(path)
    with_three._connection.execute(f"VACUUM INTO '{backup}'")
    with_three.close()
    trade.go_on(3)
    books.write()
    run(books, path)
    done = run(books, backup)
    assert done.returncode == 0, done.stderr
    restored = Wallet(backup)
    assert restored.balances() == dict(sorted(trade.owed.items()))
    restored.close()


def test_it_says_who_it_is_where_callers_are_known(books: Books, tmp_path: Path) -> None:
    trust, idp = Trust.make(tmp_path / "trust"), Idp(tmp_path / "idp")
    deployment = books.house.deployment
    trade = Trade(books.house.deployment)
    trade.go_on(3)
    books.write()
    server = Server(
        deployment,
        [parse_listen("127.0.0.1:0")],
        look=deployment.look,
        ledger_url=books.url,
        certificates=Certificates(trust.files),
        gate=Gate(deployment, trust_domain=DOMAIN, issuers=Issuers(idp.file)),
    )
    token = tmp_path / "token"
    with server:
        given = (
            "--target",
            server.addresses[0],
            "--ca-file",
            str(trust.folder / "ca.pem"),
            "--token-file",
            str(token),
        )
        token.write_text(idp.token(Role.MALL))
        done = run(books, tmp_path / "wallet.sqlite3", *given)
        assert (done.returncode, done.stderr) == (1, "PERMISSION_DENIED: this caller may not do this\n")
        token.write_text(idp.token(Role.WALLET))
        done = run(books, tmp_path / "wallet.sqlite3", *given)
    assert done.stdout.startswith(f"booked {3 * trade.settlements} shares\n")


def test_it_says_what_it_can_not_go_on_with(books: Books, tmp_path: Path) -> None:
    path = tmp_path / "wallet.sqlite3"
    wallet = Wallet(path)
    wallet.book([], "0:77-1")
    wallet.close()
    done = run(books, path)
    assert done.returncode == 1
    assert done.stderr.startswith("OUT_OF_RANGE: the cursor says 0:77-1, and the ledger ends with")


@pytest.mark.fault
def test_a_wallet_that_is_killed_again_and_again_books_each_share_once(books: Books, tmp_path: Path) -> None:
    """Killed between two of its statements, or after them all, while the trade goes on: no clock decides where."""
    path = tmp_path / "wallet.sqlite3"
    program = textwrap.dedent(
        """
        import os, signal, sys
        from examples.wallet import wallet

        left = [int(sys.argv[1])]

        def count(statement):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        opened = wallet.Wallet.__init__

        def opening(self, path):
            opened(self, path)
            self._connection.set_trace_callback(count)

        wallet.Wallet.__init__ = opening
        sys.exit(wallet.main(sys.argv[2:]))
        """
    )
    trade = Trade(books.house.deployment)
    failures: list[BaseException] = []

    def go_on() -> None:
        try:
            while trade.settlements < SETTLEMENTS:
                trade.go_on(AT_ONCE)
                books.write()
        except BaseException as error:
            failures.append(error)

    trading = threading.Thread(target=go_on)
    trading.start()
    draw = random.Random(5)
    killed = runs = 0
    given = ["--target", books.house.unix, "--database", str(path), "--once"]
    while killed < KILLS:
        # On the average half of what each run may book: there is enough for all. At first there is little, and a run may end by itself.
        statements = draw.randrange(1, 3 * SETTLEMENTS // KILLS)
        done = subprocess.run(
            [sys.executable, "-c", program, str(statements), *given],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode in (0, -9), done.stderr
        killed += done.returncode == -9
        runs += 1
        assert runs < 3 * KILLS + 20
    trading.join(BOUND_S + SETTLEMENTS / 100)
    assert not trading.is_alive()
    assert failures == []
    books.write()
    done = run(books, path)
    assert done.returncode == 0, done.stderr
    found = all_settlements(books)
    assert len(found) == len({one.event for one in found}) == trade.settlements >= SETTLEMENTS
    wallet = Wallet(path)
    assert wallet.balances() == balances_of(found) == dict(sorted(trade.owed.items()))
    (booked,) = wallet._connection.execute("SELECT count(*) FROM bookings").fetchone()
    assert booked == 3 * trade.settlements
    wallet.close()


@pytest.mark.fault
def test_wallets_follow_through_kills_of_the_server(tmp_path: Path) -> None:
    """Two wallets that follow a real server which is killed twice: each has everything once, and says so when it is ended."""
    with Serving(tmp_path) as serving:
        serving.furnish()
        with serving.open_beside() as deployment:
            sku_id = Shop(deployment, name="wallets").sku(10_000)
            trade = Trade(deployment, Terminal(shop.MALL, shop.STORE, TERMINAL), sku_id)
            trade.go_on(10)
        paths = [tmp_path / f"{name}.sqlite3" for name in ("purse", "pocket")]
        wallets = [
            subprocess.Popen(
                [
                    *(sys.executable, str(ROOT / "examples" / "wallet" / "wallet.py")),
                    *("--target", serving.address, "--database", str(path), "--wallet", path.stem),
                ],
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for path in paths
        ]

        def all_is_booked() -> bool:
            return all(path.exists() and booked(path) == 3 * trade.settlements for path in paths)

        try:
            until(all_is_booked, "both have what there was")
            for _ in range(2):
                serving.end(signal.SIGKILL)
                serving.start()
                with serving.open_beside() as trade.deployment:
                    trade.go_on(10)
                until(all_is_booked, "both have what came after the kill", 60.0)
            for wallet in wallets:
                wallet.send_signal(signal.SIGINT)
            for wallet in wallets:
                printed, complained = wallet.communicate(timeout=30)
                assert (wallet.returncode, complained) == (0, "")
                balances = {
                    payee: round(float(yuan) * 100) for payee, yuan in map(str.split, printed.splitlines())
                }
                assert balances == dict(sorted(trade.owed.items()))
        finally:
            for wallet in wallets:
                wallet.kill()
                wallet.wait()


def booked(path: Path) -> int:
    """Bookings, counted by somebody else than the wallet."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM bookings").fetchone()[0])
        except sqlite3.OperationalError:  # the tables are about to be made
            return 0
