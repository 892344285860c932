"""Terminals: invited with a one-time token, enrolled with a key of their own, seen, rotated, suspended, revoked."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
import zxingcpp
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from PIL import Image

from engine.control import Copy
from engine.deployment import Deployment, Durability
from engine.errors import ConfigError
from engine.terminals import digest_of
from engine.wrapping import PassphraseUnlock
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from server.authority import Pair, make_request
from server.client import CallFailed, Client
from server.issuing import Issuing
from server.roles import Role
from tests.engine.sm_terminals import PUBLIC, opened
from tests.server.conftest import (
    AT_STORE,
    MALL,
    NEAR_STORE,
    OTHER_MALL,
    PASSPHRASE,
    STORE,
    House,
    HouseFactory,
    wait_until,
)
from tests.server.counters import TOKEN, Counter, place
from tests.server.sealed import INSPECT, SealedTerminal
from tests.server.test_cli import inside
from tests.server.trust import DOMAIN, Trust


def let_in(client: Client, number: int) -> bool:
    """Whether a terminal is let in: then it hears that it shows no code, which counts for nothing."""
    request = redemption_pb.InspectRequest(terminal=place(number), position=AT_STORE)
    with pytest.raises(CallFailed) as caught:
        client.call(client.redemption.Inspect, request)
    if caught.value.code is grpc.StatusCode.INVALID_ARGUMENT:
        return True
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    return False


def refusal(call: Any) -> grpc.StatusCode:
    with pytest.raises(CallFailed) as caught:
        call()
    return caught.value.code


@pytest.fixture
def counter(make_house: HouseFactory, tmp_path: Path) -> Iterator[Counter]:
    with ExitStack() as stack:
        yield Counter.open(stack, make_house(), tmp_path)


# --- enrolling --------------------------------------------------------------------------------------------------------------
def test_an_invited_terminal_enrols_and_redeems(counter: Counter) -> None:
    invited = counter.invite(11, name="counter 2", valid_s=600)
    assert invited.state == terminal_pb.TERMINAL_STATE_INVITED
    assert invited.invitation_expires_at_ms > 0
    pair = counter.enrol(11)
    leaf = x509.load_pem_x509_certificate(pair.certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://{DOMAIN}/mall/{MALL}/store/{STORE}/terminal/11"
    ]
    terminal = counter.terminal(pair)
    scan = counter.house.redeem_request(counter.house.shown())
    scan.terminal.terminal_id = 11
    assert terminal.call(terminal.redemption.Redeem, scan).verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
    entry = counter.entry(11)
    assert (entry.state, entry.name) == (terminal_pb.TERMINAL_STATE_ACTIVE, "counter 2")
    assert entry.invitation_expires_at_ms == 0
    assert entry.certificate_expires_at_ms == int(leaf.not_valid_after_utc.timestamp()) * 1000


def test_a_token_is_good_once_for_its_terminal_within_its_time(counter: Counter) -> None:
    counter.invite(11)
    assert refusal(lambda: counter.enrol(11, "B" * 32)) is grpc.StatusCode.UNAUTHENTICATED
    assert refusal(lambda: counter.enrol(12)) is grpc.StatusCode.UNAUTHENTICATED
    assert refusal(lambda: counter.enrol(11, "")) is grpc.StatusCode.UNAUTHENTICATED
    made = make_request()
    first = counter.enrol(11, csr=made.pem)
    # The answer was lost: the same key again is the same terminal; the certificate of before goes.
    second = counter.enrol(11, csr=made.pem)
    assert refusal(lambda: counter.enrol(11)) is grpc.StatusCode.UNAUTHENTICATED
    assert let_in(counter.terminal(Pair(second.certificate, made.key_pem)), 11)
    assert not let_in(counter.terminal(Pair(first.certificate, made.key_pem)), 11)


def test_of_many_who_use_a_token_at_once_one_enrols(counter: Counter) -> None:
    counter.invite(11)
    start = threading.Barrier(12)

    def enrol(_: int) -> Pair | grpc.StatusCode:
        start.wait()
        try:
            return counter.enrol(11)
        except CallFailed as error:
            return error.code

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(enrol, range(12)))
    (winner,) = [one for one in outcomes if isinstance(one, Pair)]
    assert {one for one in outcomes if not isinstance(one, Pair)} <= {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.ABORTED,
    }
    assert let_in(counter.terminal(winner), 11)


def test_an_invitation_ends(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    counter.invite(11, valid_s=60)
    now_ms = counter.house.deployment.now_ms
    monkeypatch.setattr(counter.house.deployment, "now_ms", lambda: now_ms() + 62_000)
    assert counter.entry(11).invitation_expires_at_ms == 0
    assert refusal(lambda: counter.enrol(11)) is grpc.StatusCode.UNAUTHENTICATED
    monkeypatch.undo()
    assert counter.enrol(11)


def odd_request(kind: str) -> bytes:
    made = make_request().pem
    if kind == "garbage":
        return b"garbage"
    if kind == "long":
        return made + b"#" * 5_000
    if kind == "tampered":
        der = bytearray(x509.load_pem_x509_csr(made).public_bytes(Encoding.DER))
        der[-1] ^= 1
        return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    key: Any = (
        rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256K1())
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("kind", ["garbage", "long", "tampered", "rsa", "another curve"])
def test_a_request_that_is_not_in_order_uses_nothing_up(counter: Counter, kind: str) -> None:
    counter.invite(11)
    assert refusal(lambda: counter.enrol(11, csr=odd_request(kind))) is grpc.StatusCode.INVALID_ARGUMENT
    assert counter.entry(11).state == terminal_pb.TERMINAL_STATE_INVITED
    assert counter.enrol(11)


def test_what_a_request_for_a_certificate_says_of_itself_is_not_looked_at(counter: Counter) -> None:
    counter.invite(11)
    key = ec.generate_private_key(ec.SECP256R1())
    claimed = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/mall/{OTHER_MALL}/store/1/terminal/1")]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = (
        builder.add_extension(claimed, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    leaf = x509.load_pem_x509_certificate(counter.enrol(11, csr=csr.public_bytes(Encoding.PEM)).certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [one.value for one in names] == [f"spiffe://{DOMAIN}/mall/{MALL}/store/{STORE}/terminal/11"]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"terminal": place(0)}, "terminal.terminal_id"),
        ({"terminal": place(1, 9_999)}, "terminal.store_id"),
        ({"terminal": place(1, STORE, OTHER_MALL)}, "terminal.store_id"),
        ({"terminal": place(1, STORE, 99)}, "terminal.mall_id"),
        ({"token_sha256": "abc"}, "token_sha256"),
        ({"token_sha256": "G" * 64}, "token_sha256"),
        ({"valid_s": 30}, "valid_s"),
        ({"valid_s": 10**7}, "valid_s"),
        ({"name": "x" * 121}, "name"),
        ({"request_id": ""}, "request_id"),
    ],
)
def test_an_invitation_that_is_misshapen_is_refused(
    counter: Counter, fields: dict[str, Any], field: str
) -> None:
    good: dict[str, Any] = {"terminal": place(1), "request_id": "invite-0001", "token_sha256": "a" * 64}
    request = terminal_pb.InviteTerminalRequest(**good | fields)
    with pytest.raises(CallFailed) as caught:
        counter.admin.call(counter.admin.terminals.InviteTerminal, request)
    assert (caught.value.code, caught.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


# --- rotating, suspending, revoking -----------------------------------------------------------------------------------------
def test_a_rotation_keeps_the_certificate_that_asked_until_the_next(counter: Counter) -> None:
    counter.invite(11)
    first = counter.terminal(counter.enrol(11))
    second = counter.terminal(counter.rotate(11, first))
    assert let_in(first, 11)
    assert let_in(second, 11)
    third = counter.terminal(counter.rotate(11, second))
    assert not let_in(first, 11)
    assert let_in(second, 11)
    assert let_in(third, 11)
    # Its answer was lost: it asks again with what it has.
    fourth = counter.terminal(counter.rotate(11, second))
    assert let_in(second, 11)
    assert let_in(fourth, 11)
    assert refusal(lambda: counter.rotate(12, second)) is grpc.StatusCode.PERMISSION_DENIED
    assert refusal(lambda: counter.rotate(11, counter.anybody)) is grpc.StatusCode.UNAUTHENTICATED


def test_a_process_that_has_not_heard_of_a_new_certificate_asks_to_try_again(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter.invite(11)
    pair = counter.enrol(11)
    opened = Deployment.open(
        counter.house.store.url, unlock=PassphraseUnlock(PASSPHRASE), durability=Durability.MEMORY
    )
    control = counter.stack.enter_context(opened).control
    counter.serve(opened)
    first = counter.terminal(pair, server=1)
    assert let_in(first, 11)

    look = redemption_pb.InspectRequest(terminal=place(11), position=AT_STORE)

    def look_again() -> Copy:
        control._copy = replace(control.copy(), checked_at_s=time.monotonic())
        return control._copy

    with monkeypatch.context() as kept:
        # Its look at the store, each second, finds nothing new for a while.
        kept.setattr(control, "refresh", look_again)
        # Certificates end by the second, and the next one ends later.
        issued_s = time.time() // 1
        wait_until(lambda: time.time() // 1 > issued_s, "the next second")
        second = counter.rotate(11, counter.terminal(pair))
        late, elsewhere = counter.terminal(second, server=1), counter.terminal(second)
        for _ in range(2):
            assert let_in(elsewhere, 11)
            assert let_in(first, 11)
            assert refusal(lambda: late.call(late.redemption.Inspect, look)) is grpc.StatusCode.UNAVAILABLE
    control.refresh()
    assert let_in(late, 11)
    # One that is older than those it knows is refused, and so is any of one that is suspended.
    counter.rotate(11, late)
    assert not let_in(first, 11)
    counter.change(11, "Suspend")
    control.refresh()
    assert not let_in(late, 11)


def test_suspend_resume_revoke_and_back_by_a_new_invitation(counter: Counter) -> None:
    counter.invite(11)
    client = counter.terminal(counter.enrol(11))
    assert let_in(client, 11)
    assert counter.change(11, "Suspend", "left at the bar").reason == "left at the bar"
    assert not let_in(client, 11)
    assert refusal(lambda: counter.rotate(11, client)) is grpc.StatusCode.UNAUTHENTICATED
    counter.change(11, "Resume")
    assert let_in(client, 11)
    counter.change(11, "Revoke", "stolen")
    assert not let_in(client, 11)
    assert refusal(lambda: counter.change(11, "Resume")) is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(lambda: counter.change(11, "Suspend")) is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(lambda: counter.enrol(11)) is grpc.StatusCode.UNAUTHENTICATED
    counter.invite(11, "C" * 32)
    assert not let_in(client, 11)
    anew = counter.terminal(counter.enrol(11, "C" * 32))
    assert let_in(anew, 11)
    assert not let_in(client, 11)


def test_an_invitation_for_one_that_is_there_leaves_it_alone_until_it_is_used(counter: Counter) -> None:
    counter.invite(11)
    client = counter.terminal(counter.enrol(11))
    counter.invite(11, "C" * 32)
    assert let_in(client, 11)
    assert refusal(lambda: counter.enrol(11)) is grpc.StatusCode.UNAUTHENTICATED
    anew = counter.terminal(counter.enrol(11, "C" * 32))
    assert let_in(anew, 11)
    assert not let_in(client, 11)


def test_revoking_ends_an_invitation_and_a_stranger_cant_be_resumed(counter: Counter) -> None:
    counter.invite(11)
    counter.change(11, "Revoke")
    assert refusal(lambda: counter.enrol(11)) is grpc.StatusCode.UNAUTHENTICATED
    assert refusal(lambda: counter.change(12, "Resume")) is grpc.StatusCode.NOT_FOUND
    # One that is known by its CA alone gets its entry by being suspended.
    known = counter.trust.terminal(MALL, STORE, 13)
    with Client(counter.server.addresses[1], credentials=known, tries=1) as client:
        assert let_in(client, 13)
        counter.change(13, "Suspend")
        assert not let_in(client, 13)


def test_a_repeated_request_changes_nothing_more(counter: Counter) -> None:
    request = terminal_pb.InviteTerminalRequest(
        terminal=place(11), request_id="invite-0001", token_sha256=digest_of(TOKEN.encode())
    )
    call = counter.admin.call
    first = call(counter.admin.terminals.InviteTerminal, request)
    assert call(counter.admin.terminals.InviteTerminal, request).entry.state == first.entry.state
    pair = counter.enrol(11)
    call(counter.admin.terminals.InviteTerminal, request)
    assert let_in(counter.terminal(pair), 11)
    request.token_sha256 = "a" * 64
    assert (
        refusal(lambda: call(counter.admin.terminals.InviteTerminal, request))
        is grpc.StatusCode.ALREADY_EXISTS
    )


def test_one_that_enrols_for_a_secret_is_listed_suspended_and_revoked_as_any_other(counter: Counter) -> None:
    counter.invite(11)
    client = counter.terminal(counter.enrol(11))
    counter.invite(11, "C" * 32)
    given = counter.ask_to_enrol(11, "C" * 32, sm_public_key=PUBLIC)
    assert (given.certificate_pem, given.sm_number) == ("", 1)
    entry = counter.entry(11)
    assert (entry.state, entry.sm_number) == (terminal_pb.TERMINAL_STATE_ACTIVE, 1)
    # The certificate that it had counts no more.
    assert entry.certificate_expires_at_ms == 0
    assert not let_in(client, 11)
    channel = grpc.secure_channel(counter.server.addresses[0], counter.trust.credentials())
    counter.stack.callback(channel.close)
    sealed = SealedTerminal(
        (MALL, STORE, 11),
        given.sm_number,
        opened(given.sm_sealed_secret),
        channel,
        token=counter.idp.token(Role.OUTLET),
    )
    body = redemption_pb.InspectRequest(terminal=place(11), code="x").SerializeToString()

    def opens() -> bool:
        code = grpc.StatusCode.OK
        try:
            sealed.send(INSPECT, sealed.seal(INSPECT, body)[0])
        except grpc.RpcError as error:
            code = error.code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
        return code is grpc.StatusCode.OK

    assert opens()
    sealed.rotate(counter.house.request_id())
    assert opens()
    assert counter.entry(11).sm_number == 2
    counter.change(11, "Suspend")
    assert not opens()
    counter.change(11, "Resume")
    assert opens()
    counter.change(11, "Revoke")
    assert not opens()
    counter.invite(11, "D" * 32)
    anew = counter.terminal(counter.enrol(11, "D" * 32))
    assert let_in(anew, 11)
    assert not let_in(client, 11)
    assert not opens()


def test_an_enrolment_asks_for_something(counter: Counter) -> None:
    counter.invite(11)
    wrong: tuple[dict[str, Any], ...] = (
        {},
        {"sm_public_key": PUBLIC[:-1]},
        {"sm_public_key": b"\x04" + bytes(64)},
    )
    for asked in wrong:
        with pytest.raises(CallFailed) as caught:
            counter.ask_to_enrol(11, **asked)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.field == ("sm_public_key" if asked else "csr_pem")
    assert counter.entry(11).state == terminal_pb.TERMINAL_STATE_INVITED
    both = counter.ask_to_enrol(11, csr_pem=make_request().pem.decode(), sm_public_key=PUBLIC)
    assert both.certificate_pem
    assert both.sm_number == 1


# --- the record --------------------------------------------------------------------------------------------------------------
def test_every_act_is_an_event_that_names_who_did_it_and_holds_no_token(counter: Counter) -> None:
    counter.invite(11, actor="somebody-else")
    client = counter.terminal(counter.enrol(11))
    counter.rotate(11, client)
    for verb in ("Suspend", "Resume", "Revoke"):
        counter.change(11, verb, f"for {verb}")
    with redis.Redis.from_url(counter.house.store.url) as store:
        events = [fields for _, fields in store.xrange("{ctl}e") if fields.get(b"kind") == b"terminals"]
    told = [(fields[b"actor"].decode(), json.loads(fields[b"7:2001:11"])["state"]) for fields in events]
    enrolled = "terminal:7/2001/11"
    assert told == [
        ("idp:lin", "invited"),
        (enrolled, "active"),
        (enrolled, "active"),
        ("idp:lin", "suspended"),
        ("idp:lin", "active"),
        ("idp:lin", "revoked"),
    ]
    assert TOKEN.encode() not in repr(events).encode()


def test_a_terminal_is_seen_by_a_write_now_and_then_and_none_for_a_call(counter: Counter) -> None:
    counter.invite(11)
    client = counter.terminal(counter.enrol(11))
    assert counter.entry(11).last_seen_ms == 0
    before_ms = counter.house.deployment.now_ms()
    inner: Any = counter.server
    with redis.Redis.from_url(counter.house.store.url) as store:
        for _ in range(20):
            assert let_in(client, 11)
        assert store.exists("{ctl}seen") == 0
        inner._sightings.note()
        seen_ms = counter.entry(11).last_seen_ms
        assert before_ms - 2_000 <= seen_ms <= counter.house.deployment.now_ms()
        # Nobody has called since: nothing is written, and an earlier word of another server changes nothing.
        store.hset("{ctl}seen", "7:2001:11", 2_000_000_000)
        inner._sightings.note()
        assert let_in(client, 11)
        inner._sightings.note()
        assert store.hget("{ctl}seen", "7:2001:11") == b"2000000000"


def test_lists_go_by_pages_and_places(counter: Counter) -> None:
    for number in (3, 1, 2):
        counter.invite(number)
    request = terminal_pb.InviteTerminalRequest(
        terminal=place(1, NEAR_STORE), request_id="invite-near", token_sha256="a" * 64
    )
    counter.admin.call(counter.admin.terminals.InviteTerminal, request)

    def listed(**fields: Any) -> tuple[list[tuple[int, int]], str]:
        page = counter.admin.call(
            counter.admin.terminals.ListTerminals, terminal_pb.ListTerminalsRequest(**fields)
        )
        return [
            (one.terminal.store_id, one.terminal.terminal_id) for one in page.entries
        ], page.next_page_token

    first, token = listed(page_size=2)
    second, end = listed(page_size=2, page_token=token)
    assert (first + second, end) == ([(STORE, 1), (STORE, 2), (STORE, 3), (NEAR_STORE, 1)], "")
    assert listed(store_id=NEAR_STORE) == ([(NEAR_STORE, 1)], "")
    assert listed(mall_id=OTHER_MALL) == ([], "")
    for token in ("x", "1:2", "1:2:3:4", "1:2:-3", "1" * 200):
        assert refusal(lambda token=token: listed(page_token=token)) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_ca_whose_terminals_would_not_be_let_in_is_refused_at_the_start(tmp_path: Path) -> None:
    trust, other = Trust.make(tmp_path / "trust"), Trust.make(tmp_path / "other")
    key = other.write("ca-key", other.authority.key_pem)
    made = Issuing(other.folder / "ca.pem", key, trust_domain=DOMAIN, days=30)
    made.check_trusted(other.folder / "ca.pem")
    with pytest.raises(ConfigError, match="not among those of tls_ca_file"):
        made.check_trusted(trust.folder / "ca.pem")


def test_without_a_ca_nobody_enrols_and_nothing_is_used_up(house: House) -> None:
    request = terminal_pb.InviteTerminalRequest(
        terminal=place(99), request_id=house.request_id(), token_sha256=digest_of(TOKEN.encode())
    )
    house.client.call(house.client.terminals.InviteTerminal, request)
    enrol = terminal_pb.EnrolTerminalRequest(
        terminal=place(99), token=TOKEN, csr_pem=make_request().pem.decode()
    )
    with pytest.raises(CallFailed) as caught:
        house.client.call(house.client.terminals.EnrolTerminal, enrol)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "issuing" not in caught.value.message


# --- the command ------------------------------------------------------------------------------------------------------------
def test_the_command_invites_by_qr_enrols_rotates_and_lists(counter: Counter, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(counter.idp.token(Role.ADMINISTRATOR))
    common = {
        "PICKGATE_TARGET_CA_FILE": str(counter.trust.folder / "ca.pem"),
        **{"PICKGATE_MALL_ID": str(MALL), "PICKGATE_STORE_ID": str(STORE), "PICKGATE_TERMINAL_ID": "11"},
    }
    admin = common | {
        "PICKGATE_TARGET": counter.server.addresses[0],
        "PICKGATE_TOKEN_FILE": str(tmp_path / "token"),
    }
    anybody = common | {"PICKGATE_TARGET": counter.server.addresses[0]}
    folder, picture = tmp_path / "terminal", tmp_path / "invitation.png"

    done = inside("terminals", "invite", "--name", "counter 2", "--png", str(picture), **admin)
    assert done.returncode == 0, done.stderr
    text = zxingcpp.read_barcodes(Image.open(picture))[0].text
    assert text in done.stdout
    assert text.startswith(f"PGT-{MALL}-{STORE}-11-")

    done = inside("terminals", "enrol", text.lower(), str(folder), **anybody)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((folder / "terminal-key.pem").stat().st_mode) == 0o600
    assert inside("terminals", "enrol", text, str(folder), **anybody).returncode == 2
    assert inside("terminals", "enrol", text, str(tmp_path / "thief"), **anybody).returncode == 2
    assert inside("terminals", "enrol", "PGT-1-2", str(tmp_path / "x"), **anybody).returncode == 2

    mine = common | {
        "PICKGATE_TARGET": counter.server.addresses[1],
        "PICKGATE_TARGET_CERT_FILE": str(folder / "terminal.pem"),
        "PICKGATE_TARGET_KEY_FILE": str(folder / "terminal-key.pem"),
    }
    scan = ("inspect", "PGX", "--lat", "31.1955", "--lon", "121.4365", "--datum", "gcj02")
    assert inside(*scan, **mine).returncode == 1
    before = (folder / "terminal.pem").read_bytes()
    assert inside("terminals", "rotate", str(folder), **mine).returncode == 0
    assert (folder / "terminal.pem").read_bytes() != before
    assert (folder / "terminal-old.pem").read_bytes() == before
    assert inside(*scan, **mine).returncode == 1
    (entry,) = json.loads(inside("terminals", "list", "--json", **admin).stdout)["entries"]
    assert (entry["state"], entry["name"]) == ("ACTIVE", "counter 2")
    assert "counter 2" in inside("terminals", "list", **admin).stdout
    assert inside("terminals", "suspend", "--reason", "lost", **admin).returncode == 0
    refused = inside(*scan, **mine)
    assert refused.returncode == 2
    assert "UNAUTHENTICATED" in refused.stderr
    assert inside("terminals", "resume", **admin).returncode == 0
    assert inside(*scan, **mine).returncode == 1
    assert inside("terminals", "revoke", **admin).returncode == 0
    assert inside(*scan, **mine).returncode == 2
    assert inside("terminals", "invite", **mine).returncode == 2
