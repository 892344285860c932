"""Scripts and Python agree: each script's header is compared with the layouts, and with what is really sent to it."""

from __future__ import annotations

import re
from enum import Enum
from importlib import resources
from typing import Any, Final

import hiredis
import pytest

from engine import expiry, issuance, limits, redemption, stock, verdict
from engine.calls import InspectRequest, RedeemRequest, RenderRequest, StockChange, VoidRequest
from engine.claims import Channel, Decision, Line, State, Terminal, Tier, TransferStep, Version
from engine.policies import Policy, Tiers
from engine.state import layouts, scripts, sightings, snapshot
from engine.state.connection import Call, Connection, Packed
from engine.state.events import EventType
from engine.state.streams import START, Streams
from engine.stores import Mall
from tests.engine.proofs import put_provider
from tests.engine.shop import MALL, STORE, Shop, north

VERBS: Final = tuple(script.name for script in scripts.ALL)
OF_ITEMS: Final = {
    "issue": ("ISSUE_ITEM", "ISSUE_ANSWER"),
    "redeem": ("REDEEM_ITEM", "REDEEM_ANSWER"),
    "void": ("VOID_ITEM", "VOID_ANSWER"),
    "stock": ("STOCK_ITEM", "STOCK_ANSWER"),
    "expire": ("EXPIRE_ITEM", None),
    "confirm": ("CHANGE_ITEM", "CHANGE_ANSWER"),
    "extend": ("CHANGE_ITEM", "CHANGE_ANSWER"),
    "reverse": ("REVERSE_ITEM", "REVERSE_ANSWER"),
    "try": ("TRY_ITEM", "TRY_ANSWER"),
    "review": ("REVIEW_ITEM", "REVIEW_ANSWER"),
    "transfer": ("TRANSFER_ITEM", "STOCK_ANSWER"),
    "register": ("REGISTER_ITEM", None),
}
FIRST_ITEM: Final = {"register": 4}
"""Place of the first item among ARGV, where it isn't the third."""
RENAMED: Final = {
    "type_": "type",
    "place_finding": "place",
    "release_units": "release",
    "changed_at": "changed",
}
"""Lua names that can't be the field's: `place`, `release`, `type` and `changed` mean something else there."""
OWN: Final = "1 to 6 the partition's own"
"""KEYS of every script that runs behind base.lua, which says what they are."""
NOT_OWN: Final = ("open", "create", "control", "mark", "snapshot", "seen", "barrier")


def header(name: str) -> str:
    """The comment block that a script opens with."""
    lines = []
    for line in scripts.verb_source(name).splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    return "\n".join(lines)


def stated(name: str, what: str) -> str | None:
    """Text of one entry of a header (KEYS, ARGV, ITEM, ANSWER, RETURN), joined over its lines."""
    found = re.search(
        rf"^{what} +(.*?)(?=\n(?:KEYS|ARGV|ITEM|ANSWER|RETURN) |\n\n|\Z)",
        header(name),
        re.DOTALL | re.MULTILINE,
    )
    return " ".join(found.group(1).split()) if found else None


def numbered(text: str) -> list[tuple[int, str]]:
    """Entries `1 now_ms`, `2 clock compared (0|1)` of a header's line."""
    return [(int(n), what) for n, what in re.findall(r"(?:^|· ?)(\d+)(?:\.\.)? ([^·]+)", text)]


