"""Keys in two real servers on one store, wrapped by a key service: rotation, the emergency stop, and where secrets never appear."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from engine.deployment import Deployment
from engine.key_service import ServiceUnlock, SoftwareKeyService
from engine.limits import CONTROL_AGE_S_MAX
from engine.state.server import EmbeddedServer
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import CallFailed, Client
from tests.server import conftest
from tests.server.conftest import MALL, STORE, TERMINAL, House, wait_until
from tests.server.test_cli import environment, pickgate

START_BOUND_S = 60.0


@dataclass
class Pair:
    """Two servers on one store."""

    folder: Path
    store: EmbeddedServer
    processes: list[subprocess.Popen[str]]
    clients: list[Client]
    house: House
    """The first server, with short ways to call it; it has no server object of its own."""
    said: list[str]
    """What commands printed."""

    def run(self, *arguments: str) -> str:
        done = pickgate(
            "--json",
            *arguments,
            *("--store", self.store.url),
            cwd=self.folder,
            PICKGATE_KEY_SERVICE=f"software:{self.folder / 'service.json'}",
        )
        assert done.returncode == 0, done.stderr
        self.said += [done.stdout, done.stderr]
        return done.stdout

    def inspect(self, client: Client, code: str) -> int:
        request = redemption_pb.InspectRequest(
            terminal=types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=TERMINAL),
            code=code,
            position=conftest.AT_STORE,
        )
        return client.call(client.redemption.Inspect, request).verdict

    @property
    def logs(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("serve-*.log"))

    def active_kid(self, suite: str) -> int:
        keys = json.loads(self.run("keys", "list"))["keys"]
        [kid] = [
            key["kid"]
            for key in keys
            if (key["version"], key["suite"], key["state"]) == ("dynamic", suite, "active")
        ]
        return int(kid)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, socket_dir: Path) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    service = f"software:{folder / 'service.json'}"
    with ExitStack() as stack:
        store = stack.enter_context(EmbeddedServer(folder / "data", durability="fsync"))
        said = []
        for arguments in (
            ("keys", "service", "create", str(folder / "service.json")),
            ("init", "--store", store.url),
        ):
            done = pickgate("--json", *arguments, cwd=folder, PICKGATE_KEY_SERVICE=service)
            assert done.returncode == 0, done.stderr
            said += [done.stdout, done.stderr]
        processes, clients = [], []
        for number in (1, 2):
            with (folder / f"serve-{number}.log").open("w") as log:
                process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "server.cli", "--json", "serve", "--store", store.url),
                        *("--listen", f"unix:{socket_dir}/pair-{number}.sock", "--log-level", "debug"),
                        *("--stats-file", str(folder / f"stats-{number}.json")),
                    ],
                    cwd=folder,
                    env=environment(PICKGATE_KEY_SERVICE=service),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            stack.callback(_end, process)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], START_BOUND_S)
            line = process.stdout.readline() if ready else ""
            assert line, "a server did not come up"
            said.append(line)
            clients.append(stack.enter_context(Client(json.loads(line)["serving"][0])))
        house = House(store, None, None, clients[0], iter(range(1, 1_000)))  # type: ignore[arg-type]
        conftest.furnish(house)
        made = Pair(folder, store, processes, clients, house, said)
        wait_until(lambda: knows_the_mall(clients[1]), "the second server's copy")
        yield made


def knows_the_mall(client: Client) -> bool:
    try:
        client.call(
            client.codes.GetCodeByRequestId,
            code_pb.GetCodeByRequestIdRequest(mall_id=MALL, request_id="x" * 8),
        )
    except CallFailed as error:
        return "no code issued" in str(error)
    return False


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(START_BOUND_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


REDEEMABLE = redemption_pb.INSPECT_VERDICT_REDEEMABLE
INVALID = redemption_pb.INSPECT_VERDICT_INVALID_CODE


def test_a_rotation_by_hand_refuses_nobody(pair: Pair) -> None:
    shown = pair.house.shown()
    before = pair.active_kid("aes")
    pair.run("keys", "rotate", "--version", "dynamic", "--suite", "aes")
    assert pair.active_kid("aes") > before
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        for client in pair.clients:
            assert pair.inspect(client, shown) == REDEEMABLE
            assert pair.inspect(client, pair.house.shown()) == REDEEMABLE


def test_a_disabled_key_opens_nothing_on_any_process_within_five_seconds(pair: Pair) -> None:
    stolen, other = (pair.house.shown(suite=suite) for suite in (types_pb.SUITE_SM, types_pb.SUITE_AES))
    kid = pair.active_kid("sm")
    for client in pair.clients:
        assert pair.inspect(client, stolen) == REDEEMABLE
    pair.run("keys", "disable", str(kid))
    began_s = time.monotonic()
    stopped_s = []
    for client in pair.clients:
        wait_until(lambda client=client: pair.inspect(client, stolen) == INVALID, "the stop")  # type: ignore[misc]
        stopped_s.append(time.monotonic() - began_s)
    assert max(stopped_s) <= CONTROL_AGE_S_MAX, stopped_s
    for client in pair.clients:
        # For good, and this key only.
        assert pair.inspect(client, stolen) == INVALID
        assert pair.inspect(client, other) == REDEEMABLE
        with pytest.raises(CallFailed) as caught:
            client.call(client.codes.Issue, pair.house.issue_request(suite=types_pb.SUITE_SM))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    # And goods go on being handed out when there is a successor: one that seals at once, for nothing else is left.
    pair.run("keys", "create", "--version", "dynamic", "--suite", "sm", "--activate")

    def shows_again() -> bool:
        try:
            return pair.inspect(pair.clients[1], pair.house.shown(suite=types_pb.SUITE_SM)) == REDEEMABLE
        except CallFailed:
            return False

    wait_until(shows_again, "the successor")


def test_the_key_service_s_own_key_is_rotated_under_running_servers(pair: Pair) -> None:
    shown = pair.house.shown()
    done = pickgate("--json", "keys", "service", "rotate", str(pair.folder / "service.json"), cwd=pair.folder)
    assert json.loads(done.stdout) == {"active": "k2"}
    pair.said.append(done.stdout)
    revision = json.loads(pair.run("keys", "rewrap"))["revision"]
    assert revision > 1
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        for client in pair.clients:
            assert pair.inspect(client, shown) == REDEEMABLE


# --- where secrets never appear ---------------------------------------------------------------------------------------
def forms(secret: bytes) -> set[bytes]:
    """A secret as it might be written down, and the first half of it: a cut one is bad enough."""
    found: set[bytes] = set()
    for part in (secret, secret[:16]):
        found |= {
            *(part, part.hex().encode(), part.hex().upper().encode(), repr(part)[2:-1].encode()),
            *(b64encode(part).rstrip(b"=")[:20], urlsafe_b64encode(part).rstrip(b"=")[:20]),
            *(str(int.from_bytes(part)).encode(), str(list(part)).encode()),
        }
    return found


def secrets_of(pair: Pair) -> list[bytes]:
    """Every secret there is: of the keyring, its data key, the key service's keys."""
    service = SoftwareKeyService(pair.folder / "service.json")
    unlock = ServiceUnlock(service)
    with Deployment.open(pair.store.url, unlock=unlock) as deployment:
        ring = deployment.control.copy().keyring
        assert ring is not None
        found = [
            secret for record in ring.records for secret in (record.secret, record.signing_private) if secret
        ]
        found += unlock._data_keys.values()
        # What shows them in this process: everything that has a text.
        shown = f"{deployment.control.copy()!r}{ring!r}{ring.records!r}{deployment.control.copy().usable_keys()!r}{unlock!r}"
        shown += "".join(f"{record}" for record in ring.records)
    found += service._keys.values()
    assert len(found) > 10
    assert not [
        secret for secret in found for form in forms(secret) if form in shown.encode("latin-1", "replace")
    ]
    return found


