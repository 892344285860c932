"""How reconciliations are shown: to people, to machines, and as CSV for the books."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console as RichConsole

from engine.errors import InvalidInput
from engine.ledger.reconcile import Drift, Kept, Run
from server.console import moment, table

COLUMNS: Final = (
    "kind",
    "partition",
    "mall_id",
    "store_id",
    "sku_id",
    "uid",
    "what",
    "in_store",
    "in_ledger",
    "difference",
    "events",
)
SHOWN_CHARS: Final = 160
"""How much of a side of a drift people are shown; CSV and JSON have all of it."""


def run_value(run: Run) -> dict[str, Any]:
    """One run for machines."""
    return {
        "run": run.number,
        "clean": run.clean,
        "cause": run.cause,
        "begun_ms": run.begun_ms,
        "ended_ms": run.ended_ms,
        "shelves": run.shelves,
        "codes": run.codes,
        "drifts": run.drifts_total,
        "checkpoint": run.checkpoint,
        "totals": [
            {"mall_id": mall, "store_id": store, **asdict(total)}
            for (mall, store), total in sorted(run.totals.items())
        ],
        "drift": [
            {
                **asdict(drift),
                "uid": drift.uid.hex(),
                "events": list(drift.events),
                "difference": drift.difference,
            }
            for drift in run.drifts
        ],
    }


def show_run(rich: RichConsole, run: Run) -> None:
    """One run for people: money and codes of each store, then what differs."""
    for bad in run.unsound:
        rich.print(f"[bold red]BAD[/]  {bad.source} is not used: {bad.why}")
    states = sorted({state for total in run.totals.values() for state in total.codes})
    made = table("By the ledger", "#mall", "#store", *(f"#{state.lower()}" for state in states), "#paid, fen")
    for (mall, store), total in sorted(run.totals.items()):
        counts = [str(total.codes.get(state, 0)) for state in states]
        made.add_row(str(mall), str(store), *counts, str(sum(total.fen.values())))
    if run.totals:
        rich.print(made)
    for drift in run.drifts:
        rich.print(f"[bold red]DRIFT[/]  {_sentence(drift)}")
    if run.drifts_total > len(run.drifts):
        rich.print(f"… and {run.drifts_total - len(run.drifts)} more")
    said = "[bold green]EQUAL[/]" if run.clean else f"[bold red]{run.drifts_total} DRIFTS[/]"
    took_s = (run.ended_ms - run.begun_ms) / 1000
    rich.print(
        f"{said}  run {run.number}, {moment(run.begun_ms)}: {run.shelves} shelves and {run.codes} codes compared in {took_s:.1f} s"
    )


def _sentence(drift: Drift) -> str:
    about = [f"partition {drift.partition}"]
    about += [
        f"{name} {value}" for name, value in (("store", drift.store_id), ("SKU", drift.sku_id)) if value
    ]
    about += [f"code {drift.uid.hex()}"] if drift.uid else []
    sides = f"{_cut(drift.in_store)} in the store, {_cut(drift.in_ledger)} by the ledger"
    difference = f" ({drift.difference})" if drift.difference else ""
    since = f"; since the last clean run: {', '.join(drift.events)}" if drift.events else ""
    return f"{', '.join(about)}: {drift.what} {sides}{difference}{since}"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def show_runs(rich: RichConsole, kept: Sequence[Kept]) -> None:
    """Runs for people."""
    made = table("Reconciliations", "#run", "begun", "cause", "result", "#drifts", "#shelves", "#codes")
    for one in kept:
        made.add_row(
            str(one.number),
            moment(one.begun_ms),
            one.cause,
            "equal" if one.clean else "drifts",
            str(one.drifts),
            str(one.shelves),
            str(one.codes),
        )
    rich.print(made)


def write_csv(path: Path, run: Run) -> None:
    """Write every shelf (of a run that was just made), the totals and the drifts. Raises InvalidInput for a file that can't be."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, COLUMNS, restval="")
            rows.writeheader()
            rows.writerows(_rows(run))
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}", field="csv") from None


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    for (mall, store, sku), (in_store, in_ledger) in sorted(run.books.items()):
        for what in ("on_hand", "reserved", "baseline", "tier"):
            one, other = getattr(in_store, what), getattr(in_ledger, what)
            yield {
                "kind": "shelf",
                "mall_id": mall,
                "store_id": store,
                "sku_id": sku,
                "what": what,
                "in_store": one,
                "in_ledger": other,
                "difference": one - other,
            }
    for (mall, store), total in sorted(run.totals.items()):
        for state in sorted(total.codes):
            about = {"kind": "total", "mall_id": mall, "store_id": store}
            yield {**about, "what": f"codes {state}", "in_ledger": total.codes[state]}
            yield {**about, "what": f"fen {state}", "in_ledger": total.fen[state]}
    for drift in run.drifts:
        yield {
            "kind": "drift",
            **{name: value for name, value in asdict(drift).items() if name in COLUMNS},
            "uid": drift.uid.hex(),
            "events": " · ".join(drift.events),
            "difference": drift.difference,
        }
