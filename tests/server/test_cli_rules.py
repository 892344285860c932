"""The commands of the pickup rules, against a server that is a process of its own."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from server.cli import main
from tests.engine import proofs
from tests.server.test_cli import HERE, START_BOUND_S, Served, environment, inside, serve

STORES = [
    {
        "store_id": 2001,
        "name": "徐家汇店",
        "city": "上海",
        "mall_ids": [7],
        "latitude_deg": 31.1955,
        "longitude_deg": 121.4365,
        "datum": "gcj02",
        "region": "华东",
        "opening_hours": [{"from_min": 0, "to_min": 1440}],
        "pickup_windows": [{"from_min": 540, "to_min": 660, "name": "早市"}],
        "special_days": [{"day": "2030-10-01", "closed": True}],
    }
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two stores, one of them the region's factory; a SKU, a part and a bundle; a hundred of each on the shelf."""
    cwd = tmp_path_factory.mktemp("cli-rules")
    with ExitStack() as stack:
        made = serve(stack, cwd / "data", cwd, "--durability", "memory")
        made.json("malls", "put", "--id", "7", "--name", "商城")
        (cwd / "stores.json").write_text(json.dumps(STORES))
        made.json("stores", "put", str(cwd / "stores.json"))
        place = (
            "--lat",
            "31.2400",
            "--lon",
            "121.4365",
            "--datum",
            "gcj02",
            "--terminal-location",
            "inherit",
        )
        made.json(
            *("stores", "put", "--id", "2002", "--name", "工厂店", "--mall", "7", "--region", "华东"),
            *("--factory", *place),
        )
        for sku in ("101", "102"):
            made.json("catalogue", "put", "--sku", sku, "--name", f"品{sku}")
            made.json("stock", "receive", "100", "--sku", sku)
        made.json(
            *("catalogue", "put", "--sku", "200", "--name", "套装", "--part", "101:1", "--part", "102:2")
        )
        yield made


def test_a_hold_is_confirmed_extended_handed_out_in_part_and_taken_back(served: Served) -> None:
    held = served.json("hold", "--order", "H-1", "--line", "200:2", "--version", "static")
    assert held["verdict"] == "HELD"
    uid = held["uid"]
    confirmed = served.json("confirm", uid)
    assert confirmed["verdict"] == "CONFIRMED"
    assert served.json("confirm", uid, "--request-id", confirmed["request_id"])["replayed"]
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    extended = served.json("extend", uid, "--to", until.isoformat())
    assert extended["expires_at_ms"] == int(until.timestamp() * 1000)
    assert served.json("extend", uid, "--to", until.isoformat(), code=1)["verdict"] == "NOT_LATER"

    typed, pin = confirmed["typed"], confirmed["pin"]
    taken = served.json("redeem", typed, "--pin", pin, "--line", "200:1", *HERE)
    assert [(line["sku_id"], line["count"], line["left"]) for line in taken["lines"]] == [
        (101, 1, 1),
        (102, 2, 2),
    ]
    back = served.json("reverse", uid, "--line", "200:1", "--reason", "退货", "--actor", "clerk:1")
    assert (back["verdict"], back["cycle"]) == ("REVERSED", 1)
    assert served.json("reverse", uid, code=1)["verdict"] == "NOT_REDEEMED"
    shown = served.inside("get", uid).stdout
    assert "bundles          sku_id 200 units 2 parts (sku_id 101 count 2 left 2, sku_id 102 count 4" in shown
    served.json("void", uid)
    again = served.json("issue", "--order", "H-2", "--line", "101", "--replaces", uid)
    assert served.json("get", again["uid"])["replaces"] == uid


def test_a_batch_is_redeemed_from_a_file(served: Served, tmp_path: Path) -> None:
    codes = []
    for n in range(2):
        uid = served.json("issue", "--order", f"F-{n}", "--line", "101")["uid"]
        codes.append(served.json("render", uid)["payloads"][0]["text"])
    position = {"latitude_deg": 31.1955, "longitude_deg": 121.4365, "datum": "gcj02"}
    file = tmp_path / "scans.json"
    file.write_text(json.dumps([{"code": code, "position": position} for code in (*codes, codes[0])]))
    outcomes = served.json("redeem", "--file", str(file), code=1)["outcomes"]
    assert [one["response"]["verdict"] for one in outcomes] == ["REDEEMED", "REDEEMED", "ALREADY_REDEEMED"]
    file.write_text(json.dumps([{"code": codes[0], "request_id": "x"}]))
    table = served.inside("redeem", "--file", str(file))
    assert table.returncode == 1
    assert "INVALID_INPUT" in table.stdout