def test_secrets_are_nowhere_but_in_memory(pair: Pair) -> None:
    """Search: logs at debug, figures, what commands print, errors, the store's files. The key service's file is where they are."""
    # Give every place something to say: refusals, errors of the caller, a defect's error id, figures.
    client, errors = pair.clients[0], []
    for ask in (
        lambda: client.call(client.codes.Render, code_pb.RenderRequest(mall_id=MALL, uid="00")),
        lambda: client.call(client.codes.Render, code_pb.RenderRequest(mall_id=MALL, uid="ff" * 8)),
        lambda: client.call(client.codes.Issue, pair.house.issue_request(store_id=9_999)),
        lambda: client.call(client.codes.Issue, pair.house.issue_request(version=9)),
    ):
        try:
            errors.append(str(ask()))
        except CallFailed as error:
            errors += [str(error), repr(error), repr(vars(error))]
    for command in (("keys", "disable", "60000"), ("keys", "destroy", "1"), ("keys", "activate", "1")):
        done = pickgate(
            *command,
            *("--store", pair.store.url),
            cwd=pair.folder,
            PICKGATE_KEY_SERVICE=f"software:{pair.folder / 'service.json'}",
        )
        assert done.returncode in (1, 2)
        pair.said += [done.stdout, done.stderr]
    pair.run("keys", "list")
    wait_until(lambda: all(path.stat().st_size for path in pair.folder.glob("stats-*.json")), "figures")
    secrets = secrets_of(pair)
    places = {
        "logs": pair.logs.encode(),
        "commands": "".join(pair.said).encode(),
        "errors": "".join(errors).encode(),
        **{
            path.name: path.read_bytes()
            for path in pair.folder.rglob("*")
            if path.is_file() and path.name != "service.json"
        },
    }
    assert sum(map(len, places.values())) > 20_000
    assert len([name for name in places if name.startswith(("stats-", "serve-"))]) == 4
    assert [name for name in places if "aof" in name], "the store's files are not among them"
    found = [
        (name, number)
        for name, content in places.items()
        for number, secret in enumerate(secrets)
        if any(form in content for form in forms(secret))
    ]
    assert found == []
    # The test of the test: where they are, they are found.
    kept = (pair.folder / "service.json").read_bytes()
    assert any(form in kept for secret in secrets for form in forms(secret))


