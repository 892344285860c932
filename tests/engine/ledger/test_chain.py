"""Links: what they cover, and by whose hash."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes

from engine.errors import ConfigError
from engine.ledger.chain import LINK_BYTES, Chain
from engine.state.streams import Entry

DEPLOYMENT = "0e9b5d6e-2f0c-4d0c-9d52-0f2d2b8f0a11"
ENTRY = Entry(3, 17, b"what happened")


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def sm3(data: bytes) -> bytes:
    """By another library's way in than the chain's."""
    digest = hashes.Hash(hashes.SM3())
    digest.update(data)
    return digest.finalize()


@pytest.mark.parametrize(("algorithm", "hashed"), [("sha256", sha256), ("sm3", sm3)])
def test_links_are_what_the_module_says(algorithm: str, hashed: object) -> None:
    assert callable(hashed)
    chain = Chain(algorithm, DEPLOYMENT)
    first = hashed(b"pickgate ledger 1\0" + DEPLOYMENT.encode() + b"\0" + (5).to_bytes(4, "big"))
    assert chain.first(5) == first
    number = (5).to_bytes(4, "big") + (3).to_bytes(8, "big") + (17).to_bytes(8, "big")
    assert chain.link(first, 5, ENTRY) == hashed(first + number + b"what happened")
    assert len(first) == LINK_BYTES


def test_many_links_are_each_the_next() -> None:
    chain = Chain("sha256", DEPLOYMENT)
    entries = [Entry(1, n, b"%d" % n) for n in range(1, 6)]
    link = chain.first(0)
    expected = []
    for entry in entries:
        link = chain.link(link, 0, entry)
        expected.append(link)
    assert list(chain.links(chain.first(0), 0, entries)) == expected


def test_whatever_differs_gives_another_link() -> None:
    chain = Chain("sha256", DEPLOYMENT)
    before = chain.first(0)
    others = {
        chain.link(before, 0, ENTRY),
        chain.link(before, 1, ENTRY),
        chain.link(before, 0, ENTRY._replace(epoch=4)),
        chain.link(before, 0, ENTRY._replace(seq=18)),
        chain.link(before, 0, ENTRY._replace(data=b"what happenee")),
        chain.link(chain.first(1), 0, ENTRY),
        Chain("sm3", DEPLOYMENT).link(before, 0, ENTRY),
        Chain("sha256", "another").first(0),
        before,
    }
    assert len(others) == 9


def test_an_unknown_hash_is_refused() -> None:
    with pytest.raises(ConfigError, match="'md5'; expected sha256 or sm3"):
        Chain("md5", DEPLOYMENT)
