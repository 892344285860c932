"""The first act: codes are issued, shown, scanned and redeemed, and every way to be refused is tried."""

from __future__ import annotations

import dataclasses
from typing import Final

from examples.session import QR_VERSIONS, Session, moved
from pickgate.v1 import types_pb2 as types_pb

EXPIRING: Final = "1019"
"""The order whose code lives for 60 s."""
TOO_MUCH: Final = "1025"
"""The order that asks for more than there is."""
VALUABLE: Final = "1009"
"""A valuable that is ordered before anybody is registered who could prove who its customer is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """What has to grow old while everything else happens: a screenshot, and a code that expires."""

    screenshot: str
    expiring: str
    until_ms: int


def flip(text: str, at: int) -> str:
    """Change one character of a payload into another one of its alphabet."""
    return text[:at] + ("Z" if text[at] != "Z" else "0") + text[at + 1 :]


def begin(session: Session) -> Waiting:
    """Issue a code for every order; then first of all those that need time to pass."""
    session.issue(VALUABLE, "issue: nobody could vouch", "PROOF_UNAVAILABLE")
    session.put_provider()
    session.issue_batch(order_id for order_id in session.order_ids["orders"] if order_id != TOO_MUCH)
    session.issue(TOO_MUCH, "issue: more than there is", "STOCK_SHORT")
    session.ending.add(EXPIRING)
    payload = session.rendered("1011")
    screenshot = session.picture(payload.text, "1011-screenshot", QR_VERSIONS[types_pb.VERSION_DYNAMIC])
    until_ms = max(payload.valid_until_ms, session.orders[EXPIRING].expires_at_ms)
    return Waiting(screenshot, session.show(EXPIRING), until_ms)


def play(session: Session) -> None:
    """All that needs no time to pass."""
    serials_and_pins(session)
    pickups(session)
    forgeries(session)
    places(session)
    ended_and_missing(session)
    session.flush("First act: codes, scans and stock")


def a_minute_later(session: Session, waiting: Waiting) -> None:
    """What has grown old is scanned."""
    session.scan("1011", "a screenshot, over 65 s old", "STALE_CODE", 11, waiting.screenshot, say=True)
    session.scan("1011", "the phone shows a fresh one", "REDEEMED", 11, session.show("1011"))
    session.scan(EXPIRING, "code of 60 s, after 60 s", "EXPIRED", 21, waiting.expiring, say=True)


def serials_and_pins(session: Session) -> None:
    """Static codes: on paper or typed in, with their PINs."""
    pins = {order_id: order.pin for order_id, order in session.orders.items()}
    typed = {order_id: order.typed for order_id, order in session.orders.items()}

    session.scan("1001", "QR code and PIN", "REDEEMED", 11, session.show("1001"), pin=pins["1001"], say=True)
    paper = session.show("1002")
    session.scan("1002", "QR code, PIN missing", "PIN_REQUIRED", 12, paper, say=True)
    session.scan("1002", "the same with its PIN", "REDEEMED", 12, paper, pin=pins["1002"])
    session.scan("1003", "serial and PIN typed in", "REDEEMED", 31, typed["1003"], pin=pins["1003"])

    wrong = f"{(int(pins['1004']) + 1) % 10**6:06}"
    paper = session.show("1004")
    session.scan("1004", "wrong PIN", "PIN_WRONG", 21, paper, pin=wrong, facts={"tries_left": 2}, say=True)
    session.scan("1004", "wrong PIN again", "PIN_WRONG", 21, paper, pin=wrong, facts={"tries_left": 1})
    locked = session.scan("1004", "wrong PIN, third time", "LOCKED", 21, paper, pin=wrong)
    session.scan(
        "1004",
        "the right PIN, too late",
        "LOCKED",
        21,
        paper,
        pin=pins["1004"],
        facts={"review_id": locked.review_id},
        say=True,
    )
    session.orders["1004"].ends_as = "LOCKED"

    mistyped = typed["1024"][:-1] + str((int(typed["1024"][-1]) + 1) % 10)
    session.scan("1024", "serial mistyped by one digit", "INVALID_CODE", 11, mistyped, pin=pins["1024"])
    session.scan("1024", "typed right", "REDEEMED", 11, typed["1024"], pin=pins["1024"])


def pickups(session: Session) -> None:
    """Dynamic and valuable codes: whole, in parts, twice, and with a call that is repeated."""
    code = session.show("1005")
    first = session.scan("1005", "QR code", "REDEEMED", 11, code)
    session.scan(
        "1005",
        "second scan, next counter",
        "ALREADY_REDEEMED",
        12,
        code,
        facts={"terminal_id": 11, "at_ms": first.at_ms},
        say=True,
    )
    session.scan("1006", "QR code, three lines", "REDEEMED", 21, session.show("1006"))

    session.scan("1007", "picks up a part", "REDEEMED", 31, session.show("1007"), lines={103: 1, 106: 2})
    session.scan(
        "1007", "asks for more than is left", "NOTHING_LEFT", 31, session.show("1007"), lines={103: 4}
    )
    session.scan("1007", "picks up the rest", "REDEEMED", 32, session.show("1007"))

    code = session.show("1008")
    first = session.scan("1008", "QR code", "REDEEMED", 11, code, request_id="a-retry-of-terminal-11")
    session.scan(
        "1008",
        "the terminal repeats its call",
        "REDEEMED",
        11,
        code,
        request_id="a-retry-of-terminal-11",
        replayed=True,
        facts={"event_id": first.event_id, "at_ms": first.at_ms},
    )
    for order_id, what, terminal_id in (
        ("1009", "QR code and proof (Ed25519)", 21),
        ("1010", "QR code and proof (SM2)", 31),
    ):
        code = session.show(order_id)
        session.scan(order_id, what, "REDEEMED", terminal_id, code, proof_token=session.proof(order_id))


def forgeries(session: Session) -> None:
    """What is no code, or no longer the one that was issued."""
    flipped = session.picture(flip(session.rendered("1012").text, 40), "1012-flipped")
    session.scan("1012", "one character flipped", "INVALID_CODE", 31, flipped, say=True)
    forged = session.picture(flip(session.rendered("1023").text, 150), "1023-forged")
    session.scan("1023", "flipped in the signature", "INVALID_CODE", 31, forged)
    genuine = session.show("1023")
    session.scan("1023", "the genuine one", "REDEEMED", 31, genuine, proof_token=session.proof("1023"))
    poster = session.picture("HTTPS://EXAMPLE.COM/COUPON/42", "not-a-code")
    session.scan("1022", "not a code: a poster's QR code", "INVALID_CODE", 19, poster)


def places(session: Session) -> None:
    """Codes at other stores, terminals at other places."""
    code = session.show("1013")
    session.scan("1013", "at another store", "WRONG_STORE", 11, code, facts={"store_id": 2002}, say=True)

    beijing, shanghai = session.terminals[21].position, session.terminals[12].position
    assert beijing is not None
    assert shanghai is not None
    far = moved(beijing, north_m=5_000)
    session.scan(
        "1014", "terminal 5 km away", "OUT_OF_RANGE", 21, session.show("1014"), position=far, say=True
    )

    # Terminal 12 takes its position from a Chinese map service. Said to be WGS-84 it is half a kilometre off.
    mistaken = types_pb.Position()
    mistaken.CopyFrom(shanghai)
    mistaken.datum = types_pb.DATUM_WGS84
    session.scan(
        "1015", "GCJ-02 position sent as WGS-84", "OUT_OF_RANGE", 12, session.show("1015"), position=mistaken
    )
    session.scan("1015", "the same, said to be GCJ-02", "REDEEMED", 12, session.show("1015"))

    code, proof = session.show("1016"), session.proof("1016")
    session.scan(
        "1016",
        "location missing",
        "LOCATION_REQUIRED",
        21,
        code,
        proof_token=proof,
        without_position=True,
        say=True,
    )
    vague = types_pb.Position()
    vague.CopyFrom(beijing)
    vague.accuracy_m = 800
    session.scan(
        "1016",
        "location accurate to 800 m",
        "LOCATION_UNRELIABLE",
        21,
        session.show("1016"),
        proof_token=proof,
        position=vague,
    )
    session.scan("1017", "no location, and none required", "REDEEMED", 32, session.show("1017"))


def ended_and_missing(session: Session) -> None:
    """Codes that were ended, goods that are not there, codes of somebody else."""
    code = session.show("1018")
    session.void("1018", "the mall voids the code")
    session.scan("1018", "scan of the voided code", "VOIDED", 11, code, say=True)

    session.stocktake("1020", 108, 0)
    code = session.show("1020")
    session.scan("1020", "paid, but none is there", "OUT_OF_STOCK", 21, code, facts={"sku_id": 108}, say=True)

    code = session.show("1021")
    session.scan("1021", "mall 2's code, mall 1's terminal", "UNKNOWN_CODE", 11, code, say=True)
    session.scan("1021", "the same at mall 2's terminal", "REDEEMED", 19, code)
