"""The command `pickgate` as people and machines run it, against a server that is a process of its own.

A command is run as a process where that matters (what people see, errors, signals), else inside this one, which is faster.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import redis
import zxingcpp
from click.testing import CliRunner
from PIL import Image

from engine.state.server import running_url
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds
from server.cli import main
from server.client import Client
from server.console import table
from server.output import PeopleConsole
from tests.server.conftest import AT_STORE, wait_until

ROOT = Path(__file__).parents[2]
START_BOUND_S = 60.0
HERE = ("--lat", "31.1955", "--lon", "121.4365", "--datum", "gcj02")
UNIT = {"name": "礼盒", "unit": "盒"}


def environment(**more: str) -> dict[str, str]:
    """Ours without any PICKGATE_ setting of whoever runs the tests, but for the choice of kernels."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "PICKGATE_PURE" or not name.startswith(("PICKGATE_", "XDG_"))
    }
    return kept | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}", "PYTHONUTF8": "1"} | more


def pickgate(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def inside(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command inside this process."""
    ours = dict.fromkeys(
        name for name in os.environ if name.startswith("PICKGATE_") and name != "PICKGATE_PURE"
    )
    done = CliRunner().invoke(
        main, arguments, env={**ours, **more}, catch_exceptions=False, prog_name="pickgate"
    )
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def read_line(stream: IO[str], process: subprocess.Popen[str]) -> str:
    """One line of a process that is starting, within a bound."""
    ready, _, _ = select.select([stream], [], [], START_BOUND_S)
    assert ready, "the process said nothing in time"
    line = stream.readline()
    assert line, f"the process ended: {process.wait(10)}, {process.stderr.read() if process.stderr else ''}"
    return line


@dataclass
class Served:
    """A server process of its own, and the commands that talk to it."""

    data_dir: Path
    cwd: Path
    process: subprocess.Popen[str]
    address: str
    settings: dict[str, str] = field(default_factory=dict)
    addresses: list[str] = field(default_factory=list)
    """All that it listens on; `address` is the first."""

    def environment(self) -> dict[str, str]:
        return {
            "PICKGATE_TARGET": self.address,
            "PICKGATE_DATA_DIR": str(self.data_dir),
            "PICKGATE_MALL_ID": "7",
            "PICKGATE_STORE_ID": "2001",
            "PICKGATE_TERMINAL_ID": "3",
        } | self.settings

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a process."""
        return pickgate(*arguments, cwd=self.cwd, **self.environment())

    def inside(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside this process."""
        return inside(*arguments, **self.environment())

    def json(self, *arguments: str, code: int = 0) -> Any:
        done = self.inside(*arguments, "--json")
        assert done.returncode == code, done.stderr + done.stdout
        return json.loads(done.stdout)


def serve(stack: ExitStack, data_dir: Path, cwd: Path, *arguments: str, **more: str) -> Served:
    # Its messages go to a file: nobody reads a pipe while the tests run.
    log = stack.enter_context((cwd / "server.log").open("a"))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "server.cli", "serve", "--json"),
            *("--data-dir", str(data_dir), "--listen", "127.0.0.1:0", *arguments),
        ],
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )

    def end() -> None:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        if process.stdout:
            process.stdout.close()

    stack.callback(end)
    assert process.stdout
    told = json.loads(read_line(process.stdout, process))
    return Served(data_dir, cwd, process, told["serving"][0], addresses=told["serving"])


def furnish(served: Served) -> None:
    served.json("malls", "put", "--id", "7", "--name", "商城")
    (served.cwd / "stores.json").write_text(
        json.dumps(
            [
                {
                    "store_id": 2001,
                    "name": "徐家汇店",
                    "city": "上海",
                    "mall_ids": [7],
                    "latitude_deg": 31.1955,
                    "longitude_deg": 121.4365,
                    "datum": "gcj02",
                }
            ]
        )
    )
    served.json("stores", "put", str(served.cwd / "stores.json"))
    served.json("catalogue", "put", "--sku", "101", "--name", UNIT["name"], "--unit", UNIT["unit"])
    served.json("stock", "receive", "100", "--sku", "101")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cwd = tmp_path_factory.mktemp("cli")
    with ExitStack() as stack:
        made = serve(stack, cwd / "data", cwd, "--durability", "fsync")
        furnish(made)
        yield made


# --- the way of a code ---------------------------------------------------------------------------------------------


def test_a_code_from_issue_to_a_second_scan(served: Served, tmp_path: Path) -> None:
    issued = served.json("issue", "--order", "A-1", "--line", "101:2")
    assert issued["verdict"] == "ISSUED"
    uid = issued["uid"]

    png, svg = tmp_path / "code.png", tmp_path / "code.svg"
    rendered = served.json("render", uid, "--png", str(png), "--svg", str(svg))
    text = rendered["payloads"][0]["text"]
    (scanned,) = zxingcpp.read_barcodes(Image.open(png))
    assert scanned.text == text
    assert svg.stat().st_size > 500

    assert served.json("inspect", text, *HERE)["verdict"] == "REDEEMABLE"
    redeemed = served.json("redeem", text, *HERE)
    assert redeemed["verdict"] == "REDEEMED"
    retried = served.json("redeem", text, *HERE, "--request-id", redeemed["request_id"])
    assert (retried["verdict"], retried["replayed"]) == ("REDEEMED", True)
    second = served.json("redeem", text, *HERE, code=1)
    assert (second["verdict"], second["at_ms"]) == ("ALREADY_REDEEMED", redeemed["at_ms"])
    assert served.json("get", uid)["state"] == "REDEEMED"
    assert served.json("get", "--request-id", issued["request_id"])["uid"] == uid
    assert served.json("void", uid, code=1)["verdict"] == "ALREADY_REDEEMED"


def test_people_read_sentences_and_tables(served: Served) -> None:
    issued = served.run("issue", "--order", "A-2", "--line", "101", "--version", "static", "--suite", "sm")
    assert issued.returncode == 0
    assert issued.stdout.startswith("ISSUED  提货码已生成。\n")
    facts = dict(line.split(maxsplit=1) for line in issued.stdout.splitlines()[2:])
    assert len(facts["typed"].split()) == 4
    assert len(facts["pin"]) == 6
    assert facts["request_id"]

    shown = served.run("render", facts["uid"])
    assert shown.returncode == 0
    assert "█" in shown.stdout
    refused = served.run("redeem", facts["typed"], *HERE)
    assert refused.returncode == 1
    assert refused.stdout.startswith("PIN_REQUIRED")
    assert served.run("redeem", facts["typed"], "--pin", facts["pin"], *HERE).returncode == 0

    listed = served.inside("stores", "list").stdout
    assert "徐家汇店" in listed
    assert "GCJ02" in listed
    assert "礼盒" in served.inside("catalogue", "list").stdout
    assert "on hand" in served.inside("stock", "show").stdout
    assert "商城" in served.inside("malls", "list").stdout


def test_render_ahead_numbers_its_files(served: Served, tmp_path: Path) -> None:
    uid = served.json("issue", "--order", "A-3", "--line", "101")["uid"]
    served.json("render", uid, "--count", "3", "--png", str(tmp_path / "code.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code-1.png", "code-2.png", "code-3.png"]


def test_a_batch_from_a_file_and_what_list_prints_can_be_put(served: Served, tmp_path: Path) -> None:
    orders = [
        {
            "order_id": f"B-{n}",
            "store_id": 2001,
            "lines": [{"sku_id": 101, "count": n}],
            "version": "dynamic",
            "suite": "aes",
        }
        for n in range(3)
    ]
    file = tmp_path / "orders.json"
    file.write_text(json.dumps(orders))
    outcomes = served.json("issue", "--file", str(file), code=1)["outcomes"]
    assert outcomes[0]["error"]["field"] == "lines[0].count"
    assert [outcome["response"]["verdict"] for outcome in outcomes[1:]] == ["ISSUED", "ISSUED"]

    listed = tmp_path / "stores.json"
    listed.write_text(served.inside("stores", "list", "--json").stdout)
    assert served.json("stores", "put", str(listed))["stores"] == 1
    assert served.json("stores", "show", "2001")["datum"] == "GCJ02"


def test_stock_commands(served: Served) -> None:
    def on_hand(*arguments: str, code: int = 0) -> int:
        return int(served.json("stock", *arguments, "--sku", "101", code=code)["figures"]["on_hand"])

    before = int(served.json("stock", "show", "--sku", "101")["figures"][0]["on_hand"])
    assert on_hand("receive", "5") == before + 5
    assert on_hand("adjust", "-5") == before
    assert on_hand("adjust", "-1000000", code=1) == before
    assert on_hand("count", str(before + 1)) == before + 1
    assert on_hand("adjust", "-1") == before
    assert served.json("stock", "baseline", "50", "--sku", "101")["figures"]["baseline"] == 50


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "slug", "part"),
    [
        (("get", "0123456789abcdef"), 1, "NOT_FOUND", "no code"),
        (("get", "xyz"), 2, "INVALID_INPUT", "16 lower-case hexadecimal digits"),
        (("get",), 2, "INVALID_INPUT", "which code"),
        (("issue", "--order", "A", "--line", "101:x"), 2, "INVALID_INPUT", "SKU:COUNT"),
        (
            ("issue", "--order", "A", "--line", "101:70000"),
            2,
            "INVALID_INPUT",
            "the count of --line number 1",
        ),
        (("issue", "--order", "A", "--line", "101:-1"), 2, "INVALID_INPUT", "--line"),
        (("issue", "--mall", "99", "--order", "A", "--line", "101"), 2, "UNKNOWN_MALL", "99"),
        (("redeem", "P" * 513, *HERE), 2, "INVALID_INPUT", "513"),
        (
            ("redeem", "PG0", "--lat", "nan", "--lon", "1", "--datum", "wgs84"),
            2,
            "INVALID_INPUT",
            "--lat is nan",
        ),
        (("redeem", "PG0", "--lat", "1", "--lon", "1"), 2, "INVALID_INPUT", "datum"),
        (("stores", "put", "absent.json"), 2, "INVALID_INPUT", "absent.json can't be read"),
        (("stores", "put"), 2, "INVALID_INPUT", "which stores"),
        (("--target", "127.0.0.1:1", "malls", "list"), 3, "UNAVAILABLE", "is it running"),
        (("keys", "destroy", "3"), 2, "KEY_STATE", "3"),
        (("keys", "disable", "4000"), 1, "NOT_FOUND", "4000"),
        (("keys", "create", "--activate", "--version", "dynamic"), 2, "KEY_STATE", "rotate"),
        (("keys", "create"), 2, "INVALID_INPUT", "version"),
        (("--config", "absent.toml", "malls", "list"), 2, "CONFIG", "absent.toml"),
    ],
)
def test_an_error_is_one_line_with_its_slug_and_a_code(
    served: Served, arguments: tuple[str, ...], code: int, slug: str, part: str
) -> None:
    done = served.inside(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error {slug}: ")
    assert part in line
    assert "Traceback" not in done.stderr


def test_an_error_of_the_process_is_one_line_too(served: Served) -> None:
    done = served.run("get", "0123456789abcdef")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error NOT_FOUND: mall 7 has no code 0123456789abcdef\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("issue", "--line", "100:1"), "--order is ''; expected 1 .. 48 characters"),
        (("issue", "--order", "O-1"), "--line has 0 items; expected at least 1"),
        (
            ("issue", "--order", "O-1", "--line", "100:1", "--line", "100:2"),
            "the sku_id of --line number 2 is 100; expected each SKU in one line only",
        ),
        (("issue", "--order", "O-1", "--line", "100:1", "--ttl-s", "5"), "--ttl-s is 5; expected 60"),
        (
            ("issue", "--order", "O-1", "--line", "100:1", "--request-id", "short"),
            "--request-id is 'short'; ",
        ),
        (("redeem", "PG0", "--pin", "12"), "--pin is misshapen"),
        (
            ("redeem", "PG0", "--lat", "31.2", "--lon", "121.4"),
            "all of --lat, --lon and --datum (wgs84, gcj02",
        ),
        (("redeem", "PG0", "--lat", "91", "--lon", "121", "--datum", "wgs84"), "--lat is 91.0; expected -90"),
        (("get", "xyz"), "UID is 'xyz'; expected 16"),
        (("extend", "0" * 16, "--to", "1970-01-01T00:00+00:00"), "--to is 0; expected 1"),
        (("stock", "receive", "0", "--sku", "100"), "COUNT is 0; expected 1"),
        (("policies", "put", "--level", "deployment", "--hold-s", "5"), "--hold-s is 5; expected 60"),
    ],
)
def test_an_error_names_what_was_typed(served: Served, arguments: tuple[str, ...], said: str) -> None:
    """Whoever typed an option need not know the field of the contract that it fills."""
    done = served.inside(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_an_error_of_a_file_names_the_entry_and_its_field(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "policies.json"
    file.write_text(json.dumps([{"level": "DEPLOYMENT"}, {"level": "STORE", "store_id": 2001, "hold_s": 5}]))
    assert "policies[1].hold_s is 5" in served.inside("policies", "put", str(file)).stderr


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command inside this process gives up at once where nobody answers."""
    monkeypatch.setattr(bounds, "CLIENT_WAITS_S_MAX", 0.0)


@pytest.mark.usefixtures("hasty")
def test_what_was_not_decided_says_how_to_ask_again() -> None:
    nowhere = ("--target", "127.0.0.1:1")
    asked = ("stock", "receive", "5", "--mall", "7", "--store", "2001", "--sku", "100")
    done = inside(*nowhere, *asked)
    assert done.returncode == 3
    made = re.search(r"; ask again with --request-id ([0-9a-f-]{36})$", done.stderr.rstrip())
    assert made
    again = inside(*nowhere, *asked, "--request-id", made[1], "--json")
    assert json.loads(again.stderr)["error"]["request_id"] == made[1]
    # Nothing to repeat.
    assert "request-id" not in inside(*nowhere, "malls", "list").stderr


@pytest.mark.usefixtures("hasty")
def test_a_batch_that_was_not_decided_says_the_id_of_each_entry(served: Served, tmp_path: Path) -> None:
    """Made up by the command, they would be lost, and a second try would issue everything twice."""
    order = {"mall_id": 7, "store_id": 2001, "suite": "AES", "lines": [{"sku_id": 101, "count": 1}]}
    orders = [{**order, "order_id": f"B-{n}"} for n in range(2)]
    file = tmp_path / "orders.json"
    file.write_text(json.dumps(orders))
    done = inside("--target", "127.0.0.1:1", "issue", "--file", str(file), "--json")
    assert done.returncode == 3
    outcomes = json.loads(done.stdout)["outcomes"]
    assert {outcome["error"]["reason"] for outcome in outcomes} == {"UNAVAILABLE"}
    ids = [outcome["request_id"] for outcome in outcomes]
    assert len(set(ids)) == 2
    people = inside("--target", "127.0.0.1:1", "issue", "--file", str(file))
    assert people.returncode == 3
    assert len(re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", people.stdout)) == 2

    served.json("stock", "receive", "2", "--sku", "101")
    file.write_text(json.dumps([{**one, "request_id": id} for one, id in zip(orders, ids, strict=True)]))
    first, second = (served.json("issue", "--file", str(file))["outcomes"] for _ in range(2))
    assert [one["response"]["uid"] for one in first] == [one["response"]["uid"] for one in second]


@pytest.mark.parametrize("width", [80, 60])
def test_a_narrow_terminal_cuts_nothing(width: int) -> None:
    made = table("Open reviews", "=review", "=uid", "=order", "#store", "locked", "tries")
    when = "2026-11-25 19:51:08+00:00"
    made.add_row(
        "9-1-24", "024000008da7409a", "O-4711", "4294967295", when, f"{when} PIN_WRONG at terminal 11"
    )
    screen = io.StringIO()
    PeopleConsole(file=screen, width=width).print(made)
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in screen.getvalue()
    columns = list(zip(*(line.strip("│").split("│") for line in lines if line.startswith("│")), strict=True))
    uid = "".join(cell.strip() for cell in columns[1])
    assert uid == "024000008da7409a"
    if width == 80:
        assert any("024000008da7409a" in line and "4294967295" in line for line in lines)


def test_a_port_that_is_taken_is_told_before_a_deployment_is_made(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    done = pickgate("serve", "--data-dir", str(folder), "--listen", served.address, cwd=tmp_path)
    assert done.returncode == 2
    assert f"can't listen on {served.address}: " in done.stderr
    assert not folder.exists()


def test_a_refused_code_is_an_answer_not_an_error(served: Served) -> None:
    assert served.json("redeem", "提货码", *HERE, code=1)["verdict"] == "INVALID_CODE"


def test_machines_read_errors_as_json(served: Served) -> None:
    done = served.run("get", "xyz", "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["reason"] == "INVALID_INPUT"
    assert json.loads(done.stderr)["error"]["field"] == "uid"


def test_a_wrong_setting_is_named_with_its_origin(tmp_path: Path) -> None:
    done = pickgate("malls", "list", cwd=tmp_path, PICKGATE_THREDS="4")
    assert done.returncode == 2
    assert "PICKGATE_THREDS" in done.stderr
    assert "threads" in done.stderr
    (tmp_path / "pickgate.toml").write_text('listen = "0.0.0.0:80"')
    done = pickgate("serve", cwd=tmp_path)
    assert done.returncode == 2
    assert "TLS" in done.stderr
    assert not (tmp_path / "pickgate-data").exists()


# --- keys ----------------------------------------------------------------------------------------------------------


def test_keys_are_rotated_under_a_running_server(served: Served) -> None:
    old = served.json("issue", "--order", "K-1", "--line", "101")
    payload = served.json("render", old["uid"])["payloads"][0]["text"]
    before = {key["kid"]: key for key in served.json("keys", "list")["keys"]}
    assert len(before) >= 9
    rotated = served.json("keys", "rotate", "--version", "dynamic", "--suite", "aes")["keys"]
    assert {key["state"] for key in rotated} == {"active", "verify_only"}
    pending = served.json("keys", "create", "--purpose", "payload", "--version", "static", "--suite", "sm")[
        "keys"
    ]
    assert [key["state"] for key in pending] == ["pending"]
    kid = str(pending[0]["kid"])
    assert served.json("keys", "disable", kid)["keys"][0]["state"] == "disabled"
    assert served.json("keys", "destroy", kid)["keys"][0]["state"] == "destroyed"
    # The server has the new keyring within a second or so, and still opens what the old key made.
    assert served.json("redeem", payload, *HERE)["verdict"] == "REDEEMED"
    shown = served.inside("keys", "list").stdout
    assert "verify_only" in shown
    for word in ("secret", "private"):
        assert word not in shown.lower()


def test_a_person_is_asked_for_the_passphrase_without_an_echo(tmp_path: Path) -> None:
    done = inside("init", "--json", PICKGATE_DATA_DIR=str(tmp_path / "data"))
    assert done.returncode == 0
    kept = tmp_path / "data" / "passphrase"
    passphrase = kept.read_text().strip()
    kept.rename(tmp_path / "elsewhere")

    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "server.cli", "keys", "list", "--json"],
            cwd=tmp_path,
            env=environment(PICKGATE_DATA_DIR=str(tmp_path / "data")),
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.PIPE,
            text=True,
            # No controlling terminal: it asks on what it was given, not on the terminal of who runs the tests.
            start_new_session=True,
        ) as process:
            seen = b""
            while b"Passphrase" not in seen:
                ready, _, _ = select.select([ours], [], [], START_BOUND_S)
                assert ready, seen
                seen += os.read(ours, 1024)
            os.write(ours, passphrase.encode() + b"\n")
            assert process.stdout
            assert len(json.loads(process.stdout.read())["keys"]) == 9
            assert process.wait(30) == 0
        while select.select([ours], [], [], 0)[0]:
            seen += os.read(ours, 1024)
        assert passphrase.encode() not in seen
    finally:
        os.close(ours)
        os.close(theirs)


# --- life of the server --------------------------------------------------------------------------------------------


def test_the_first_start_makes_a_private_passphrase_and_the_folder(served: Served) -> None:
    path = served.data_dir / "passphrase"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(served.data_dir.stat().st_mode) == 0o700
    assert len(path.read_text().strip()) >= 40
    log = (served.cwd / "server.log").read_text()
    assert "passphrase" in log
    assert path.read_text().strip() not in log


def test_a_second_server_on_the_same_folder_is_refused(served: Served) -> None:
    done = pickgate("serve", "--data-dir", str(served.data_dir), "--listen", "127.0.0.1:0", cwd=served.cwd)
    assert done.returncode == 2
    assert done.stderr.startswith("error STORE_IN_USE: ")
    assert str(served.process.pid) in done.stderr


@pytest.mark.fault
def test_kill_9_restart_retry_redeems_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = serve(stack, tmp_path / "data", tmp_path)
        furnish(first)
        uid = first.json("issue", "--order", "A-1", "--line", "101")["uid"]
        text = first.json("render", uid)["payloads"][0]["text"]
        redeemed = first.json("redeem", text, *HERE)
        first.process.kill()
        first.process.wait(30)

        second = serve(stack, tmp_path / "data", tmp_path)
        again = second.json("redeem", text, *HERE, "--request-id", redeemed["request_id"])
        assert again["replayed"]
        assert (again["verdict"], again["at_ms"]) == ("REDEEMED", redeemed["at_ms"])
        assert second.json("redeem", text, *HERE, code=1)["verdict"] == "ALREADY_REDEEMED"
        assert second.json("stock", "show")["figures"][0]["on_hand"] == 99

        # A stop in order ends the server, and the store with it.
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(30) == 0
        assert not (tmp_path / "data" / "store.sock").exists()


@pytest.mark.fault
def test_a_stop_by_signal_lets_a_redemption_in_flight_finish(tmp_path: Path) -> None:
    with ExitStack() as stack:
        made = serve(stack, tmp_path / "data", tmp_path)
        furnish(made)
        uid = made.json("issue", "--order", "A-1", "--line", "101")["uid"]
        text = made.json("render", uid)["payloads"][0]["text"]
        with redis.Redis.from_url(running_url(made.data_dir)) as direct:
            store = int(direct.info("server")["process_id"])
        with Client(made.address, tries=1) as client:
            request = redemption_pb.RedeemRequest(
                terminal=types_pb.Terminal(mall_id=7, store_id=2001, terminal_id=3),
                request_id="in-flight-1",
                code=text,
                position=AT_STORE,
            )
            assert client.healthy()
            os.kill(store, signal.SIGSTOP)
            try:
                answer = client.redemption.Redeem.future(request, timeout=10)
                # Sent behind it on the same connection: once this is answered, the server has the redemption.
                client.healthy()
                made.process.send_signal(signal.SIGTERM)
                wait_until(lambda: "stopping" in (tmp_path / "server.log").read_text(), "it is stopping")
                assert made.process.poll() is None
                assert not answer.done()
            finally:
                os.kill(store, signal.SIGCONT)
            assert answer.result().verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
        assert made.process.wait(30) == 0

        again = serve(stack, tmp_path / "data", tmp_path)
        replayed = again.json("redeem", text, *HERE, "--request-id", "in-flight-1")
        assert (replayed["verdict"], replayed["replayed"]) == ("REDEEMED", True)


def test_an_emptied_store_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    """New keys would make every code that is out there a forgery."""
    with ExitStack() as stack:
        made = serve(stack, tmp_path / "data", tmp_path)
        with redis.Redis.from_url(running_url(tmp_path / "data") or "") as client:
            client.flushall()
        made.process.terminate()
        assert made.process.wait(30) == 0
        refused = pickgate("serve", "--data-dir", str(made.data_dir), "--listen", "127.0.0.1:0", cwd=tmp_path)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith("error DEPLOYMENT_MISMATCH: ")
        assert "restore a backup" in refused.stderr

        (made.data_dir / "deployment").unlink()
        serve(stack, made.data_dir, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with ExitStack() as stack:
        made = serve(stack, tmp_path / "data", tmp_path, "--durability", "memory")
        made.process.send_signal(number)
        assert made.process.wait(30) == 0
        assert "stopped" in (tmp_path / "server.log").read_text()


def test_a_signal_that_meets_another_thread_than_the_main_one_ends_the_server_too(tmp_path: Path) -> None:
    """The kernel may give a signal of the process to any thread; the main one sleeps on."""
    with ExitStack() as stack:
        made = serve(stack, tmp_path / "data", tmp_path, "--durability", "memory")
        pid = made.process.pid
        other = max(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())
        assert other != pid
        assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
        assert made.process.wait(15) == 0


def test_init_then_serve_on_a_given_store(tmp_path: Path, make_store: Any) -> None:
    url = make_store().url
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase for this test\n")
    passphrase.chmod(0o600)
    given = {"PICKGATE_STORE_URL": url}

    done = pickgate("serve", "--listen", "127.0.0.1:0", cwd=tmp_path, **given)
    assert (done.returncode, "pickgate init" in done.stderr) == (2, True)
    done = inside("init", **given)
    assert done.returncode == 2
    assert "passphrase" in done.stderr
    given["PICKGATE_PASSPHRASE_FILE"] = str(passphrase)
    done = pickgate("init", "--partitions", "4", "--json", cwd=tmp_path, **given)
    assert done.returncode == 0
    assert json.loads(done.stdout)["partitions"] == 4
    done = inside("init", **given)
    assert (done.returncode, "error DEPLOYMENT_MISMATCH" in done.stderr) == (2, True)
    done = pickgate("serve", "--partitions", "8", "--listen", "127.0.0.1:0", cwd=tmp_path, **given)
    assert (done.returncode, "4 partitions" in done.stderr) == (2, True)

    with ExitStack() as stack:
        made = serve(stack, tmp_path / "unused", tmp_path, **given)
        made.settings = given
        furnish(made)
        assert made.json("issue", "--order", "A-1", "--line", "101")["verdict"] == "ISSUED"
        assert len(made.json("keys", "list")["keys"]) == 9
    assert not (tmp_path / "unused").exists()


def test_without_the_passphrase_it_serves_reads_and_says_that_it_is_locked(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = serve(stack, tmp_path / "data", tmp_path, "--durability", "fsync")
        furnish(first)
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(30) == 0
        (tmp_path / "data" / "passphrase").rename(tmp_path / "elsewhere")

        locked = serve(stack, tmp_path / "data", tmp_path, "--durability", "fsync")
        assert locked.json("malls", "list")["malls"][0]["name"] == "商城"
        locked.settings = {"PICKGATE_TIMEOUT_S": "2"}
        done = locked.inside("issue", "--order", "A-1", "--line", "101")
        assert done.returncode == 3
        assert done.stderr.startswith("error KEYRING_LOCKED: ")
        locked.process.send_signal(signal.SIGTERM)
        assert locked.process.wait(30) == 0

        mended = serve(stack, tmp_path / "data", tmp_path, "--passphrase-file", str(tmp_path / "elsewhere"))
        assert mended.json("issue", "--order", "A-1", "--line", "101")["verdict"] == "ISSUED"


# --- doctor --------------------------------------------------------------------------------------------------------


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_the_doctor_finds_a_running_set_up_well(served: Served) -> None:
    done = served.run("doctor", "--json")
    assert done.returncode == 0, done.stdout
    found = findings(done)
    assert {what for what, finding in found.items() if finding["level"] == "fail"} == set()
    for what in ("store", "durability", "deployment", "clock", "keyring", "keys", "server", "data folder"):
        assert found[what]["level"] == "ok", found[what]
    assert "9.1" in found["store"]["text"] or "." in found["store"]["text"]
    assert found["allocator"]["level"] == "ok"
    assert (
        "mimalloc in front of libc" in found["allocator"]["text"] or "jemalloc" in found["allocator"]["text"]
    )
    people = served.run("doctor").stdout
    assert "0 failed" in people
    assert "ok    keyring" in people


def test_the_doctor_names_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    done = pickgate("doctor", "--json", cwd=tmp_path, PICKGATE_TARGET="127.0.0.1:1")
    found = findings(done)
    assert done.returncode == 0
    assert found["data folder"]["level"] == "warn"
    assert found["server"]["level"] == "warn"
    assert "pickgate serve" in found["server"]["mend"]
    assert not (tmp_path / "pickgate-data").exists()

    with ExitStack() as stack:
        made = serve(stack, tmp_path / "data", tmp_path)
        made.json("keys", "disable", "3")
        kid_3 = findings(made.inside("doctor", "--json"))["keys"]
        assert kid_3["level"] == "fail"
        assert "dynamic AES" in kid_3["text"]
        assert kid_3["mend"] == "pickgate keys rotate --version dynamic --suite aes"
        made.json("keys", "rotate", "--version", "dynamic", "--suite", "aes")
        wait_until(lambda: findings(made.inside("doctor", "--json"))["keys"]["level"] == "ok", "mended")
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(30) == 0

        # With the server down the doctor starts the store for the look.
        (made.data_dir / "passphrase").chmod(0o644)
        done = made.inside("doctor", "--json")
        found = findings(done)
        assert done.returncode == 2
        assert found["passphrase"]["mend"].startswith("chmod 600")
        assert found["keyring"]["level"] == "ok"
        (made.data_dir / "passphrase").write_text("another passphrase\n")
        assert findings(made.inside("doctor", "--json"))["keyring"]["level"] == "fail"

        made.data_dir.chmod(0o755)
        found = findings(made.inside("doctor", "--json"))
        assert found["data folder"]["level"] == "fail"
        assert found["data folder"]["mend"] == f"chmod 700 {made.data_dir}"


def test_the_doctor_says_that_a_store_cant_be_reached_or_is_set_wrong(
    tmp_path: Path, make_store: Any
) -> None:
    done = inside("doctor", "--json", "--store", "unix:///absent.sock")
    assert done.returncode == 2
    assert findings(done)["store"]["level"] == "fail"
    url = make_store(durability="memory").url
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase for this test\n")
    given = {"PICKGATE_STORE_URL": url, "PICKGATE_PASSPHRASE_FILE": str(passphrase)}
    assert inside("init", "--durability", "memory", **given).returncode == 0
    found = findings(inside("doctor", "--json", **given))
    assert found["store"]["level"] == "fail"
    assert "appendonly" in found["store"]["text"]
    memory = findings(inside("doctor", "--json", "--durability", "memory", **given))
    assert memory["durability"]["level"] == "warn"


def test_the_doctor_says_that_the_kernels_are_pure(tmp_path: Path) -> None:
    found = findings(pickgate("doctor", "--json", cwd=tmp_path, PICKGATE_PURE="1"))
    assert found["kernels"]["level"] == "warn"
    assert "PICKGATE_PURE" in found["kernels"]["text"]


@pytest.mark.parametrize("command", ["doctor", "serve"])
def test_missing_kernels_are_told_and_mended_by_a_build(tmp_path: Path, command: str) -> None:
    program = "import sys; sys.modules['ext.primitives'] = None; from server.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, command, "--json"],
        cwd=tmp_path,
        env=environment(PICKGATE_PURE="0"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    if command == "doctor":
        found = findings(done)
        assert (found["kernels"]["level"], found["kernels"]["mend"]) == ("fail", "run `make build`")
        assert "store" not in found
    else:
        assert done.stderr.startswith("error SETUP: ")
        assert "make build" in done.stderr


def test_help_names_every_command(tmp_path: Path) -> None:
    shown = pickgate("--help", cwd=tmp_path).stdout
    for command in (
        "serve",
        "init",
        "doctor",
        "keys",
        "malls",
        "stores",
        "catalogue",
        "stock",
        "issue",
        "render",
        "void",
    ):
        assert f"\n  {command} " in shown
    assert "Exit codes" in shown