def lock(served: Served, order: str) -> str:
    issued = served.json("issue", "--order", order, "--line", "101", "--version", "static")
    wrong = f"{(int(issued['pin']) + 1) % 1_000_000:06d}"
    for _ in range(3):
        tried = served.json("redeem", issued["typed"], "--pin", wrong, "--actor", "clerk:bob", *HERE, code=1)
    assert tried["verdict"] == "LOCKED"
    return str(issued["uid"])


def test_reviews_are_listed_and_decided(served: Served) -> None:
    uid = lock(served, "R-1")
    (review,) = [one for one in served.json("reviews", "list")["reviews"] if one["code"]["uid"] == uid]
    assert [one["redeem_verdict"] for one in review["evidence"]] == ["PIN_WRONG"] * 3
    listed = served.inside("reviews", "list").stdout
    assert review["review_id"] in listed
    assert "PIN_WRONG at terminal 3 of store 2001, distance bucket 0, clerk:bob" in listed
    own = served.json("reviews", "decide", uid, "approve", "--actor", "clerk:bob", code=1)
    assert own["verdict"] == "OWN_TRY"
    decided = served.json("reviews", "decide", uid, "approve", "--actor", "ops:ann", "--reason", "记错")
    assert decided["verdict"] == "APPROVED"
    assert uid not in served.inside("reviews", "list").stdout
    assert (
        served.json("reviews", "decide", uid, "void", "--actor", "ops:ann", code=1)["verdict"] == "NOT_LOCKED"
    )


def test_policies_are_put_listed_and_taken_back(served: Served, tmp_path: Path) -> None:
    served.json("catalogue", "put", "--sku", "301", "--name", "快递件", "--pickup-mode", "dynamic")
    served.json("stock", "receive", "9", "--sku", "301")
    put = served.json(
        *("policies", "put", "--level", "sku", "--mall", "7", "--sku", "301"),
        *("--pickup-mode", "static", "--code-ttl-s", "7200", "--proof-method", "face"),
        *("--proof-method", "two_staff", "--customer-location", "optional", "--customer-proof", "off"),
    )
    assert put["policies"] == 1
    listed = served.json("policies", "list")
    (policy,) = listed["policies"]
    assert (policy["level"], policy["pickup_mode"], policy["code_ttl_s"]) == ("SKU", "STATIC", 7200)
    assert policy["proof_methods"] == ["FACE", "TWO_STAFF"]
    assert policy["customer_proof"] == "OFF"
    assert "hold_s" not in policy
    assert "pickup_mode static" in served.inside("policies", "list").stdout
    issued = served.json("issue", "--order", "P-1", "--line", "301")
    assert issued["typed"]
    # The customer's position is looked at now.
    far = ("--lat", "31.3", "--lon", "121.4365", "--datum", "gcj02")
    refused = served.json("render", issued["uid"], *far, code=1)
    assert (refused["verdict"], refused["tries_left"]) == ("OUT_OF_RANGE", 2)
    again = served.json("render", issued["uid"], *far, "--request-id", "render-0001", code=1)
    assert served.json("render", issued["uid"], *far, "--request-id", "render-0001", code=1) == again

    file = tmp_path / "policies.json"
    file.write_text(json.dumps(listed))
    assert served.json("policies", "put", str(file))["policies"] == 1
    tiers = {
        f"{name}_percent": percent
        for name, percent in (("tight", 40), ("red", 20), ("closed", 10), ("emergency", 2), ("hysteresis", 1))
    }
    file.write_text(json.dumps([{"level": "deployment", "tiers": tiers}]))
    served.json("policies", "put", str(file))
    assert (
        "tiers tight 40, red 20, closed 10, emergency 2, hysteresis 1"
        in served.inside("policies", "list").stdout
    )
    served.json("policies", "put", "--level", "deployment")
    served.json("policies", "put", "--level", "sku", "--mall", "7", "--sku", "301")
    assert served.json("policies", "list")["policies"] == []


