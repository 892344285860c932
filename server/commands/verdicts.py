"""How commands show a verdict, and what it makes of their exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from rich.console import Console as RichConsole
from rich.markup import escape

from engine.verdict import Verdict
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import CallFailed
from server.console import EXIT_OK, EXIT_REFUSED, EXIT_UNAVAILABLE, Console, moment
from server.plain import plain

Asked = TypeVar("Asked", code_pb.IssueRequest, redemption_pb.RedeemRequest)
Outcome = TypeVar("Outcome", code_pb.IssueOutcome, redemption_pb.RedeemOutcome)

_NOT_DECIDED: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""The same request with the same request id may be decided later."""
_RETRY_MS: Final = 1_000
"""When: the client has tried for a while already."""

_ENUMS: Final[dict[str, type[Verdict]]] = {kind.__name__: kind for kind in Verdict.__subclasses__()}


def verdict_of(response: Message) -> Verdict:
    """The engine's verdict that a response carries."""
    enum = response.DESCRIPTOR.fields_by_name["verdict"].enum_type
    assert enum is not None
    number = getattr(response, "verdict")  # noqa: B009 - not every message has one
    return next(verdict for verdict in _ENUMS[enum.name] if verdict.number == number)


def exit_code(responses: Sequence[Message]) -> int:
    """0 if all did what was asked, 1 if any refused."""
    return EXIT_OK if all(verdict_of(response).success for response in responses) else EXIT_REFUSED


def batch_exit_code(outcomes: Sequence[Any]) -> int:
    """The exit code of a batch whose items have a response or an error each: 3 if one was not decided, else 1 if one was refused."""
    errors = [outcome.error for outcome in outcomes if outcome.HasField("error")]
    if any(error.retry_after_ms for error in errors):
        return EXIT_UNAVAILABLE
    if errors:
        return EXIT_REFUSED
    return exit_code([outcome.response for outcome in outcomes])


def in_batches(
    requests: Sequence[Asked],
    items_max: int,
    decide: Callable[[Sequence[Asked]], Sequence[Outcome]],
    outcome: type[Outcome],
) -> list[Outcome]:
    """Ask for requests of a file, some at a time: one outcome each. What was decided is not lost because a later call fails.

    decide: asks for at most items_max of them, and raises CallFailed. Raised on when it's the first call that fails, and for good.
    """
    outcomes: list[Outcome] = []
    for start in range(0, len(requests), items_max):
        try:
            outcomes += decide(requests[start : start + items_max])
        except CallFailed as error:
            again = error.code in _NOT_DECIDED
            if not outcomes and not again:
                raise
            failed = types_pb.ItemError(
                reason=error.reason or error.code.name,
                message=error.message,
                field=error.field,
                retry_after_ms=_RETRY_MS if again else 0,
            )
            # Those behind it were not sent: what fails once would most likely fail again.
            outcomes += [outcome(error=failed) for _ in requests[start:]]
            break
    return outcomes


def plain_outcomes(requests: Sequence[Any], outcomes: Sequence[Any]) -> list[dict[str, Any]]:
    """The outcomes of a batch for machines, each with the id under which it can be asked for again."""
    return [
        plain(outcome) | ({"request_id": request.request_id} if outcome.HasField("error") else {})
        for request, outcome in zip(requests, outcomes, strict=True)
    ]


def headline(rich: RichConsole, response: Message) -> None:
    """Print a verdict and its sentences."""
    verdict = verdict_of(response)
    colour = "green" if verdict.success else "red"
    rich.print(f"[bold {colour}]{verdict.slug}[/]  {escape(getattr(response, 'message_zh'))}")  # noqa: B009
    rich.print(f"  {escape(getattr(response, 'message_en'))}")  # noqa: B009


def facts(rich: RichConsole, response: Message) -> None:
    """Print what else a response says, one fact in a line; what is not set is left out."""
    for name, value in plain(response).items():
        if name in ("verdict", "message_zh", "message_en", "next_step", "payloads", "code"):
            continue
        if shown := _shown(name, value):
            rich.print(f"  {name.removesuffix('_ms'):<16} {escape(shown)}")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(name, item) for item in value)
    if isinstance(value, dict):
        return " ".join(
            f"{key} ({_shown(key, item)})" if isinstance(item, list) else f"{key} {item}"
            for key, item in value.items()
        )
    if name.endswith("_ms"):
        return moment(value)
    return "" if value in (0, "", False) and name not in ("tries_left", "distance_bucket") else str(value)


def conclude(console: Console, response: Message) -> None:
    """Print a response with a verdict, and end with its exit code."""

    def show(rich: RichConsole) -> None:
        headline(rich, response)
        facts(rich, response)

    console.emit(plain(response), show)
    sys.exit(exit_code([response]))