def test_every_script_in_the_folder_is_loaded() -> None:
    files = {
        entry.name.removesuffix(".lua")
        for entry in resources.files("engine.state").joinpath("lua").iterdir()
        if entry.name.endswith(".lua")
    }
    assert files == {*VERBS, "base"}
    assert len(set(VERBS)) == len(VERBS)
    assert len({script.sha for script in scripts.ALL}) == len(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_header_states_keys_arguments_and_return(name: str) -> None:
    assert header(name).startswith(f"{name}: ")
    keys, arguments = stated(name, "KEYS"), stated(name, "ARGV")
    assert keys is not None
    assert arguments is not None
    assert stated(name, "RETURN")
    if name in NOT_OWN:
        facts, events, *_ = numbered(keys)
        assert facts[0] == 1
        assert facts[1].startswith("facts (m)")
        assert events[0] == 2
        assert events[1].startswith("events (e)")
    else:
        assert keys.startswith(OWN)
    now, compared, *_ = numbered(arguments)
    assert now == (1, "now_ms ")
    assert compared[0] == 2
    assert compared[1].startswith("clock compared (0|1)")


@pytest.mark.parametrize("name", OF_ITEMS)
def test_items_and_answers_in_the_header_are_the_layouts(name: str) -> None:
    item, answer = OF_ITEMS[name]
    assert stated(name, "ITEM") == layouts.LAYOUTS[item].text
    assert stated(name, "ANSWER") == (layouts.LAYOUTS[answer].text if answer else None)
    arguments = stated(name, "ARGV")
    assert arguments is not None
    assert f"{FIRST_ITEM.get(name, 3)}.. one {item} each" in arguments


def test_only_scripts_of_items_state_items() -> None:
    assert {name for name in VERBS if stated(name, "ITEM")} == set(OF_ITEMS)


# --- names on the Lua side ----------------------------------------------------------------------------------------
_UNPACKED: Final = re.compile(r"(?:local )?((?:[\w.]+,\s*)*[\w.]+)\s*=\s*unpack_fields\((\w+),")
_PACKED: Final = re.compile(r"\bpack\((EVENT|LINE|STOCK|ATTEMPT|[A-Z]+_ANSWER)\b")


def unpackings() -> list[tuple[str, str, list[str]]]:
    """Each place where a script takes a layout apart: script, layout, names in order."""
    found = []
    for name in (*VERBS, "base"):
        for names, layout in _UNPACKED.findall(scripts.verb_source(name)):
            found.append((name, layout, [part.strip() for part in names.split(",")]))
    return found


def test_unpackings_are_found() -> None:
    """Every layout that Python packs for Lua is taken apart somewhere, and every unpacking is seen by the pattern."""
    seen = unpackings()
    calls = sum(scripts.verb_source(name).count("unpack_fields(") for name in (*VERBS, "base"))
    assert len(seen) == calls - 1, "but for the record, which is read into an array"
    assert {layout for _, layout, _ in seen} == {
        "LINE", "BUNDLE", "STOCK", "TIERS", "EVIDENCE", "WANTED", "CANDIDATE", "ANSWER_KEY",
        *(item for item, _ in OF_ITEMS.values()),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "layout", "names"), unpackings())
def test_unpacked_names_are_the_layout_s(name: str, layout: str, names: list[str]) -> None:
    """Same fields, same order; behind them at most `at`, where the next part begins."""
    wanted = list(layouts.LAYOUTS[layout].names)
    plain = [RENAMED.get(one, one) for one in (part.rpartition(".")[2] for part in names)]
    if plain[len(wanted) :]:
        assert plain[len(wanted) :] in (["at"], ["behind"])
        plain = plain[: len(wanted)]
    for n, one in enumerate(plain):
        # Not looked at, or another name where the field's own means something else already (`n` counts).
        if one == "_" or (wanted[n], one) == ("n", "count"):
            plain[n] = wanted[n]
    assert plain[: len(wanted)] == wanted[: len(plain)]
    assert len(plain) >= len(wanted)


def arguments_of(source: str, start: int) -> list[str]:
    """Arguments of the call whose opening bracket stands before `start`, cut at its own commas."""
    depth, parts, part = 1, [], ""
    for letter in source[start:]:
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if depth == 0:
                break
        if letter == "," and depth == 1:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()]


def test_packed_values_are_as_many_as_fields() -> None:
    packed = 0
    for name in (*VERBS, "base"):
        source = scripts.verb_source(name)
        for match in _PACKED.finditer(source):
            layout, *values = arguments_of(source, match.end() - len(match.group(1)))
            assert len(values) == len(layouts.LAYOUTS[layout].names), (name, layout, values)
            packed += 1
    assert packed >= 10


def test_a_record_is_read_and_written_whole_in_the_layout_s_order() -> None:
    """An array of all its fields, read in one place and packed in one; scripts name the places by the layout's names."""
    source = scripts.verb_source("base")
    assert source.count("unpack_fields(RECORD, bytes) }") == 1
    assert source.count("pack(RECORD, unpack(r, 1, R.split_len))") == 1
    assert layouts.RECORD.names[-1] == "split_len"
    assert lua_tables()["R"] == {name: n for n, name in enumerate((*layouts.RECORD.names, "behind"), 1)}


