"""Ten million mutated genuine codes: none is accepted, and every one gets the same public answer.

    python -m tests.bench.mutations                      # ten million; a few minutes
    python -m tests.bench.mutations --count 100000 --seed 7

Genuine codes of every version and suite are issued and rendered on a real store, then changed as bytes and as text: bits, bytes,
lengths, spellings, splices of two codes, fields of one in another, kids and suites exchanged. Each is opened by the kernel under
all the keys that sealed them. One in ANSWERED_EVERY also goes the way of a call, by the hot lane and by the ordinary handlers,
and must get the bytes of INVALID_CODE and nothing else.

Exit status: 0 when none was accepted and all answers were the same; 1 otherwise, with the first such code.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.claims import Suite, Version
from engine.deployment import Deployment
from engine.state.server import EmbeddedServer
from ext.codec import OpenStatus, decode, encode_batch, open_batch, open_text_batch
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server import hot, services, written
from tests.engine import proofs
from tests.engine import shop as shops
from tests.engine.shop import MALL, STORE, Shop

COUNT: Final = 10_000_000
CODES_EACH: Final = 48
"""Genuine codes of each version and suite."""
BATCH: Final = 8_192
ANSWERED_EVERY: Final = 1_000
VALUABLE_SHARE: Final = 0.06
"""Of all: of their mutations every other one is in the signature, and checking that takes a hundred times as long as a tag."""
KINDS: Final = [(version, suite) for version in Version for suite in Suite]
REQUEST_ID: Final = "mutation-0001"

Codes = npt.NDArray[np.uint8]
Draw = np.random.Generator


@dataclass
class Genuine:
    """Genuine codes, one row each, by kind; and what any text or payload of them is."""

    payloads: dict[tuple[Version, Suite], Codes]
    texts: dict[tuple[Version, Suite], Codes]
    all: frozenset[bytes]


@dataclass
class Findings:
    """What became of the mutated codes."""

    count: int = 0
    unchanged: int = 0
    """Mutations that gave a genuine code again, such as a splice of a code with itself; not counted."""
    answered: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    accepted: list[bytes] = field(default_factory=list)
    answers: set[bytes] = field(default_factory=set)
    """Different answers of redeem; one if all is well."""


def issue(shop: Shop) -> Genuine:
    """Issue and render codes of every version and suite."""
    proofs.put_provider(shop)
    shop.stock_all(100_000)
    payloads, texts = {}, {}
    for kind in KINDS:
        shown = [shop.show(shop.issue(version=kind[0], suite=kind[1]).uid) for _ in range(CODES_EACH)]
        texts[kind] = np.array([list(text.encode()) for text in shown], np.uint8)
        payloads[kind] = np.array([list(decode(text[2:])) for text in shown], np.uint8)
    every = {row.tobytes() for rows in (*payloads.values(), *texts.values()) for row in rows}
    return Genuine(payloads, texts, frozenset(every))


# --- mutations --------------------------------------------------------------------------------------------------------
# Each takes genuine rows to change, rows of the same kind, rows of any other kind, and gives as many rows of one length.
Mutation = Callable[[Draw, Codes, Codes, Codes], Codes]
_LETTERS: Final = np.frombuffer(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ", np.uint8)


def _columns(draw: Draw, rows: Codes) -> npt.NDArray[np.intp]:
    return draw.integers(0, rows.shape[1], len(rows))


def bits(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """One to three bits."""
    for _ in range(draw.integers(1, 4)):
        rows[np.arange(len(rows)), _columns(draw, rows)] ^= np.uint8(1) << draw.integers(
            0, 8, len(rows)
        ).astype(np.uint8)
    return rows


def any_bytes(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """One to four bytes or characters, to anything."""
    for _ in range(draw.integers(1, 5)):
        rows[np.arange(len(rows)), _columns(draw, rows)] = draw.integers(0, 256, len(rows))
    return rows


def letters(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """One to four characters, to others of the alphabet: a text stays a text."""
    for _ in range(draw.integers(1, 5)):
        rows[np.arange(len(rows)), _columns(draw, rows)] = draw.choice(_LETTERS, len(rows))
    return rows


def spellings(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """Other spellings of the same: lower case, O for 0, I and L for 1, blanks and hyphens."""
    table = np.arange(256, dtype=np.uint8)
    for old, new in [
        (b"0", b"O"),
        (b"1", b"I"),
        (b"1", b"L"),
        (b"V", b"U"),
        *zip(
            (bytes([c]) for c in b"ABCDEFGHJKMNPQRSTVWXYZ"),
            (bytes([c]) for c in b"abcdefghjkmnpqrstvwxyz"),
            strict=True,
        ),
    ][:: int(draw.integers(1, 4))]:
        table[old[0]] = new[0]
    at = _columns(draw, rows)[:, None] <= np.arange(rows.shape[1])
    return np.where(at, table[rows], rows).astype(np.uint8)


def swapped(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """Two places exchanged."""
    n, a, b = np.arange(len(rows)), _columns(draw, rows), _columns(draw, rows)
    rows[n, a], rows[n, b] = rows[n, b].copy(), rows[n, a].copy()
    return rows


def shifted(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """The tail from some place on, turned by some places."""
    at = int(draw.integers(0, rows.shape[1] - 1))
    rows[:, at:] = np.roll(rows[:, at:], int(draw.integers(1, rows.shape[1] - at)), axis=1)
    return rows


def spliced(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """The head of one code and the tail of another of its kind."""
    return np.where(np.arange(rows.shape[1]) >= _columns(draw, rows)[:, None], same, rows).astype(np.uint8)


def piece(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """A piece of another code of its kind within one: uid, stamp, tag or signature among them."""
    a, b = np.sort(np.stack([_columns(draw, rows), _columns(draw, rows)]), axis=0)
    at = np.arange(rows.shape[1])
    return np.where((at >= a[:, None]) & (at <= b[:, None]), same, rows).astype(np.uint8)


def crossed(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """A piece of a code of another version or suite within one."""
    width = min(rows.shape[1], other.shape[1])
    rows[:, :width] = piece(draw, rows[:, :width], other[:, :width], other[:, :width])
    return rows


def headed(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """The header, the kid or both of another version or suite: the other key, and the other way to check."""
    start, end = [(0, 1), (1, 3), (0, 3)][int(draw.integers(0, 3))]
    rows[:, start:end] = other[:, start:end]
    return rows


def resized(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """Shorter or longer, by zeros, by what another code has, or cut."""
    by = int(draw.integers(1, 80))
    kind = int(draw.integers(0, 4))
    if kind == 0:
        return rows[:, : max(1, rows.shape[1] - by)]
    more = [
        np.zeros((len(rows), by), np.uint8),
        np.resize(other, (len(rows), by)),
        np.full((len(rows), by), 48, np.uint8),
    ]
    return np.concatenate([rows, more[kind - 1]] if draw.random() < 0.7 else [more[kind - 1], rows], axis=1)


def lengthed(draw: Draw, rows: Codes, same: Codes, other: Codes) -> Codes:
    """The length of another version."""
    width = other.shape[1]
    return np.concatenate([rows, other], axis=1)[:, :width] if width > rows.shape[1] else rows[:, :width]


OF_BYTES: Final[Sequence[Mutation]] = (
    bits, any_bytes, swapped, shifted, spliced, piece, crossed, headed, resized, lengthed,
)  # fmt: skip
OF_TEXTS: Final[Sequence[Mutation]] = (
    bits, any_bytes, letters, spellings, swapped, shifted, spliced, piece, crossed, resized, lengthed,
)  # fmt: skip


def _drawn(draw: Draw, rows: Codes, count: int) -> Codes:
    return rows[draw.integers(0, len(rows), count)]


def mutated(genuine: Genuine, draw: Draw, count: int) -> tuple[Codes, bool, str]:
    """Rows of one length, whether they are texts, and what was done. `count` rows or a few less."""
    valuable = draw.random() < VALUABLE_SHARE
    kinds = [kind for kind in KINDS if (kind[0] is Version.VALUABLE) == valuable]
    kind = kinds[int(draw.integers(0, len(kinds)))]
    others = [one for one in KINDS if one != kind]
    other = others[int(draw.integers(0, len(others)))]
    # As bytes; as bytes, and then written as text; as text.
    form = int(draw.integers(0, 3))
    source = genuine.texts if form == 2 else genuine.payloads
    mutations = OF_TEXTS if form == 2 else OF_BYTES
    mutation = mutations[int(draw.integers(0, len(mutations)))]
    rows = mutation(
        draw,
        _drawn(draw, source[kind], count),
        _drawn(draw, source[kind], count),
        _drawn(draw, source[other], count),
    )
    if form == 1:
        written_out = (
            "PG" + text for text in encode_batch(np.ascontiguousarray(rows).tobytes(), rows.shape[1])
        )
        rows = np.frombuffer("".join(written_out).encode(), np.uint8).reshape(len(rows), -1)
    return rows, form > 0, f"{('bytes', 'bytes as text', 'text')[form]}: {mutation.__name__}"


# --- the two ways of a call -------------------------------------------------------------------------------------------
class Answers:
    """Sends texts the way of a call, and keeps the different answers."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._lane = (hot.Redeem(deployment), hot.Inspect(deployment))

    def of(self, texts: Sequence[bytes]) -> Iterator[bytes]:
        """Answers of redeem, by the lane and by the handlers; those of inspect are compared here."""
        terminal = types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=7)
        for text in texts:
            try:
                code = text.decode()
            except UnicodeDecodeError:
                continue  # no request can carry it
            redeem = redemption_pb.RedeemRequest(
                terminal=terminal, request_id=REQUEST_ID, code=code
            ).SerializeToString()
            look = redemption_pb.InspectRequest(terminal=terminal, code=code).SerializeToString()
            [by_lane], [seen] = self._lane[0].sort([redeem]), self._lane[1].sort([look])
            yield by_lane if isinstance(by_lane, bytes) else repr(by_lane).encode()
            yield services.answer(self._deployment, services.METHODS["RedemptionService.Redeem"], redeem)
            if seen != written.INVALID_INSPECTION:
                yield repr(seen).encode()


