"""What a million live codes cost: memory by kind of key, the time of a redemption, and how fast they are made.

    python -m tests.bench.million                        # a million codes; some minutes, 1.5 GB of memory, 1 GB of disk
    python -m tests.bench.million --codes 60000 --partitions 1

`make bench` ends with the first of these. Records lie in hash buckets, and so the memory of each hangs on how full they are: about 15 codes at a million and 16
partitions. A smaller run says as much only with as many fewer partitions. Prints a report, writes build/bench/million.json.

Exit status: 0 when both targets are met; 1 when a code takes more memory than it may, or when a redemption among many codes
costs more than WIDE_MARGIN times what it costs among few (between that and the target the report says so); 2 when the codes
are not made within MINUTES_MAX.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine import issuance, limits, redemption
from engine.calls import IssueRequest, RedeemRequest, RenderRequest
from engine.claims import Terminal
from engine.deployment import Deployment
from engine.errors import PickgateError, StaleControl, StoreUnavailable
from engine.state import layouts
from engine.state.server import EmbeddedServer
from engine.verdict import RedeemVerdict
from tests.bench import population, report

CODES: Final = 1_000_000
FEW: Final = 10_000
BYTES_MAX: Final = 200.0
"""Most memory of one live code: its record and its entry in the expiry index, all in."""
RATIO_MAX: Final = 1.2
"""Most that a redemption may cost among all the codes, by what it costs among FEW."""
WIDE_MARGIN: Final = 1.4

BULK: Final = limits.BULK_MAX
ALONE: Final = 20
"""Codes of each bulk that are issued one by one instead, so that both are timed under the same load."""
PAIRS: Final = 60
"""Times that both stores are asked in turn to redeem."""
COMPANY: Final = 64
"""Redemptions of a batch."""
COMMANDS: Final = 1_000
"""Plain commands of one write to the store."""
SETTLE_S: Final = 300.0
MINUTES_MAX: Final = 20.0
"""How long the codes may take to be made."""
RETRIES_MAX: Final = 20
"""Times that a request is asked, each after the store did not answer for limits.STORE_TIMEOUT_S."""

KINDS: Final = {
    "c": "records",
    "x": "expiry index",
    "r": "register of request ids",
    "q": "remembered answers",
    "k": "answers of stock changes",
    "s": "stock",
    "e": "events (until the ledger has them)",
    "": "everything else",
}
"""Kinds of keys by the letter behind the hash tag (engine.state.keys)."""
CODE_KINDS: Final = ("c", "x")

R = TypeVar("R")
Q = TypeVar("Q")
A = TypeVar("A")


class Step(Protocol):
    """Moves the progress bar on."""

    def __call__(self, done: int) -> None: ...


@dataclass
class Kind:
    """Memory of one kind of keys, in bytes: as MEMORY USAGE says, and as used_memory falls when they are deleted."""

    keys: int = 0
    usage: int = 0
    freed: int = 0
    table: int = 0
    """Share of the table that finds keys by name."""


@dataclass
class Findings:
    """What one run found. Seconds and bytes; rates are codes a second."""

    codes: int
    partitions: int
    store: str
    allocator: str
    record_bytes: float = 0.0
    kinds: dict[str, Kind] = field(default_factory=dict)
    used_bytes: int = 0
    """By how much used_memory grew with the codes, before any was redeemed."""
    rss_bytes: int = 0
    bulk_s: list[float] = field(default_factory=list)
    """Per code, of each bulk."""
    alone_s: list[float] = field(default_factory=list)
    render_s: list[float] = field(default_factory=list)
    redeem_s: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Per redemption, by kind of call (alone, in company) and store (few, all)."""

    @property
    def bytes_per_code(self) -> float:
        """Record and expiry index of one live code, all in: what deleting them gives back, and their share of the table."""
        return sum(self.kinds[kind].freed + self.kinds[kind].table for kind in CODE_KINDS) / self.codes

    def ratio(self, call: str) -> float:
        """What a redemption costs among all codes by what it costs among few: the median of the pairs' ratios."""
        few, all_ = self.redeem_s[call]["few"], self.redeem_s[call]["all"]
        return statistics.median(a / f for f, a in zip(few, all_, strict=True))

    @property
    def worst_ratio(self) -> float:
        """The ratio of the kind of call that suffers more."""
        return max(self.ratio(call) for call in self.redeem_s)


