"""What the hot lane asks the engine: wire bytes in, wire bytes or an error out, a batch at a time.

Each method has two steps. `sort` is pure: it opens and checks each request by itself and says which partition owner decides it.
`decide` talks to the store: it takes what was sorted to one owner, as one batch. Between the two a call waits in its owner's
queue, see server.owners. Which methods there are is in server.lane_methods.

What a call means, and the bytes of its answer, are those of the ordinary handlers (server.services); a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

Outcome: TypeAlias = bytes | Exception
"""The answer of one call on the wire; or its error, anything but a PickgateError being a defect."""


class Sorted(NamedTuple):
    """A request that is in order: which owner decides it, and what `decide` needs of it."""

    owner: int
    """0 .. owners - 1."""
    prepared: Any


class Method(Protocol):
    """One method of the lane."""

    def sort(self, batch: Sequence[bytes]) -> Sequence[Sorted | Outcome]:
        """Open and check requests, in order: one result for each, an answer or an error where there is nothing to decide.

        Never waits for anything. Raises PickgateError for all of them.
        """

    def decide(self, owner: int, batch: Sequence[Any]) -> Sequence[Outcome]:
        """Decide what was sorted to `owner`, at most limits.BATCH_MAX, in order: one outcome for each.

        May wait for the store, as long as its timeout. Raises PickgateError for all of them.
        """
