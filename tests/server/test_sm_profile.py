"""The SM profile through running servers, on both lanes: by a terminal in Python, and by one in Node.js over sm-crypto."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from engine.sm_profile import open_answer
from engine.terminals import digest_of
from ext import sm2_reference
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import Client
from server.roles import Role
from tests.engine.sm_terminals import PUBLIC, give, opened
from tests.server.conftest import AT_STORE, MALL, NEAR_STORE, STORE, House, HouseFactory
from tests.server.counters import Counter
from tests.server.sealed import GET, INSPECT, REDEEM, RENDER, ROTATE, SealedTerminal
from tests.server.test_cli import inside

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "examples" / "sm_terminal"


@pytest.fixture(params=["lane", "handlers"])
def terminal(request: pytest.FixtureRequest, house: House) -> Iterator[SealedTerminal]:
    key = (MALL, STORE, 71 + len(request.param))
    # The house's servers share their deployment's copy, which `give` has brought up to date.
    number, secret = give(house.deployment, key)
    channel = grpc.insecure_channel(house.tcp if request.param == "lane" else house.handlers)
    made = SealedTerminal(key, number, secret, channel)
    yield made
    made.close()


def test_a_sealed_day(terminal: SealedTerminal, house: House) -> None:
    issued = house.issue()
    rendered = terminal.call(
        RENDER, code_pb.RenderRequest(mall_id=MALL, uid=issued.uid, count=1), code_pb.RenderResponse
    )
    code = rendered.payloads[0].text
    looked = terminal.call(
        INSPECT,
        redemption_pb.InspectRequest(terminal=terminal.at, code=code, position=AT_STORE),
        redemption_pb.InspectResponse,
    )
    assert looked.verdict == redemption_pb.INSPECT_VERDICT_REDEEMABLE
    asked = redemption_pb.RedeemRequest(
        terminal=terminal.at, code=code, request_id=house.request_id(), position=AT_STORE
    )
    redeemed = terminal.call(REDEEM, asked, redemption_pb.RedeemResponse)
    assert redeemed.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
    # A retry is sealed anew, and gets the first answer.
    again = terminal.call(REDEEM, asked, redemption_pb.RedeemResponse)
    assert again.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
    assert again.replayed
    shown = terminal.call(GET, code_pb.GetCodeRequest(mall_id=MALL, uid=issued.uid), code_pb.GetCodeResponse)
    assert shown.code.uid == issued.uid
    wire = b"".join(terminal.wire)
    for clear in (code, issued.uid, redeemed.request_id, "徐家汇店"):
        assert clear.encode() not in wire


def test_a_forged_code_is_answered_sealed(terminal: SealedTerminal) -> None:
    answer = terminal.call(
        REDEEM,
        redemption_pb.RedeemRequest(terminal=terminal.at, code="PG" + "0" * 76, request_id="sealed-forged"),
        redemption_pb.RedeemResponse,
    )
    assert answer.verdict == redemption_pb.REDEEM_VERDICT_INVALID_CODE


def test_what_does_not_open_is_unauthenticated(terminal: SealedTerminal) -> None:
    body = redemption_pb.InspectRequest(terminal=terminal.at, code="x").SerializeToString()
    envelope, _ = terminal.seal(INSPECT, body)
    terminal.send(INSPECT, envelope)
    told = terminal.refused(INSPECT, envelope)
    assert told.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "here before" in told.details()
    for path, wrong in (
        (REDEEM, terminal.seal(INSPECT, body)[0]),
        (INSPECT, terminal.seal(INSPECT, body, secret=bytes(32))[0]),
        (INSPECT, terminal.seal(INSPECT, body, time_ms=1)[0]),
        (INSPECT, terminal.seal(INSPECT, body)[0][:-1] + b"\0\0"),
    ):
        assert terminal.refused(path, wrong).code() is grpc.StatusCode.UNAUTHENTICATED
    assert terminal.refused(INSPECT, b"\0").code() is grpc.StatusCode.INVALID_ARGUMENT


def test_it_speaks_for_itself_alone(terminal: SealedTerminal) -> None:
    for other in (
        types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=3),
        types_pb.Terminal(mall_id=MALL, store_id=2002, terminal_id=terminal.key[2]),
        types_pb.Terminal(),
    ):
        body = redemption_pb.RedeemRequest(terminal=other, code="x", request_id="other-0001")
        told = terminal.refused(REDEEM, terminal.seal(REDEEM, body.SerializeToString())[0])
        assert told.code() is grpc.StatusCode.PERMISSION_DENIED
    batch = redemption_pb.RedeemBatchRequest(
        requests=[
            redemption_pb.RedeemRequest(terminal=at, code="x", request_id=f"batch-{n:04}")
            for n, at in enumerate(
                (terminal.at, types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=3))
            )
        ]
    )
    path = "/pickgate.v1.RedemptionService/RedeemBatch"
    told = terminal.refused(path, terminal.seal(path, batch.SerializeToString())[0])
    assert told.code() is grpc.StatusCode.PERMISSION_DENIED


def test_errors_of_sealed_calls_repeat_nothing_of_the_request(terminal: SealedTerminal) -> None:
    secret = "0123456789abcdeX"
    for path, body in (
        (GET, code_pb.GetCodeRequest(mall_id=MALL, uid=secret)),
        (RENDER, code_pb.RenderRequest(mall_id=MALL, uid=secret, count=1)),
        (REDEEM, redemption_pb.RedeemRequest(terminal=terminal.at, code="x", request_id=secret + "\n")),
    ):
        told = terminal.refused(path, terminal.seal(path, body.SerializeToString())[0])
        assert told.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert secret not in told.details()
        details = [value for _, value in told.trailing_metadata() if isinstance(value, bytes)]
        assert details
        assert all(secret.encode() not in value for value in details)
        assert b"INVALID_INPUT" in details[0]


def test_it_rotates_its_secret(terminal: SealedTerminal, house: House) -> None:
    look = redemption_pb.InspectRequest(terminal=terminal.at, code="PG" + "0" * 76).SerializeToString()
    first = terminal.number, terminal.secret
    asked = terminal_pb.RotateSecretRequest(
        terminal=terminal.at, request_id=house.request_id(), sm_public_key=PUBLIC
    )
    envelope, request = terminal.seal(ROTATE, asked.SerializeToString())
    given = terminal_pb.RotateSecretResponse.FromString(open_answer(request, terminal.send(ROTATE, envelope)))
    second = given.sm_number, opened(given.sm_sealed_secret)
    # Its answer was lost: the same request again, sealed anew, is given the same secret.
    again = terminal.call(ROTATE, asked, terminal_pb.RotateSecretResponse)
    assert (again.sm_number, opened(again.sm_sealed_secret)) == second
    for terminal.number, terminal.secret in (first, second):
        terminal.send(INSPECT, terminal.seal(INSPECT, look)[0])
    terminal.rotate(house.request_id())
    terminal.send(INSPECT, terminal.seal(INSPECT, look)[0])
    terminal.number, terminal.secret = first
    assert (
        terminal.refused(INSPECT, terminal.seal(INSPECT, look)[0]).code() is grpc.StatusCode.UNAUTHENTICATED
    )


def test_a_rotation_is_sealed_by_the_terminal_that_it_names(terminal: SealedTerminal, house: House) -> None:
    asked = terminal_pb.RotateSecretRequest(
        terminal=terminal.at, request_id=house.request_id(), sm_public_key=PUBLIC
    )
    assert terminal.refused(ROTATE, asked.SerializeToString()).code() is grpc.StatusCode.UNAUTHENTICATED
    asked.terminal.terminal_id += 1
    sealed = terminal.seal(ROTATE, asked.SerializeToString())[0]
    assert terminal.refused(ROTATE, sealed).code() is grpc.StatusCode.PERMISSION_DENIED
    for wrong in (b"", bytes(65), b"\x04" + bytes(64), PUBLIC[1:]):
        asked = terminal_pb.RotateSecretRequest(
            terminal=terminal.at, request_id=house.request_id(), sm_public_key=wrong
        )
        sealed = terminal.seal(ROTATE, asked.SerializeToString())[0]
        assert terminal.refused(ROTATE, sealed).code() is grpc.StatusCode.INVALID_ARGUMENT
    body = redemption_pb.InspectRequest(terminal=terminal.at, code="x").SerializeToString()
    terminal.send(INSPECT, terminal.seal(INSPECT, body)[0])


def test_the_command_enrols_by_an_invitation(house: House) -> None:
    place = (MALL, STORE, 90)
    text = f"PGT-{MALL}-{STORE}-90-{'C' * 32}"
    request = terminal_pb.InviteTerminalRequest(
        terminal=types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=90),
        request_id=house.request_id(),
        token_sha256=digest_of(("C" * 32).encode()),
    )
    house.client.call(house.client.terminals.InviteTerminal, request)
    given = {"PICKGATE_TARGET": house.tcp}
    for wrong in ("", "04", "zz", "04" + "00" * 64, PUBLIC.hex()[2:]):
        done = inside("sm", "enrol", text, "--public-key", wrong, **given)
        assert done.returncode == 2
        assert "SM2 public key" in done.stderr or "hexadecimal" in done.stderr
    done = inside("--json", "sm", "enrol", text, "--public-key", PUBLIC.hex(), **given)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    secret = opened(bytes.fromhex(told["sealed_secret"]))
    assert secret.hex() not in done.stdout
    channel = grpc.insecure_channel(house.tcp)
    terminal = SealedTerminal(place, told["number"], secret, channel)
    body = redemption_pb.InspectRequest(terminal=terminal.at, code="x").SerializeToString()
    terminal.send(INSPECT, terminal.seal(INSPECT, body)[0])
    terminal.close()
    # Once, and by its key.
    stranger = sm2_reference.public_of(bytes(range(2, 34))).hex()
    for shown, key in ((text, stranger), (text.replace("CC", "DD"), PUBLIC.hex())):
        done = inside("sm", "enrol", shown, "--public-key", key, **given)
        assert done.returncode == 2
        assert "UNAUTHENTICATED" in done.stderr


# --- another language -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node.js client with its locked packages, in a folder of its own."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(
                f"{program} is not installed: the SM profile is not tried in Node.js (apt-get install nodejs npm)"
            )
    folder = tmp_path_factory.mktemp("sm-terminal")
    for file in CLIENT.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(
            f"npm can not get the packages: the SM profile is not tried in Node.js ({done.stderr.strip()[:200]})"
        )
    return folder


def run(folder: Path, **asked: Any) -> Any:
    done = subprocess.run(
        ["node", "terminal.js"],
        cwd=folder,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_node_meets_the_vectors(node: Path) -> None:
    file = ROOT / "tests" / "vectors" / "sm_profile.json"
    for made, vector in zip(
        run(node, do="vectors", file=str(file)), json.loads(file.read_text()), strict=True
    ):
        assert made == {name: vector[name] for name in made}
        assert set(made) == {"request_envelope", "answer_body", "secret"}


@pytest.mark.parametrize("lane", ["lane", "handlers"])
def test_node_enrols_renders_and_redeems(node: Path, house: House, lane: str) -> None:
    address = house.tcp if lane == "lane" else house.handlers
    visit(node, house.client, house, {"address": address}, 80 + len(lane))
    with pytest.raises(AssertionError, match="UNAUTHENTICATED"):
        enrol(node, {"address": address}, 80 + len(lane), "E" * 32)


def test_node_does_so_by_tls_where_callers_are_known(
    node: Path, make_house: HouseFactory, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        counter = Counter.open(stack, make_house(), tmp_path)
        reached = {
            "address": f"localhost:{counter.server.addresses[0].rpartition(':')[2]}",
            "ca": str(counter.trust.folder / "ca.pem"),
        }
        by_role = {
            "render_token": counter.idp.token(Role.MALL),
            "token": counter.idp.token(Role.OUTLET, pickgate_store=NEAR_STORE),
        }
        visit(node, counter.admin, counter.house, reached | by_role, 81)
        listed = counter.admin.call(
            counter.admin.terminals.ListTerminals, terminal_pb.ListTerminalsRequest(store_id=NEAR_STORE)
        )
        assert [(one.state, one.sm_number) for one in listed.entries] == [
            (terminal_pb.TERMINAL_STATE_ACTIVE, 2)
        ]


def enrol(node: Path, reached: dict[str, str], number: int, token: str) -> Any:
    return run(
        node,
        do="enrol",
        protos=str(ROOT / "proto"),
        # A store whose terminals needn't say where they are.
        terminal={"mall_id": MALL, "store_id": NEAR_STORE, "terminal_id": number},
        invitation=token,
        **reached,
    )


def visit(node: Path, admin: Client, house: House, reached: dict[str, str], number: int) -> None:
    """A terminal in Node.js is invited, enrols, renders, redeems and takes its next secret."""
    token = "F" * 30 + str(number)
    request = terminal_pb.InviteTerminalRequest(
        terminal=types_pb.Terminal(mall_id=MALL, store_id=NEAR_STORE, terminal_id=number),
        request_id=house.request_id(),
        token_sha256=digest_of(token.encode()),
    )
    admin.call(admin.terminals.InviteTerminal, request)
    enrolled = enrol(node, reached, number, token)
    issued = house.issue(store_id=NEAR_STORE)
    visited = run(node, do="visit", protos=str(ROOT / "proto"), enrolled=enrolled, uid=issued.uid, **reached)
    assert visited["inspected"] == "INSPECT_VERDICT_REDEEMABLE"
    assert visited["redeemed"] == "REDEEM_VERDICT_REDEEMED"
    assert visited["message_zh"]
    assert visited["clear"] is False
    assert visited["replayed"].startswith("UNAUTHENTICATED: this sealed request was here before")
    assert visited["elsewhere"].startswith("UNAUTHENTICATED: the sealed body does not open")
    assert visited["number"] == enrolled["number"] + 1
    assert visited["again"] == "REDEEM_VERDICT_REDEEMED"
    code = house.client.call(house.client.codes.GetCode, code_pb.GetCodeRequest(mall_id=MALL, uid=issued.uid))
    assert code.code.state == types_pb.CODE_STATE_REDEEMED
