"""What commands write when the writing fails, and what they make of hostile texts: an exit code of 1 is a refusal only."""

from __future__ import annotations

import json
import logging
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner

from pickgate.v1 import redemption_service_pb2 as redemption_pb
from server.cli import main
from server.client import Client
from server.output import LogFormatter, json_text, visible
from tests.server.conftest import MALL, STORE, TERMINAL, House, wait_until
from tests.server.test_cli import environment

BELL = "\x1b]0;PWN\x07"
"""Sets the title of a terminal's window, and beeps."""


def settings(house: House) -> dict[str, str]:
    return {
        "PICKGATE_TARGET": house.tcp,
        "PICKGATE_MALL_ID": str(MALL),
        "PICKGATE_STORE_ID": str(STORE),
        "PICKGATE_TERMINAL_ID": str(TERMINAL),
    }


def run(
    arguments: Sequence[str | bytes],
    cwd: Path,
    *,
    stdout: IO[bytes] | int = subprocess.PIPE,
    more: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments],
        cwd=cwd,
        env=environment(**(more or {})),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )


def redeem(house: House, code: str) -> list[str | bytes]:
    return ["redeem", code, "--lat", "31.1955", "--lon", "121.4365", "--datum", "gcj02"]


def redeemed(house: House, code: str) -> bool:
    verdict = house.redeem(code).verdict
    return verdict == redemption_pb.REDEEM_VERDICT_ALREADY_REDEEMED


def closed_pipe() -> IO[bytes]:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "wb")


@pytest.mark.parametrize("kind", ["closed pipe", "full disk", "closed"])
@pytest.mark.parametrize("as_json", [True, False])
def test_an_answer_that_can_not_be_written_is_no_refusal(
    house: House, tmp_path: Path, kind: str, as_json: bool
) -> None:
    code = house.shown()
    command = [*redeem(house, code), *(["--json"] if as_json else [])]
    if kind == "closed":
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "server.cli", *map(str, command)],
            cwd=tmp_path,
            env=environment(**settings(house)),
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    else:
        with closed_pipe() if kind == "closed pipe" else Path("/dev/full").open("wb") as stdout:
            done = run(command, tmp_path, stdout=stdout, more=settings(house))
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error OUTPUT: ")
    assert "verdict REDEEMED" in line
    assert "request_id " in line
    assert redeemed(house, code)


def test_help_into_a_closed_pipe_is_no_refusal(tmp_path: Path) -> None:
    with closed_pipe() as stdout:
        done = run(["--help"], tmp_path, stdout=stdout)
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_stdout_without_chinese_still_says_redeemed(
    house: House, tmp_path: Path, encoding: str, as_json: bool
) -> None:
    command = [*redeem(house, house.shown()), *(["--json"] if as_json else [])]
    done = run(command, tmp_path, more={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", **settings(house)})
    assert done.returncode == 0, done.stderr
    assert b"REDEEMED" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", b"\xff\xfe"],
        ["redeem", b"\xff"],
        ["issue", "--order", b"\xff\xfeabc", "--line", "101:1"],
        ["--config", b"/tmp/\xff.toml", "doctor"],
        ["malls", "put", b"/tmp/\xff"],
        ["get", "0" * 16, "--mall", b"\xff"],
    ],
)
def test_arguments_that_are_not_utf_8_are_told_so(
    house: House, tmp_path: Path, arguments: list[str | bytes]
) -> None:
    done = run(arguments, tmp_path, more=settings(house))
    assert done.returncode == 2
    assert b"is not UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


ABSURD = "9" * 20
HUGE = "9" * 5_000


@pytest.mark.parametrize("number", [ABSURD, str(10**30), HUGE, f"-{ABSURD}"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["stock", "receive", "--sku", "101", "--", "{}"],
        ["stock", "count", "--sku", "101", "--", "{}"],
        ["stock", "baseline", "--sku", "101", "--", "{}"],
        ["render", "0" * 16, "--count", "{}"],
        ["issue", "--order", "x", "--line", "101:1", "--ttl-s", "{}"],
        ["issue", "--order", "x", "--line", "101:1", "--amount-fen", "{}"],
        ["issue", "--order", "x", "--line", "{}:1"],
        ["issue", "--order", "x", "--line", "101:{}"],
        ["get", "0" * 16, "--mall", "{}"],
        ["policies", "put", "--level", "deployment", "--hold-s", "{}"],
        ["policies", "put", "--level", "deployment", "--cycles-max", "{}"],
        ["serve", "--threads", "{}"],
        ["init", "--partitions", "{}"],
    ],
)
def test_absurd_numbers_are_told_in_a_short_line(
    house: House, served_inside: Any, arguments: list[str], number: str
) -> None:
    done = served_inside([argument.format(number) for argument in arguments])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert "INTERNAL" not in done.output
    assert max(map(len, done.output.splitlines())) < 400


