"""A redemption from wire bytes to wire bytes: a batch of the hot lane, against the ordinary handlers' way, call by call."""

import itertools
import tempfile
from collections.abc import Iterator

import pytest

from engine import issuance
from engine.calls import IssueAnswer, RenderAnswer, RenderRequest
from engine.deployment import Deployment, Durability
from engine.state.server import EmbeddedServer
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server import hot, services
from server.batches import Sorted
from tests.bench import population
from tests.bench.conftest import Measure
from tests.bench.report import OUT

SUBJECT = "redeem, wire to wire"
ROUNDS = 12
ALONE = 32
BULK = 256


class Counter:
    """A deployment with a counter that never runs out of customers: each round takes redemptions nobody has asked for before."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._orders = population.orders(1)
        self._numbers = itertools.count()
        self._stock: list[bytes] = []

    def take(self, count: int) -> list[bytes]:
        """So many RedeemRequests on the wire, each of a live code just rendered, from a terminal in its store."""
        while len(self._stock) < count:
            self._stock += self._make()
        taken, self._stock = self._stock[:count], self._stock[count:]
        return taken

    def _make(self) -> list[bytes]:
        orders = population.take(self._orders, BULK)
        made = [
            answer for answer in issuance.issue(self.deployment, orders) if isinstance(answer, IssueAnswer)
        ]
        asked = [RenderRequest(population.MALL, answer.uid) for answer in made]
        shown = [
            answer for answer in issuance.render(self.deployment, asked) if isinstance(answer, RenderAnswer)
        ]
        return [
            redemption_pb.RedeemRequest(
                terminal=types_pb.Terminal(mall_id=population.MALL, store_id=order.store_id, terminal_id=7),
                request_id=f"redeem-{next(self._numbers):020}",
                code=answer.payloads[0].text,
                actor="clerk:17",
            ).SerializeToString()
            for order, answer in zip(orders, shown, strict=True)
        ]


@pytest.fixture(scope="module")
def counter() -> Iterator[Counter]:
    OUT.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=OUT, prefix="store-") as data_dir,
        EmbeddedServer(data_dir, durability="memory") as server,
    ):
        Deployment.create(server.url, unlock=population.unlock, durability=Durability.MEMORY)
        with Deployment.open(
            server.url, unlock=population.unlock, durability=Durability.MEMORY
        ) as deployment:
            population.furnish(deployment)
            yield Counter(deployment)


def redeemed(answers: list[bytes]) -> bool:
    verdicts = {redemption_pb.RedeemResponse.FromString(answer).verdict for answer in answers}
    return verdicts == {redemption_pb.REDEEM_VERDICT_REDEEMED}


@pytest.mark.parametrize("count", [16, 64, 256])
def test_a_batch_of_the_lane(measure: Measure, counter: Counter, count: int) -> None:
    verb = hot.Redeem(counter.deployment)

    def decide(batch: list[bytes]) -> list[bytes]:
        asked = [found.prepared for found in verb.sort(batch) if isinstance(found, Sorted)]
        work = verb.begin(0, asked)
        work.wait()
        return [outcome for outcome in work.outcomes() if isinstance(outcome, bytes)]

    answers = measure(
        SUBJECT,
        f"batches of {count}",
        "engine",
        count,
        decide,
        prepare=lambda: (counter.take(count),),
        rounds=ROUNDS,
    )
    assert len(answers) == count
    assert redeemed(answers)


@pytest.mark.parametrize("count", [16, 64, 256])
def test_calls_one_by_one(measure: Measure, counter: Counter, count: int) -> None:
    """What each call costs by itself, for each of the batch sizes it is set against."""
    method = services.METHODS["RedemptionService.Redeem"]
    answers = measure(
        SUBJECT,
        f"batches of {count}",
        "plain",
        ALONE,
        lambda batch: [services.answer(counter.deployment, method, data) for data in batch],
        prepare=lambda: (counter.take(ALONE),),
        rounds=ROUNDS,
    )
    assert redeemed(answers)
