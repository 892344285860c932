"""Every key and certificate is replaced while customers show codes and terminals redeem them, at two servers: nobody genuine is refused.

Two servers over one store, each with its own copy of the set-up, TLS, a gate and the hot lane. Terminals issue, render at one server
and redeem at the other, without a pause, and connect anew again and again. Meanwhile, as an operator does it: payload keys of every
version and suite, the keys of uids, serials, PINs and of the SM profile, the key that wraps the keyring, the servers' certificate, the
terminals' certificates and their secrets of the SM profile, the issuer's key, and at last the CA of them all.

A new key seals after HANDOVER_S. The short form moves the clock there; the long one waits.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count, cycle
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from engine import keyring as keyrings
from engine.claims import Suite, Version
from engine.deployment import Deployment, Durability
from engine.key_service import ServiceUnlock, SoftwareKeyService
from engine.keyring import HANDOVER_S, Purpose
from ext.codec import decode
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from server.authority import Authority, Pair, make_request
from server.client import CallFailed, Client
from server.roles import Role
from tests.engine import proofs
from tests.engine.sm_terminals import PUBLIC, opened
from tests.server import conftest
from tests.server.conftest import AT_STORE, MALL, SKU, STORE, wait_until
from tests.server.counters import Counter, place
from tests.server.sealed import REDEEM, SealedTerminal
from tests.server.test_tls import answers

SOAK = os.environ.get("PICKGATE_SOAK") == "1"
TILLS = 6 if SOAK else 2
ROUNDS = 6 if SOAK else 1
"""How often each thing is replaced that may be replaced any number of times."""
HELD_BACK = 7
"""Codes that a terminal's customers have in their hands, shown before a rotation and redeemed after it."""
CODES_OF_A_CONNECTION = 8
TRIES = 8
UNITS = 100_000


class Clock:
    """The deployment's clock, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


class Kind(NamedTuple):
    """A kind of code, and how it is shown."""

    version: Version
    suite: Suite
    typed: bool = False
    sealed: bool = False
    """Redeemed through the SM profile."""


KINDS = (
    *(Kind(version, suite) for version in Version for suite in Suite),
    Kind(Version.STATIC, Suite.AES, typed=True),
    Kind(Version.DYNAMIC, Suite.SM, sealed=True),
)


class Shown(NamedTuple):
    """A code in a customer's hands."""

    kind: Kind
    issued: code_pb.IssueResponse
    text: str


