"""A lost store with a million live codes, rebuilt from its ledger: from the beginning, and from a checkpoint.

    python -m tests.bench.rebuild                         # a million codes; some four minutes, 3 GB of memory, 2 GB of disk
    python -m tests.bench.rebuild --codes 50000

REAL codes are issued by the engine, some redeemed, some voided. All others are events written into the ledger on their pattern: the same bytes but
for the uid, the request, the order's number and the event's own, since the engine would take five minutes to issue a million. Then the store is
wiped and rebuilt, twice: both times it must hold the same, a thousand codes drawn at random must get the right verdicts, and
earlier requests their first answers.

Exit status: 0 when each rebuild took SECONDS_MAX at most; 1 when not.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine import issuance, redemption
from engine.calls import IssueRequest, RedeemAnswer, RedeemRequest, RenderRequest, VoidRequest
from engine.claims import Terminal
from engine.deployment import Deployment, system_ms
from engine.errors import PickgateError
from engine.ledger import checkpoints, database
from engine.ledger.ledger import Ledger
from engine.ledger.rebuild import Rebuilt, rebuild
from engine.ledger.writer import Writer
from engine.state import layouts, snapshot
from engine.state.connection import Connection, Durability
from engine.state.events import EventType
from engine.state.server import EmbeddedServer
from engine.state.streams import Entry, Streams
from engine.verdict import RedeemVerdict
from tests.bench import population, report

CODES: Final = 1_000_000
REAL: Final = 10_000
"""Codes that the engine issues."""
ENDED: Final = 500
"""Of these, so many are redeemed and so many voided before the store is lost."""
TRIED: Final = 1_000
SECONDS_MAX: Final = 60.0
BATCH: Final = 250
CHUNK: Final = 2_048
"""Events of a partition in one append, as the writer's."""

A = TypeVar("A")
T = TypeVar("T")

_UID_AT: Final = layouts.EVENT.at("uid")
_REQUEST_AT: Final = layouts.EVENT.at("request")
_BODY_END: Final = layouts.EVENT.at("actor_len")
_R_SEQ_AT: Final = layouts.EVENT.size + layouts.RECORD.at("issue_seq")
_R_REQUEST_AT: Final = layouts.EVENT.size + layouts.RECORD.at("request")
_R_REQUEST_END: Final = layouts.EVENT.size + layouts.RECORD.at("last_terminal")
_DIGITS: Final = 10
"""Of an order's number, at the end of the record (tests.bench.population)."""


@dataclass
class Findings:
    """What one run found."""

    codes: int
    events: int = 0
    partitions: int = 0
    checkpoint_s: float = 0.0
    checkpoint_bytes: int = 0
    rebuilt: dict[str, Rebuilt] = field(default_factory=dict)
    """From where, and what was made."""
    verdicts: dict[str, int] = field(default_factory=dict)
    """Of the codes that were tried afterwards, as they had to be."""
    retried: int = 0
    """Earlier requests that got their first answers."""

    @property
    def met(self) -> bool:
        """Whether each rebuild was fast enough."""
        return all(made.took_s <= SECONDS_MAX for made in self.rebuilt.values())