def test_the_memory_of_a_server_is_its_own(pair: Pair) -> None:
    for process in pair.processes:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]
    code = (
        "import os, sys; from server.hardening import *; keep_memory_private(); assert is_memory_private();"
        " sys.stdout.write('private\\n'); sys.stdout.flush(); os.abort()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pair.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "private\n", done.stderr
    assert done.returncode == -signal.SIGABRT
    assert not list(pair.folder.glob("core*"))


_LOOK_AT_ONE_ANOTHER = """
import ctypes, os, sys
from server.hardening import keep_memory_private

def become_somebody_else():
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
    # Changing the user switches it off by itself (prctl(2)).
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)

r, w = os.pipe()
child = os.fork()
if child == 0:
    become_somebody_else()
    if sys.argv[1] == "private":
        keep_memory_private()
    os.write(w, b"x")
    sys.stdin.read()
    os._exit(0)
os.read(r, 1)
become_somebody_else()
try:
    open(f"/proc/{child}/mem", "rb").close()
    print("read")
except PermissionError:
    print("refused")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two processes of another user")
def test_another_process_of_the_same_user_can_not_read_it() -> None:
    """As root one can, always; so both become somebody else first."""
    seen = {}
    for how in ("private", "open"):
        with subprocess.Popen(
            [sys.executable, "-c", _LOOK_AT_ONE_ANOTHER, how],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as looking:
            assert looking.stdout is not None
            seen[how] = looking.stdout.readline().strip()
    assert seen == {"private": "refused", "open": "read"}


def test_this_process_is_told_from_one_that_is_private() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from server import hardening; print(hardening.is_memory_private())"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