class Store:
    """A deployment with live codes on an embedded store of its own."""

    def __init__(self, stack: ExitStack, folder: Path, partitions: int, seed: int) -> None:
        server = stack.enter_context(EmbeddedServer(folder, durability="fsync"))
        Deployment.create(server.url, unlock=population.unlock, partitions=partitions)
        self.deployment = stack.enter_context(Deployment.open(server.url, unlock=population.unlock))
        population.furnish(self.deployment)
        self._orders = population.orders(seed)
        self._ids = iter(range(10**9))
        self.uids: list[tuple[bytes, int]] = []
        """Live codes, each with its store."""
        self.retried = 0
        """Requests that were asked again."""

    def orders(self, count: int) -> Sequence[IssueRequest]:
        """The next orders."""
        return population.take(self._orders, count)

    def issue(self, orders: Sequence[IssueRequest]) -> list[bytes]:
        """Make codes in one call; their uids."""
        answers = self._sound(issuance.issue, orders)
        for answer in answers:
            assert answer.verdict.success, answer
        made = [answer.uid for answer in answers]
        self.uids += zip(made, (order.store_id for order in orders), strict=True)
        return made

    def render(self, uids: Sequence[bytes]) -> list[str]:
        """Payloads to show now, in calls of as many as a batch may hold."""
        texts: list[str] = []
        for start in range(0, len(uids), limits.BATCH_MAX):
            requests = [RenderRequest(population.MALL, uid) for uid in uids[start : start + limits.BATCH_MAX]]
            texts += [answer.payloads[0].text for answer in self._sound(issuance.render, requests)]
        return texts

    def tries(self, count: int, draw: random.Random) -> list[RedeemRequest]:
        """Tries to redeem codes drawn from all that are live, which are counted out here."""
        drawn = []
        for _ in range(count):
            at = draw.randrange(len(self.uids))
            self.uids[at], self.uids[-1] = self.uids[-1], self.uids[at]
            drawn.append(self.uids.pop())
        texts = self.render([uid for uid, _ in drawn])
        return [
            RedeemRequest(Terminal(population.MALL, store_id, 1), f"redeem-{next(self._ids):010}", text)
            for text, (_, store_id) in zip(texts, drawn, strict=True)
        ]

    def redeem(self, tries: Sequence[RedeemRequest]) -> None:
        """Redeem in one call."""
        for answer in self._sound(redemption.redeem, tries):
            assert answer.verdict is RedeemVerdict.REDEEMED, answer

    def _sound(
        self,
        verb: Callable[[Deployment, Sequence[Q]], Sequence[A | PickgateError]],
        requests: Sequence[Q],
    ) -> list[A]:
        """Answers to all requests, in order; what the store did not answer in time is asked again, as every caller does.

        A machine that stands still for a while must not end a run of minutes; what is asked twice counts in `retried`.
        """
        answers: list[A | PickgateError] = [StoreUnavailable("not asked yet")] * len(requests)
        for turn in range(RETRIES_MAX):
            late = [n for n, answer in enumerate(answers) if isinstance(answer, StoreUnavailable)]
            if not late:
                break
            self.retried += len(late) if turn else 0
            try:
                again = verb(self.deployment, [requests[n] for n in late])
            except (StaleControl, StoreUnavailable):
                self.deployment.control.refresh()
                continue
            for n, answer in zip(late, again, strict=True):
                answers[n] = answer
        sound = [answer for answer in answers if not isinstance(answer, PickgateError)]
        assert len(sound) == len(answers), next(a for a in answers if isinstance(a, PickgateError))
        return sound

    # --- the store's own figures ----------------------------------------------------------------------------------
    def info(self, section: str) -> dict[str, Any]:
        """One section of INFO."""
        [found] = self.deployment.connection.read([("INFO", section)])
        return dict(found)

    def used_bytes(self) -> int:
        """used_memory, when nothing is being freed in the background any more."""
        until(lambda: not self.info("memory")["lazyfree_pending_objects"], "memory is given back")
        return int(self.info("memory")["used_memory"])

    def stop_writing(self) -> None:
        """Let the append-only file go: its rewrites and its waits would be measured along with what is compared.

        After the codes are made: those were made with every answer on the disk.
        """
        until(
            lambda: not self.info("persistence")["aof_rewrite_in_progress"],
            "the append-only file is rewritten",
        )
        self.deployment.connection.read([("CONFIG", "SET", "appendonly", "no")])

    def keys(self) -> dict[str, list[bytes]]:
        """All keys of the store by kind."""
        found: dict[str, list[bytes]] = defaultdict(list)
        cursor: bytes | int = 0
        while True:
            [(cursor, keys)] = self.deployment.connection.read([("SCAN", cursor, "COUNT", COMMANDS)])
            for key in keys:
                tag, _, name = bytes(key).partition(b"}")
                letter = chr(name[0]) if tag != b"{ctl" else ""
                found[letter if letter in KINDS else ""].append(key)
            if not int(cursor):
                return found

    def table_bytes(self) -> int:
        """Memory of the table that finds keys by name."""
        [stats] = self.deployment.connection.read([("MEMORY", "STATS")])
        return int(_pairs(_pairs(stats)["db.0"])["overhead.hashtable.main"])

    def over(self, command: tuple[bytes | str, ...], keys: Sequence[bytes], *options: str | int) -> list[Any]:
        """One command for each of many keys."""
        replies: list[Any] = []
        for start in range(0, len(keys), COMMANDS):
            commands = [(*command, key, *options) for key in keys[start : start + COMMANDS]]
            replies += self.deployment.connection.read(commands)
        return replies


