"""Cuts: where the chain begins now. What lay before is gone, and a signed statement says that it went by order.

A cut names the last row that was taken out of each partition, with its link, so that the first row left still follows from
something; and the checkpoint that stands for the rows up to there. The newest counts. Statement: JSON with `deployment`, `chain`, `at_ms`,
`cut` (its number), `base` (the checkpoint's number) and `heads`, an object from partition to [event, rows up to it, link in hex];
signed as the heads are, under the label "pickgate cut 1".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import Connection, insert, select

from engine.ledger import database
from engine.ledger.heads import Unsound, is_signed, key_name, sign_text
from engine.ledger.ledger import Head, Ledger
from engine.ledger.tables import CUTS
from engine.state.streams import Place

_LABEL: Final = "pickgate cut 1"


@dataclass(frozen=True, slots=True)
class Cut:
    """The last row that was taken out of each partition, and the checkpoint that stands for it."""

    number: int
    at_ms: int
    base: int
    heads: Mapping[int, Head]
    unsound: Unsound | None
    """Why nobody should believe it; None: it is signed by the key."""


def earliest(ledger: Ledger) -> dict[int, Place]:
    """Behind which place each partition begins: the last event that was cut off. A partition that was never cut is not in it.

    A feed whose cursor lies before it has missed what was cut off. Raises LedgerUnavailable.
    """
    with database.snapshot(ledger.engine) as connection:
        return places(connection)


def places(connection: Connection) -> dict[int, Place]:
    """As `earliest`. Whether the cut is signed is for `verify` to tell."""
    text = connection.execute(select(CUTS.c.statement).order_by(CUTS.c.number.desc()).limit(1)).scalar()
    try:
        said = json.loads(text)["heads"] if text else {}
        return {int(number): Place(*map(int, place.split("-"))) for number, (place, _, _) in said.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def read_cut(connection: Connection, ledger: Ledger, key: Ed25519PublicKey | None) -> Cut | None:
    """The newest cut; None when there was none."""
    row = connection.execute(select(CUTS).order_by(CUTS.c.number.desc()).limit(1)).first()
    if row is None:
        return None
    source = f"cut {row.number}"
    unsound = None
    if key is None:
        unsound = Unsound(source, "there is no public key to verify it with")
    elif not is_signed(key, _LABEL, row.statement, row.signature):
        unsound = Unsound(source, f"it is not signed by the key {key_name(key)}")
    try:
        said = json.loads(row.statement)
        heads = {
            int(number): Head(Place(*map(int, place.split("-"))), rows, bytes.fromhex(link))
            for number, (place, rows, link) in said["heads"].items()
        }
        if (said["deployment"], said["cut"]) != (ledger.deployment_id, row.number):
            unsound = Unsound(
                source, f"it was signed for cut {said['cut']} of deployment {said['deployment']}"
            )
        return Cut(row.number, said["at_ms"], said["base"], heads, unsound)
    except (KeyError, TypeError, ValueError, AttributeError):
        return Cut(row.number, row.at_ms, 0, {}, Unsound(source, "it is no statement of a cut"))


def write_cut(
    connection: Connection,
    ledger: Ledger,
    key: Ed25519PrivateKey,
    *,
    number: int,
    base: int,
    heads: Mapping[int, Head],
    at_ms: int,
) -> None:
    """Sign and keep a cut, in the transaction that takes the rows out."""
    told = {
        str(partition): [str(head.place), head.rows, head.link.hex()]
        for partition, head in sorted(heads.items())
    }
    about = {"deployment": ledger.deployment_id, "chain": ledger.chain.algorithm, "at_ms": at_ms}
    statement = json.dumps({**about, "cut": number, "base": base, "heads": told}, separators=(",", ":"))
    signature = sign_text(key, _LABEL, statement)
    connection.execute(
        insert(CUTS).values(number=number, at_ms=at_ms, statement=statement, signature=signature)
    )