def test_a_provider_is_put_from_its_jwks_and_proves(served: Served, tmp_path: Path) -> None:
    key = proofs.provider().keys[0]
    jwk = tmp_path / "key.json"
    jwk.write_text(json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": key.kid, "x": key.x}]}))
    put = ("providers", "put", "--id", proofs.PROVIDER_ID, "--name", "柜台", "--method", "two_staff")
    assert served.json(*put, "--jwk", str(jwk))["providers"] == 1
    (provider,) = served.json("providers", "list")["providers"]
    assert provider["keys"] == [{"kid": key.kid, "alg": "EDDSA", "x": key.x, "y": ""}]
    assert "two_staff" in served.inside("providers", "list").stdout

    uid = served.json("issue", "--order", "V-1", "--line", "101", "--version", "valuable")["uid"]
    text = served.json("render", uid)["payloads"][0]["text"]
    assert served.json("inspect", text, *HERE)["proof_required"]
    assert served.json("redeem", text, *HERE, code=1)["verdict"] == "PROOF_REQUIRED"
    face = proofs.sign(bytes.fromhex(uid), int(time.time()), method="face")
    rejected = served.json("redeem", text, "--proof", face, *HERE, code=1)
    assert (rejected["verdict"], rejected["tries_left"]) == ("PROOF_REJECTED", 2)
    token = proofs.sign(bytes.fromhex(uid), int(time.time()), method="two_staff")
    assert served.json("redeem", text, "--proof", token, *HERE)["verdict"] == "REDEEMED"

    private = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    jwk.write_text(json.dumps({"kty": "EC", "crv": "P-256", "d": str(private.private_value)}))
    refused = served.inside(*put, "--jwk", str(jwk))
    assert refused.returncode == 2
    assert "private key" in refused.stderr
    assert str(private.private_value) not in refused.stderr


def test_the_nearest_stores(served: Served) -> None:
    near = ("stores", "nearest", *HERE)
    found = served.json(*near)["stores"]
    assert [one["store"]["store_id"] for one in found] == [2001, 2002]
    assert found[1]["distance_m"] == pytest.approx(4_934, abs=10)
    with_stock = served.json(*near, "--line", "200:1", "--stores-max", "5")["stores"]
    assert [one["store"]["store_id"] for one in with_stock] == [2001]
    assert {one["sku_id"] for one in with_stock[0]["figures"]} == {101, 102}
    assert len(served.json(*near, "--distance-m", "1000")["stores"]) == 1
    shown = served.inside(*near).stdout
    assert "4934" in shown or "4935" in shown
    assert "open" in shown
    assert served.inside("stores", "nearest").returncode == 2


def test_hours_come_back_as_they_were_written(served: Served) -> None:
    shown = served.json("stores", "show", "2001")
    assert shown["pickup_windows"] == [{"from_min": 540, "to_min": 660, "weekdays": [], "name": "早市"}]
    assert shown["special_days"] == [{"day": "2030-10-01", "closed": True}]
    assert served.json("stores", "show", "2002")["factory"]
    assert served.json("stores", "show", "2002")["terminal_location"] == "INHERIT"


class Watching:
    """`pickgate stock watch` as a process."""

    def __init__(self, served: Served, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "stock", "watch", *arguments],
            cwd=served.cwd,
            env=environment(**served.environment()),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)

    def line(self) -> str:
        return self._lines.get(timeout=START_BOUND_S)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait(20)
        self._reader.join(20)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        return code


