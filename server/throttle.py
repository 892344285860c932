"""Slow-down of whoever keeps presenting forged codes or wrong PINs: by terminal, by store, by address.

A clerk scans a payment code now and then, and mistypes a serial; a forger tries thousands. So each has room for some bad answers at
once and some a minute (GCRA, the generic cell rate algorithm: ITU-T I.371, annex A). Whoever exceeds it is answered
RESOURCE_EXHAUSTED, with the time to wait, before anything is done for the call; nothing of it is judged or stored. Who goes on all
the same is told once an hour, in one line of the log. Everything else is counted, not logged.

Only bad answers cost anything: the verdict is read off the answer's first two bytes, and requests are looked into only while
somebody is slowed down. What exceeds a terminal's room is not counted against its store, nor a store's against its address: one
terminal can't close a store.

Each process counts for itself: with N workers there is up to N times the room. Mall, store and terminal are those of the request;
where callers are known they are the caller's own.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from engine.errors import SlowDown
from engine.verdict import RedeemVerdict
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from server import bounds, statuses
from server.handlers import Behaviour, WrappedHandlers

_log = logging.getLogger(__name__)

Key: TypeAlias = tuple[Any, ...]
"""("terminal", mall, store, terminal), ("store", mall, store) or ("address", address)."""


class Rate(NamedTuple):
    """How many bad answers are let pass."""

    burst: int
    """At once."""
    per_minute: int

    @property
    def gap_s(self) -> float:
        """Seconds that one bad answer costs."""
        return 60.0 / self.per_minute


RATES: Final[Mapping[str, Mapping[str, Rate]]] = {
    "forged": {
        "terminal": Rate(20, 20),
        "store": Rate(100, 100),
        "address": Rate(600, 600),
    },
    # A PIN that is wrong three times locks its code; this is for who tries one code after the other.
    "tries": {
        "terminal": Rate(10, 10),
        "store": Rate(50, 50),
        "address": Rate(300, 300),
    },
}
"""By what was bad, and by whom. An address may be that of a whole chain behind one router."""

_TRIES: Final = frozenset(
    {RedeemVerdict.PIN_WRONG.number, RedeemVerdict.PROOF_REJECTED.number, RedeemVerdict.LOCKED.number}
)
BAD: Final = frozenset(
    # Field 1, the verdict, as a varint: how every answer of redeem and inspect begins.
    bytes((0x08, number))
    for number in (RedeemVerdict.INVALID_CODE.number, *_TRIES)
)
"""What a bad answer begins with."""
_REQUESTS: Final[Mapping[str, Any]] = {
    "Redeem": redemption_pb.RedeemRequest,
    "Inspect": redemption_pb.InspectRequest,
    "RedeemBatch": redemption_pb.RedeemBatchRequest,
}
"""The methods that are looked at, by name."""


def _slow_down(level: str, wait_s: float) -> SlowDown:
    return SlowDown(
        f"too many codes that are not genuine, or wrong PINs, from this {level}: wait {max(1, round(wait_s))} s",
        wait_ms=max(1, round(wait_s * 1000)),
    )


@dataclass(slots=True)
class _Kept:
    """What is known of one key."""

    free_at_s: float
    """When all its bad answers are paid off: GCRA's theoretical arrival time."""
    bad: int = 0
    refused: int = 0
    since_s: float = 0.0
    told_s: float = float("-inf")


