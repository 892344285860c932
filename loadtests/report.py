"""The report of `make load`: one HTML file with its plots inside, and the same as JSON."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtests import peak as peaks
from loadtests import rush as rushes
from loadtests import steps as step_tables
from loadtests.checks import Check
from loadtests.h2load import Measured
from loadtests.peak import Peak
from loadtests.steps import Step

HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"
_COLOURS: Final = {"pickgate": "#0a6", "comparison": "#c50"}
_STYLES: Final = {"p50": "-", "p99": "--", "p99.9": ":"}
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 2rem } td, th { padding: .25rem .7rem; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left }
.ok { color: #0a6 } .missed { color: #c00; font-weight: bold } .goal { color: #b70 } svg { max-width: 100%; height: auto }
"""


@dataclass
class Report:
    """Everything that a run of the lot found."""

    at: str
    """When, ISO 8601."""
    machine: dict[str, Any]
    fsync_ms: dict[str, float]
    filesystem: str
    settings: dict[str, str]
    peaks: list[Peak]
    steps: list[Step]
    rush: list[list[str]]
    """Rows of Locust's, which has a report of its own beside this one."""
    h2load: Measured
    books: dict[str, dict[str, Any]]
    checks: list[Check]
    seconds: float
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As in report.json."""
        return {
            "at": self.at,
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            "filesystem": self.filesystem,
            "fsync_ms": self.fsync_ms,
            "store_settings": self.settings,
            "peaks": {peak.name: peak.as_json() for peak in self.peaks},
            "steps": [{"stack": step.name, **step.as_json()} for step in self.steps],
            "rush": [dict(zip(rushes.HEADS, row, strict=True)) for row in self.rush],
            "h2load": {
                "command": self.h2load.command,
                "rows": dict(self.h2load.rows),
                "skipped": self.h2load.skipped,
            },
            "books": self.books,
            "checks": [check.as_json() for check in self.checks],
            "notes": self.notes,
        }

    def write(self, folder: Path) -> Path:
        """Write both files; gives the path of the HTML one."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_NAME).write_text(json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n")
        path = folder / HTML_NAME
        path.write_text(self._html(), encoding="utf-8")
        return path

    def _html(self) -> str:
        machine, packages = dict(self.machine), self.machine["packages"]
        del machine["packages"]
        facts = {
            **machine,
            **packages,
            "file system": self.filesystem,
            "fsync, ms": ", ".join(f"{name} {value:g}" for name, value in self.fsync_ms.items()),
            "store": ", ".join(f"{name} {value or '(none)'}" for name, value in self.settings.items()),
        }
        parts = [
            "<!doctype html><html lang=en><meta charset=utf-8><title>pickgate under load</title>",
            f"<style>{_STYLE}</style><h1>pickgate under load</h1>",
            f"<p>{_text(self.at)}, {self.seconds:.0f} s. Distinct codes, redeemed through unary Redeem with durability fsync; "
            "client, services and stores share the machine. Latencies count from the instant at which a call was due.</p>",
            _checks(self.checks),
            *(f"<p>{_text(note)}</p>" for note in self.notes),
            "<h2>Peak</h2>",
            _table(peaks.HEADS, [peak.row() for peak in self.peaks]),
            "<h2>Throughput against latency</h2>",
            latency_plot(self.steps),
            _table(step_tables.HEADS, [step.row() for step in self.steps]),
            *(("<h2>Batch size against load</h2>", plot) if (plot := batch_plot(self.steps)) else ()),
            f'<h2>Lunch rush</h2><p>Terminals, a mall and wallets, by Locust: <a href="{rushes.HTML_NAME}">its own report</a>.</p>',
            _table(rushes.HEADS, self.rush),
            f"<h2>Inspect under h2load</h2><p><code>{_text(self.h2load.command)}</code></p>",
            f"<p>{_text(self.h2load.skipped)}</p>"
            if self.h2load.skipped
            else _table(("", ""), self.h2load.rows),
            "<h2>Books</h2>",
            _table(
                ("stack", "events", "issued", "redeemed", "live", "void", "expired", "findings"),
                [
                    (
                        name, book["events"], book["issued"], book["redeemed"], book["live"] + book["partly"], book["voided"],
                        book["expired"], "; ".join(book["findings"]) or "none",
                    )
                    for name, book in self.books.items()
                ],
            ),
            "<h2>Machine</h2>",
            _table(("what", ""), list(facts.items())),
            "</html>",
        ]  # fmt: skip
        return "\n".join(parts) + "\n"


def latency_plot(steps: Sequence[Step]) -> str:
    """Latency by throughput of every stack, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(step.name for step in steps):
        percents = dict.fromkeys(step.percent for step in steps if step.name == name)
        own = sorted(
            filter(None, (step_tables.at_percent(steps, name, percent) for percent in percents)),
            key=lambda step: step.run.goodput_per_s,
        )
        for quantile, style in _STYLES.items():
            axes.plot(
                [step.run.goodput_per_s for step in own],
                [step.latency_ms[quantile] for step in own],
                style, marker="o", markersize=3, color=_COLOURS.get(name), label=f"{name} {quantile}",
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="redeemed per second", ylabel="latency, ms")
    axes.grid(visible=True, which="both", alpha=0.3)
    if axes.lines:
        axes.legend()
    return _svg(figure)


def batch_plot(steps: Sequence[Step]) -> str:
    """Batch size by throughput, as SVG; "" if no server said anything of batches."""
    from matplotlib.figure import Figure

    told = sorted((step.run.goodput_per_s, step.batch_mean) for step in steps if step.batch_mean is not None)
    if not told:
        return ""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([rate for rate, _ in told], [mean for _, mean in told], "-o", color=_COLOURS["pickgate"])
    axes.set(xlabel="redeemed per second", ylabel="calls decided together, mean")
    axes.grid(visible=True, alpha=0.3)
    return _svg(figure)


def _svg(figure: Any) -> str:
    """A figure as an element of HTML."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(name)}" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _checks(checks: Sequence[Check]) -> str:
    rows = ""
    for check in checks:
        kind, word = (
            ("missed", "MISSED")
            if check.failed
            else ("ok", "ok")
            if check.passed
            else ("goal", "goal missed")
        )
        cells = "".join(f"<td>{_text(cell)}" for cell in (check.name, check.found, check.wanted))
        rows += f"<tr><td class={kind}>{word}{cells}"
    return f"<table><tr><th><th>what<th>found<th>wanted{rows}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
