"""The reference wallet: killed in the middle of its bookings, time after time, its balances are the ledger's to the fen."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any, Final

from examples.wallet.wallet import Wallet

ROOT: Final = Path(__file__).parents[2]
SETTLEMENTS: Final = 2_000
KILLS: Final = 100 if os.environ.get("PICKGATE_SOAK") == "1" else 10
PAGE: Final = 50


def feed() -> list[dict[str, Any]]:
    """Redemptions and reversals of many orders, as the command prints them."""
    draw = random.Random(11)
    return [
        {
            "event": f"{n % 4}-1-{n}",
            "at_ms": n,
            "mall_id": 1,
            "order_id": f"ORDER-{n // 2}",
            "shares": [
                {"payee": f"user:{draw.randrange(9)}", "role": "r", "level": 1, "amount_fen": draw.randrange(-9, 99)}
                for _ in range(3)
            ],
        }
        for n in range(SETTLEMENTS)
    ]  # fmt: skip


def owed(settlements: list[dict[str, Any]]) -> dict[str, int]:
    balances: Counter[str] = Counter()
    for settlement in settlements:
        for share in settlement["shares"]:
            balances[share["payee"]] += share["amount_fen"]
    return dict(sorted(balances.items()))


def test_a_page_that_comes_again_is_booked_once(tmp_path: Path) -> None:
    wallet = Wallet(tmp_path / "wallet.sqlite3")
    settlements = feed()[:100]
    assert wallet.book(settlements, "a") == 300
    assert wallet.book(settlements, "b") == 0
    assert (wallet.balances(), wallet.cursor) == (owed(settlements), "b")


def test_a_wallet_that_is_killed_again_and_again_books_each_share_once(tmp_path: Path) -> None:
    """Each run books some pages, and is killed between two statements or after them all: no clock decides where."""
    path = tmp_path / "wallet.sqlite3"
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        from examples.wallet.wallet import Wallet
        from tests.server.test_wallet import PAGE, feed

        wallet, left = Wallet(Path({str(path)!r})), [int(sys.argv[1])]

        def count(statement):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        wallet._connection.set_trace_callback(count)
        settlements = feed()
        while (at := int(wallet.cursor or 0)) < len(settlements):
            wallet.book(settlements[at : at + PAGE], str(at + PAGE))
        """
    )
    draw = random.Random(5)
    statements = 3 * SETTLEMENTS // KILLS
    killed = 0
    for _ in range(KILLS):
        done = subprocess.run(
            [sys.executable, "-c", program, str(draw.randrange(1, 2 * statements))],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto")))},
            check=False,
            timeout=60,
        )
        killed += done.returncode != 0
    assert killed > KILLS // 2
    wallet = Wallet(path)
    settlements = feed()
    for at in range(int(wallet.cursor or 0), len(settlements), PAGE):
        wallet.book(settlements[at : at + PAGE], str(at + PAGE))
    assert wallet.balances() == owed(settlements)
