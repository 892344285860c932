"""The methods of the hot lane: redeem and inspect in columns (server.hot), issue and render through the messages' objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from google.protobuf.message import Message

from engine import calls, issuance, limits
from engine.claims import partition_of
from engine.deployment import Deployment
from engine.errors import PickgateError
from pickgate.v1 import code_service_pb2 as code_pb
from server import hot, roles, translate
from server.batches import Blocking, Method, Outcome, Sorted
from server.roles import Grant


class _Verb(Blocking):
    """A method that hands a batch of checked requests to one verb of the engine.

    Args:
        deployment: open.
        message: the request on the wire.
        read: makes a request of the engine of it; raises PickgateError.
        decide: asks the engine; one outcome for each request.
        partitions: those that a request needs.
        weigh: how many items of work a request is; None: one.
    """

    def __init__(
        self,
        deployment: Deployment,
        message: type[Message],
        read: Callable[[Any], Any],
        decide: Callable[[Deployment, Sequence[Any]], list[Outcome]],
        partitions: Callable[[Deployment, Any], Iterable[int]],
        weigh: Callable[[Any], int] | None = None,
    ) -> None:
        self._deployment = deployment
        self._message = message
        self._read = read
        self._decide = decide
        self._partitions = partitions
        self.weigh = weigh

    def sort(self, batch: Sequence[bytes], grants: Sequence[Grant | None] = ()) -> list[Sorted | Outcome]:
        """See Method."""
        return [
            self._sorted(data, given)
            for data, given in zip(batch, grants or (None,) * len(batch), strict=True)
        ]

    def _sorted(self, data: bytes, given: Grant | None) -> Sorted | Outcome:
        try:
            message = translate.parse(self._message, data, limits.MESSAGE_BYTES_MAX)
            roles.enter(given, message, self._deployment.control.store)
            request = self._read(message)
            connection = self._deployment.connection
            # With one owner there is nothing to look for.
            several = connection.owners > 1
            return Sorted(
                connection.owner_of_all(self._partitions(self._deployment, request)) if several else 0,
                request,
            )
        except Exception as error:
            return error

    def decide(self, owner: int, batch: Sequence[Any]) -> list[Outcome]:
        """See Method."""
        return self._decide(self._deployment, batch)


def _partitions_of_render(deployment: Deployment, request: calls.RenderRequest) -> Iterable[int]:
    partition = partition_of(request.uid)
    return (partition if partition < len(deployment.connection.partitions) else 0,)


def _issue(deployment: Deployment, batch: Sequence[Any]) -> list[Outcome]:
    answers = issuance.issue(deployment, batch)
    return [
        _written(answer, translate.issue_response, request.request_id, answer)
        for request, answer in zip(batch, answers, strict=True)
    ]


def _render(deployment: Deployment, batch: Sequence[Any]) -> list[Outcome]:
    return [_rendered(deployment, answer) for answer in issuance.render(deployment, batch)]


def _rendered(deployment: Deployment, answer: calls.RenderAnswer | PickgateError) -> Outcome:
    store_id = 0 if isinstance(answer, PickgateError) or answer.record is None else answer.record.store_id
    return _written(answer, translate.render_response, answer, _time_zone(deployment, store_id))


def _time_zone(deployment: Deployment, store_id: int) -> str:
    store = deployment.control.store(store_id)
    return translate.TIME_ZONE_DEFAULT if store is None else store.time_zone


def _written(answer: object, write: Callable[..., Message], *args: object) -> Outcome:
    """The answer on the wire; its own error, or that of writing it, stays with this call."""
    if isinstance(answer, PickgateError):
        return answer
    try:
        return write(*args).SerializeToString()
    except Exception as error:
        return error


def methods(deployment: Deployment) -> Mapping[str, Method]:
    """The methods of the lane over one deployment, by their path on the wire."""
    issue = _Verb(
        deployment, code_pb.IssueRequest, translate.issue_request, _issue, issuance.partitions_of_issue
    )
    render = _Verb(
        deployment,
        code_pb.RenderRequest,
        translate.render_request,
        _render,
        _partitions_of_render,
        # A day's worth of payloads takes longer than a hundred redemptions.
        weigh=attrgetter("count"),
    )
    return {
        "/pickgate.v1.RedemptionService/Redeem": hot.Redeem(deployment),
        "/pickgate.v1.RedemptionService/Inspect": hot.Inspect(deployment),
        "/pickgate.v1.CodeService/Issue": issue,
        "/pickgate.v1.CodeService/Render": render,
    }