@pytest.fixture
def served_inside(house: House, tmp_path: Path) -> Any:
    """Run a command inside this process, with what it is to read on stdin."""

    def call(arguments: list[str], stdin: bytes = b"") -> Any:
        ours = dict.fromkeys(name for name in os.environ if name.startswith("PICKGATE_"))
        more = settings(house) | {"PICKGATE_DATA_DIR": str(tmp_path / "data")}
        return CliRunner().invoke(main, arguments, env={**ours, **more}, input=stdin, prog_name="pickgate")

    return call


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("malls", b"[" * 200_000),
        ("malls", b'{"malls":' * 100_000),
        ("malls", b'[{"mall_id":7,"name":"\\ud800"}]'),
        ("malls", b'[{"mall_id":' + HUGE.encode() + b"}]"),
        ("malls", b'[{"mall_id":1e999}]'),
        ("stores", b'[{"store_id":1,"latitude_deg":' + b"9" * 400 + b"}]"),
        ("stores", b'[{"store_id":1,"mall_ids":[' + b"9" * 30 + b"]}]"),
        ("stores", b'[{"store_id":1,"mall_ids":[-1]}]'),
        ("malls", b"[" * 400 + b"]" * 400),
        ("malls", b"\xff\xfe"),
    ],
)
def test_files_that_make_no_sense_are_told_in_a_short_line(
    served_inside: Any, what: str, text: bytes
) -> None:
    done = served_inside([what, "put", "-"], text)
    assert done.exit_code == 2, done.output
    assert done.output.startswith("error INVALID_INPUT: ")
    assert len(done.output) < 400


def test_what_fails_inside_is_one_line_and_no_refusal(
    served_inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by\x1bzero")

    monkeypatch.setattr(Client, "call", fail)
    done = served_inside(["get", "0" * 16])
    assert done.exit_code == 3
    assert done.output.startswith("error INTERNAL: ZeroDivisionError: by\\x1bzero; ")
    assert done.output.count("\n") == 1


def terminal(arguments: Sequence[str], cwd: Path, stdin: bytes | None = None, **more: str) -> bytes:
    """What reaches a terminal that a command is run on."""
    ours, its = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments],
            cwd=cwd,
            env=environment(TERM="xterm", **more),
            stdin=subprocess.PIPE if stdin is not None else its,
            stdout=its,
            stderr=its,
        )
        os.close(its)
        if stdin is not None:
            assert process.stdin
            process.stdin.write(stdin)
            process.stdin.close()
        read = b""
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            if not select.select([ours], [], [], 0.1)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                chunk = os.read(ours, 65_536)
            except OSError:  # the other end is closed
                break
            read += chunk
        process.wait(10)
        return read
    finally:
        os.close(ours)


@pytest.mark.parametrize(
    "arguments",
    [
        [BELL],
        ["get", f"--{BELL}"],
        ["get", BELL],
        ["issue", "--order", BELL, "--line", "101:1"],
        ["issue", "--order", "x", "--line", BELL],
        ["malls", "put", f"/nope/{BELL}"],
        ["malls", "put", "-"],
        ["--config", f"/nope/{BELL}", "doctor"],
        ["--config", "evil.toml", "doctor"],
        ["serve", "--listen", f"{BELL}:1"],
        ["serve", "--data-dir", f"/dev/null/{BELL}"],
        ["render", "0" * 16, "--png", f"/nope/{BELL}"],
        ["--target", f"unix:{BELL}", "--timeout-s", "1", "get", "0" * 16],
        ["issue", "--order", "\u009b2J", "--line", "101:1"],
        ["issue", "--order", "a\u202eb", "--line", "101:1"],
    ],
)
def test_no_text_from_outside_drives_the_terminal(house: House, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "evil.toml").write_text('"\\u001b]0;PWN\\u0007" = 1\n')
    stdin = json.dumps([{BELL: 1}]).encode() if arguments[-1] == "-" else None
    shown = terminal(arguments, tmp_path, stdin, **settings(house)).decode()
    assert shown
    assert "Traceback" not in shown
    for acting in ("\x1b]", "\x07", "\u009b", "\u202e"):
        assert acting not in shown


def test_a_log_line_does_not_drive_the_terminal(tmp_path: Path) -> None:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "from outside: %s\n\tnext", (BELL,), None)
    assert LogFormatter("%(message)s").format(record) == "from outside: \\x1b]0;PWN\\x07\n\tnext"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("提货码 · 100 %", "提货码 · 100 %"),
        ("全角\u3000空格", "全角\u3000空格"),
        (BELL, "\\x1b]0;PWN\\x07"),
        ("a\u202eb", "a\\u202eb"),
        ("\udcff", "\\udcff"),
        ("one\ntwo", "one\\ntwo"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_json_stays_json() -> None:
    value = {
        "a": "提货码\u3000",
        "b": BELL,
        "c": "a\u202eb\u2028",
        "d": "\ud800",
        "e": "\U000e0001",
        "f": "\n\t\x7f",
    }
    for indent in (None, 2):
        text = json_text(value, indent)
        assert json.loads(text) == value
        assert "提货码" in text
        assert not set(text) & set("\x1b\x07\u202e\u2028\ud800\U000e0001\x7f\t")


def test_serving_goes_on_when_nobody_can_be_told(tmp_path: Path) -> None:
    with closed_pipe() as stdout, (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "server.cli", "serve", "--durability", "memory"),
                *("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"),
            ],
            cwd=tmp_path,
            env=environment(),
            stdout=stdout,
            stderr=log,
        )
    try:
        wait_until(lambda: "nobody could be told" in (tmp_path / "log").read_text(), "it says so", 60)
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(30) == 0
