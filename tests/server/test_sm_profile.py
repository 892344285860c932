"""The SM profile through running servers, on both lanes: by a terminal in Python, and by one in Node.js over sm-crypto."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from engine.sm_enrolment import give
from ext import sm2_reference
from ext.codec import sm2_encrypt
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import Client
from tests.server.conftest import AT_STORE, MALL, NEAR_STORE, STORE, House
from tests.server.sealed import GET, INSPECT, REDEEM, RENDER, SealedTerminal
from tests.server.test_cli import inside

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "examples" / "sm_terminal"


@pytest.fixture(params=["lane", "handlers"])
def terminal(request: pytest.FixtureRequest, house: House) -> Iterator[SealedTerminal]:
    key = (MALL, STORE, 71 + len(request.param))
    # The house's servers share their deployment's copy, which `give` has brought up to date.
    number, secret = give(house.deployment.control, key)
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


def test_the_command_gives_what_a_terminal_can_open(make_store: Any, tmp_path: Path) -> None:
    store = make_store(durability="fsync")
    (tmp_path / "passphrase").write_text("four words by dice")
    given = {"PICKGATE_STORE_URL": store.url, "PICKGATE_PASSPHRASE_FILE": str(tmp_path / "passphrase")}
    assert inside("init", **given).returncode == 0
    private = bytes(range(1, 33))
    public = sm2_reference.public_of(private).hex()
    place = ("--mall", "1", "--at-store", "2001", "--terminal", "7")
    seen = set()
    for number in (1, 2):
        done = inside("--json", "sm", "enrol", *place, "--public-key", public, **given)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["number"] == number
        secret = sm2_reference.decrypt(private, bytes.fromhex(told["sealed_secret"]))
        assert len(secret) == 32
        assert secret.hex() not in done.stdout
        seen.add(secret)
    assert len(seen) == 2
    for wrong in ("", "04", "zz", "04" + "00" * 64, public[2:]):
        done = inside("sm", "enrol", *place, "--public-key", wrong, **given)
        assert done.returncode == 2
        assert "130 hex digits" in done.stderr


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
    pair = run(node, do="keys")
    # A store whose terminals needn't say where they are.
    place = (MALL, NEAR_STORE, 80)
    number, secret = give(house.deployment.control, place)
    enrolment = {
        **dict(zip(("mall_id", "store_id", "terminal_id"), place, strict=True)),
        "number": number,
        "sealed_secret": sm2_encrypt(bytes.fromhex(pair["public_key"]), secret).hex(),
    }
    issued = house.issue(store_id=NEAR_STORE)
    address = house.tcp if lane == "lane" else house.handlers
    visit = run(
        node,
        do="visit",
        address=address,
        protos=str(ROOT / "proto"),
        private_key=pair["private_key"],
        enrolment=enrolment,
        uid=issued.uid,
    )
    assert visit["inspected"] == "INSPECT_VERDICT_REDEEMABLE"
    assert visit["redeemed"] == "REDEEM_VERDICT_REDEEMED"
    assert visit["message_zh"]
    assert visit["clear"] is False
    assert visit["replayed"].startswith("UNAUTHENTICATED: this sealed request was here before")
    assert visit["elsewhere"].startswith("UNAUTHENTICATED: the sealed body does not open")
    with Client(address) as client:
        code = client.call(client.codes.GetCode, code_pb.GetCodeRequest(mall_id=MALL, uid=issued.uid)).code
    assert code.state == types_pb.CODE_STATE_REDEEMED