class Throttle:
    """Counts bad answers and refuses who has too many; for many threads.

    Args:
        monotonic_s: the clock.
        alert: takes the one line about somebody who goes on.
    """

    def __init__(
        self,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        alert: Callable[[str], None] | None = None,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._alert = alert if alert is not None else _log.warning
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Key], _Kept] = OrderedDict()
        self._slowed: dict[Key, tuple[float, _Kept]] = {}
        """Until when who is refused."""
        self._alerted_s: list[float] = []
        self.slowing = False
        """Whether anybody is slowed down: else there is no need to look at a call."""
        self.figures = dict.fromkeys(("forged", "tries", "slowed", "alerts"), 0)
        """Bad answers of each kind, calls refused, alerts."""

    # --- a call comes -------------------------------------------------------------------------------------------
    def refusal(self, method: str, message: bytes, peer: Callable[[], str]) -> SlowDown | None:
        """The error that a call is refused with, if its caller is slowed down. To be asked while `slowing`."""
        terminals = list(_terminals(method, message))
        if not terminals:
            return None
        now_s = self._monotonic_s()
        with self._lock:
            for terminal, _ in terminals:
                for key in _keys(terminal, peer):
                    until_s, kept = self._slowed.get(key, (0.0, None))
                    if kept is None:
                        continue
                    if until_s > now_s:
                        self.figures["slowed"] += 1
                        kept.refused += 1
                        self._tell(key, kept, now_s)
                        return _slow_down(key[0], until_s - now_s)
                    del self._slowed[key]
                    self.slowing = bool(self._slowed)
        return None

    # --- an answer goes -----------------------------------------------------------------------------------------
    def note(self, method: str, message: bytes, answer: bytes, peer: Callable[[], str]) -> None:
        """Count an answer that begins as one of BAD does, or one of a batch."""
        asked = list(_terminals(method, message))
        if not asked:
            return
        if method == "RedeemBatch":
            outcomes = redemption_pb.RedeemBatchResponse.FromString(answer).outcomes
            verdicts = [outcome.response.verdict for outcome in outcomes]
        else:
            verdicts = [answer[1]]  # type: ignore[list-item]  # the enum's number
        now_s = self._monotonic_s()
        with self._lock:
            for (terminal, tries), verdict in zip(asked, verdicts, strict=False):
                if verdict == RedeemVerdict.INVALID_CODE.number:
                    self._count("forged", terminal, peer, now_s)
                elif verdict in _TRIES and tries:
                    self._count("tries", terminal, peer, now_s)

    def _count(self, kind: str, terminal: Key, peer: Callable[[], str], now_s: float) -> None:
        self.figures[kind] += 1
        for key in _keys(terminal, peer):
            rate = RATES[kind][key[0]]
            kept = self._kept.get((kind, key))
            if kept is None:
                kept = self._kept[kind, key] = _Kept(now_s, since_s=now_s)
                if len(self._kept) > bounds.THROTTLED_MAX:
                    self._forget()
            else:
                self._kept.move_to_end((kind, key))
            if kept.free_at_s <= now_s:
                kept.free_at_s, kept.bad, kept.refused, kept.since_s = now_s, 0, 0, now_s
            kept.bad += 1
            room_s = rate.burst * rate.gap_s
            kept.free_at_s = min(kept.free_at_s + rate.gap_s, now_s + room_s + bounds.SLOW_DOWN_S_MAX)
            if kept.free_at_s - now_s > room_s:
                self._slowed[key] = (kept.free_at_s - room_s, kept)
                self.slowing = True
                return  # no more of it is counted against those around

    def _forget(self) -> None:
        """Drop what was looked at longest ago."""
        (_, key), _ = self._kept.popitem(last=False)
        self._slowed.pop(key, None)
        self.slowing = bool(self._slowed)

    def _tell(self, key: Key, kept: _Kept, now_s: float) -> None:
        """One line about who goes on although it is refused; not again for an hour, and not of everybody in a wide attack."""
        if kept.refused < bounds.ALERT_REFUSALS or now_s - kept.told_s < bounds.ALERT_AGAIN_S:
            return
        kept.told_s = now_s
        self.figures["alerts"] += 1
        self._alerted_s = [at_s for at_s in self._alerted_s if now_s - at_s < bounds.ALERT_AGAIN_S]
        if len(self._alerted_s) >= bounds.ALERTS_PER_HOUR_MAX:
            return
        self._alerted_s.append(now_s)
        self._alert(
            f"ALERT: {_named(key)}: {kept.bad} forged codes or wrong PINs within {now_s - kept.since_s:.0f} s, and it goes on; "
            f"{kept.refused} calls were refused since. See who is there; suspend the terminal if it is lost or misused"
        )

    def statistics(self) -> dict[str, int]:
        """Figures since the start, and how many callers are kept and slowed down now."""
        return {**self.figures, "kept": len(self._kept), "slowing": len(self._slowed)}


def _terminals(method: str, message: bytes) -> Iterator[tuple[Key, bool]]:
    """Who presents a code in a request, and whether with a PIN or a proof; nothing for other methods, and what is no request."""
    kind = _REQUESTS.get(method)
    if kind is None:
        return
    try:
        request = kind.FromString(message)
    except DecodeError:
        return
    for one in request.requests if method == "RedeemBatch" else (request,):
        terminal = one.terminal
        tries = method != "Inspect" and bool(one.pin or one.proof_token)
        yield (terminal.mall_id, terminal.store_id, terminal.terminal_id), tries


def _keys(terminal: Key, peer: Callable[[], str]) -> Iterator[Key]:
    """From the narrowest to the widest. An address of this machine is a proxy's or a trial's, and everybody's."""
    yield ("terminal", *terminal)
    yield ("store", *terminal[:2])
    address = _address(peer())
    if address:
        yield ("address", address)


def _address(peer: str) -> str:
    """The address in what gRPC calls a peer ("ipv4:10.0.0.7:41234", "ipv6:%5B::1%5D:41234"); "" for one of this machine.

    Of IPv6 the first 64 bits: a network's; everybody there has the rest to choose from.
    """
    scheme, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    if address.is_loopback or scheme == "unix":
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return host


def _named(key: Key) -> str:
    if key[0] == "terminal":
        return f"terminal {key[3]} of store {key[2]}, mall {key[1]}"
    return f"store {key[2]}, mall {key[1]}" if key[0] == "store" else f"address {key[1]}"


class ThrottledHandlers(WrappedHandlers):
    """The same for the ordinary handlers: those of redeem, inspect and redeem in batches."""

    def __init__(self, throttle: Throttle) -> None:
        super().__init__()
        self._throttle = throttle

    def _concerns(self, path: str) -> bool:
        service, _, method = path.rpartition("/")
        return method in _REQUESTS and service.endswith(".RedemptionService")

    def _wrapped(self, path: str, behaviour: Behaviour) -> Behaviour:
        throttle, method = self._throttle, path.rpartition("/")[2]

        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            if throttle.slowing:
                refusal = throttle.refusal(method, data, context.peer)
                if refusal is not None:
                    context.abort_with_status(
                        rpc_status.to_status(statuses.rich_status(statuses.tell(refusal)))
                    )
            answer = behaviour(data, context)
            if answer[:2] in BAD or method == "RedeemBatch":
                throttle.note(method, data, answer, context.peer)
            return answer

        return handle