def _pairs(reply: Any) -> dict[str, Any]:
    """A reply of names and values; drivers give some of them as a dict, others as a flat list."""
    items = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode() if isinstance(name, bytes) else name: value for name, value in items}


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that the store does in the background."""
    end = time.monotonic() + SETTLE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {SETTLE_S:g} s: {what}")
        time.sleep(0.05)


def timed(call: Callable[[], R]) -> tuple[float, R]:
    """How long a call took, in seconds, and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


class TooSlow(Exception):
    """The codes are not made in time: figures of fewer would not be those that were asked for."""


# --- the run ----------------------------------------------------------------------------------------------------------
def make_codes(store: Store, count: int, findings: Findings, step: Step, minutes_max: float) -> None:
    """Issue codes in bulk, a few of each bulk one by one, and render each. Raises TooSlow."""
    made = 0
    end_s = time.monotonic() + 60 * minutes_max
    while made < count:
        if time.monotonic() > end_s:
            raise TooSlow(
                f"{made:,} of {count:,} codes were made within {minutes_max:g} minutes; expected all of them: give more time"
                " with --minutes, or ask for fewer with --codes and as many fewer --partitions"
            )
        orders = store.orders(min(BULK, count - made))
        alone, bulk = orders[: min(ALONE, len(orders) // 2)], orders[min(ALONE, len(orders) // 2) :]
        for order in alone:
            took_s, _ = timed(lambda order=order: store.issue([order]))  # type: ignore[misc]
            findings.alone_s.append(took_s)
        took_s, uids = timed(lambda: store.issue(bulk))  # noqa: B023
        findings.bulk_s.append(took_s / len(bulk))
        took_s, texts = timed(lambda: store.render(uids))  # noqa: B023
        findings.render_s.append(took_s / len(uids))
        assert len(set(texts)) == len(uids)
        made += len(orders)
        step(len(orders))


def compare_redeems(few: Store, all_: Store, findings: Findings, step: Step) -> None:
    """Redeem here and there in turn; what is redeemed is made up for, so that as many stay live."""
    draw = random.Random(1)
    stores = {"few": few, "all": all_}
    findings.redeem_s = {
        call: {name: [] for name in stores} for call in ("alone", f"in batches of {COMPANY}")
    }
    alone_s, company_s = findings.redeem_s.values()
    gc.collect()
    gc.disable()
    try:
        for turn in range(PAIRS):
            for name in sorted(stores, reverse=turn % 2 == 0):
                store = stores[name]
                tries = store.tries(COMPANY + ALONE, draw)
                singles = [timed(lambda one=one: store.redeem([one]))[0] for one in tries[COMPANY:]]  # type: ignore[misc] # noqa: B023
                alone_s[name].append(statistics.median(singles))
                took_s, _ = timed(lambda: store.redeem(tries[:COMPANY]))  # noqa: B023
                company_s[name].append(took_s / COMPANY)
                store.issue(store.orders(COMPANY + ALONE))
            step(1)
    finally:
        gc.enable()


def measure_memory(store: Store, findings: Findings, step: Step) -> None:
    """Ask what each key takes; then delete kind by kind and see what comes back. Ends the deployment."""
    by_kind = store.keys()
    table, total = store.table_bytes(), sum(map(len, by_kind.values()))
    for kind in sorted(by_kind, key=lambda kind: (kind not in CODE_KINDS, kind)):
        keys = by_kind[kind]
        usage = sum(store.over(("MEMORY", "USAGE"), keys, "SAMPLES", 0))
        before = store.used_bytes()
        if kind:  # what tells that there is a deployment stays
            store.over(("DEL",), keys)
        freed = before - store.used_bytes() if kind else usage
        # A table may shrink with what is deleted: then its share is counted twice, never left out.
        findings.kinds[kind] = Kind(len(keys), usage, freed, table * len(keys) // total)
        step(len(keys))


def live_codes(store: Store) -> tuple[int, float]:
    """Records in the store, counted there, and their mean size in bytes."""
    buckets = store.keys()["c"]
    [sizes] = [store.over(("HLEN",), buckets)]
    sample = store.over(("HVALS",), buckets[:: max(1, len(buckets) // 1_000)])
    records = [record for values in sample for record in values]
    assert all(len(record) > layouts.RECORD.size for record in records)
    return sum(sizes), statistics.fmean(map(len, records))


def run(codes: int, few: int, partitions: int, minutes_max: float, progress: Progress) -> Findings:
    """The whole run. Raises TooSlow."""
    report.OUT.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=report.OUT, prefix="million-")))

        def stage(what: str, total: int) -> Step:
            task = progress.add_task(what, total=total)
            return lambda done: progress.advance(task, done)

        big = Store(stack, folder / "all", partitions, seed=1)
        small = Store(stack, folder / "few", partitions, seed=2)
        facts = big.deployment.connection.facts()
        findings = Findings(
            codes,
            partitions,
            f"{facts.product} {'.'.join(map(str, facts.version))}",
            str(big.info("memory")["mem_allocator"]),
        )
        empty, empty_rss = big.used_bytes(), int(big.info("memory")["used_memory_rss"])
        beside = Findings(few, partitions, "", "")
        make_codes(small, few, beside, stage(f"{few:,} codes beside", few), minutes_max)
        make_codes(big, codes, findings, stage(f"issue and render {codes:,} codes", codes), minutes_max)
        big.stop_writing()
        small.stop_writing()
        findings.used_bytes = big.used_bytes() - empty
        findings.rss_bytes = int(big.info("memory")["used_memory_rss"]) - empty_rss
        live, findings.record_bytes = live_codes(big)
        assert live == codes, f"{live} codes are live"
        compare_redeems(small, big, findings, stage("redeem here and there", PAIRS))
        measure_memory(big, findings, stage("memory by kind of key", sum(map(len, big.keys().values()))))
    return findings


# --- the report -------------------------------------------------------------------------------------------------------
def as_text(findings: Findings) -> str:
    """The report for people."""
    f = findings
    lines = [
        f"{f.codes:,} live codes in {f.partitions} partitions on {f.store} ({f.allocator} allocator),"
        f" order ids of {population.ORDER_ID_CHARS} characters, records of {f.record_bytes:.0f} bytes",
        "",
        f"{'bytes per live code':34}{'keys':>10}{'MEMORY USAGE':>14}{'given back':>12}{'table':>8}",
    ]
    for kind, memory in f.kinds.items():
        lines.append(
            f"{KINDS[kind]:34}{memory.keys:>10,}{memory.usage / f.codes:>14.1f}{memory.freed / f.codes:>12.1f}"
            f"{memory.table / f.codes:>8.1f}"
        )
    lines += [
        f"{'used_memory, with all of these':34}{'':>10}{f.used_bytes / f.codes:>14.1f}",
        f"{'resident memory of the process':34}{'':>10}{f.rss_bytes / f.codes:>14.1f}",
        "",
    ]
    bulk_s, alone_s, render_s = map(statistics.median, (f.bulk_s, f.alone_s, f.render_s))
    lines += [
        f"issue in bulks of {BULK:,}: {report.rate(1 / bulk_s)}codes/s, one by one: {report.rate(1 / alone_s)}codes/s,"
        f" {alone_s / bulk_s:.1f} times; render in batches of {limits.BATCH_MAX}: {report.rate(1 / render_s)}codes/s",
        "",
    ]
    for call, by_store in f.redeem_s.items():
        few_s, all_s = statistics.median(by_store["few"]), statistics.median(by_store["all"])
        lines.append(
            f"redeem {call}: {report.duration(all_s)} each among all, {report.duration(few_s)} among few,"
            f" {f.ratio(call):.3f} times"
        )
    lines += [
        "",
        f"{judge(f.bytes_per_code, BYTES_MAX, BYTES_MAX):>12}  record and expiry index, all in: wanted"
        f" {BYTES_MAX:g} bytes or less, found {f.bytes_per_code:.1f}",
        f"{judge(f.worst_ratio, RATIO_MAX, WIDE_MARGIN):>12}  redeem among all by redeem among few: wanted {RATIO_MAX:g} or"
        f" less, found {f.worst_ratio:.3f}",
    ]
    return "\n".join(lines)


def judge(found: float, wanted: float, wide: float) -> report.Judgement:
    """How a figure stands that must not be larger than `wanted`, and by no means larger than `wide`."""
    if found <= wanted:
        return report.Judgement.MET
    return report.Judgement.NEAR if found <= wide else report.Judgement.MISSED


def acceptable(findings: Findings) -> bool:
    """Whether the run passes."""
    return findings.bytes_per_code <= BYTES_MAX and findings.worst_ratio <= WIDE_MARGIN


def main(arguments: Sequence[str]) -> int:
    """Run, report, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.million")
    parser.add_argument("--codes", type=int, default=CODES, help="live codes (default: %(default)s)")
    parser.add_argument(
        "--few", type=int, default=FEW, help="live codes to compare with (default: %(default)s)"
    )
    parser.add_argument(
        "--partitions", type=int, default=limits.PARTITIONS_DEFAULT, help="default: %(default)s"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES_MAX, help="for making the codes (default: %(default)g)"
    )
    chosen = parser.parse_args(arguments)
    if min(chosen.codes, chosen.few) < PAIRS:
        parser.error(f"expected at least {PAIRS} codes")
    columns = (
        TextColumn("{task.description:38}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        try:
            findings = run(chosen.codes, chosen.few, chosen.partitions, chosen.minutes, progress)
        except TooSlow as slow:
            print(f"bench: {slow}", file=sys.stderr)
            return 2
    about = report.machine()
    written = report.OUT / "million.json"
    data = {
        "machine": about,
        **asdict(findings),
        "bytes_per_code": findings.bytes_per_code,
        "redeem_ratio": {call: findings.ratio(call) for call in findings.redeem_s},
    }
    written.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    print(f"{about['processor']}, {about['cores']} cores, {about['system']}, {about['python']}")
    print(as_text(findings))
    print(
        f"\nin {time.perf_counter() - started:.0f} s; written: {written.relative_to(report.OUT.parents[1])}"
    )
    return int(not acceptable(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
