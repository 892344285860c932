"""Heats: many short races one behind the other, run by processes that stay, on a real store whose clocks the test owns.

A heat is a handful of callers on a few codes. Each has a thread of its own in one of the processes, all threads of all processes
wait at one barrier before each heat, and each caller's clock shows what the test wants it to show: so a sweep can run after a
code's end while a terminal, whose clock is behind, still tries to redeem it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from random import Random
from typing import Any, Final

from engine import expiry, issuance, limits, redemption, review, stock
from engine.calls import IssueAnswer, StockChange, StockRequest
from engine.deployment import Deployment, Durability
from engine.errors import PickgateError
from engine.stores import CatalogueEntry
from tests.race import shop as shops
from tests.race.shop import MALL, STORE, Shop, sound

PROCESSES: Final = 3
THREADS: Final = 4
CALLERS: Final = PROCESSES * THREADS
"""Most callers of a heat."""
HEATS: Final = 100
"""Heats of one run: they are prepared together, then run one behind the other."""
BOUND_S: Final = 120.0
SPREAD: Final = 3
"""Callers of a heat make up to this many trips more than they were told, less one."""
START_MS: Final = 1_800_000_000_000

FAMILIES: Final = HEATS
"""Groups of three SKUs and the two bundles that share the second of them: one for each heat of a run."""
_SKUS: Final = range(100_000, 100_250)
"""SKUs of their own that heats take one after the other: more than a run needs, so that none serves two heats at once."""
_FAMILY_SKU: Final = 110_000
_FAMILY_BUNDLE: Final = 120_000
_PUT_MAX: Final = 200

VERBS: Final[Mapping[str, Callable[..., list[Any]]]] = {
    "issue": issuance.issue,
    "hold": issuance.hold,
    "confirm": issuance.confirm,
    "extend": issuance.extend,
    "void": issuance.void,
    "redeem": redemption.redeem,
    "reverse": redemption.reverse,
    "decide": review.decide,
    "change": stock.change,
    "transfer": stock.transfer,
}
SWEEP: Final = "sweep"


@dataclass(frozen=True)
class Caller:
    """One caller of a heat: its verb and request (none for a sweep), and what its clock shows (unix milliseconds).

    `detours` is how many harmless trips to the store it makes before its own, give or take: verbs take one to twenty trips,
    and without detours the shortest would come first in every heat.
    """

    verb: str
    request: Any = None
    detours: int = 0
    at_ms: int = 0


@dataclass(frozen=True)
class Failure:
    """What a caller died of; no verb may."""

    text: str


@dataclass(frozen=True)
class Family:
    """Three SKUs, and two bundles of them that share the second: first + second, and second + two of the third."""

    skus: tuple[int, int, int]
    bundles: tuple[int, int]


def family(number: int) -> Family:
    """Family `number`, 0 to FAMILIES - 1."""
    sku, bundle = _FAMILY_SKU + 3 * number, _FAMILY_BUNDLE + 2 * number
    return Family((sku, sku + 1, sku + 2), (bundle, bundle + 1))


_clock: Final = threading.local()


def clock_ms() -> int:
    """What the calling thread's clock shows."""
    now_ms: int = getattr(_clock, "now_ms", START_MS)
    return now_ms


# --- in a process of the heats ----------------------------------------------------------------------------------------
def _call(deployment: Deployment, caller: Caller) -> Any:
    _clock.now_ms = caller.at_ms
    try:
        for _ in range(caller.detours):
            deployment.connection.read([("PING",)])
        if caller.verb == SWEEP:
            return expiry.sweep(deployment)
        [outcome] = VERBS[caller.verb](deployment, [caller.request])
    except PickgateError as error:
        return error
    except Exception:
        return Failure(traceback.format_exc())
    return outcome


def work(pipe: Connection, url: str, barrier: Any) -> None:
    """Body of a process: for each run received, every thread goes through all heats, waiting for all others before each."""
    with Deployment.open(
        url, unlock=shops.unlock, durability=Durability.MEMORY, now_ms=clock_ms
    ) as deployment:
        pipe.send("open")
        while (shares := pipe.recv()) is not None:
            outcomes: list[list[Any]] = [[None] * THREADS for _ in shares]

            def run(thread: int, shares: Any = shares, outcomes: Any = outcomes) -> None:
                for heat, callers in enumerate(shares):
                    barrier.wait(BOUND_S)
                    if callers[thread] is not None:
                        outcomes[heat][thread] = _call(deployment, callers[thread])

            threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            pipe.send(outcomes)