class Lost:
    """A deployment, its ledger, and what was done before the store is lost."""

    def __init__(self, stack: ExitStack, folder: Path, partitions: int) -> None:
        self.server = stack.enter_context(EmbeddedServer(folder / "store", durability="fsync"))
        Deployment.create(self.server.url, unlock=population.unlock, partitions=partitions)
        with self.open() as deployment:
            deployment_id = deployment.constants.deployment_id
            population.furnish(deployment)
            url = database.sqlite_url(folder / "ledger.sqlite3")
            self.ledger = stack.enter_context(Ledger.open(url, deployment_id=deployment_id, create=True))
        self.orders: list[IssueRequest] = []
        self.uids: list[bytes] = []
        """Real ones, by order."""
        self.texts: dict[bytes, str] = {}
        """Payloads of those that end: none is rendered of a code that has ended."""
        self.first: list[tuple[RedeemRequest, RedeemAnswer]] = []
        self.expected: dict[bytes, tuple[int, RedeemVerdict]] = {}
        """Every code with its store, and the verdict that it must get."""
        self.key = Ed25519PrivateKey.generate()

    def open(self) -> Deployment:
        """Open the deployment anew, as another process would."""
        return Deployment.open(self.server.url, unlock=population.unlock)

    # --- before -----------------------------------------------------------------------------------------------
    def live(self, real: int, ended: int) -> None:
        """Issue codes, redeem some, void some, and bring the ledger up to date."""
        with self.open() as deployment:
            self.orders = list(population.take(population.orders(1), real))
            for some in batches(self.orders):
                for order, answer in zip(some, sound(issuance.issue(deployment, some)), strict=True):
                    self.uids.append(answer.uid)
                    self.expected[answer.uid] = order.store_id, RedeemVerdict.REDEEMED
                deployment.control.refresh()
            for uids in batches(self.uids[: 2 * ended]):
                self.texts |= zip(uids, render(deployment, uids), strict=True)
            for numbers in batches(range(ended)):
                tries = [
                    RedeemRequest(
                        Terminal(population.MALL, self.orders[n].store_id, 1),
                        f"before-{n:06}",
                        self.texts[self.uids[n]],
                    )
                    for n in numbers
                ]
                self.first += zip(tries, sound(redemption.redeem(deployment, tries)), strict=True)
            for numbers in batches(range(ended, 2 * ended)):
                voids = [VoidRequest(population.MALL, f"void-{n:06}", self.uids[n]) for n in numbers]
                sound(issuance.void(deployment, voids))
            for n in range(2 * ended):
                verdict = RedeemVerdict.ALREADY_REDEEMED if n < ended else RedeemVerdict.VOIDED
                self.expected[self.uids[n]] = self.orders[n].store_id, verdict
            self.write(deployment)

    def write(self, deployment: Deployment) -> None:
        """Bring the ledger up to date."""
        writer = Writer(Streams(deployment.connection), self.ledger, now_ms=system_ms)
        writer.start()
        while writer.step(block_ms=0):
            pass

    def multiply(self, count: int) -> None:
        """Write so many more codes into the ledger, on the pattern of those that the engine issued."""
        draw = random.Random(2)
        heads = self.ledger.heads()
        patterns = {
            number: [
                row.entry.data
                for row in islice(self.ledger.rows(number), 20_000)
                if row.entry.data[1] == EventType.ISSUED
            ]
            for number in heads
            if number < 1024
        }
        numbers = sorted(number for number, found in patterns.items() if found)
        left = count
        order = 5 * 10**9
        while left:
            entries: dict[int, list[Entry]] = {}
            for number in numbers:
                place = heads[number].place
                size = min(CHUNK, -(-left // len(numbers)), left)
                made = [
                    self._made_like(draw.choice(patterns[number]), place.epoch, place.seq + n, order + left - n, draw)
                    for n in range(1, size + 1)
                ]  # fmt: skip
                if made:
                    entries[number] = made
                left -= len(made)
            heads |= self.ledger.append(heads, entries)

    def _made_like(self, pattern: bytes, epoch: int, seq: int, order: int, draw: random.Random) -> Entry:
        tail = int.from_bytes(pattern[_UID_AT : _UID_AT + 8], "big") >> 54 << 54
        uid = (tail | 1 << 53 | draw.getrandbits(53)).to_bytes(8, "big")
        request = draw.randbytes(20)
        data = b"".join(
            (
                pattern[:_UID_AT],
                uid,
                pattern[_UID_AT + 8 : _REQUEST_AT],
                request,
                pattern[_BODY_END:_R_SEQ_AT],
                seq.to_bytes(6, "big"),
                request,
                pattern[_R_REQUEST_END:-_DIGITS],
                b"%010d" % order,
            )
        )
        self.expected[uid] = int.from_bytes(data[12:16], "big"), RedeemVerdict.REDEEMED
        return Entry(epoch, seq, data)

    # --- after ------------------------------------------------------------------------------------------------
    def lose(self) -> None:
        """Wipe the store."""
        with self.connect() as connection:
            connection.write([("FLUSHALL",)])

    def connect(self) -> closing[Connection]:
        """A bare connection, as a rebuild has it."""
        return closing(Connection(self.server.url, durability=Durability.FSYNC, now_ms=system_ms))

    def rebuild(self, key: Ed25519PrivateKey | None) -> Rebuilt:
        """Rebuild it, from the latest checkpoint when there is a key."""
        with self.connect() as connection:
            return rebuild(connection, self.ledger, now_ms=system_ms(), key=key.public_key() if key else None)

    def contents(self) -> tuple[int, int]:
        """How many codes the store holds, and a sum over every record and shelf in it, whatever their order."""
        total = codes = 0
        with self.open() as deployment:
            for number, held in snapshot.read_all_shelves(deployment.connection).items():
                for shelf, figures in held.stock.items():
                    total += hashed(b"%d %r " % (number, shelf) + figures)
                for piece in snapshot.read_records(deployment.connection, number):
                    codes += len(piece.records)
                    total += sum(hashed(uid + data) for uid, data in piece.records.items())
        return codes, total % 2**64

    def try_out(self, findings: Findings, tried: int) -> None:
        """Codes drawn at random get the verdicts that they must get, and earlier requests their first answers."""
        draw = random.Random(3)
        wanted = draw.sample(list(self.expected), tried)
        for n in range(0, 20):
            wanted[n] = self.uids[n if n < 10 else len(self.first) + n]
        with self.open() as deployment:
            for some in batches(wanted):
                live = [uid for uid in some if uid not in self.texts]
                texts = self.texts | dict(zip(live, render(deployment, live), strict=True))
                for uid in some:
                    store_id, verdict = self.expected[uid]
                    terminal = Terminal(population.MALL, store_id, 1)
                    request = RedeemRequest(terminal, f"after-{uid.hex()}", texts[uid])
                    [answer] = sound(redemption.redeem(deployment, [request]))
                    assert answer.verdict is verdict, (uid.hex(), answer.verdict, verdict)
                    slug = answer.verdict.slug
                    findings.verdicts[slug] = findings.verdicts.get(slug, 0) + 1
                deployment.control.refresh()
            for request, first in self.first:
                [again] = sound(redemption.redeem(deployment, [request]))
                assert again == replace(first, replayed=True), (again, first)
                findings.retried += 1
            for order, uid in zip(self.orders[: len(self.first)], self.uids, strict=False):
                [made] = sound(issuance.issue(deployment, [order]))
                assert (made.uid, made.replayed) == (uid, True)
                findings.retried += 1


def hashed(data: bytes) -> int:
    """A number for some bytes."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def sound(outcomes: Sequence[A | PickgateError]) -> list[A]:
    """Answers; an error that came in the place of one is raised."""
    for outcome in outcomes:
        if isinstance(outcome, PickgateError):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, PickgateError)]


def render(deployment: Deployment, uids: Sequence[bytes]) -> list[str]:
    """Payloads to show now."""
    answers = sound(issuance.render(deployment, [RenderRequest(population.MALL, uid) for uid in uids]))
    return [answer.payloads[0].text for answer in answers]


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Pieces of a sequence, as large as a call may be."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def run(
    codes: int, *, real: int, ended: int, tried: int, partitions: int, tell: Callable[[str], None]
) -> Findings:
    """Fill a ledger, lose the store twice, and rebuild it from the beginning and from a checkpoint."""
    findings = Findings(codes, partitions=partitions)
    report.OUT.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=report.OUT, prefix="rebuild-")))
        lost = Lost(stack, folder, partitions)
        lost.live(real, ended)
        tell(f"{real:,} codes are issued")
        lost.multiply(codes + 2 * ended - real)
        findings.events = sum(head.rows for head in lost.ledger.heads().values())
        tell(f"{findings.events:,} events are in the ledger")
        lost.lose()
        findings.rebuilt["the beginning"] = lost.rebuild(None)
        tell("rebuilt from the beginning")
        whole = lost.contents()
        began_s = time.monotonic()
        taken = checkpoints.take(lost.ledger, lost.key, at_ms=system_ms())
        findings.checkpoint_s = time.monotonic() - began_s
        findings.checkpoint_bytes = sum(part.size for part in taken.parts.values())
        tell("a checkpoint is kept")
        lost.lose()
        made = findings.rebuilt["a checkpoint"] = lost.rebuild(lost.key)
        assert made.checkpoint == taken.number
        tell("rebuilt from the checkpoint")
        again = lost.contents()
        assert again == whole, "both hold the same"
        assert again[0] == codes + 2 * ended
        lost.try_out(findings, tried)
    return findings


def as_text(findings: Findings) -> str:
    """The report for people."""
    lines = [
        f"{findings.codes:,} live codes in {findings.partitions} partitions, {findings.events:,} events in the ledger (SQLite)",
        f"checkpoint: {findings.checkpoint_s:.1f} s, {findings.checkpoint_bytes / 1e6:.0f} MB before compression",
    ]
    for source, made in findings.rebuilt.items():
        judged = report.Judgement.MET if made.took_s <= SECONDS_MAX else report.Judgement.MISSED
        lines.append(
            f"{judged:>12}  rebuilt from {source}: {made.took_s:.1f} s, {made.codes / made.took_s:,.0f} codes/s;"
            f" wanted {SECONDS_MAX:g} s or less"
        )
    verdicts = ", ".join(f"{count} {slug}" for slug, count in sorted(findings.verdicts.items()))
    lines.append(
        f"afterwards the same contents; tried: {verdicts}; {findings.retried} earlier requests got their first answers"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run, report, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rebuild")
    parser.add_argument("--codes", type=int, default=CODES, help="live codes (default: %(default)s)")
    parser.add_argument("--partitions", type=int, default=16, help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    if chosen.codes < REAL:
        parser.error(f"expected at least {REAL} codes")
    began_s = time.monotonic()

    def tell(step: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {step}", file=sys.stderr, flush=True)

    findings = run(chosen.codes, real=REAL, ended=ENDED, tried=TRIED, partitions=chosen.partitions, tell=tell)
    about = report.machine()
    print(f"{about['processor']}, {about['cores']} cores, {about['system']}, {about['python']}")
    print(as_text(findings))
    return int(not findings.met)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