def test_a_record_s_fields_are_named_as_in_the_layout() -> None:
    named = {
        field for name in (*VERBS, "base") for field in re.findall(r"\bR\.(\w+)", scripts.verb_source(name))
    }
    assert named <= {*layouts.RECORD.names, "behind"}
    loose = {
        field for name in (*VERBS, "base") for field in re.findall(r"\br\.(\w+)", scripts.verb_source(name))
    }
    assert loose == {"lines", "bundles", "requests", "tail"}


# --- constants ----------------------------------------------------------------------------------------------------
def lua_tables() -> dict[str, dict[str, int]]:
    """The tables of constants as Lua sees them."""
    return {
        name: {key: int(value) for key, value in re.findall(r"(\w+) = (-?\d+)", body)}
        for name, body in re.findall(r"^local (\w+) = \{(.*)\}$", scripts.constants(), re.MULTILINE)
    }


def test_constants_are_python_s() -> None:
    tables = lua_tables()
    enums: dict[str, type[Enum]] = {
        "STATE": State,
        "EVENT_TYPE": EventType,
        "CHANGE": StockChange,
        "ISSUE": verdict.IssueVerdict,
        "REDEEM": verdict.RedeemVerdict,
        "VOID": verdict.VoidVerdict,
        "STOCK_VERDICT": verdict.StockVerdict,
        "CHANNEL": Channel,
        "TIER": Tier,
        "TRANSFER_STEP": TransferStep,
        "DECISION": Decision,
        "RENDER": verdict.RenderVerdict,
        "CONFIRM": verdict.ConfirmVerdict,
        "EXTEND": verdict.ExtendVerdict,
        "REVERSE": verdict.ReverseVerdict,
        "REVIEW": verdict.ReviewVerdict,
        "TRANSFER": verdict.TransferVerdict,
    }
    for name, enum in enums.items():
        assert tables.pop(name) == {member.name: member.value for member in enum}
    limits_in_lua = tables.pop("LIMIT")
    assert limits_in_lua == {name: getattr(limits, name) for name in limits_in_lua}
    assert set(tables) == {"R"}, "the places of a record's fields, which have a test of their own"


def test_every_constant_that_a_script_names_exists() -> None:
    """Lua would read a misspelt one as nil, which compares unequal with everything, in silence."""
    tables = lua_tables()
    for name in (*VERBS, "base"):
        for table, key in re.findall(r"\b([A-Z][A-Z_]+)\.([A-Z][A-Z_]*)\b", scripts.verb_source(name)):
            assert key in tables[table], f"{name}.lua: {table}.{key}"


def test_every_layout_is_handed_over() -> None:
    handed = dict(re.findall(r"^local (\w+) = '(>.*)'$", scripts.constants(), re.MULTILINE))
    assert handed == {name: layout.lua for name, layout in layouts.LAYOUTS.items()}


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_both_sides_mean_the_same_bytes(name: str, shop: Shop) -> None:
    """Packed by Python, taken apart and packed again by Lua: the same bytes, whatever the values."""
    layout = layouts.LAYOUTS[name]
    client = shop.deployment.connection
    for fill in (0x00, 0x01, 0x5A, 0xFF):
        data = bytes([fill]) * layout.size
        values = layout.unpack(data)
        widths = [int(code[1:]) for code in re.findall(r"I\d|B|c\d+", layout.lua.replace("B", "I1"))]
        [again] = client.read(
            [
                (
                    "EVAL",
                    f"local v = {{struct.unpack('{layout.lua}', ARGV[1])}} return struct.pack('{layout.lua}', unpack(v, 1, {len(values)}))",
                    0,
                    data,
                )
            ]
        )
        assert again == data
        assert [len(value) for value in values if isinstance(value, bytes)] == [
            width
            for width, code in zip(widths, re.findall(r"I\d|B|c\d+", layout.lua), strict=True)
            if code[0] == "c"
        ]
        for value in values:
            assert isinstance(value, bytes) or 0 <= value < 2**53


