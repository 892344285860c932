"""Callers who mean ill or are broken, beside a moderate load of honest ones: does the server stay up, and what do the others feel?

One behaviour after the other (loadtests.behaviours), each on connections of its own, from a process of its own, so that it is not
the generator that it disturbs.
"""

from __future__ import annotations

import base64
import json
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadtests import behaviours, bounds
from loadtests.checks import Check
from loadtests.openloop import poisson_arrivals
from loadtests.runs import Run
from loadtests.stacks import ROOT, Stack, StackFailed, Usage
from loadtests.subject import Subject, Watcher
from loadtests.supply import MALL, PAYLOAD_LIFE_S
from loadtests.wire import frames
from loadtests.wire.connection import Request
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb

RENDERED: Final = 8
RENDERED_MOST: Final = 24 * 3600 // PAYLOAD_LIFE_S
"""Payloads of an answer that is not read: 0.9 KB; and as many as there may be, 14 KB."""
HEADS: Final = ("beside", "what was done", "what came back", "server's CPU", "others: REDEEMED", "p50", "p99")


@dataclass
class Part:
    """One behaviour, and the honest load beside it."""

    name: str
    did: Mapping[str, int]
    told: Mapping[str, int]
    run: Run
    cpu_share: float = 0.0
    """Of one core, used by the service without its store."""


@dataclass
class Hostile:
    """What was found."""

    seconds: float
    before: Part
    parts: list[Part] = field(default_factory=list)
    after: Part | None = None
    rss_before_bytes: int = 0
    rss_most_bytes: int = 0
    descriptors_before: int = 0
    descriptors_after: int = 0
    pids_before: Sequence[int] = ()
    pids_after: Sequence[int] = ()
    healthy: bool = False

    @property
    def runs(self) -> list[Run]:
        """Of the honest load, in order."""
        return [part.run for part in self._all]

    @property
    def _all(self) -> list[Part]:
        return [self.before, *self.parts, *([self.after] if self.after else [])]

    def checks(self) -> list[Check]:
        """What it passes and fails by."""
        planned, sent, good = (
            sum(getattr(run, name) for run in self.runs) for name in ("planned", "sent", "good")
        )
        worst = max(self.parts, key=lambda part: _p99_ms(part.run))
        p99_max_ms = bounds.HOSTILE_P99_TIMES * (_p99_ms(self.before.run) + bounds.HOSTILE_P99_SLACK_MS)
        rss_max = self.rss_before_bytes * bounds.HOSTILE_RSS_TIMES + bounds.HOSTILE_RSS_SLACK_BYTES
        share = min(1.0, self.seconds / bounds.HOSTILE_SECONDS)
        wanted = {
            "pings": bounds.HOSTILE_PINGS * share,
            "settings": bounds.HOSTILE_PINGS * share,
            "rapid resets": bounds.HOSTILE_RESETS_PER_S * self.seconds,
        }
        floods = [
            (part.name, sum(part.did.values()) - part.did["connections"])
            for part in self.parts
            if part.name in wanted
        ]
        return [
            Check("the server's processes", "the same" if self.pids_after == self.pids_before else "others",
                  "the same", self.pids_after == self.pids_before),
            Check("health afterwards", "SERVING" if self.healthy else "not SERVING", "SERVING", self.healthy),
            Check("calls of others sent as planned", f"{sent:,} of {planned:,}", "all", sent == planned),
            Check("calls of others answered REDEEMED", f"{good:,} of {sent:,}", "all", good == sent),
            Check(
                "p99 of others, most", f"{_p99_ms(worst.run):.1f} ms, beside {worst.name}", f"<= {p99_max_ms:.1f} ms",
                _p99_ms(worst.run) <= p99_max_ms,
            ),
            Check(
                "memory of the service", f"{self.rss_most_bytes / 2**20:.0f} MiB", f"<= {rss_max / 2**20:.0f} MiB",
                self.rss_most_bytes <= rss_max,
            ),
            Check(
                "descriptors afterwards", f"{self.descriptors_after}", f"<= {self.descriptors_before}",
                self.descriptors_after <= self.descriptors_before,
            ),
            *(
                Check(f"{name} sent", f"{count:,}", f">= {bounds.HOSTILE_AS_PLANNED * wanted[name]:,.0f}",
                      count >= bounds.HOSTILE_AS_PLANNED * wanted[name])
                for name, count in floods
            ),
        ]  # fmt: skip

    def rows(self) -> list[list[str]]:
        """For the table."""
        return [_row(part) for part in self._all]

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        rows = [dict(zip(HEADS, row, strict=True)) for row in self.rows()]
        own = [limit for run in self.runs if (limit := run.own_limit())]
        return {"rows": rows, "generator": own, "runs": [run.as_json() for run in self.runs]}


