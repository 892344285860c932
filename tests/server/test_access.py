"""Who may do what: every method with every role, own and foreign, through both lanes; and everybody who is not let in at all."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from engine import terminals
from engine.deployment import Deployment, Durability
from engine.wrapping import PassphraseUnlock
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import review_service_pb2 as review_pb
from pickgate.v1 import types_pb2 as types_pb
from server import ledger_services, roles, services, terminal_services
from server.authority import TerminalId
from server.client import CallFailed, Client
from server.config import parse_listen
from server.gate import UNKNOWN, Gate
from server.issuers import Issuers
from server.roles import DENIED, STORE_ROLES, Place, Role
from server.serve import Server
from server.tls import Certificates
from tests.server.conftest import (
    MALL,
    NEAR_STORE,
    OTHER_MALL,
    PASSPHRASE,
    SKU,
    STORE,
    TERMINAL,
    House,
    wait_until,
)
from tests.server.tokens import BAD, Idp
from tests.server.trust import DOMAIN, LIFE, Trust

ROOT = Path(__file__).parents[2]
OWN: Final = Place(MALL, STORE, TERMINAL)
PLACES: Final = {
    "own": OWN,
    "another terminal": OWN._replace(terminal_id=4),
    "another store": OWN._replace(store_id=NEAR_STORE),
    "another mall": OWN._replace(mall_id=OTHER_MALL),
}
METHODS: Final = {
    f"{service.name}.{method.name}": method for service in services.SERVICES for method in service.methods
}


def documented() -> dict[str, dict[Role, str]]:
    """The table of docs/access.md."""
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (.+) \|$", (ROOT / "docs/access.md").read_text(), re.M)
    return {
        name: {role: cell for role, cell in zip(Role, cells.split(" | "), strict=True) if cell != "–"}
        for name, cells in rows
    }


RIGHTS: Final = documented()


@dataclass
class Guarded:
    """A server that knows callers: a port for tokens, one for terminals, and a unix socket; by one lane."""

    trust: Trust
    idp: Idp
    gate: Gate
    server: Server
    stack: ExitStack
    _channels: dict[object, grpc.Channel] = field(default_factory=dict)

    def channel(self, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
        """A connection of its own to the port for tokens; with a terminal's credentials, to that for terminals."""
        found = self._channels.get(credentials)
        if found is None:
            address = self.server.addresses[0 if credentials is None else 2]
            options = [("grpc.use_local_subchannel_pool", 1)]
            found = grpc.secure_channel(address, credentials or self.trust.credentials(), options=options)
            self._channels[credentials] = self.stack.enter_context(found)
        return found

    def client(self, token: str = "", credentials: grpc.ChannelCredentials | None = None) -> Client:
        address = self.server.addresses[0 if credentials is None else 2]
        return self.stack.enter_context(
            Client(
                address,
                credentials=credentials or self.trust.credentials(),
                token=token,
                tries=1,
                timeout_s=10,
            )
        )