# --- the run ----------------------------------------------------------------------------------------------------------
def run(shop: Shop, count: int, seed: int) -> Findings:
    """Make and open `count` mutated codes."""
    genuine = issue(shop)
    table = shop.deployment.control.copy().usable_keys().payload_table
    for kind in KINDS:
        # The premise: unchanged, each of them is accepted.
        texts = genuine.texts[kind]
        assert (_opened(table, texts, texts=True)["status"] == OpenStatus.OK).all()
    answers, draw, findings = Answers(shop.deployment), np.random.default_rng(seed), Findings()
    began_s = time.perf_counter()
    batch = min(BATCH, max(64, count // 200))
    while findings.count < count:
        rows, are_texts, what = mutated(genuine, draw, min(batch, count - findings.count))
        claims = _opened(table, rows, texts=are_texts)
        opened = claims["status"] == OpenStatus.OK
        if opened.any():
            found = [rows[n].tobytes() for n in np.flatnonzero(opened)]
            findings.accepted += [one for one in found if one not in genuine.all]
            findings.unchanged += sum(one in genuine.all for one in found)
        refused = claims["status"][~opened]
        findings.count += len(refused)
        findings.kinds[what] += len(refused)
        for status, times in zip(*np.unique(refused, return_counts=True), strict=True):
            findings.statuses[OpenStatus(status).name] += int(times)
        if are_texts:
            every = max(1, min(ANSWERED_EVERY, count // 1_000))
            picked = [rows[n].tobytes() for n in np.flatnonzero(~opened)[::every]]
            for answered in answers.of(picked):
                findings.answered += 1
                findings.answers.add(answered)
    findings.seconds = time.perf_counter() - began_s
    return findings


def _opened(table: Any, rows: Codes, *, texts: bool) -> npt.NDArray[np.void]:
    offsets = np.arange(len(rows) + 1, dtype=np.uint64) * np.uint64(rows.shape[1])
    opener = open_text_batch if texts else open_batch
    return opener(table, np.ascontiguousarray(rows).tobytes(), offsets)


def sound(findings: Findings) -> bool:
    """Whether nothing was accepted and all got the one answer."""
    return not findings.accepted and findings.answers == {written.invalid_redemption(REQUEST_ID.encode())}


def as_text(findings: Findings) -> str:
    """A report for people."""
    lines = [
        f"{findings.count:,} mutated codes in {findings.seconds:.1f} s: {len(findings.accepted)} accepted",
        f"{findings.answered:,} answers of redeem by lane and handlers: {len(findings.answers)} different",
        f"{findings.unchanged:,} mutations gave a genuine code again, and are not counted",
        "",
        *(f"  {count:>10,}  refused by {name}" for name, count in findings.statuses.most_common()),
        "",
        *(f"  {count:>10,}  {what}" for what, count in sorted(findings.kinds.items())),
    ]
    if findings.accepted:
        lines.append(f"\nACCEPTED, first of them: {findings.accepted[0].hex()}")
    if len(findings.answers) > 1:
        lines.append(f"\nANSWERS DIFFER: {sorted(findings.answers)[:2]}")
    return "\n".join(lines)


def open_shop(stack: ExitStack) -> Shop:
    """A furnished deployment on a real store of its own."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-")))
    store = stack.enter_context(EmbeddedServer(folder / "data", durability="memory"))
    clock = shops.Clock()
    shops.create(store.url, clock)
    deployment = stack.enter_context(shops.open_deployment(store.url, clock))
    shops.furnish(deployment)
    return Shop(deployment, store.url, clock)


def main(arguments: Sequence[str]) -> int:
    """Run, report, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.mutations")
    parser.add_argument("--count", type=int, default=COUNT, help="mutated codes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.count < 1_000:
        parser.error("expected --count of at least 1000")
    with ExitStack() as stack:
        findings = run(open_shop(stack), given.count, given.seed)
    print(as_text(findings))
    return int(not sound(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
