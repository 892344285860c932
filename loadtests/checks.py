"""What a command passes and fails by, and its table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Check:
    """One claim with what was found. One that only informs never fails a run."""

    name: str
    found: str
    wanted: str
    passed: bool
    decides: bool = True

    @property
    def failed(self) -> bool:
        """Whether it fails the run."""
        return self.decides and not self.passed

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def books(name: str, findings: Sequence[str]) -> Check:
    """The check of an audit."""
    return Check(f"books of {name}", "; ".join(findings) or "they agree", "they agree", not findings)


def show(console: Console, title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print one table; all columns but the first are figures."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
    console.print()


def conclude(console: Console, checks: Sequence[Check]) -> int:
    """Print the checks; gives the exit status, 0 if none failed, else 1."""
    table = Table(title="Checks", title_justify="left", box=None, header_style="bold")
    for head in ("", "what", "found", "wanted"):
        table.add_column(head)
    for check in checks:
        mark = "MISSED" if check.failed else "ok" if check.passed else "(goal missed)"
        table.add_row(mark, check.name, check.found, check.wanted)
    console.print(table)
    return int(any(check.failed for check in checks))
