"""Targets that are a served deployment: every request through the server's own way, on a real store whose clock stands still."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from engine import sm_profile
from engine.claims import Suite, Version
from engine.errors import PickgateError, Unauthenticated
from engine.ledger import database
from engine.ledger.ledger import Ledger
from engine.ledger.writer import Writer
from engine.sm_profile import Opener, Sealed, open_answer, seal_answer, seal_request
from engine.state.server import EmbeddedServer
from engine.state.streams import Streams
from ext.codec import hmac_sm3
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server import hot, lane_methods, ledger_services, services, statuses, terminal_services
from server.authority import Authority, make_request, write_new
from server.batches import Method, Outcome, Sorted
from server.issuing import Issuing
from server.ledger_access import LedgerAccess
from tests.engine import proofs
from tests.engine import shop as shops
from tests.engine.shop import MALL, STORE, Shop
from tests.engine.sm_terminals import give, invite
from tests.fuzz import messages

METHODS: Final[Mapping[str, Any]] = {
    **services.METHODS,
    **terminal_services.METHODS,
    **ledger_services.METHODS,
}
"""Every method with one answer."""
# One kind behind the other: an input of the corpus goes on meaning the same method.
NAMES: Final = [
    name
    for kind in (services.METHODS, terminal_services.METHODS, ledger_services.METHODS)
    for name in sorted(kind)
]
"""The first byte of an input says which method, modulo their number."""


def open_shop(stack: ExitStack) -> Shop:
    """A furnished deployment on a real store of its own."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-")))
    store = stack.enter_context(EmbeddedServer(folder / "data", durability="memory"))
    clock = shops.Clock()
    shops.create(store.url, clock)
    deployment = stack.enter_context(shops.open_deployment(store.url, clock))
    shops.furnish(deployment)
    shop = Shop(deployment, store.url, clock)
    proofs.put_provider(shop)
    shop.stock_all(1_000_000)
    return shop


def _codes(shop: Shop) -> list[tuple[str, str]]:
    """Genuine codes of every kind, as (uid in hex, text): what a fuzzer can't make and shall have at hand."""
    made = []
    for version in Version:
        for suite in Suite:
            issued = shop.issue(version=version, suite=suite)
            made.append((issued.uid.hex(), shop.show(issued.uid)))
    return made


def _told(answer: Callable[[], bytes]) -> bytes | tuple[grpc.StatusCode, str, str]:
    """An answer, or an error as its caller reads it; anything that is no error of ours is a finding."""
    try:
        return answer()
    except PickgateError as error:
        told = statuses.tell(error)
        assert told.code is not grpc.StatusCode.INTERNAL, told
        assert len(told.message) < 1_000, told
        return told.code, told.reason, told.message


def requests(stack: ExitStack) -> Callable[[bytes], None]:
    """Every method of every service: an answer that its message can carry, or an error of the closed list."""
    shop = open_shop(stack)
    messages.KNOWN_TEXTS[:] = [text for pair in _codes(shop) for text in pair]
    work_on = _desks(stack, shop)

    def check(data: bytes) -> None:
        if not data:
            return
        name = NAMES[data[0] % len(NAMES)]
        answered = _told(lambda: work_on(name, data[1:]))
        if isinstance(answered, bytes):
            answer_of(name).FromString(answered)

    return check


def _desks(stack: ExitStack, shop: Shop) -> Callable[[str, bytes], bytes]:
    """Answers any method, as services.handlers have it: with a ledger that is written, and a CA for terminals that enrol."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-")))
    url = database.sqlite_url(folder / "ledger.sqlite3")
    ledger = Ledger.open(url, deployment_id=shop.deployment.constants.deployment_id, create=True)
    stack.callback(ledger.close)
    writer = Writer(Streams(shop.deployment.connection), ledger, now_ms=shop.deployment.now_ms)
    writer.start()
    while writer.step(block_ms=0):
        pass
    access = LedgerAccess(url, shop.deployment)
    stack.callback(access.close)
    authority = Authority.make("fuzz CA")
    write_new(folder / "ca.pem", authority.pem)
    write_new(folder / "ca-key.pem", authority.key_pem, secret=True)
    issuing = Issuing(folder / "ca.pem", folder / "ca-key.pem", trust_domain="fuzz.example", days=1)
    number, secret = give(shop.deployment, _TERMINAL)
    # What asks for a secret's successor is sealed by it, for whatever the request says besides.
    sealed = Sealed(_TERMINAL, number, b"", secret, bytes(16), bytes(32))
    messages.KNOWN_TEXTS.extend((invite(shop.deployment, _TERMINAL), make_request().pem.decode()))

    def work_on(name: str, data: bytes) -> bytes:
        if name in terminal_services.METHODS:
            asks = services._Asks(None, sealed)
            method = terminal_services.METHODS[name]
            return services._terminal_answer(shop.deployment, issuing, method, data, asks)
        if name in ledger_services.METHODS:
            asked = ledger_services.METHODS[name]
            return services._ledger_answer(shop.deployment, access, asked, data, None)
        return services.answer(shop.deployment, services.METHODS[name], data)

    return work_on


def answer_of(name: str) -> Any:
    """The class of a method's answers."""
    service, _, method = name.partition(".")
    [descriptor] = [one.methods_by_name[method] for one in services.SERVICES if one.name == service]
    return messages.class_of(descriptor.output_type)


def request_seeds() -> Iterable[bytes]:
    """One message of each method, with every field set to something plausible."""
    draw = random.Random(1)
    for number, name in enumerate(NAMES):
        message = METHODS[name].request()
        messages.fill(message, draw)
        yield bytes([number]) + message.SerializeToString()


