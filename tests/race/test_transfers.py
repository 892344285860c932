"""Units on their way between stores of different partitions: against redemptions and orders, and cut off in the middle."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any

import pytest

from engine import expiry, issuance, stock
from engine.calls import IssueRequest, RedeemRequest, TransferRequest
from engine.claims import Line, Suite, Version
from engine.deployment import Deployment, Durability
from engine.idempotency import request_digest
from engine.state.connection import Call
from engine.state.events import EventType
from engine.state.keys import partition_of_store
from engine.verdict import IssueVerdict, RedeemVerdict, TransferVerdict
from tests.race.books import check_books
from tests.race.heats import CALLERS, HEATS, SWEEP, Caller, Course, clock_ms, receive
from tests.race.shop import MALL, OTHER_STORE, PARTITIONS, STORE, sound, terminal, unlock

pytestmark = pytest.mark.race


def transfer_request(
    course: Course, sku: int, units: int, *, there: int = OTHER_STORE, here: int = STORE
) -> TransferRequest:
    return TransferRequest(MALL, course.request_id(), here, there, sku, units)


def issue_request(course: Course, sku: int, *, store_id: int = STORE) -> IssueRequest:
    return IssueRequest(
        MALL, course.request_id(), store_id, "order", (Line(sku, 1),), Version.DYNAMIC, Suite.AES
    )


def on_both(course: Course, sku: int) -> int:
    """Units of a SKU on hand in both stores."""
    return sum(course.figures(sku, store_id=store_id).on_hand for store_id in (STORE, OTHER_STORE))


def test_the_stores_lie_in_different_partitions() -> None:
    assert partition_of_store(STORE, PARTITIONS) != partition_of_store(OTHER_STORE, PARTITIONS)


def test_transfer_against_redeem(course: Course, runs: int) -> None:
    """Four codes, two units that nobody has claimed: the codes are all served, and exactly those two units leave."""
    for _ in range(runs):
        skus = [course.sku(6) for _ in range(HEATS)]
        requests = [issue_request(course, sku) for sku in skus for _ in range(4)]
        made = [sound(answer) for answer in issuance.issue(course.deployment, requests)]
        texts = course.show(made)
        heats = []
        for heat, sku in enumerate(skus):
            shown = texts[4 * heat : 4 * heat + 4]
            callers = [
                Caller("redeem", RedeemRequest(terminal(n), course.request_id(), text), course.behind(3))
                for n, text in enumerate(shown, 1)
            ]
            heats.append(
                callers + [Caller("transfer", transfer_request(course, sku, 1)) for _ in range(CALLERS - 4)]
            )
        before = [(course.figures(sku), on_both(course, sku)) for sku in skus]
        found = course.run(heats)
        for sku, (start, both), outcomes in zip(skus, before, found, strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            assert {answer.verdict for answer in answers[:4]} == {RedeemVerdict.REDEEMED}
            assert Counter(answer.verdict for answer in answers[4:]) == {
                TransferVerdict.TRANSFERRED: 2,
                TransferVerdict.STOCK_SHORT: CALLERS - 6,
            }
            end = course.figures(sku)
            assert (start.on_hand - end.on_hand, start.reserved - end.reserved) == (6, 4)
            assert both - on_both(course, sku) == 4
    assert not check_books(course.deployment).transit


def test_transfer_against_issue(course: Course, runs: int) -> None:
    """Five units that nobody has claimed are promised to five orders, or sent away, or some of each."""
    sent: Counter[int] = Counter()
    for _ in range(runs):
        skus = [course.sku(5) for _ in range(HEATS)]
        heats = [
            [
                *[Caller("transfer", transfer_request(course, sku, 1), course.behind(1)) for _ in range(6)],
                *[Caller("issue", issue_request(course, sku), course.behind(1)) for _ in range(6)],
            ]
            for sku in skus
        ]
        before = [(course.figures(sku), on_both(course, sku)) for sku in skus]
        for sku, (start, both), outcomes in zip(skus, before, course.run(heats), strict=True):
            verdicts = [sound(outcome).verdict for outcome in outcomes]
            left = verdicts.count(TransferVerdict.TRANSFERRED)
            promised = verdicts.count(IssueVerdict.ISSUED)
            assert left + promised == 5
            assert Counter(verdicts)[TransferVerdict.STOCK_SHORT] == 6 - left
            assert Counter(verdicts)[IssueVerdict.STOCK_SHORT] == 6 - promised
            end = course.figures(sku)
            assert (start.on_hand - end.on_hand, end.reserved - start.reserved) == (left, promised)
            assert on_both(course, sku) == both
            sent[left] += 1
    assert not check_books(course.deployment).transit
    assert len(sent) > 2, f"every heat went the same way: {sent}"


def test_transfers_that_cross(course: Course, runs: int) -> None:
    """Units go to and fro at once: none is lost or made, whoever was short for a moment."""
    for _ in range(runs):
        skus = [course.sku(3) for _ in range(HEATS)]
        for sku in skus:
            course.count((sku, course.figures(sku, store_id=OTHER_STORE).reserved + 3), store_id=OTHER_STORE)
        heats = [
            [
                Caller(
                    "transfer",
                    transfer_request(course, sku, 2, there=OTHER_STORE, here=STORE)
                    if n % 2
                    else transfer_request(course, sku, 2, there=STORE, here=OTHER_STORE),
                )
                for n in range(CALLERS)
            ]
            for sku in skus
        ]
        before = [(course.figures(sku), on_both(course, sku)) for sku in skus]
        for sku, (start, both), outcomes in zip(skus, before, course.run(heats), strict=True):
            verdicts = [sound(outcome).verdict for outcome in outcomes]
            away = verdicts[1::2].count(TransferVerdict.TRANSFERRED)
            back = verdicts[0::2].count(TransferVerdict.TRANSFERRED)
            assert course.figures(sku).on_hand == start.on_hand + 2 * (back - away)
            assert on_both(course, sku) == both
            assert away + back >= 2
    assert not check_books(course.deployment).transit


# --- cut off ----------------------------------------------------------------------------------------------------------
class Died(Exception):
    """The process of a transfer is no more."""


class Cut:
    """A deployment's connection that carries so many writes, then dies with its process."""

    def __init__(self, connection: Any, writes: int) -> None:
        self._connection = connection
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def run(self, calls: Sequence[Call]) -> list[Any]:
        if not self._writes:
            raise Died
        self._writes -= 1
        outcomes: list[Any] = self._connection.run(calls)
        return outcomes