# --- what is really sent ------------------------------------------------------------------------------------------
@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every script call that goes out, read again from the bytes that the store gets."""
    calls: list[Call] = []
    exchange = Connection.exchange

    def recording(connection: Connection, packed: Packed) -> Any:
        for script, command in zip(packed.scripts, packed.commands, strict=False):
            reader = hiredis.Reader()
            reader.feed(command)
            verb, sha, count, *rest = reader.gets()
            assert (verb, sha.decode()) == (b"EVALSHA", script.sha)
            keys, arguments = rest[: int(count)], rest[int(count) :]
            assert arguments[:2] == [b"%d" % connection.now_ms(), b"0"]
            calls.append(Call(script, keys, arguments[2:]))
        return exchange(connection, packed)

    monkeypatch.setattr(Connection, "exchange", recording)
    return calls


def everything(shop: Shop) -> None:
    """Each verb once, in batches that meet one another's codes."""
    deployment, terminal = shop.deployment, Terminal(MALL, STORE, 7)
    shop.stock_all()
    put_provider(shop)
    codes = [shop.issue(lines=(Line(100, 1), Line(101, 1)), version=version) for version in Version]
    texts = [payload.payloads[0].text for payload in (shop.render(code.uid) for code in codes)]
    redemption.inspect(deployment, [InspectRequest(terminal, text) for text in texts])
    redemption.redeem(
        deployment, [RedeemRequest(terminal, "redeem-1", text, lines=(Line(100, 1),)) for text in texts[1:2]]
    )
    issuance.void(
        deployment, [VoidRequest(MALL, shop.new_id(), code.uid, actor="mall") for code in codes[1:]]
    )
    issuance.render(deployment, [RenderRequest(MALL, codes[0].uid)])
    stock.change(deployment, [shop.stock_request(-1, change=StockChange.ADJUST_BY, reason="broken")])
    deployment.control.put_malls([Mall(3, "Third")], request_id="put-0009", actor="test")
    shop.put_policies(Policy("deployment", customer_location="optional", tiers=Tiers(tight_percent=40)))
    held = shop.hold(version=Version.STATIC)
    shop.confirm(held.uid)
    shop.extend(held.uid, shop.clock.now_s + limits.TTL_S_DEFAULT + 60)
    shop.render(held.uid, position=north(5000), request_id="render-1")
    shop.lock(held.uid)
    shop.decide(held.uid, Decision.REDEEM)
    shop.reverse(held.uid, reason="broken")
    shop.transfer(1)
    shop.clock.tick(limits.TTL_S_DEFAULT + 120)
    assert expiry.sweep(deployment).expired == 2
    sightings.note(deployment.connection, {f"{MALL}:{STORE}:7": shop.clock.now_s})
    streams = Streams(deployment.connection)
    assert list(snapshot.read_records(deployment.connection, 0))
    streams.mark(
        {number: streams.last(number) for number in streams.numbers if streams.last(number) != START}
    )


def test_every_call_keeps_its_header(shop: Shop, sent: list[Call]) -> None:
    everything(shop)
    used = {call.script.name for call in sent}
    assert used == set(VERBS) - {"open", "create", "barrier"}
    for call in sent:
        keys, arguments = stated(call.script.name, "KEYS"), stated(call.script.name, "ARGV")
        assert keys is not None
        assert arguments is not None
        if call.script.name not in NOT_OWN:
            tag = call.keys[0].removesuffix(b"m")
            assert list(call.keys[:6]) == [tag + letter for letter in (b"m", b"e", b"a", b"v", b"w", b"b")]
        for n, what in numbered(keys) if call.script.name in NOT_OWN else ():
            letter = re.search(r"\((\w)\)", what)
            if letter:
                assert call.keys[n - 1].endswith(b"}" + letter.group(1).encode()), (call.script.name, n)
        assert len(set(call.keys)) == len(call.keys)
        if call.script.name in OF_ITEMS:
            layout = layouts.LAYOUTS[OF_ITEMS[call.script.name][0]]
            # now_ms and the clock switch are put in front on the way out.
            for item in call.args[FIRST_ITEM.get(call.script.name, 3) - 3 :]:
                assert isinstance(item, bytes)
                fields = dict(zip(layout.names, layout.unpack(item), strict=True))
                assert len(item) >= layout.size
                for name, value in fields.items():
                    if name.endswith("_key") or name.startswith("day_"):
                        # inspect remembers nothing, but its item has the same shape
                        assert 1 <= value <= len(call.keys), (call.script.name, name)


def test_every_key_of_a_call_has_one_tag(shop: Shop, sent: list[Call]) -> None:
    everything(shop)
    for call in sent:
        assert len({re.match(rb"\{([^}]+)\}", key).group(1) for key in call.keys}) == 1  # type: ignore[union-attr]
