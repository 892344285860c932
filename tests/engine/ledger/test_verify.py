"""Verifying: a sound ledger is sound; whatever is done to it behind our back is found, and the first bad row is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, delete, insert, select, update

from engine import stock
from engine.errors import InvalidInput, SetupError
from engine.ledger import heads
from engine.ledger.heads import SignedHeads, Signer, Statement, Unsound
from engine.ledger.ledger import PAGE_ROWS, Ledger
from engine.ledger.tables import EVENTS, HEADS, ORDERS
from engine.ledger.verify import Range, Report, verify
from engine.ledger.writer import Writer
from engine.state.streams import CONTROL, START, Entry, Place, Streams
from tests.engine.shop import STORE, Shop

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def number(shop: Shop, writer: Writer) -> int:
    """A partition of which a dozen events are in the ledger."""
    shop.stock_all()
    for _ in range(2):
        shop.redeem(shop.show(shop.issue().uid))
    while writer.step(block_ms=0):
        pass
    return next(event.id.partition for event in shop.events() if event.store_id == STORE)


@pytest.fixture
def signer(ledger: Ledger, tmp_path: Path) -> Signer:
    return Signer(
        KEY, tmp_path / "heads", deployment_id=ledger.deployment_id, algorithm=ledger.chain.algorithm
    )


def read(tmp_path: Path) -> list[Statement | Unsound]:
    return list(heads.read(tmp_path / "heads", KEY.public_key()))


Harm = Callable[[Connection, int], None]


def harmed(ledger: Ledger, number: int, harm: Harm) -> Report:
    with ledger.engine.begin() as connection:
        harm(connection, number)
    return verify(ledger)


def row(connection: Connection, number: int, seq: int) -> dict[str, Any]:
    found = connection.execute(select(EVENTS).where(EVENTS.c.partition == number, EVENTS.c.seq == seq))
    return dict(found.mappings().one())


def set_row(connection: Connection, number: int, seq: int, **values: Any) -> None:
    wanted = (EVENTS.c.partition == number) & (EVENTS.c.seq == seq)
    assert connection.execute(update(EVENTS).where(wanted).values(**values)).rowcount == 1


def delete_row(connection: Connection, number: int, seq: int) -> None:
    wanted = (EVENTS.c.partition == number) & (EVENTS.c.seq == seq)
    assert connection.execute(delete(EVENTS).where(wanted)).rowcount == 1


def test_a_sound_ledger_is_sound(ledger: Ledger, number: int) -> None:
    report = verify(ledger)
    assert report.sound
    assert report.rows == sum(head.rows for head in ledger.heads().values())
    assert report.partitions == len(ledger.heads())
    assert verify(ledger, only=Range(number)).rows == ledger.heads()[number].rows
    assert verify(ledger, only=Range(CONTROL)).rows == ledger.heads()[CONTROL].rows


def test_more_than_a_page_is_verified(shop: Shop, writer: Writer, ledger: Ledger) -> None:
    for _ in range(PAGE_ROWS // 256 + 1):
        stock.change(shop.deployment, [shop.stock_request(1) for _ in range(256)])
    while writer.step(block_ms=0):
        pass
    report = verify(ledger)
    assert report.sound
    assert report.rows > PAGE_ROWS


# --- one harm each, and the row that is named -------------------------------------------------------------------------
def flip_data(connection: Connection, number: int) -> None:
    data = bytes(row(connection, number, 5)["data"])
    set_row(connection, number, 5, data=data[:-1] + bytes([data[-1] ^ 1]))


def flip_link(connection: Connection, number: int) -> None:
    link = bytes(row(connection, number, 5)["link"])
    set_row(connection, number, 5, link=bytes([link[0] ^ 1]) + link[1:])


def take_out(connection: Connection, number: int) -> None:
    delete_row(connection, number, 5)


def take_out_the_first(connection: Connection, number: int) -> None:
    delete_row(connection, number, 1)


def swap(connection: Connection, number: int) -> None:
    one, other = row(connection, number, 5), row(connection, number, 6)
    content = [name for name in one if name not in ("partition", "epoch", "seq")]
    set_row(connection, number, 5, **{name: other[name] for name in content})
    set_row(connection, number, 6, **{name: one[name] for name in content})


def change_time(connection: Connection, number: int) -> None:
    set_row(connection, number, 5, at_ms=row(connection, number, 5)["at_ms"] + 1)


def change_actor(connection: Connection, number: int) -> None:
    set_row(connection, number, 5, actor="somebody else")


def put_in(connection: Connection, number: int) -> None:
    connection.execute(insert(EVENTS), [{**row(connection, number, 5), "epoch": 7}])


def put_in_before_all(connection: Connection, number: int) -> None:
    connection.execute(insert(EVENTS), [{**row(connection, number, 5), "epoch": -1}])


@pytest.mark.parametrize(
    ("harm", "place", "part"),
    [
        (flip_data, Place(1, 5), "the chain breaks here"),
        (flip_link, Place(1, 5), "the chain breaks here"),
        (take_out, Place(1, 5), "it is missing: 1-6 follows 1-4"),
        (take_out_the_first, Place(1, 1), "it is missing: 1-2 follows the beginning"),
        (swap, Place(1, 5), "stands in another's place"),
        (change_time, Place(1, 5), "column at_ms says 18"),
        (change_actor, Place(1, 5), "column actor says 'somebody else'"),
        (put_in, Place(1, 13), "it is missing: 7-5 follows 1-12"),
        (put_in_before_all, Place(-1, 5), "no event has this number"),
    ],
)
def test_a_harm_is_found_and_its_row_named(
    ledger: Ledger, number: int, harm: Harm, place: Place, part: str
) -> None:
    report = harmed(ledger, number, harm)
    [fault] = report.faults
    assert (fault.partition, fault.place) == (number, place)
    assert part in str(fault)
    assert str(fault).startswith(f"partition {number}, row {place}: ")
    assert not report.sound


def test_an_order_under_another_name_is_found(ledger: Ledger, number: int) -> None:
    def rename(connection: Connection, number: int) -> None:
        connection.execute(update(ORDERS).where(ORDERS.c.partition == number).values(order_id="ELSE"))

    [fault] = harmed(ledger, number, rename).faults
    assert fault.why == "the table of orders has another order_id than its bytes"


def test_a_vanished_order_is_found(ledger: Ledger, number: int) -> None:
    def forget(connection: Connection, number: int) -> None:
        connection.execute(delete(ORDERS).where(ORDERS.c.partition == number))

    [fault] = harmed(ledger, number, forget).faults
    assert "table of orders" in fault.why


@pytest.mark.parametrize(
    ("elsewhere", "place"),
    [
        ({"seq": 5_000}, Place(1, 5_000)),
        ({"epoch": 0, "seq": 0}, Place(0, 0)),
        ({"partition": 1_000, "seq": 5}, Place(1, 5)),
    ],
    ids=["beyond the end", "before the beginning", "of a partition without events"],
)
def test_an_order_of_no_event_is_found(
    ledger: Ledger, number: int, elsewhere: dict[str, int], place: Place
) -> None:
    def put_in_order(connection: Connection, number: int) -> None:
        found = connection.execute(select(ORDERS).where(ORDERS.c.partition == number)).mappings().first()
        assert found is not None
        connection.execute(insert(ORDERS), [{**found, "order_id": "FORGED", **elsewhere}])

    [fault] = harmed(ledger, number, put_in_order).faults
    assert (fault.partition, fault.place) == (elsewhere.get("partition", number), place)
    assert "orders" in fault.why


def test_a_tail_without_its_head_is_found(ledger: Ledger, number: int) -> None:
    last = ledger.heads()[number].place

    def cut(connection: Connection, number: int) -> None:
        delete_row(connection, number, last.seq)

    [fault] = harmed(ledger, number, cut).faults
    assert fault.place == last
    assert f"the table of heads ends with {last}, the rows end with" in fault.why


def cut_off(connection: Connection, number: int, rows: int) -> None:
    """Take rows from the end and put the table of heads right: what somebody does who knows how it works."""
    last = rows_left = None
    for _ in range(rows):
        found = connection.execute(
            select(EVENTS)
            .where(EVENTS.c.partition == number)
            .order_by(EVENTS.c.epoch.desc(), EVENTS.c.seq.desc())
            .limit(2)
        ).all()
        delete_row(connection, number, found[0].seq)
        connection.execute(delete(ORDERS).where(ORDERS.c.partition == number, ORDERS.c.seq == found[0].seq))
        last, rows_left = found[1], found[1].seq
    assert last is not None
    connection.execute(
        update(HEADS)
        .where(HEADS.c.partition == number)
        .values(epoch=last.epoch, seq=last.seq, link=last.link, rows=rows_left)
    )


def test_a_tail_cut_below_a_signed_head_is_found(
    ledger: Ledger, number: int, signer: Signer, tmp_path: Path
) -> None:
    last = ledger.heads()[number].place
    assert signer.sign(ledger.heads(), 1_800_000_000_000)
    with ledger.engine.begin() as connection:
        cut_off(connection, number, 2)
    assert verify(ledger).sound, "by the database alone it can't be told"
    [fault] = verify(ledger, read(tmp_path)).faults
    assert (fault.partition, fault.place) == (number, Place(1, last.seq - 1))
    assert (
        f"the tail is cut off: {last} was signed as its last row, the {last.seq}th (2027-01-15.jsonl:1)"
        in fault.why
    )


def test_a_partition_that_is_gone_is_found(
    ledger: Ledger, number: int, signer: Signer, tmp_path: Path
) -> None:
    signer.sign(ledger.heads(), 1_800_000_000_000)
    with ledger.engine.begin() as connection:
        for table in (EVENTS, ORDERS, HEADS):
            connection.execute(delete(table).where(table.c.partition == number))
    [fault] = verify(ledger, read(tmp_path)).faults
    assert (fault.partition, fault.place) == (number, Place(1, 1))


def test_rows_written_anew_with_a_right_chain_are_found(
    ledger: Ledger, number: int, signer: Signer, tmp_path: Path
) -> None:
    """Somebody changes a row and every link behind it: only what was signed can tell."""
    signer.sign(ledger.heads(), 1_800_000_000_000)
    last = ledger.heads()[number].place
    with ledger.engine.begin() as connection:
        link = bytes(row(connection, number, 4)["link"])
        for seq in range(5, last.seq + 1):
            data = bytes(row(connection, number, seq)["data"])
            if seq == 5:
                data = data[:-1] + bytes([data[-1] ^ 1])
            link = ledger.chain.link(link, number, Entry(1, seq, data))
            set_row(connection, number, seq, data=data, link=link)
        connection.execute(update(HEADS).where(HEADS.c.partition == number).values(link=link))
    assert verify(ledger).sound
    [fault] = verify(ledger, read(tmp_path)).faults
    assert fault.place == last
    assert "not the one that was signed" in fault.why


def test_a_range_is_verified_by_itself(ledger: Ledger, number: int) -> None:
    with ledger.engine.begin() as connection:
        flip_data(connection, number)
    assert verify(ledger, only=Range(number, Place(1, 6))).sound, "what is before is trusted"
    assert verify(ledger, only=Range(number, last=Place(1, 4))).sound
    report = verify(ledger, only=Range(number, Place(1, 3), Place(1, 8)))
    assert [fault.place for fault in report.faults] == [Place(1, 5)]
    assert report.rows == 2
    with pytest.raises(InvalidInput, match="name it"):
        Range(None, Place(1, 1))


# --- signed heads -----------------------------------------------------------------------------------------------------
def test_statements_are_signed_when_something_happened(
    ledger: Ledger, number: int, signer: Signer, tmp_path: Path
) -> None:
    assert signer.sign(ledger.heads(), 1_800_000_000_000)
    assert not signer.sign(ledger.heads(), 1_800_000_060_000), "nothing has happened"
    [statement] = read(tmp_path)
    assert isinstance(statement, Statement)
    assert statement.heads == ledger.heads()
    report = verify(ledger, read(tmp_path))
    assert (report.sound, report.statements, report.signed_at_ms) == (True, 1, 1_800_000_000_000)


def test_the_writer_signs_each_minute(shop: Shop, ledger: Ledger, signer: Signer, tmp_path: Path) -> None:
    now_s = [0.0]
    writer = Writer(
        Streams(shop.deployment.connection),
        ledger,
        now_ms=shop.clock,
        monotonic_s=lambda: now_s[0],
        signer=signer,
    )
    writer.start()
    for at_s, statements in ((0.0, 1), (59.0, 1), (60.0, 2), (121.0, 3)):
        now_s[0] = at_s
        shop.receive(1)
        writer.step(block_ms=0)
        assert len(read(tmp_path)) == statements, at_s


def test_a_line_that_nobody_signed_is_told(
    ledger: Ledger, number: int, signer: Signer, tmp_path: Path
) -> None:
    signer.sign(ledger.heads(), 1_800_000_000_000)
    file = tmp_path / "heads" / "2027-01-15.jsonl"
    line = json.loads(file.read_text())
    line["statement"] = line["statement"].replace('"at_ms":18', '"at_ms":17')
    file.write_text(file.read_text() + json.dumps(line) + "\n")
    report = verify(ledger, read(tmp_path))
    assert [bad.source for bad in report.unsound] == ["2027-01-15.jsonl:2"]
    assert "not signed by the key" in report.unsound[0].why
    assert not report.sound


def test_a_line_that_a_power_cut_tore_is_passed_over(
    shop: Shop, ledger: Ledger, number: int, signer: Signer, tmp_path: Path, writer: Writer
) -> None:
    signer.sign(ledger.heads(), 1_800_000_000_000)
    file = tmp_path / "heads" / "2027-01-15.jsonl"
    file.write_bytes(file.read_bytes() + file.read_bytes()[:100])
    shop.receive(1)
    writer.step(block_ms=0)
    signer.sign(ledger.heads(), 1_800_000_060_000)
    found = read(tmp_path)
    assert [type(one) for one in found] == [Statement, Statement]
    assert verify(ledger, found).sound


def test_whatever_stands_in_the_place_of_a_signature_is_none() -> None:
    """SQLite holds text where bytes belong, and bytes where text does."""
    for statement, signature in (("{}", "text"), (b"\xff", b""), ("\udcff", b"\0" * 64)):
        assert not heads.is_signed(KEY.public_key(), "label", statement, signature)


def test_heads_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "heads" / "2026-11-27.jsonl").mkdir(parents=True)
    with pytest.raises(SetupError, match=r"2026-11-27\.jsonl can't be read: Is a directory"):
        read(tmp_path)


def test_the_last_statement_of_each_day_counts_and_all_of_the_newest(
    shop: Shop, ledger: Ledger, number: int, signer: Signer, tmp_path: Path, writer: Writer
) -> None:
    for day in range(2):
        for minute in range(3):
            shop.receive(1)
            writer.step(block_ms=0)
            signer.sign(ledger.heads(), 1_800_000_000_000 + day * 86_400_000 + minute * 60_000)
    sources = [statement.source for statement in read(tmp_path)]
    assert sources == [
        "2027-01-15.jsonl:3",
        "2027-01-16.jsonl:1",
        "2027-01-16.jsonl:2",
        "2027-01-16.jsonl:3",
    ]


def test_the_newest_statements_are_read_without_all_the_others(
    shop: Shop, ledger: Ledger, number: int, signer: Signer, tmp_path: Path, writer: Writer
) -> None:
    """The same as all of them, the newest first; past the bound the older are left out."""
    places = []
    for day in range(3):
        for minute in range(3):
            shop.receive(1)
            writer.step(block_ms=0)
            places.append(ledger.heads()[number].place)
            signer.sign(ledger.heads(), 1_800_000_000_000 + day * 86_400_000 + minute * 60_000)
    last_file = sorted((tmp_path / "heads").glob("*.jsonl"))[-1]
    torn = last_file.read_bytes()[:100]
    for file in (tmp_path / "heads").glob("*.jsonl"):
        file.write_bytes(file.read_bytes() + torn)
    (tmp_path / "heads" / "2027-01-14.jsonl").write_bytes(b"")
    there = SignedHeads(tmp_path / "heads", KEY.public_key())

    def found(bytes_max: int = 1 << 20, lowest: Place = START) -> list[Place]:
        newest = there.newest(number, lambda place: place >= lowest, bytes_max=bytes_max)
        return [one.heads[number].place for one in newest if isinstance(one, Statement)]

    wanted = [places[index] for index in (8, 7, 6, 5, 2)]
    assert found() == wanted
    assert found() == [
        one.heads[number].place for one in reversed(read(tmp_path)) if isinstance(one, Statement)
    ]
    assert found(lowest=places[7]) == wanted[:2]
    line = len(last_file.read_bytes().splitlines()[0])
    assert found(bytes_max=2 * line) == wanted[:2]
    assert not list(there.newest(99, lambda place: True)), "a partition that none of them names"
    assert SignedHeads.open(tmp_path / "heads") == there
    assert SignedHeads.open(tmp_path) is None


def test_statements_of_another_deployment_prove_nothing(ledger: Ledger, number: int, tmp_path: Path) -> None:
    Signer(KEY, tmp_path / "heads", deployment_id="another", algorithm="sha256").sign(ledger.heads(), 1)
    report = verify(ledger, read(tmp_path))
    assert "of another deployment" in report.unsound[0].why


def test_a_folder_of_another_key_is_refused(ledger: Ledger, tmp_path: Path, signer: Signer) -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
    with pytest.raises(SetupError, match="name the right ledger_key_file"):
        Signer(other, tmp_path / "heads", deployment_id=ledger.deployment_id, algorithm="sha256")


def test_a_key_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "ledger-key.pem"
    made = heads.load_key(path)
    assert heads.load_key(path).private_bytes_raw() == made.private_bytes_raw()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["ledger-key.pem"]


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_key_that_is_none_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(SetupError, match="no private key in PEM"):
        heads.load_key(path)


def test_heads_that_can_not_be_written_stop_nothing(
    ledger: Ledger, number: int, signer: Signer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "heads" / "2027-01-15.jsonl").mkdir()
    assert not signer.sign(ledger.heads(), 1_800_000_000_000)
    assert not signer.sign(ledger.heads(), 1_800_000_000_000)
    assert len([one for one in caplog.records if "signed heads can't be written" in one.getMessage()]) == 1
    (tmp_path / "heads" / "2027-01-15.jsonl").rmdir()
    assert signer.sign(ledger.heads(), 1_800_000_060_000)