def test_transfers_tiers_and_the_watch_that_tells_them(served: Served) -> None:
    served.json("catalogue", "put", "--sku", "401", "--name", "紧俏")
    served.json("stock", "receive", "50", "--sku", "401")
    served.json("stock", "baseline", "50", "--sku", "401")
    machine = Watching(served, "--json", "--store", "2001", "--sku", "401")
    person = Watching(served, "--tiers-only", "--sku", "401")
    try:
        assert json.loads(machine.line())["level"]["figures"]["tier"] == "NORMAL"
        assert json.loads(machine.line()) == {"levels_told": {"count": 1}}
        assert person.line().startswith("store 2001  SKU 401  on hand 50")
        while not (line := person.line()).startswith("-- "):
            assert line.startswith("store 2002")
        moved = served.json("stock", "transfer", "50", "--from", "2001", "--to", "2002", "--sku", "401")
        assert (moved["verdict"], moved["figures"]["on_hand"]) == ("TRANSFERRED", 0)
        short = served.json(
            *("stock", "transfer", "50", "--from", "2001", "--to", "2002", "--sku", "401"), code=1
        )
        assert short["verdict"] == "STOCK_SHORT"
        crossing = json.loads(machine.line())["crossing"]
        assert (crossing["alert"], crossing["factory_store_id"], crossing["replenish_count"]) == (
            True,
            2002,
            50,
        )
        assert json.loads(machine.line())["level"]["figures"]["on_hand"] == 0
        told = person.line()
        assert told.startswith("ALERT ")
        assert "2002（工厂店）" in told
        assert "factory store 2002" in told
        (level,) = served.json("stock", "tiers", "--sku", "401")["levels"]
        assert (level["store_id"], level["figures"]["tier"]) == (2001, "EMERGENCY")
        assert len(served.json("stock", "tiers", "--all", "--sku", "401")["levels"]) == 2
        assert "emergency" in served.inside("stock", "tiers").stdout
        assert "emergency" in served.inside("stock", "show", "--sku", "401").stdout
        person.process.send_signal(signal.SIGINT)
        assert person.process.wait(20) == 0
    finally:
        machine.end()
        person.end()


def test_a_watch_is_told_that_the_server_stops(tmp_path: Path) -> None:
    with ExitStack() as stack:
        made = serve(stack, tmp_path / "data", tmp_path, "--durability", "memory", "--grace-s", "60")
        made.json("malls", "put", "--id", "7", "--name", "商城")
        watching = Watching(made)
        stack.callback(watching.end)
        assert watching.line().startswith("-- 0 levels")
        began = time.monotonic()
        made.process.send_signal(signal.SIGTERM)
        assert watching.process.wait(20) == 3
        assert watching.process.stderr
        assert watching.process.stderr.read().startswith("error STOPPING: ")
        assert made.process.wait(20) == 0
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("arguments", "code", "slug", "part"),
    [
        (("extend", "0" * 16, "--to", "tomorrow"), 2, "INVALID_INPUT", "2026-10-03T20:00+08:00"),
        (("redeem",), 2, "INVALID_INPUT", "which code"),
        (("redeem", "PG0", "--file", "scans.json"), 2, "INVALID_INPUT", "--file stands alone"),
        (("redeem", "PG0", "--proof", "x" * 2_049, *HERE), 2, "INVALID_INPUT", "--proof is"),
        (("reverse", "xyz"), 2, "INVALID_INPUT", "UID is"),
        (
            ("stock", "transfer", "1", "--from", "2001", "--to", "2001", "--sku", "101"),
            2,
            "INVALID_INPUT",
            "another",
        ),
        (("stock", "watch", "--mall", "99"), 2, "UNKNOWN_MALL", "99"),
        (("stock", "tiers", "--store", "999"), 2, "INVALID_INPUT", "999"),
        (("policies", "put"), 2, "INVALID_INPUT", "which policies"),
        (("policies", "put", "--level", "store", "--hold-s", "60"), 2, "INVALID_INPUT", "--store is"),
        (("catalogue", "put", "--sku", "9", "--name", "x", "--part", "101:a"), 2, "INVALID_INPUT", "--part"),
        (("reviews", "list", "--mall", "99"), 2, "UNKNOWN_MALL", "99"),
    ],
)
def test_an_error_is_one_line_with_its_slug_and_a_code(
    served: Served, arguments: tuple[str, ...], code: int, slug: str, part: str
) -> None:
    done = served.inside(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith(f"error {slug}: ")
    assert part in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_command_has_its_help() -> None:
    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        if hasattr(command, "list_commands"):
            for name in command.list_commands(None):
                yield from walk(command.get_command(None, name), (*path, name))

    paths = list(walk(main, ()))
    assert {("hold",), ("reviews", "decide"), ("stock", "watch"), ("stores", "nearest")} < set(paths)
    for path in paths:
        shown = inside(*path, "--help")
        assert shown.returncode == 0
        assert shown.stdout.startswith(f"Usage: {' '.join(('pickgate', *path))} ")
