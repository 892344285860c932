"""Other processes that call the engine on the same store: each with a deployment of its own, many threads, one start signal."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

from engine import issuance, redemption, stock
from engine.calls import InspectRequest, IssueRequest, RedeemRequest, StockRequest, VoidRequest
from engine.deployment import Deployment
from engine.errors import PickgateError
from tests.race import shop

BOUND_S: Final = 60.0

VERBS: Final[Mapping[type, Callable[..., list[Any]]]] = {
    IssueRequest: issuance.issue,
    RedeemRequest: redemption.redeem,
    VoidRequest: issuance.void,
    StockRequest: stock.change,
}


@dataclass(frozen=True)
class Behind:
    """A redemption that comes behind some inspections of the same code.

    A void takes three trips to the store and a redemption one, so without a detour no void would ever come first.
    """

    inspections: int
    request: RedeemRequest


def ask(deployment: Deployment, request: Any) -> Any:
    """Ask the verb that a request is for; the outcome, errors included, as a value."""
    if isinstance(request, Behind):
        inspection = InspectRequest(request.request.terminal, request.request.code)
        for _ in range(request.inspections):
            redemption.inspect(deployment, [inspection])
        request = request.request
    try:
        [outcome] = VERBS[type(request)](deployment, [request])
    except PickgateError as error:
        return error
    return outcome


def work(pipe: Connection, url: str) -> None:
    """Body of a rival's process: for each batch of requests received, one thread per request, on a word of the referee."""
    with Deployment.open(url, unlock=shop.unlock) as deployment:
        pipe.send("open")
        while (requests := pipe.recv()) is not None:
            pipe.send("set")
            pipe.recv()
            pipe.send(shop.all_at_once(lambda request: ask(deployment, request), requests, bound_s=BOUND_S))


class Rivals:
    """Some processes; `race` lets them all go at once."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def race(self, requests: Sequence[Any]) -> list[Any]:
        """Deal requests to the processes in turn, let all go at once, and return the outcomes in order."""
        shares = [list(requests[n :: len(self._pipes)]) for n in range(len(self._pipes))]
        for pipe, share in zip(self._pipes, shares, strict=True):
            pipe.send(share)
        assert [_receive(pipe) for pipe in self._pipes] == ["set"] * len(self._pipes)
        for pipe in self._pipes:
            pipe.send("go")
        outcomes: list[Any] = [None] * len(requests)
        for n, pipe in enumerate(self._pipes):
            outcomes[n :: len(self._pipes)] = _receive(pipe)
        return outcomes


def _receive(pipe: Connection) -> Any:
    assert pipe.poll(BOUND_S), f"a rival did not answer within {BOUND_S:g} s"
    return pipe.recv()


@contextmanager
def rivals(url: str, processes: int) -> Iterator[Rivals]:
    """Start processes on the store at `url`; they are ended with the context."""
    # Spawned, never forked: this process has threads and open connections.
    spawning = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pipes = []
        for _ in range(processes):
            ours, theirs = spawning.Pipe()
            process = spawning.Process(target=work, args=(theirs, url), daemon=True)
            process.start()
            theirs.close()
            stack.callback(_end, process, ours)
            pipes.append(ours)
        assert [_receive(pipe) for pipe in pipes] == ["open"] * processes
        yield Rivals(pipes)


def _end(process: BaseProcess, pipe: Connection) -> None:
    with suppress(OSError):  # it may be gone already
        pipe.send(None)
    pipe.close()
    process.join(10)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()
