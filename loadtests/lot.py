"""The lot, as `make load` runs it: Locust, h2load, then both stacks side by side, peak, steps, books, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from loadtests import bounds, checks, h2load, machine, stacks, steps
from loadtests import peak as peaks
from loadtests import rush as rushes
from loadtests.checks import Check
from loadtests.peak import Peak
from loadtests.report import Report
from loadtests.steps import Step
from loadtests.subject import Subject


@dataclass(frozen=True)
class Plan:
    """How long everything takes."""

    round_s: float = bounds.PEAK_ROUND_S
    rounds: int = bounds.PEAK_ROUNDS
    step_s: float = bounds.STEP_S
    percents: Sequence[float] = bounds.STEPS_PERCENT
    connections: int = bounds.CONNECTIONS_DEFAULT
    tcp: bool = True
    seed: int = 1
    named_rate_per_s: float = bounds.NAMED_RATE_PER_S
    rush_s: float = bounds.LOT_RUSH_SECONDS


def run(console: Console, folder: Path, output: Path, plan: Plan) -> int:
    """Run it all; gives the exit status. Raises machine.NotADisk, stacks.StackFailed, supply.SupplyFailed, rush.RushFailed."""
    began_s = time.monotonic()
    filesystem = machine.filesystem(folder)
    fsync_ms = machine.fsync_ms(folder)
    console.print(f"fsync on {filesystem}: {fsync_ms['p50']:g} ms at p50, {fsync_ms['p99']:g} ms at p99\n")
    facts = machine.facts()
    # First what is short: if its programs can't run, that is known before the minutes of the rest.
    rush, rush_checks = rushes.measure_own(
        folder / "rush", output, bounds.RUSH_USERS, plan.rush_s, bounds.RUSH_PROCESSES, tcp=plan.tcp
    )
    checks.show(console, f"Locust: {bounds.RUSH_USERS} users, {plan.rush_s:g} s", rushes.HEADS, rush)
    inspected = h2load.measure(
        folder / "h2load",
        output,
        bounds.H2LOAD_CALLS,
        plan.connections,
        bounds.H2LOAD_STREAMS,
        seed=plan.seed,
    )
    if inspected.skipped:
        console.print(f"Inspect under h2load: {inspected.skipped}\n")
    else:
        checks.show(console, "Inspect under h2load", ("", ""), inspected.rows)
    with ExitStack() as stack:
        ours = stack.enter_context(stacks.Ours(folder / "pickgate", tcp=plan.tcp))
        other = stack.enter_context(stacks.Comparison(folder / "comparison", tcp=plan.tcp))
        settings = stacks.same_durability(ours, other)
        subjects = [
            stack.enter_context(Subject(each, seed=plan.seed, connections=plan.connections))
            for each in (ours, other)
        ]
        found = peaks.find_peaks(subjects, round_s=plan.round_s, rounds=plan.rounds)
        checks.show(console, "Peak, closed loop", peaks.HEADS, [peak.row() for peak in found])
        taken = steps.climb(
            subjects,
            found,
            percents=plan.percents,
            seconds=plan.step_s,
            named_rate_per_s=plan.named_rate_per_s,
        )
        checks.show(console, "Open loop", steps.HEADS, [step.row() for step in taken])
        audits = {subject.name: subject.audit() for subject in subjects}
    made = [
        *judge(found, taken, plan),
        *(checks.books(name, audit.findings) for name, audit in audits.items()),
        *rush_checks,
        *inspected.checks,
    ]
    report = Report(
        at=datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=facts,
        fsync_ms=fsync_ms,
        filesystem=filesystem,
        settings=settings,
        peaks=found,
        steps=taken,
        rush=rush,
        h2load=inspected,
        books={name: audit.summary() for name, audit in audits.items()},
        checks=made,
        seconds=time.monotonic() - began_s,
        notes=[
            f"{peak.name}: {limit}, so this peak is at least what the service can do"
            for peak in found
            if (limit := peak.own_limit())
        ],
    )
    path = report.write(output)
    status = checks.conclude(console, made)
    console.print(f"\nreport: {path}")
    return status


def judge(found: Sequence[Peak], taken: Sequence[Step], plan: Plan) -> list[Check]:
    """Ratios decide, with wide margins; absolute figures are goals."""
    ours, other = found
    ratio = ours.per_s / other.per_s
    made = [
        Check(
            "our peak by the comparison's", f"{ratio:.2f} ({ours.per_s:,.0f} by {other.per_s:,.0f})",
            f">= {bounds.PEAK_RATIO_WANTED:g}; fails below {bounds.PEAK_RATIO_WANTED * bounds.WIDE:.1f}",
            ratio >= bounds.PEAK_RATIO_WANTED * bounds.WIDE,
        ),
        Check(
            "goal: peak ratio", f"{ratio:.2f}", f">= {bounds.PEAK_RATIO_WANTED:g}", ratio >= bounds.PEAK_RATIO_WANTED, False,
        ),
        Check(
            "goal: peak", f"{ours.per_s:,.0f}/s", f">= {bounds.GOAL_PEAK_PER_S:,.0f}/s",
            ours.per_s >= bounds.GOAL_PEAK_PER_S, False,
        ),
    ]  # fmt: skip
    pair = [steps.at_percent(taken, peak.name, bounds.JUDGED_PERCENT) for peak in found]
    if pair[0] and pair[1]:
        p99 = [step.latency_ms["p99"] for step in pair if step]
        limit = bounds.P99_RATIO_WANTED / bounds.WIDE
        made += [
            Check(
                "our p99 at 80 % of peak by the comparison's", f"{p99[0] / p99[1]:.2f} ({p99[0]:.1f} by {p99[1]:.1f} ms)",
                f"<= {bounds.P99_RATIO_WANTED:g}; fails above {limit:.2f}", p99[0] / p99[1] <= limit,
            ),
            Check("goal: p99 at 80 % of peak", f"{p99[0]:.1f} ms", f"<= {bounds.GOAL_P99_MS:g} ms", p99[0] <= bounds.GOAL_P99_MS, False),
        ]  # fmt: skip
    named = steps.at_rate(taken, ours.name, plan.named_rate_per_s)
    p50 = named.latency_ms.get("p50") if named else None
    made.append(
        Check(
            f"goal: p50 at {plan.named_rate_per_s:,.0f}/s",
            "not reached" if p50 is None else f"{p50:.2f} ms",
            f"<= {bounds.GOAL_P50_MS:g} ms",
            p50 is not None and p50 <= bounds.GOAL_P50_MS,
            False,
        )
    )
    planned = sum(step.run.planned - step.run.sent for step in taken)
    # Ours at every step. The comparison's up to the share of its peak by which it is judged: nearer to it gRPC cancels calls of a service that is
    # behind, which takes nothing from what it did before.
    judged = [step for step in taken if step.name == ours.name or step.percent <= bounds.JUDGED_PERCENT]
    lost = _lost(judged)
    beyond = _lost(taken) - lost
    made += [
        Check("calls of the steps that were not answered REDEEMED", f"{lost:,}", "0", lost == 0),
        Check(
            f"goal: the same of the comparison past {bounds.JUDGED_PERCENT} % of its peak",
            f"{beyond:,}",
            "0",
            beyond == 0,
            False,
        ),
        Check("calls of the steps that were due and not sent", f"{planned:,}", "0", planned == 0),
    ]
    return made


def _lost(taken: Sequence[Step]) -> int:
    return sum(step.run.sent - step.run.good for step in taken)