def _row(part: Part) -> list[str]:
    at = part.run.percentiles_ms()
    return [
        part.name,
        _listed(part.did),
        _listed(part.told),
        f"{part.cpu_share:.0%}",
        f"{part.run.good:,} of {part.run.sent:,}",
        *(f"{at.get(quantile, float('nan')):.1f} ms" for quantile in ("p50", "p99")),
    ]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _p99_ms(run: Run) -> float:
    return run.percentiles_ms().get("p99", float("inf"))


class Offender:
    """The process that misbehaves. Use it as a context manager."""

    def __init__(self, target: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.behaviours", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def begin(
        self, name: str, seconds: float, redeems: Sequence[Request], questions: Mapping[str, bytes]
    ) -> None:
        """Have it behave in one way; `redeems` and `questions` as in behaviours.Scene."""
        order = {
            "behaviour": name,
            "seconds": seconds,
            "redeems": [_text(_message(one)) for one in redeems],
            **{kind: _text(message) for kind, message in questions.items()},
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def end(self, within_s: float) -> tuple[dict[str, int], dict[str, int]]:
        """Wait until it has done; gives what it did, and what came back. Raises StackFailed if it does not end."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], within_s)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise StackFailed("the process that misbehaves has ended, or hangs; what it said stands above")
        said = json.loads(line)
        return said["did"], said["told"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _message(request: Request) -> bytes:
    return request.body[frames.GRPC_HEAD_BYTES :]


def _questions(uid: bytes, redeem: Request) -> dict[str, bytes]:
    """Calls about a code that change nothing, and may repeat, serialised."""
    asked = redemption_pb.RedeemRequest.FromString(_message(redeem))
    inspect = redemption_pb.InspectRequest(terminal=asked.terminal, code=asked.code, position=asked.position)
    few, most = (
        code_pb.RenderRequest(mall_id=MALL, uid=uid.hex(), count=count) for count in (RENDERED, RENDERED_MOST)
    )
    return {
        "inspect": inspect.SerializeToString(),
        "render": few.SerializeToString(),
        "render_long": most.SerializeToString(),
    }


def hostile(
    subject: Subject,
    rate_per_s: float = bounds.HOSTILE_RATE_PER_S,
    seconds: float = bounds.HOSTILE_SECONDS,
    names: Sequence[str] = tuple(behaviours.ALL),
) -> Hostile:
    """Honest callers at a rate, for so long beside each behaviour, and before and after them all. Raises StackFailed."""
    stack = subject.stack
    subject.open(rate_per_s, min(2.0, seconds))  # warm
    found = Hostile(seconds, _alone(subject, "nobody else", rate_per_s, seconds))
    found.pids_before, found.descriptors_before = stack.pids, stack.usage().descriptors
    with Watcher(stack) as watcher, Offender(stack.address) as offender:
        for number, name in enumerate(names):
            arrivals = poisson_arrivals(rate_per_s, seconds, number + 1)
            cancelled = (
                int(bounds.HOSTILE_CANCELLED * seconds / bounds.HOSTILE_SECONDS) if "cancel" in name else 0
            )
            subject.stock_up(len(arrivals) + cancelled + 1)
            *redeems, last = subject.spare(cancelled + 1)
            offender.begin(name, seconds, [request for _, request in redeems], _questions(*last))
            before = stack.usage()
            run = subject.open_at(arrivals, codes=0)
            told = offender.end(seconds + bounds.DRAIN_S)
            found.parts.append(Part(name, *told, run, _share(before, stack.usage())))
    found.rss_before_bytes = watcher.seen[0].rss_bytes
    found.rss_most_bytes = max(usage.rss_bytes for usage in watcher.seen)
    found.after = _alone(subject, "nobody any more", rate_per_s, seconds)
    found.healthy = _healthy(stack.address)
    found.descriptors_after = _settled(stack, found.descriptors_before)
    found.pids_after = stack.pids
    return found


def _alone(subject: Subject, name: str, rate_per_s: float, seconds: float) -> Part:
    arrivals = poisson_arrivals(rate_per_s, seconds, 0)
    subject.stock_up(len(arrivals))
    before = subject.stack.usage()
    run = subject.open_at(arrivals, codes=0)
    return Part(name, {}, {}, run, _share(before, subject.stack.usage()))


def _share(before: Usage, after: Usage) -> float:
    return (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s)


def _healthy(target: str) -> bool:
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _settled(stack: Stack, descriptors: int) -> int:
    """How many descriptors are open once it has let go of connections that are gone."""
    give_up_s = time.monotonic() + bounds.HOSTILE_SETTLE_S
    while (found := stack.usage().descriptors) > descriptors and time.monotonic() < give_up_s:
        time.sleep(0.1)
    return found