# --- beside them ------------------------------------------------------------------------------------------------------
class Course(Shop):
    """A shop whose clock the test owns, and the processes that run heats in it."""

    def __init__(self, deployment: Deployment, pipes: Sequence[Connection]) -> None:
        super().__init__(deployment, name="course")
        self._pipes = pipes
        self._cycle = itertools.cycle(_SKUS)
        self._draw = Random(len(pipes))
        self.now_ms = START_MS

    @property
    def now_ms(self) -> int:
        """What the clock of the test shows, which is that of every caller who has none of its own (give or take)."""
        return clock_ms()

    @now_ms.setter
    def now_ms(self, now_ms: int) -> None:
        _clock.now_ms = now_ms

    def behind(self, trips: int) -> int:
        """By how many trips one side starts behind the other in a heat: drawn, 0 to `trips`."""
        return self._draw.randint(0, trips)

    def count(self, *counted: tuple[int, int], store_id: int = STORE) -> None:
        """Set on_hand of SKUs: (sku, units) each."""
        requests = [
            StockRequest(MALL, self.request_id(), store_id, sku_id, StockChange.COUNT, units)
            for sku_id, units in counted
        ]
        for start in range(0, len(requests), limits.BATCH_MAX):
            answers = stock.change(self.deployment, requests[start : start + limits.BATCH_MAX])
            assert all(sound(answer).verdict.success for answer in answers)

    def sku(self, units: int, *, store_id: int = STORE) -> int:
        """A SKU that no heat uses just now, with units on hand that nobody has claimed; earlier heats may have left it short."""
        sku_id = next(self._cycle)
        self.count((sku_id, self.figures(sku_id, store_id=store_id).reserved + units), store_id=store_id)
        return sku_id

    def show(self, codes: Sequence[IssueAnswer]) -> list[str]:
        """Payloads of any number of codes, good now."""
        slices = range(0, len(codes), limits.BATCH_MAX)
        return [
            text
            for start in slices
            for text in super(Course, self).show(codes[start : start + limits.BATCH_MAX])
        ]

    def run(self, heats: Sequence[Sequence[Caller]]) -> list[list[Any]]:
        """Run heats one behind the other; the outcomes of each, in the order of its callers.

        Who goes with which process is drawn. A caller without a clock gets the test's, some milliseconds apart from the others'.
        """
        draw = self._draw
        seats: list[list[int]] = []
        shares: list[list[list[Caller | None]]] = [[] for _ in self._pipes]
        for callers in heats:
            assert 0 < len(callers) <= CALLERS
            seats.append(draw.sample(range(CALLERS), len(callers)))
            seated: list[Caller | None] = [None] * CALLERS
            for n, (seat, caller) in enumerate(zip(seats[-1], callers, strict=True)):
                seated[seat] = replace(
                    caller,
                    detours=caller.detours + draw.randrange(SPREAD),
                    at_ms=caller.at_ms or self.now_ms + n,
                )
            for n, share in enumerate(shares):
                share.append(seated[n * THREADS : (n + 1) * THREADS])
        for pipe, share in zip(self._pipes, shares, strict=True):
            pipe.send(share)
        runs = [receive(pipe) for pipe in self._pipes]
        self.now_ms += 1_000

        found: list[list[Any]] = []
        for heat, taken in enumerate(seats):
            by_seat = [outcome for run in runs for outcome in run[heat]]
            outcomes = [by_seat[seat] for seat in taken]
            for outcome in outcomes:
                assert not isinstance(outcome, Failure), outcome.text
            found.append(outcomes)
        return found


def receive(pipe: Connection) -> Any:
    """What a process has to say. Fails when it says nothing within the bound."""
    assert pipe.poll(BOUND_S), f"a process said nothing within {BOUND_S:g} s"
    return pipe.recv()


def create(url: str) -> None:
    """Make a deployment in an empty store that keeps nothing on disk and compares no clocks, with families of bundles.

    The clock begins anew: a deployment made by the clock of an earlier course would not be swept before that time had come.
    """
    _clock.now_ms = START_MS
    Deployment.create(
        url,
        unlock=shops.unlock,
        durability=Durability.MEMORY,
        partitions=shops.PARTITIONS,
        clock_compared=False,
        now_ms=clock_ms,
    )
    with _open(url) as deployment:
        shops.furnish(deployment)
        entries = [CatalogueEntry(MALL, sku, f"SKU {sku}") for sku in _SKUS]
        for number in range(FAMILIES):
            (first, second, third), (both, three) = (family(number).skus, family(number).bundles)
            entries += [CatalogueEntry(MALL, sku, f"SKU {sku}") for sku in (first, second, third)]
            entries.append(CatalogueEntry(MALL, both, f"Bundle {both}", parts=((first, 1), (second, 1))))
            entries.append(CatalogueEntry(MALL, three, f"Bundle {three}", parts=((second, 1), (third, 2))))
        for start in range(0, len(entries), _PUT_MAX):
            deployment.control.put_catalogue(
                entries[start : start + _PUT_MAX], request_id=f"put-families-{start}", actor="test"
            )


def _open(url: str) -> Deployment:
    return Deployment.open(url, unlock=shops.unlock, durability=Durability.MEMORY, now_ms=clock_ms)


@contextmanager
def course(url: str) -> Iterator[Course]:
    """Open the deployment that `create` made, with processes beside; all is ended with the context."""
    # Spawned, never forked: this process has threads and open connections.
    spawning = multiprocessing.get_context("spawn")
    barrier = spawning.Barrier(CALLERS)
    with ExitStack() as stack:
        pipes = []
        for _ in range(PROCESSES):
            ours, theirs = spawning.Pipe()
            process = spawning.Process(target=work, args=(theirs, url, barrier), daemon=True)
            process.start()
            theirs.close()
            stack.callback(_end, process, ours)
            pipes.append(ours)
        assert [receive(pipe) for pipe in pipes] == ["open"] * PROCESSES
        with _open(url) as deployment:
            yield Course(deployment, pipes)


def _end(process: BaseProcess, pipe: Connection) -> None:
    with suppress(OSError):  # it may be gone already
        pipe.send(None)
    pipe.close()
    process.join(10)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()