def request_class(number: int) -> Any:
    """The class of requests that the first byte of an input of `requests` chooses."""
    request: Any = METHODS[NAMES[number % len(NAMES)]].request
    return request


# --- the hot lane -----------------------------------------------------------------------------------------------------
_LANE: Final = ("Inspect", "Redeem")


def _by_lane(verb: Method, data: bytes) -> Outcome:
    """One call by the lane's steps."""
    [sorted_] = verb.sort([data])
    if not isinstance(sorted_, Sorted):
        return sorted_
    work = verb.begin(sorted_.owner, [sorted_.prepared])
    work.wait()
    [outcome] = work.outcomes()
    return outcome


def lane(stack: ExitStack) -> Callable[[bytes], None]:
    """Redeem and inspect by the hot lane and by the ordinary handlers: the same bytes, or the same error, for any request."""
    shop = open_shop(stack)
    messages.KNOWN_TEXTS[:] = [text for pair in _codes(shop) for text in pair]
    verbs: dict[str, Method] = {
        "Inspect": hot.Inspect(shop.deployment),
        "Redeem": hot.Redeem(shop.deployment),
    }
    assert set(verbs) <= {path.rpartition("/")[2] for path in lane_methods.methods(shop.deployment)}

    def raised(outcome: Outcome) -> bytes:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def check(data: bytes) -> None:
        if not data:
            return
        name = _LANE[data[0] % 2]
        method = services.METHODS[f"RedemptionService.{name}"]
        first = _told(lambda: raised(_by_lane(verbs[name], data[1:])))
        second = _told(lambda: services.answer(shop.deployment, method, data[1:]))
        assert _comparable(name, first) == _comparable(name, second)

    return check


def _comparable(name: str, answered: object) -> object:
    """An answer without the note that it is a repetition: the second way asks again under the same request id."""
    if name == "Inspect" or not isinstance(answered, bytes):
        return answered
    message = redemption_pb.RedeemResponse.FromString(answered)
    message.replayed = False
    return message


def lane_seeds() -> Iterable[bytes]:
    """Requests as terminals send them, whole and with what the scan leaves to the ordinary way."""
    terminal = types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=7)
    at = types_pb.Position(
        latitude_deg=shops.LATITUDE_DEG,
        longitude_deg=shops.LONGITUDE_DEG,
        accuracy_m=5,
        datum=types_pb.DATUM_WGS84,
    )
    for code in ("PG" + "0" * 50, "PG" + "0" * 76, "PG" + "0" * 184, "1234567890123456", "x"):
        plain = redemption_pb.RedeemRequest(terminal=terminal, request_id="request-seed", code=code)
        yield b"\1" + plain.SerializeToString()
        plain.position.CopyFrom(at)
        plain.pin, plain.actor = "123456", "clerk:7"
        yield b"\1" + plain.SerializeToString()
        plain.lines.add(sku_id=100, count=1)
        yield b"\1" + plain.SerializeToString()
        look = redemption_pb.InspectRequest(terminal=terminal, code=code, position=at)
        yield b"\0" + look.SerializeToString()


def lane_class(number: int) -> Any:
    """The class of requests that the first byte of an input of `lane` chooses."""
    return services.METHODS[f"RedemptionService.{_LANE[number % 2]}"].request


# --- envelopes of the SM profile --------------------------------------------------------------------------------------
_PATH: Final = b"/pickgate.v1.RedemptionService/Redeem"
_TERMINAL: Final = (MALL, STORE, 7)


def envelopes(stack: ExitStack) -> Callable[[bytes], None]:
    """Envelopes, with a tag made good on demand: only what this terminal sealed opens, once, to what it sealed."""
    shop = open_shop(stack)
    number, secret = give(shop.deployment, _TERMINAL)
    opener = Opener(shop.deployment.control, shop.deployment.now_ms)

    def check(data: bytes) -> None:
        if not data:
            return
        how, envelope = data[0], data[1:]
        body = None
        if how & 1:
            body, nonce = envelope[16:], envelope[:16].ljust(16, b"\0")
            envelope, request = seal_request(
                secret, _TERMINAL, number, _PATH, body, time_ms=shop.clock.now_ms, nonce=nonce
            )
        elif how & 2 and len(envelope) > 76:
            # Everything as it came, under a right tag: time, number and terminal are what the fuzzer says.
            keys = sm_profile._keys(secret, envelope[28:44], sm_profile.LABEL_REQUEST, _PATH)
            envelope = envelope[:-32] + hmac_sm3(keys[1], envelope[:-32])
        try:
            opened = opener.open(_PATH, envelope)
        except PickgateError as error:
            told = statuses.tell(error)
            assert told.code in (
                *(grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED),
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            ), told
            return
        assert how & 3, "what nobody sealed has opened"
        assert envelope[:20] == b"\0SM\1" + b"".join(part.to_bytes(4) for part in (*_TERMINAL, number))
        if body is not None:
            assert opened.body == body
            assert open_answer(request, seal_answer(opened.sealed, data)) == data
        with pytest.raises(Unauthenticated, match="here before"):
            opener.open(_PATH, envelope)

    return check


def envelope_seeds() -> Iterable[bytes]:
    """Sealed by the terminal, under a right tag as it comes, and as it comes."""
    terminal = b"".join(part.to_bytes(4) for part in (*_TERMINAL, 1))
    for n, body in enumerate((b"", b"x", bytes(40))):
        yield b"\1" + bytes([n]) * 16 + body
        for how in (b"\0", b"\2"):
            head = b"\0SM\1" + terminal + shops.START_MS.to_bytes(8) + bytes([n, how[0]]) * 8
            yield how + head + body + bytes(32)