class Two:
    """Two servers of one deployment, those who call them, and an operator elsewhere."""

    def __init__(self, stack: ExitStack, folder: Path, socket_dir: Path) -> None:
        self.clock = Clock()
        self._service = SoftwareKeyService.create(folder / "service.json")
        options: dict[str, Any] = {"durability": "fsync"} if SOAK else {"now_ms": self.clock}
        house = conftest.build(
            stack, folder / "data", socket_dir, unlock=ServiceUnlock(self._service), **options
        )

        def another() -> Deployment:
            """As another process opens it."""
            opened = Deployment.open(
                house.store.url,
                unlock=ServiceUnlock(SoftwareKeyService(folder / "service.json")),
                durability=Durability.FSYNC if SOAK else Durability.MEMORY,
                now_ms=self.clock,
            )
            return stack.enter_context(opened)

        self.counter = Counter.open(stack, house, folder, look_s=0.05)
        second, self.operator = another(), another()
        self.counter.serve(second, look_s=0.05)
        self.deployments = (house.deployment, second)
        self.token_kid = "k1"
        self.pause = threading.Event()
        self.tills: list[Till] = []
        for number in range(1, TILLS + 1):
            self.counter.invite(number)
            made = make_request()
            given = self.counter.ask_to_enrol(number, csr_pem=made.pem.decode(), sm_public_key=PUBLIC)
            pair = Pair(given.certificate_pem.encode(), made.key_pem)
            self.tills.append(Till(self, number, pair, (given.sm_number, opened(given.sm_sealed_secret))))
        second.control.refresh()

    # --- what happens meanwhile -----------------------------------------------------------------------------------
    def go_on(self) -> None:
        """Until every terminal has redeemed what was shown before, a code of each kind shown since, and on new connections."""
        before = [(till.redeemed, till.connections) for till in self.tills]

        def went_on() -> bool:
            for till in self.tills:
                if till.error is not None:
                    raise till.error
            return all(
                till.redeemed >= redeemed + HELD_BACK + len(KINDS) and till.connections >= connections + 2
                for till, (redeemed, connections) in zip(self.tills, before, strict=True)
            )

        wait_until(went_on, "the terminals go on", 60)

    def change_keys(self, change: Callable[..., keyrings.Keyring]) -> None:
        self.operator.control.change_keyring(
            change, request_id=self.counter.house.request_id(), actor="operator"
        )

    def replace_keys(self, purposes: tuple[Purpose, ...]) -> None:
        """All payload keys, and those of some purposes; both servers know them, and then their time comes."""
        slots = [(Purpose.PAYLOAD, version, suite) for version in Version for suite in Suite]
        for purpose, version, suite in (*slots, *((purpose, None, Suite.SM) for purpose in purposes)):
            self.change_keys(
                lambda ring, now_s, random, slot=(purpose, version, suite): keyrings.rotate(
                    ring, *slot, now_s=now_s, random=random
                )
            )
        self._wait_for_keyring()
        if SOAK:
            until_ms = self.clock() + (HANDOVER_S + 1) * 1000
            wait_until(lambda: self.clock() > until_ms, "the handover", 2 * HANDOVER_S)
        else:
            self.clock.ahead_ms += (HANDOVER_S + 1) * 1000

    def replace_wrapping(self) -> None:
        """The key service's own key, and the data key."""
        self._service.rotate()
        unlock = ServiceUnlock(self._service)
        self.operator.control.rewrap(unlock, request_id=self.counter.house.request_id(), actor="operator")
        self._wait_for_keyring()

    def _wait_for_keyring(self) -> None:
        ring = self.operator.control.refresh().keyring
        assert ring is not None
        revision = ring.revision

        def known() -> bool:
            rings = [deployment.control.copy().keyring for deployment in self.deployments]
            return all(one is not None and one.revision >= revision for one in rings)

        wait_until(known, "both servers know the new keys")

    def replace_files(self, replace: Callable[[], object]) -> None:
        """Certificates; until both servers have taken them."""
        before = [one.revision for one in self.counter.certificates]
        replace()
        wait_until(
            lambda: all(
                one.revision > was for one, was in zip(self.counter.certificates, before, strict=True)
            ),
            "both servers have the new files",
        )

    def replace_terminals(self) -> None:
        """Each asks with its present certificate, now at this server, now at that."""
        for till, server in zip(self.tills, cycle((0, 1)), strict=False):
            with self.counter.terminal(till.pair, server=server, tries=TRIES) as client:
                till.pair = self.counter.rotate(till.number, client)

    def replace_secrets(self) -> None:
        """Of the SM profile: each asks under its present one."""
        for till, server in zip(self.tills, cycle((1, 0)), strict=False):
            credentials = self.counter.trust.credentials(till.pair)
            channel = grpc.secure_channel(self.counter.servers[server].addresses[1], credentials)
            terminal = SealedTerminal((MALL, STORE, till.number), *till.secret, channel)
            terminal.rotate(self.counter.house.request_id(), time_ms=self.clock())
            terminal.close()
            till.secret = (terminal.number, terminal.secret)

    def replace_issuers_key(self, kid: str) -> None:
        """Published first, then used, then the one before is dropped."""
        self.counter.idp.add(kid)
        for server in (0, 1):

            def known(server: int = server) -> bool:
                with self.counter.client(Role.MALL, server=server, kid=kid) as client:
                    try:
                        client.call(client.codes.GetCode, code_pb.GetCodeRequest(mall_id=MALL, uid="00" * 8))
                    except CallFailed as error:
                        return error.code is not grpc.StatusCode.UNAUTHENTICATED
                return True

            wait_until(known, "the issuer's new key is known")
        was, self.token_kid = self.token_kid, kid
        self.go_on()
        self.counter.idp.drop(was)

    def replace_ca(self, name: str) -> None:
        """The new one is trusted first, then signs, then the one before goes."""
        trust, new = self.counter.trust, Authority.make(name)
        self.replace_files(lambda: trust.write("ca", trust.authority.pem + new.pem))
        # Who connects from now on knows both.
        self.go_on()
        trust.authority = new
        trust.write("issuing-key", new.key_pem)
        trust.write("issuing", new.pem)
        self.replace_files(trust.replace_server)
        self.replace_terminals()
        self.go_on()
        self.replace_files(lambda: trust.write("ca", new.pem))