def cut_off(deployment: Deployment, request: TransferRequest, writes: int) -> None:
    """Begin a transfer and let it die behind so many writes: the id registered, the units out, the units in."""
    connection: Any = Cut(deployment.connection, writes)
    with pytest.raises(Died):
        stock.transfer(Deployment(connection, deployment.constants, deployment.control), [request])


@pytest.mark.parametrize(("writes", "name"), [(1, "registered"), (2, "out"), (3, "in")])
def test_cut_transfer_completed_from_many_sides(course: Course, runs: int, writes: int, name: str) -> None:
    """Sweeps of several processes and retries of the caller bring the units in, once, while codes take them away."""
    expected = []
    for _ in range(runs):
        skus = [course.sku(2) for _ in range(HEATS)]
        before = [(course.figures(sku), course.figures(sku, store_id=OTHER_STORE)) for sku in skus]
        requests = [transfer_request(course, sku, 2) for sku in skus]
        for sku, request, (start, _) in zip(skus, requests, before, strict=True):
            cut_off(course.deployment, request, writes)
            gone = 2 if writes > 1 else 0
            assert course.figures(sku).on_hand == start.on_hand - gone
        waiting = check_books(course.deployment).transit
        assert len(waiting) == (HEATS if name == "out" else 0)
        expected += [request_digest(f"mall:{MALL}", "transfer", request.request_id) for request in requests]
        heats = [
            [
                *[Caller(SWEEP)] * 4,
                *[Caller("transfer", request, course.behind(3)) for _ in range(4)],
                *[
                    Caller("transfer", transfer_request(course, sku, 1, there=STORE, here=OTHER_STORE), 2)
                    for _ in range(2)
                ],
            ]
            for sku, request in zip(skus, requests, strict=True)
        ]
        for sku, (start, there), outcomes in zip(skus, before, course.run(heats), strict=True):
            retries = [sound(outcome) for outcome in outcomes[4:8]]
            assert {answer.verdict for answer in retries} == {TransferVerdict.TRANSFERRED}
            assert len({answer.event for answer in retries}) == 1
            assert sum(not answer.replayed for answer in retries) == (writes == 1)
            back = sum(sound(outcome).verdict is TransferVerdict.TRANSFERRED for outcome in outcomes[8:])
            assert course.figures(sku).on_hand == start.on_hand - 2 + back
            assert course.figures(sku, store_id=OTHER_STORE).on_hand == there.on_hand + 2 - back
    books = check_books(course.deployment)
    assert not books.transit
    sent = Counter((event.request, event.type) for event in books.events)
    for digest in expected:
        assert sent[digest, EventType.TRANSFER_OUT] == sent[digest, EventType.TRANSFER_IN] == 1


def send_without_end(pipe: Pipe, url: str, name: str) -> None:
    """Body of a process that moves single units to and fro until it is killed."""
    with Deployment.open(url, unlock=unlock, durability=Durability.MEMORY, now_ms=clock_ms) as deployment:
        sku: int = pipe.recv()
        n = 0
        while True:
            n += 1
            # A machine with more to do than it can may keep the watching thread from its copy for seconds.
            deployment.control.refresh()
            here, there = (STORE, OTHER_STORE) if n % 2 else (OTHER_STORE, STORE)
            [answer] = stock.transfer(
                deployment, [TransferRequest(MALL, f"{name}-{n:08}", here, there, sku, 1)]
            )
            assert sound(answer).verdict.success
            if n == 3:
                pipe.send("going")


def test_senders_killed_in_the_middle(course: Course, course_url: str, runs: int) -> None:
    """Processes killed while they move units: what they had sent arrives by the next sweep, and no unit is missing."""
    turns = 3 * runs
    # Whoever is killed leaves at most one unit more at the other store than was there before.
    sku = course.sku(50 + 3 * turns)
    course.count((sku, 50), store_id=OTHER_STORE)
    both = on_both(course, sku)
    interrupted = 0
    spawning = multiprocessing.get_context("spawn")
    for turn in range(turns):
        processes = []
        for n in range(3):
            ours, theirs = spawning.Pipe()
            process = spawning.Process(
                target=send_without_end, args=(theirs, course_url, f"killed-{turn}-{n}"), daemon=True
            )
            process.start()
            theirs.close()
            processes.append((process, ours))
        for _, ours in processes:
            ours.send(sku)
        for process, ours in processes:
            assert receive(ours) == "going"
            process.kill()
        for process, ours in processes:
            process.join()
            assert process.exitcode == -signal.SIGKILL
            process.close()
            ours.close()
        waiting = check_books(course.deployment).transit
        interrupted += len(waiting)
        assert on_both(course, sku) == both - len(waiting)
        expiry.sweep(course.deployment)
        assert on_both(course, sku) == both
    assert not check_books(course.deployment).transit
    connection = course.deployment.connection
    assert not any(connection.read([("HLEN", names.transit) for names in connection.partitions]))
    if runs > 1:
        assert interrupted, "no process was ever killed between out and in"
