"""What the hot lane asks the engine: wire bytes in, wire bytes or an error out, a batch at a time.

Each method has two steps. `sort` opens and checks each request by itself and says which partition owner decides it. `begin`
takes what was sorted to one owner, as one batch, which then waits for the store. Between the two a call waits in its owner's
queue, see server.owners. Which methods there are is in server.lane_methods.

What calls need of the interpreter one by one, `sort` and the outcomes, is done on the lane's own thread. Two threads that both have
much to do would pass the interpreter's lock to and fro at every call into gRPC, which took longer than all the work. `begin` and
the wait are on the owner's thread, so that a batch that comes back is followed by the next at once, whatever the lane is busy with: packing
costs a twentieth of a batch's time, and the store stood idle for a third of it otherwise.

What a call means, and the bytes of its answer, are those of the ordinary handlers (server.services); a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from server.roles import Grant

Outcome: TypeAlias = bytes | Exception
"""The answer of one call on the wire; or its error, anything but a PickgateError being a defect."""


class Sorted(NamedTuple):
    """A request that is in order: which owner decides it, and what `begin` needs of it."""

    owner: int
    """0 .. owners - 1, or SEVERAL (engine.state.connection)."""
    prepared: Any


class Method(Protocol):
    """One method of the lane."""

    @property
    def weigh(self) -> Callable[[Any], int] | None:
        """How many items of work a prepared call is; None: one. A batch has hardly more than limits.BATCH_MAX of them."""

    def sort(self, batch: Sequence[bytes], grants: Sequence[Grant | None] = ()) -> Sequence[Sorted | Outcome]:
        """Open and check requests, in order: one result for each, an answer or an error where there is nothing to decide.

        grants: what each caller may do, and who it is (server.roles); none where callers are not known.
        Never waits for anything. Raises PickgateError for all of them.
        """

    def begin(self, owner: int, batch: Sequence[Any]) -> Work:
        """Make ready to decide what was sorted to `owner`, at most limits.BATCH_MAX, in order.

        On the owner's thread, and without waiting for anything. Raises PickgateError for all of them.
        """


class Work(Protocol):
    """One batch of one method on its way through the store."""

    def wait(self) -> None:
        """Ask the store, and wait for it as long as its timeout; on the owner's thread. Raises PickgateError for all."""

    def outcomes(self) -> Iterator[Outcome]:
        """What became of each call, in order; after `wait`, once, and without waiting. Raises PickgateError for all."""


class Blocking:
    """A method that makes up its mind in one go, on the owner's thread: for those that ask the store more than once."""

    weigh: Callable[[Any], int] | None = None

    def decide(self, owner: int, batch: Sequence[Any]) -> Sequence[Outcome]:
        """Decide a batch: one outcome for each call, in order. May wait. Raises PickgateError for all."""
        raise NotImplementedError

    def begin(self, owner: int, batch: Sequence[Any]) -> Work:
        """See Method."""
        return _Decision(self, owner, batch)


class _Decision:
    def __init__(self, method: Blocking, owner: int, batch: Sequence[Any]) -> None:
        self._method, self._owner, self._batch = method, owner, batch
        self._outcomes: Sequence[Outcome] = ()

    def wait(self) -> None:
        self._outcomes = self._method.decide(self._owner, self._batch)

    def outcomes(self) -> Iterator[Outcome]:
        if len(self._outcomes) != len(self._batch):
            raise AssertionError(f"{len(self._outcomes)} outcomes for {len(self._batch)} calls")
        return iter(self._outcomes)