class Till(threading.Thread):
    """A terminal, and the customers before it."""

    def __init__(self, two: Two, number: int, pair: Pair, secret: tuple[int, bytes]) -> None:
        super().__init__(name=f"till-{number}")
        self.number, self.pair = number, pair
        self.stopping = threading.Event()
        self.outcomes: Counts[str] = Counts()
        self.kids: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
        """Of what was shown, each once, in the order of their coming."""
        self.connections = 0
        self.error: BaseException | None = None
        self.secret, self._two = secret, two

    @property
    def redeemed(self) -> int:
        return self.outcomes["REDEEM_VERDICT_REDEEMED"]

    def run(self) -> None:
        try:
            self._day()
        except BaseException as error:
            self.error = error

    def _day(self) -> None:
        hands: deque[Shown] = deque()
        kinds, servers = cycle(KINDS), cycle((0, 1))
        while hands or not self.stopping.is_set():
            with ExitStack() as stack:
                calls = _Calls(stack, self._two, self.number, self.pair, self.secret, next(servers))
                self.connections += 1
                for _ in range(CODES_OF_A_CONNECTION):
                    if not self.stopping.is_set():
                        hands.append(calls.show(next(kinds)))
                        self._note(hands[-1])
                    if len(hands) > HELD_BACK or (hands and self.stopping.is_set()):
                        self.outcomes[calls.redeem(hands.popleft())] += 1

    def _note(self, shown: Shown) -> None:
        if not shown.kind.typed:
            kid = int.from_bytes(decode(shown.text[2:])[1:3])
            if kid not in self.kids[shown.kind]:
                self.kids[shown.kind].append(kid)


