"""Whether the hot lane works with the grpcio that is installed: tried before the server starts, on a server to throw away.

The lane stands on parts of grpcio that nobody has promised to keep (server.hotlane). So real calls go through a lane on a unix
socket first, and what the server depends on is looked at: the bytes of an answer, the details of an error, deadline and metadata
of a call, a call that is cancelled while it is decided, an orderly stop. If anything is not as it should be the reason is logged
and the ordinary handlers serve everything: slower, and right.
"""

from __future__ import annotations

import functools
import logging
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_status import rpc_status

from engine.errors import Exhausted
from server import bounds
from server.batches import Blocking, Outcome, Sorted

if TYPE_CHECKING:
    from server.hotlane import Arrival, Lane

_log = logging.getLogger(__name__)

_METHOD: Final = "/pickgate.lane.Check/Call"
_REFUSED: Final = "refused"
_HELD: Final = "held"
_METADATA: Final = ("pickgate-check", "seen")
_DEADLINE_ERROR_S_MAX: Final = 1.0


class CheckFailed(Exception):
    """The lane did something else than it should; the message says what."""


@functools.cache
def find() -> type[Lane] | None:
    """The lane, if it works here; else None, with the reason in the log. Tried once for each process."""
    try:
        # Here, and not above: with another grpcio the import itself may fail.
        from server.hotlane import Lane

        trouble = _trouble(Lane)
    except Exception as error:
        trouble = f"{type(error).__name__}: {error}"
    if trouble:
        _log.warning(
            "the hot lane does not work with grpcio %s, ordinary handlers serve all methods, at a fraction of the rate: %s",
            grpc.__version__,
            trouble,
        )
        return None
    return Lane


def _trouble(lane: type[Lane]) -> str:
    """Why the lane can't be used; '' if it can. Returns in time, whatever the lane does."""
    found: list[str] = []

    def check() -> None:
        try:
            try_out(lane)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        else:
            found.append("")

    # In a thread that can be left behind: the lane may wait for ever for what doesn't come.
    thread = threading.Thread(target=check, name="pickgate-lane-check", daemon=True)
    thread.start()
    thread.join(bounds.LANE_CHECK_S_MAX)
    return found[0] if found else f"the check did not end within {bounds.LANE_CHECK_S_MAX:g} s"


class _Echo(Blocking):
    """A method that answers with its request, refuses, or holds a call until it may go on."""

    def __init__(self) -> None:
        self.holds = threading.Event()
        self.go_on = threading.Event()

    def sort(self, batch: Sequence[bytes], grants: object = ()) -> list[Sorted | Outcome]:
        return [Sorted(0, data) for data in batch]

    def decide(self, owner: int, batch: Sequence[Any]) -> list[Outcome]:
        return [self._one(data) for data in batch]

    def _one(self, data: bytes) -> Outcome:
        if data == _REFUSED.encode():
            return Exhausted(_REFUSED)
        if data == _HELD.encode():
            self.holds.set()
            self.go_on.wait(bounds.LANE_CHECK_S_MAX)
        return data


def try_out(lane: type[Lane]) -> None:
    """Make real calls through a lane on a unix socket of its own. Raises CheckFailed, and what the lane raises."""
    seen: list[tuple[float, Sequence[tuple[str, str | bytes]], str]] = []

    def admit(call: Arrival) -> None:
        if call.certificate() is not None:
            raise CheckFailed("a caller without a certificate was seen with one")
        seen.append((call.deadline_s, call.metadata(), call.peer()))

    with tempfile.TemporaryDirectory(prefix="pg-") as folder, ThreadPoolExecutor(1) as pool:
        address = f"unix:{Path(folder) / 's'}"
        echo = _Echo()
        server = grpc.server(pool)
        tried = lane(server, {_METHOD: echo}, admit=admit)
        server.add_insecure_port(address)
        server.start()
        try:
            tried.start()
            # A pool of its own: channels to one address share connections otherwise.
            with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                call = channel.unary_unary(_METHOD, None, None)
                _check_answer(call)
                _check_refusal(call)
                _check_headers(call, seen)
                _check_cancelled(call, echo)
        finally:
            stopped = server.stop(0).wait(bounds.LANE_CHECK_S_MAX)
        if not stopped:
            raise CheckFailed("the server did not stop")
        tried.stop()
        if tried.open_calls:
            raise CheckFailed(f"{tried.open_calls} calls of {tried.calls} are still open after the stop")


def _check_answer(call: Any) -> None:
    sent = bytes(range(256))
    answer = call(sent, timeout=bounds.LANE_CHECK_S_MAX)
    if answer != sent:
        raise CheckFailed(f"{len(sent)} bytes came back as {len(answer)} others")


def _check_refusal(call: Any) -> None:
    try:
        call(_REFUSED.encode(), timeout=bounds.LANE_CHECK_S_MAX)
    except grpc.RpcError as error:
        told: Any = error
    else:
        raise CheckFailed("an error came back as an answer")
    # Raises ValueError for details that are not of this status.
    rich = rpc_status.from_call(told)
    if told.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or told.details() != _REFUSED or rich is None:
        raise CheckFailed(f"an error came back as {told.code()} without its details")
    if len(rich.details) != 2:
        raise CheckFailed(f"an error came back with {len(rich.details)} details, not 2")


def _check_headers(call: Any, seen: list[tuple[float, Sequence[tuple[str, str | bytes]], str]]) -> None:
    seen.clear()
    deadline_s = time.time() + bounds.LANE_CHECK_S_MAX
    call(b"", timeout=bounds.LANE_CHECK_S_MAX, metadata=[_METADATA])
    ((seen_s, metadata, peer),) = seen
    if abs(seen_s - deadline_s) > _DEADLINE_ERROR_S_MAX:
        raise CheckFailed(
            f"a deadline in {bounds.LANE_CHECK_S_MAX:g} s was seen {seen_s - deadline_s:g} s off"
        )
    if _METADATA not in metadata:
        raise CheckFailed("the metadata of a call was not seen")
    if not peer.startswith("unix:"):
        raise CheckFailed("the peer of a call was not seen")


def _check_cancelled(call: Any, echo: _Echo) -> None:
    held = call.future(_HELD.encode(), timeout=bounds.LANE_CHECK_S_MAX)
    try:
        if not echo.holds.wait(bounds.LANE_CHECK_S_MAX):
            raise CheckFailed("a call was not decided")
        held.cancel()
    finally:
        echo.go_on.set()
    _check_answer(call)