@pytest.fixture(scope="module", params=["lane", "handlers"])
def guarded(
    request: pytest.FixtureRequest, house: House, tmp_path_factory: pytest.TempPathFactory, socket_dir: Path
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    trust, idp = Trust.make(folder / "trust"), Idp(folder / "idp")
    gate = Gate(house.deployment, trust_domain=DOMAIN, issuers=Issuers(idp.file))
    server = Server(
        house.deployment,
        [parse_listen("127.0.0.1:0"), parse_listen(f"unix:{socket_dir}/{request.param}.guarded")],
        threads=8,
        look=house.deployment.look,
        lane=request.param == "lane",
        certificates=Certificates(trust.files),
        listen_mtls=[parse_listen("127.0.0.1:0")],
        gate=gate,
    )
    with ExitStack() as stack, server:
        assert (server.statistics().get("calls") is not None) is (request.param == "lane")
        yield Guarded(trust, idp, gate, server, stack)


# --- calls ----------------------------------------------------------------------------------------------------------------
def put_place(message: Message, place: Place) -> None:
    """Write a place into every field that names one."""
    one: Any = message
    names = message.DESCRIPTOR.fields_by_name
    if "requests" in names:
        put_place(one.requests.add(), place)
    if "entries" in names:
        one.entries.add(mall_id=place.mall_id)
    if "terminal" in names:
        one.terminal.mall_id, one.terminal.store_id, one.terminal.terminal_id = place
    if "store_ids" in names:
        one.store_ids.append(place.store_id)
    for name in ("mall_id", "store_id", "from_store_id"):
        if name in names:
            setattr(one, name, getattr(place, name.removeprefix("from_")))


def request_of(name: str) -> type[Message]:
    for methods in (
        *(services.METHODS, ledger_services.METHODS, terminal_services.METHODS),
        *(services.STREAMS, ledger_services.STREAMS),
    ):
        if name in methods:
            found: type[Message] = methods[name].request
            return found
    raise AssertionError(name)


def call(
    channel: grpc.Channel, name: str, data: bytes, token: str | None = None, scheme: str = "Bearer"
) -> grpc.RpcError | None:
    """Call a method with wire bytes; the error it ends with, None when there is an answer."""
    path = f"/pickgate.v1.{name.replace('.', '/')}"
    metadata: Any = () if token is None else (("authorization", f"{scheme} {token}"),)
    try:
        if METHODS[name].server_streaming:
            stream: Any = channel.unary_stream(path, None, None)(data, timeout=5, metadata=metadata)
            next(stream)
            stream.cancel()
        else:
            channel.unary_unary(path, None, None)(data, timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        return error
    return None


def status(error: grpc.RpcError | None) -> str:
    return "OK" if error is None else error.code().name


def refused(error: grpc.RpcError | None, reason: str) -> bool:
    """Whether a call was refused for a reason, by a status that says nothing else."""
    if status(error) != reason:
        return False
    assert error is not None
    rich: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert len(rich.details) == 1
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (reason, "pickgate", {})
    assert rich.message == {"UNAUTHENTICATED": UNKNOWN, "PERMISSION_DENIED": DENIED}[reason]
    return True


# --- the table -----------------------------------------------------------------------------------------------------------
def test_the_table_is_the_documents_and_every_method_has_a_row() -> None:
    table = {
        name: {role: scope.name.lower() for role, scope in row.items()} for name, row in roles.TABLE.items()
    }
    assert table == RIGHTS
    assert set(table) | roles.ANYBODY == set(METHODS), (
        "a method has no row in server/roles.py and docs/access.md, or is gone"
    )


def test_the_table_cant_be_changed() -> None:
    table: Any = roles.TABLE
    with pytest.raises(TypeError):
        table["RedemptionService.Redeem"] = {}
    with pytest.raises(TypeError):
        table["RedemptionService.Redeem"][Role.WALLET] = roles.Scope.ALL


def test_a_method_without_a_row_is_refused_to_everybody(
    monkeypatch: pytest.MonkeyPatch, guarded: Guarded
) -> None:
    name = "StoreService.NearestStores"
    monkeypatch.setattr(roles, "TABLE", {key: row for key, row in roles.TABLE.items() if key != name})
    for role in guarded.idp.roles:
        # A caller who was not met before: rights are remembered.
        token = guarded.idp.token(role, sub=f"without-a-row-{role}")
        assert refused(call(guarded.channel(), name, b"", token), "PERMISSION_DENIED")


def covers(role: Role, scope: str, name: str, place: Place) -> bool:
    """Whether a scope of the document reaches a place, for a caller whose own is OWN."""
    fields: Any = request_of(name).DESCRIPTOR.fields_by_name
    asks = fields["requests"].message_type.fields_by_name if "requests" in fields else fields
    by_terminal = "terminal" in asks
    by_store = by_terminal or bool(set(asks) & {"store_id", "store_ids", "from_store_id"})
    by_mall = by_terminal or "mall_id" in asks or "entries" in asks
    if scope == "all":
        return True
    if not by_mall and not by_store:
        return False
    if by_mall and place.mall_id != OWN.mall_id:
        return False
    if scope == "mall":
        return True
    if not by_store or place.store_id != OWN.store_id:
        return False
    return scope == "store" or (by_terminal and place.terminal_id == OWN.terminal_id)


@pytest.mark.parametrize("role", list(Role))
def test_every_method_with_every_place(guarded: Guarded, role: Role) -> None:
    if role is Role.TERMINAL:
        channel, token = guarded.channel(guarded.trust.terminal(*OWN)), None
    else:
        channel, token = guarded.channel(), guarded.idp.token(role)
    wrong = []
    for name in METHODS.keys() - roles.ANYBODY:
        for said, place in PLACES.items():
            message = request_of(name)()
            put_place(message, place)
            error = call(channel, name, message.SerializeToString(), token)
            scope = RIGHTS.get(name, {}).get(role)
            allowed = scope is not None and covers(role, scope, name, place)
            let_in = status(error) not in ("PERMISSION_DENIED", "UNAUTHENTICATED")
            if let_in is not allowed or not (allowed or refused(error, "PERMISSION_DENIED")):
                wrong.append((name, said, scope, status(error)))
    assert wrong == []


@pytest.mark.parametrize("role", [role for role in Role if role not in STORE_ROLES | roles.MALL_ROLES])
def test_a_token_that_names_a_mall_goes_no_further(guarded: Guarded, role: Role) -> None:
    token = guarded.idp.token(role, pickgate_mall=MALL)
    for name, row in RIGHTS.items():
        message = request_of(name)()
        put_place(message, PLACES["another mall"])
        if role in row and "mall_id" in str(message):
            assert refused(
                call(guarded.channel(), name, message.SerializeToString(), token), "PERMISSION_DENIED"
            ), name


# --- nobody ----------------------------------------------------------------------------------------------------------------
def own(name: str) -> bytes:
    message = request_of(name)()
    put_place(message, OWN)
    return message.SerializeToString()


@pytest.mark.parametrize("kind", BAD)
def test_a_token_that_does_not_count_opens_nothing(guarded: Guarded, kind: str) -> None:
    token = guarded.idp.bad(kind)
    for name in METHODS.keys() - roles.ANYBODY:
        assert refused(call(guarded.channel(), name, own(name), token), "UNAUTHENTICATED"), name


def test_nothing_at_all_opens_nothing(guarded: Guarded) -> None:
    for name in METHODS.keys() - roles.ANYBODY:
        assert refused(call(guarded.channel(), name, own(name)), "UNAUTHENTICATED"), name
        good = guarded.idp.token(Role.OPERATIONS)
        assert refused(call(guarded.channel(), name, own(name), good, scheme="Basic"), "UNAUTHENTICATED"), (
            name
        )


def test_a_unix_socket_is_no_way_round(guarded: Guarded) -> None:
    with grpc.insecure_channel(guarded.server.addresses[1]) as channel:
        for name in METHODS.keys() - roles.ANYBODY:
            assert refused(call(channel, name, own(name)), "UNAUTHENTICATED"), name


def test_two_tokens_are_none(guarded: Guarded) -> None:
    good = ("authorization", f"Bearer {guarded.idp.token()}")
    path = "/pickgate.v1.CodeService/GetCode"
    with pytest.raises(grpc.RpcError) as caught:
        guarded.channel().unary_unary(path, None, None)(
            own("CodeService.GetCode"), timeout=5, metadata=(good, good)
        )
    assert refused(caught.value, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://elsewhere.example/mall/7/store/2001/terminal/3",
        f"spiffe://{DOMAIN}/mall/7/store/2001",
        f"spiffe://{DOMAIN}/mall/07/store/2001/terminal/3",
        f"spiffe://{DOMAIN}/mall/7/store/2001/terminal/0",
        f"spiffe://{DOMAIN}/mall/7/store/2001/terminal/4294967296",
        f"spiffe://{DOMAIN}/mall/7/store/2001/terminal/3/",
        f"https://{DOMAIN}/mall/7/store/2001/terminal/3",
    ],
)
def test_a_certificate_of_the_ca_that_names_no_terminal_of_ours_opens_nothing(
    guarded: Guarded, uri: str
) -> None:
    class Odd(TerminalId):
        def uri(self, trust_domain: str) -> str:
            return uri

    pair = guarded.trust.authority.terminal(Odd(7, 2001, 3), DOMAIN, life=LIFE)
    channel = guarded.channel(guarded.trust.credentials(pair))
    for name in METHODS.keys() - roles.ANYBODY:
        assert refused(call(channel, name, own(name)), "UNAUTHENTICATED"), name


# --- what must not be possible ---------------------------------------------------------------------------------------------
def test_a_terminal_redeems_for_no_other_store_and_nothing_happens(guarded: Guarded, house: House) -> None:
    stranger = guarded.client(credentials=guarded.trust.terminal(MALL, NEAR_STORE, TERMINAL))
    uid = house.issue().uid
    code = house.render(uid).payloads[0].text
    before = house.figures()
    for _ in range(3):
        with pytest.raises(CallFailed) as caught:
            stranger.call(stranger.redemption.Redeem, house.redeem_request(code))
        assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert house.figures() == before
    owner = guarded.client(credentials=guarded.trust.terminal(*OWN))
    answer = owner.call(owner.redemption.Redeem, house.redeem_request(code))
    assert answer.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED


def test_a_request_that_names_two_terminals_is_held_against_the_one_that_counts(
    guarded: Guarded, house: House
) -> None:
    """Protobuf merges a field that comes twice: own first, another's behind it."""
    request = house.redeem_request(house.shown())
    other = redemption_pb.RedeemRequest(
        terminal=types_pb.Terminal(mall_id=MALL, store_id=NEAR_STORE, terminal_id=TERMINAL)
    )
    data = request.SerializeToString() + other.SerializeToString()
    mine = guarded.channel(guarded.trust.terminal(*OWN))
    assert refused(call(mine, "RedemptionService.Redeem", data), "PERMISSION_DENIED")
    assert refused(
        call(mine, "RedemptionService.Redeem", other.SerializeToString() + data), "PERMISSION_DENIED"
    )
    data = other.SerializeToString() + request.SerializeToString()
    assert call(mine, "RedemptionService.Redeem", data) is None


def test_one_item_of_another_store_refuses_the_batch(guarded: Guarded, house: House) -> None:
    mine, foreign = house.redeem_request(house.shown()), house.redeem_request(house.shown())
    foreign.terminal.store_id = NEAR_STORE
    client = guarded.client(credentials=guarded.trust.terminal(*OWN))
    with pytest.raises(CallFailed) as caught:
        client.call(client.redemption.RedeemBatch, redemption_pb.RedeemBatchRequest(requests=[mine, foreign]))
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert house.redeem(mine.code).verdict == redemption_pb.REDEEM_VERDICT_REDEEMED


def test_a_mall_reads_no_order_of_another(guarded: Guarded, house: House) -> None:
    uid = house.issue().uid
    other = guarded.client(guarded.idp.token(pickgate_mall=OTHER_MALL))
    with pytest.raises(CallFailed) as caught:
        other.call(other.codes.GetCode, code_pb.GetCodeRequest(mall_id=MALL, uid=uid))
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(CallFailed) as caught:
        other.call(other.codes.GetCode, code_pb.GetCodeRequest(mall_id=OTHER_MALL, uid=uid))
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    mine = guarded.client(guarded.idp.token())
    found = mine.call(mine.codes.GetCode, code_pb.GetCodeRequest(mall_id=MALL, uid=uid))
    assert found.code.uid == uid


def lock(client: Client, house: House) -> str:
    """A code that three wrong PINs have locked; its uid."""
    issued = house.issue(version=types_pb.VERSION_STATIC)
    code = house.render(issued.uid).payloads[0].text
    answer = redemption_pb.RedeemResponse()
    for pin in ("000001", "000002", "000003"):
        answer = client.call(
            client.redemption.Redeem, house.redeem_request(code, pin=pin, actor="somebody:else")
        )
    assert answer.verdict == redemption_pb.REDEEM_VERDICT_LOCKED
    return issued.uid


def decide(client: Client, house: House, uid: str, actor: str = "somebody:else") -> int:
    request = review_pb.DecideRequest(
        mall_id=MALL, request_id=house.request_id(), uid=uid, decision=review_pb.DECISION_APPROVE, actor=actor
    )
    return client.call(client.reviews.Decide, request).verdict


def test_a_reviewer_decides_on_no_try_of_their_own_whatever_the_request_says(
    guarded: Guarded, house: House
) -> None:
    at_counter = guarded.client(guarded.idp.token(Role.OUTLET, sub="lin"), guarded.trust.terminal(*OWN))
    uid = lock(at_counter, house)
    lin, wang = (guarded.client(guarded.idp.token(Role.OPERATIONS, sub=sub)) for sub in ("lin", "wang"))
    listed = wang.call(wang.reviews.ListReviews, review_pb.ListReviewsRequest(mall_id=MALL, page_size=200))
    (review,) = [one for one in listed.reviews if one.code.uid == uid]
    assert {one.actor for one in review.evidence} == {"idp:lin"}
    assert decide(lin, house, uid) == review_pb.REVIEW_VERDICT_OWN_TRY
    assert decide(wang, house, uid, actor="idp:lin") == review_pb.REVIEW_VERDICT_APPROVED


def test_the_record_names_the_terminal_where_nobody_else_is_known(guarded: Guarded, house: House) -> None:
    uid = lock(guarded.client(credentials=guarded.trust.terminal(*OWN)), house)
    ops = guarded.client(guarded.idp.token(Role.OPERATIONS))
    listed = ops.call(ops.reviews.ListReviews, review_pb.ListReviewsRequest(mall_id=MALL, page_size=200))
    (review,) = [one for one in listed.reviews if one.code.uid == uid]
    assert {one.actor for one in review.evidence} == {f"terminal:{MALL}/{STORE}/{TERMINAL}"}


def test_a_token_beside_a_certificate_gives_no_rights(guarded: Guarded) -> None:
    channel = guarded.channel(guarded.trust.terminal(*OWN))
    for role in (Role.OPERATIONS, Role.ADMINISTRATOR):
        error = call(channel, "ReviewService.Decide", own("ReviewService.Decide"), guarded.idp.token(role))
        assert refused(error, "PERMISSION_DENIED")
    elsewhere = guarded.idp.token(Role.OUTLET, pickgate_store=NEAR_STORE)
    error = call(channel, "RedemptionService.Inspect", own("RedemptionService.Inspect"), elsewhere)
    assert refused(error, "UNAUTHENTICATED")
    error = call(
        channel, "RedemptionService.Inspect", own("RedemptionService.Inspect"), guarded.idp.bad("expired")
    )
    assert refused(error, "UNAUTHENTICATED")


# --- replay and revocation -------------------------------------------------------------------------------------------------
def test_a_token_that_is_bound_to_a_certificate_is_worth_nothing_to_who_copies_it(guarded: Guarded) -> None:
    pair = guarded.trust.authority.server(["backend"], life=LIFE)
    # A backend's client certificate: it names no terminal, so the token says who it is.
    odd = type("Odd", (TerminalId,), {"uri": lambda self, domain: f"spiffe://{domain}/backend"})
    pair = guarded.trust.authority.terminal(odd(7, 2001, 3), DOMAIN, life=LIFE)
    thumbprint = x509.load_pem_x509_certificate(pair.certificate).fingerprint(SHA256())
    bound = guarded.idp.token(cnf={"x5t#S256": base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()})
    name = "StoreService.ListCatalogue"
    owner = guarded.channel(guarded.trust.credentials(pair))
    assert call(owner, name, own(name), bound) is None
    assert refused(call(guarded.channel(), name, own(name), bound), "UNAUTHENTICATED")
    thief = guarded.channel(guarded.trust.terminal(MALL, STORE, 9))
    assert refused(call(thief, name, own(name), bound), "UNAUTHENTICATED")
    assert call(owner, name, own(name), bound) is None


def test_a_key_that_is_taken_back_takes_its_tokens_along_and_a_new_one_counts(guarded: Guarded) -> None:
    idp, name = guarded.idp, "StoreService.ListCatalogue"
    idp.add("k2")

    def let_in(token: str) -> bool:
        return call(guarded.channel(), name, own(name), token) is None

    second = idp.token(kid="k2")
    wait_until(lambda: let_in(second), "the new key counts")
    idp.drop("k2")
    wait_until(lambda: not let_in(second), "the key that is gone does not", bound_s=5)
    assert let_in(idp.token())


def test_a_terminal_that_is_suspended_is_refused_within_five_seconds_by_all_on_open_connections_too(
    guarded: Guarded, house: House
) -> None:
    place = (MALL, STORE, 77 if guarded.server.statistics().get("calls") is None else 78)
    channel, name = guarded.channel(guarded.trust.terminal(*place)), "RedemptionService.Inspect"
    message = request_of(name)()
    put_place(message, Place(*place))
    data = message.SerializeToString()

    def let_in() -> bool:
        return status(call(channel, name, data)) != "UNAUTHENTICATED"

    def change(control: Any, state: Any) -> None:
        control.change_terminal(
            place,
            terminals.set_state(place, state, "stolen"),
            verb=f"{state}_terminal",
            body=("stolen",),
            request_id=house.request_id(),
            actor="test",
        )

    assert let_in()
    # Another process says so.
    unlock = PassphraseUnlock(PASSPHRASE)
    with Deployment.open(house.store.url, unlock=unlock, durability=Durability.MEMORY) as elsewhere:
        change(elsewhere.control, "suspended")
        wait_until(lambda: not let_in(), "it is refused", bound_s=5)
        change(elsewhere.control, "active")
        wait_until(let_in, "it is let in again", bound_s=5)
        change(elsewhere.control, "revoked")
        wait_until(lambda: not let_in(), "it is refused for good", bound_s=5)
    assert status(call(guarded.channel(guarded.trust.terminal(*place)), name, data)) == "UNAUTHENTICATED"
    assert status(call(guarded.channel(guarded.trust.terminal(*OWN)), name, own(name))) != "UNAUTHENTICATED"


def test_a_stream_tells_no_more_once_its_caller_counts_no_more(guarded: Guarded, house: House) -> None:
    guarded.idp.add("k3")
    token, name = guarded.idp.token(kid="k3"), "StoreService.ListCatalogue"
    wait_until(lambda: call(guarded.channel(), name, own(name), token) is None, "the new key counts")
    path, metadata = "/pickgate.v1.StockService/WatchStock", (("authorization", f"Bearer {token}"),)
    stream: Any = guarded.channel().unary_stream(path, None, None)(
        own("StockService.WatchStock"), timeout=60, metadata=metadata
    )
    assert next(stream)
    guarded.idp.drop("k3")
    wait_until(lambda: call(guarded.channel(), name, own(name), token) is not None, "the key is gone")
    house.issue()
    with pytest.raises(grpc.RpcError) as caught:
        list(itertools.islice(stream, 10))
    assert refused(caught.value, "UNAUTHENTICATED")


# --- the gate itself -----------------------------------------------------------------------------------------------------------
def test_a_caller_is_found_out_once(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    inner: Any = guarded.gate
    check: Callable[[str], Any] = inner._issuers.check

    def counted(token: str) -> Any:
        checked.append(token)
        return check(token)

    monkeypatch.setattr(inner._issuers, "check", counted)
    token = guarded.idp.token(sub="once")
    for name in ("StoreService.ListCatalogue", "CodeService.Render", "CodeService.Issue") * 5:
        call(guarded.channel(), name, own(name), token)
    assert checked == [token]


def test_what_is_remembered_is_bounded_and_holds_no_token(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.bounds.CALLERS_KEPT", 8)
    name = "StoreService.ListCatalogue"
    first = guarded.idp.token(sub="first")
    assert call(guarded.channel(), name, own(name), first) is None
    for n in range(20):
        assert call(guarded.channel(), name, own(name), guarded.idp.token(sub=f"caller-{n}")) is None
    inner: Any = guarded.gate
    assert len(inner._known) <= 8
    assert call(guarded.channel(), name, own(name), first) is None
    assert first.split(".")[2] not in repr(list(inner._known.items()))


def test_refusals_are_counted_and_logged_once(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    inner: Any = guarded.gate
    inner._told.clear()
    before = guarded.server.statistics()["refused"].get("token audience", 0)
    token = guarded.idp.bad("wrong audience")
    name = "CodeService.Issue"
    for _ in range(5):
        assert refused(call(guarded.channel(), name, own(name), token), "UNAUTHENTICATED")
    assert guarded.server.statistics()["refused"]["token audience"] == before + 5
    said = [one.getMessage() for one in caplog.records if "token audience" in one.getMessage()]
    assert len(said) == 1
    assert token not in caplog.text


def test_an_open_server_says_so_and_a_request_names_its_actor(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(house.deployment, [parse_listen("127.0.0.1:0")], look=lambda: None):
        assert "OPEN: callers are not known" in caplog.text
    uid = lock(house.client, house)
    listed = house.client.call(
        house.client.reviews.ListReviews, review_pb.ListReviewsRequest(mall_id=MALL, page_size=200)
    )
    (review,) = [one for one in listed.reviews if one.code.uid == uid]
    assert {one.actor for one in review.evidence} == {"somebody:else"}
    assert SKU in {line.sku_id for line in review.code.lines}


def test_a_socket_may_have_a_role_if_the_settings_say_so(house: House, socket_dir: Path) -> None:
    gate = Gate(house.deployment, trust_domain=DOMAIN, socket_role=Role.ADMINISTRATOR)
    listen = [parse_listen(f"unix:{socket_dir}/role.sock"), parse_listen("127.0.0.1:0")]
    with Server(house.deployment, listen, look=lambda: None, gate=gate) as server:
        with grpc.insecure_channel(server.addresses[0]) as channel:
            assert call(channel, "StoreService.ListMalls", b"") is None
            assert refused(
                call(channel, "ReviewService.Decide", own("ReviewService.Decide")), "PERMISSION_DENIED"
            )
        with grpc.insecure_channel(server.addresses[1]) as channel:
            assert refused(call(channel, "StoreService.ListMalls", b""), "UNAUTHENTICATED")