class _Calls:
    """What a terminal and its customers have now, on connections of their own: certificate, token and CAs are read anew."""

    def __init__(
        self, stack: ExitStack, two: Two, number: int, pair: Pair, secret: tuple[int, bytes], server: int
    ) -> None:
        counter = two.counter

        def mall(at: int) -> Client:
            client = counter.client(Role.MALL, server=at, kid=two.token_kid, tries=TRIES)
            stack.callback(client.close)
            return client

        self._two, self._number = two, number
        self._issues, self._renders = mall(server), mall(1 - server)
        self._terminal = counter.terminal(pair, server=server, tries=TRIES)
        stack.callback(self._terminal.close)
        channel = grpc.secure_channel(counter.servers[server].addresses[1], counter.trust.credentials(pair))
        self._sealed = SealedTerminal((MALL, STORE, number), *secret, channel)
        stack.callback(self._sealed.close)

    def show(self, kind: Kind) -> Shown:
        """A fresh code in a customer's hands, issued by one server and rendered by the other."""
        asked = self._two.counter.house.issue_request(version=int(kind.version), suite=int(kind.suite))
        issued = self._issues.call(self._issues.codes.Issue, asked)
        assert issued.verdict == code_pb.ISSUE_VERDICT_ISSUED, issued
        if kind.typed:
            return Shown(kind, issued, issued.typed)
        render = code_pb.RenderRequest(mall_id=MALL, uid=issued.uid, count=1)
        return Shown(kind, issued, self._renders.call(self._renders.codes.Render, render).payloads[0].text)

    def redeem(self, shown: Shown) -> str:
        """What a clerk is told."""
        asked = self._two.counter.house.redeem_request(shown.text, pin=shown.issued.pin)
        asked.terminal.CopyFrom(place(self._number))
        if shown.kind.version is Version.VALUABLE:
            asked.proof_token = proofs.sign(bytes.fromhex(shown.issued.uid), self._two.clock() // 1000)
        if shown.kind.sealed:
            answer = self._redeem_sealed(asked)
        else:
            answer = self._terminal.call(self._terminal.redemption.Redeem, asked)
        return redemption_pb.RedeemVerdict.Name(answer.verdict)

    def _redeem_sealed(self, asked: redemption_pb.RedeemRequest) -> redemption_pb.RedeemResponse:
        """Sealed anew for each try, as `Client` tries."""
        for tries in count(1):
            try:
                answer: redemption_pb.RedeemResponse = self._sealed.call(
                    REDEEM, asked, redemption_pb.RedeemResponse, time_ms=self._two.clock()
                )
                return answer
            except grpc.RpcError as error:
                code = error.code()
                if code is not grpc.StatusCode.UNAVAILABLE or tries >= TRIES:
                    raise
                self._two.pause.wait(0.5)
        raise AssertionError


@pytest.fixture
def two(tmp_path: Path, socket_dir: Path) -> Iterator[Two]:
    with ExitStack() as stack:
        yield Two(stack, tmp_path, socket_dir)


def test_nobody_genuine_is_refused_while_everything_is_replaced(two: Two) -> None:
    house, trust = two.counter.house, two.counter.trust
    asked = [house.issue_request(version=int(kind.version), suite=int(kind.suite)) for kind in KINDS]
    first = [house.client.call(house.client.codes.Issue, one) for one in asked]
    certificates = [till.pair for till in two.tills]
    for till in two.tills:
        till.start()
    try:
        two.go_on()
        for turn in range(ROUNDS):
            # Of these, at most two are usable at a time, for as long as the longest code lives.
            two.replace_keys(() if turn else (Purpose.UID, Purpose.SERIAL, Purpose.PIN, Purpose.TERMINAL))
            two.go_on()
            two.replace_wrapping()
            two.go_on()
            two.replace_files(trust.replace_server)
            two.go_on()
            two.replace_terminals()
            two.replace_secrets()
            two.go_on()
            two.replace_issuers_key(f"key-{turn}")
            two.replace_ca(f"CA {turn}")
            two.go_on()
    finally:
        for till in two.tills:
            till.stopping.set()
        for till in two.tills:
            till.join()
    assert [till.error for till in two.tills] == [None] * TILLS
    # Each once, and nothing else was ever said.
    redeemed = sum(till.redeemed for till in two.tills)
    assert sum((till.outcomes for till in two.tills), Counts()) == {"REDEEM_VERDICT_REDEEMED": redeemed}
    assert house.figures(SKU).on_hand == UNITS - redeemed
    # It was by the new keys in the end, and by the old ones before.
    ring = two.operator.control.refresh().keyring
    assert ring is not None
    for kind in KINDS:
        active = ring.active((Purpose.PAYLOAD, kind.version, kind.suite))
        assert active is not None
        for till in two.tills:
            assert kind.typed or (till.kids[kind][-1] == active.kid and len(till.kids[kind]) == ROUNDS + 1)
    for purpose in (Purpose.UID, Purpose.SERIAL, Purpose.PIN, Purpose.TERMINAL):
        active = ring.active((purpose, None, None))
        assert active is not None
        assert (active.generation, active.suite) == (2, Suite.SM)
    # An issue that is asked for again finds what it made under the keys of before. Its serial is checked by the new key then, and
    # what the customer has on paper is good as well.
    again = [house.client.call(house.client.codes.Issue, one) for one in asked]
    assert [(one.uid, one.pin, one.replayed) for one in again] == [(one.uid, one.pin, True) for one in first]
    for typed in {one.typed for one in (*first, *again) if one.typed}:
        look = redemption_pb.InspectRequest(terminal=place(1), code=typed, position=AT_STORE)
        answer = house.client.call(house.client.redemption.Inspect, look)
        assert answer.verdict == redemption_pb.INSPECT_VERDICT_REDEEMABLE
    # What was replaced counts no more.
    for till, pair in zip(two.tills, certificates, strict=True):
        assert not answers(two.counter.servers[0].addresses[1], trust.credentials(pair))
        assert answers(two.counter.servers[0].addresses[1], trust.credentials(till.pair))
