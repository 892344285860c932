"""The last act: the books. Store and ledger are compared, the chain is verified, and a wallet pays what was earned.

All of it as those would do who have nothing but the server's address, or the folder of its ledger: over gRPC, by the command line, and by the
reference wallet (wallet/wallet.py), which runs as a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from rich import box
from rich.markup import escape
from rich.table import Table

from engine.state import launch
from examples.session import FOLDER, Session, clock
from pickgate.v1 import code_event_service_pb2 as event_pb
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from pickgate.v1 import types_pb2 as types_pb
from server.plain import enum_name

DATA: Final = "data"
"""The server's data, within the demo's folder."""
MALLS: Final = (1, 2)
STORY: Final = "1004"
"""The order whose story the audit tells: three wrong PINs, a review, and the right one."""
BOOKS_S_MAX: Final = 60.0
"""How long a reconciliation, or a process, may take; each takes a second or two."""
LOOK_S: Final = 0.1

Event = event_pb.CodeEvent


def play(session: Session, folder: Path) -> None:
    """All of it, in order: the comparison waits for the ledger, so that what follows finds everything."""
    session.console.print("Third act: the books\n")
    reconciled(session)
    verified(session, folder)
    paid(session, folder)
    told(session)
    audited(session)


def reconciled(session: Session) -> None:
    """Store and ledger are compared on demand, while everything goes on: equal to the unit."""
    client = session.client
    start = ledger_pb.StartReconciliationRequest(request_id=session.new_id(), actor="demo")
    operation = client.call(client.ledger.StartReconciliation, start).operation
    give_up_s = time.monotonic() + BOOKS_S_MAX
    while (
        operation.state in (ledger_pb.OPERATION_STATE_PENDING, ledger_pb.OPERATION_STATE_RUNNING)
        and time.monotonic() < give_up_s
    ):
        time.sleep(LOOK_S)
        ask = ledger_pb.GetOperationRequest(operation_id=operation.operation_id)
        operation = client.call(client.ledger.GetOperation, ask).operation
    state = enum_name(ledger_pb.OperationState.DESCRIPTOR, operation.state)
    if not session.expect("the reconciliation", f"{state} {operation.message}".strip(), "DONE"):
        return
    found = client.call(
        client.ledger.GetReconciliation,
        ledger_pb.GetReconciliationRequest(number=operation.reconciliation),
    )
    one = found.reconciliation
    session.expect("drifts of the store from the ledger", [str(drift) for drift in found.drifts], [])
    session.expect("codes that were compared", one.codes, sum(bool(o.uid) for o in session.orders.values()))
    states = sorted({total.state for total in found.totals})
    table = Table(title="By the ledger", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("mall", "store", *(state.lower() for state in states), "paid, yuan"):
        table.add_column(column, justify="right", overflow="fold")
    for mall_id, store_id in sorted({(total.mall_id, total.store_id) for total in found.totals}):
        here = [one for one in found.totals if (one.mall_id, one.store_id) == (mall_id, store_id)]
        codes = {total.state: total.codes for total in here}
        yuan = sum(total.paid_fen for total in here) / 100
        counts = [str(codes.get(state, "·")) for state in states]
        table.add_row(str(mall_id), str(store_id), *counts, f"{yuan:,.2f}")
    session.console.print(table)
    verdict = "[green]EQUAL[/]" if one.clean else f"[bold red]{one.drifts} DRIFTS[/]"
    session.console.print(
        f"{verdict}  store and ledger, {one.shelves} shelves and {one.codes} codes compared in"
        f" {(one.ended_ms - one.begun_ms) / 1000:.1f} s (StartReconciliation)"
    )


def verified(session: Session, folder: Path) -> None:
    """Every link of the chain, and every signed head, by the command line and from the ledger's folder alone."""
    printed = run(
        session, "verify", folder, "-m", "server.cli", "ledger", "verify", "--data-dir", str(folder / DATA)
    )
    for line in printed:
        session.console.print(f"{escape(line)} (pickgate ledger verify)", soft_wrap=True)
    session.expect("the chain", [line.split()[0] for line in printed], ["SOUND"])


def paid(session: Session, folder: Path) -> None:
    """The wallet books every settlement, and what it owes is what our own books say, to the fen."""
    program = str(FOLDER / "wallet" / "wallet.py")
    given = ("--target", session.address, "--wallet", "demo", "--database", str(folder / "wallet.sqlite3"))
    printed = run(session, "wallet", folder, program, *given, "--once")
    owed: Counter[str] = Counter()
    for order in session.orders.values():
        units = session.apart(
            order.request.mall_id, {line.sku_id: line.count for line in order.request.lines}
        )
        for split in order.request.splits:
            owed[split.payee] += split.amount_fen * sum(order.out.values()) // sum(units.values())
    balances = {payee: amount for payee, amount in (line.split() for line in printed[1:])}
    wanted = {payee: f"{fen / 100:.2f}" for payee, fen in sorted(owed.items())}
    session.expect("the wallet's balances", balances, wanted)
    table = Table(title="What the wallet owes", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("payee", "yuan"):
        table.add_column(column, justify="left" if column == "payee" else "right")
    for payee, yuan in balances.items():
        table.add_row(escape(payee), yuan)
    session.console.print()
    session.console.print(table)
    if printed:
        session.console.print(f"{printed[0]} of redemptions and reversals, each once (SettlementService)")


def told(session: Session) -> None:
    """Each mall is told of its own codes, and of no others."""
    client = session.client
    for mall_id in MALLS:
        request = event_pb.SubscribeCodeEventsRequest(mall_id=mall_id, consumer="demo", batch_size_max=500)
        events: list[Event] = []
        batches = client.stream(client.code_events.SubscribeCodeEvents, request)
        for batch in batches:
            events += batch.events
            if batch.caught_up:
                break
        batches.close()
        own = {o.request.order_id for o in session.orders.values() if o.uid and o.request.mall_id == mall_id}
        session.expect(f"orders that mall {mall_id} is told of", {one.order_id for one in events}, own)
        ids = [one.event_id for one in events]
        session.expect(f"events that mall {mall_id} is told of twice", len(ids) - len(set(ids)), 0)
        kinds = Counter(enum_name(event_pb.CodeEventType.DESCRIPTOR, one.type).lower() for one in events)
        said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        session.console.print(
            f"mall {mall_id} is told {len(events)} events of its {len(own)} codes: {said} (CodeEventService)",
            soft_wrap=True,
        )


def audited(session: Session) -> None:
    """What happened to one order: every try is there, and who made it."""
    client = session.client
    order = session.orders[STORY]
    request = ledger_pb.SearchAuditRequest(mall_id=order.request.mall_id, order_id=STORY)
    found = client.call(client.ledger.SearchAudit, request).findings
    happened = [one.what for one in found if not one.refused]
    wanted = ["ISSUED", "TRIED", "TRIED", "LOCKED", "REVIEWED", "REDEEMED"]
    session.expect(f"what the audit knows of order {STORY}", happened, wanted)
    session.console.print(f"\nWhat happened to order {STORY} (SearchAudit)")
    for one in found:
        what = f"refused: {one.what}" if one.refused else one.what
        where = f"terminal {one.terminal_id}" if one.terminal_id else ""
        session.console.print(f"  {clock(one.at_ms)}  {what:<18} {where:<12} {escape(one.actor)}".rstrip())
    session.console.print()


def run(session: Session, what: str, folder: Path, *words: str) -> list[str]:
    """Run a program of Python as a process of its own; the lines that it prints. Its failure is a problem of the demo."""
    roots = [str(Path(file).resolve().parents[2]) for file in (launch.__file__, types_pb.__file__)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PICKGATE_")}
    done = subprocess.run(
        [sys.executable, *words],
        env=kept | {"PYTHONPATH": os.pathsep.join(roots), "NO_COLOR": "1"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOOKS_S_MAX,
        check=False,
    )
    session.expect(f"{what}: its status", (done.returncode, done.stderr), (0, ""))
    return done.stdout.splitlines()
