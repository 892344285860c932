"""Issuers of access tokens: their file, their keys from a file or a URL, keys that come and go, what goes wrong on the way."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jwt
import pytest

from engine.errors import ConfigError, SetupError
from server import bounds, issuers
from server.issuers import Issuers, Refused, actor_of, fetch
from server.roles import Place, Role
from tests.server.conftest import MALL, OTHER_MALL, STORE
from tests.server.tokens import AUDIENCE, BAD, ISSUER, Idp


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def idp(tmp_path: Path) -> Idp:
    return Idp(tmp_path / "idp")


class Web:
    """An issuer's web server as a function: what it gives, how often it was asked."""

    def __init__(self, idp: Idp) -> None:
        self.idp = idp
        self.asked = 0
        self.down = False
        self.content: bytes | None = None

    def __call__(self, url: str) -> bytes:
        assert url == "https://idp.example/certs"
        self.asked += 1
        if self.down:
            raise OSError("no route")
        return self.idp.jwks() if self.content is None else self.content


def by_url(idp: Idp, clock: Clock) -> tuple[Issuers, Web]:
    text = idp.file.read_text().replace('jwks_file = "jwks.json"', 'jwks_url = "https://idp.example/certs"')
    idp.file.write_text(text)
    web = Web(idp)
    return Issuers(idp.file, get=web, monotonic_s=clock), web


def refusal(found: Issuers, token: str) -> str:
    with pytest.raises(Refused) as caught:
        found.check(token)
    return caught.value.reason


# --- tokens ---------------------------------------------------------------------------------------------------------------
def test_a_good_token_says_who_somebody_is(idp: Idp) -> None:
    found = Issuers(idp.file).check(idp.token(Role.OUTLET, sub="clerk-17"))
    assert (found.role, found.place, found.actor) == (Role.OUTLET, Place(MALL, STORE), "idp:clerk-17")
    assert found.until_s == pytest.approx(time.time() + 605, abs=5)


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind != "bound elsewhere"])
def test_a_bad_token_is_refused(idp: Idp, kind: str) -> None:
    expected = {
        **{"expired": "expired", "not yet": "claims", "wrong audience": "audience", "no audience": "claims"},
        **{"wrong issuer": "issuer", "wrong key": "signature", "tampered": "signature", "unknown key": "key"},
        **{
            "wrong algorithm": "algorithm",
            "shared secret": "algorithm",
            "unsigned": "algorithm",
            "no kid": "key",
        },
        **{
            "critical header": "malformed",
            "another type": "header",
            "unknown role": "role",
            "no role": "role",
        },
        **{
            "role of a terminal": "role",
            "no mall": "place",
            "no store": "place",
            "mall of another kind": "claims",
        },
        **{"bound to something else": "binding", "long": "long", "garbage": "malformed"},
        **{"no end": "claims", "no subject": "claims"},
    }
    assert refusal(Issuers(idp.file), idp.bad(kind)) == expected[kind]


def test_a_clock_may_be_off_by_the_leeway_and_no_more(idp: Idp) -> None:
    found, now_s = Issuers(idp.file), int(time.time())
    assert found.check(idp.token(exp=now_s - 2))
    assert found.check(idp.token(nbf=now_s + 3))
    assert refusal(found, idp.token(exp=now_s - 30)) == "expired"


def test_an_issuer_speaks_only_for_its_malls_and_by_its_roles(tmp_path: Path) -> None:
    idp = Idp(tmp_path / "idp", roles=("mall", "operations"), extra=f"mall_ids = [{MALL}]\n")
    found = Issuers(idp.file)
    assert found.check(idp.token(Role.MALL))
    assert refusal(found, idp.token(Role.MALL, pickgate_mall=OTHER_MALL)) == "mall"
    assert refusal(found, idp.token(Role.OPERATIONS)) == "mall"
    assert found.check(idp.token(Role.OPERATIONS, pickgate_mall=MALL))
    assert refusal(found, idp.token(Role.PARTNER)) == "role"


def test_a_key_of_one_issuer_signs_nothing_for_another(tmp_path: Path) -> None:
    one, other = Idp(tmp_path / "one"), Idp(tmp_path / "other")
    text = other.file.read_text().replace(ISSUER, "https://other.example").replace('"idp"', '"other"')
    one.file.write_text(one.file.read_text() + text.replace("jwks.json", "../other/jwks.json"))
    found = Issuers(one.file)
    assert found.check(one.token())
    assert found.check(other.token(iss="https://other.example")).actor == "other:lin"
    assert refusal(found, one.token(iss="https://other.example")) == "signature"
    assert refusal(found, other.token()) == "signature"


@pytest.mark.parametrize(
    "subject",
    ["x" * 61, "with blank", "汉字", "tab\t", "line\n", ""],
    ids=["long", "blank", "han", "tab", "line", "empty"],
)
def test_a_subject_that_does_not_fit_the_record_is_named_by_its_digest(subject: str) -> None:
    actor = actor_of("idp", subject)
    assert actor.startswith("idp:sha256-")
    assert len(actor) <= 64
    assert actor.isascii()
    assert actor.isprintable()
    assert actor != actor_of("idp", subject + "x")


# --- keys -----------------------------------------------------------------------------------------------------------------
def test_keys_of_a_url_are_fetched_in_time_and_never_by_a_call(idp: Idp) -> None:
    clock = Clock()
    found, web = by_url(idp, clock)
    assert web.asked == 1
    assert found.check(idp.token())
    found.look()
    assert web.asked == 1
    idp.add("k2")
    new = idp.token(kid="k2")
    assert refusal(found, new) == "key"
    assert web.asked == 1
    # It was wanted: the next look comes soon, and not sooner however often it is asked for.
    found.look()
    assert web.asked == 1
    clock.now_s += bounds.JWKS_REFETCH_S_MIN
    found.look()
    assert web.asked == 2
    assert found.check(new)
    for _ in range(20):
        refusal(found, idp.bad("unknown key"))
        found.look()
    assert web.asked == 2
    idp.drop("k2")
    clock.now_s += bounds.JWKS_REFETCH_S
    revision = found.revision
    found.look()
    assert found.revision > revision
    assert refusal(found, new) == "key"
    assert found.check(idp.token())


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b'{"keys": []}', b"[" * 10_000, b"x" * (1 << 21), b'{"keys": 3}']
)
def test_an_issuer_that_is_out_of_order_leaves_the_last_good_keys_for_a_day(
    idp: Idp, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    clock = Clock()
    found, web = by_url(idp, clock)
    web.down, web.content = content is None, content
    for _ in range(5):
        clock.now_s += bounds.JWKS_REFETCH_S
        found.look()
        assert found.check(idp.token())
    assert len([one for one in caplog.records if "can't be used" in one.getMessage()]) == 1
    clock.now_s += bounds.JWKS_AGE_S_MAX
    found.look()
    assert refusal(found, idp.token()) == "key"
    web.down, web.content = False, None
    clock.now_s += bounds.JWKS_REFETCH_S_MIN
    found.look()
    clock.now_s += bounds.JWKS_REFETCH_S
    found.look()
    assert found.check(idp.token())


def test_an_issuer_that_is_down_at_the_start_is_asked_again(idp: Idp) -> None:
    clock = Clock()
    text = idp.file.read_text().replace('jwks_file = "jwks.json"', 'jwks_url = "https://idp.example/certs"')
    idp.file.write_text(text)
    web = Web(idp)
    web.down = True
    found = Issuers(idp.file, get=web, monotonic_s=clock)
    assert refusal(found, idp.token()) == "key"
    web.down = False
    clock.now_s += bounds.JWKS_REFETCH_S_MIN
    found.look()
    assert found.check(idp.token())


@contextmanager
def website(status: int, headers: dict[str, str], body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/certs"
        finally:
            server.shutdown()
            thread.join()


def test_a_web_server_is_asked_and_leads_nowhere_else(idp: Idp) -> None:
    with website(200, {}, idp.jwks()) as url:
        assert fetch(url) == idp.jwks()
        text = idp.file.read_text().replace('jwks_file = "jwks.json"', f'jwks_url = "{url}"')
        idp.file.write_text(text)
        assert Issuers(idp.file).check(idp.token())
    with website(302, {"Location": "file:///etc/passwd"}, b"") as url, pytest.raises(OSError, match="302"):
        fetch(url)
    with website(200, {}, b"x" * (2 * bounds.JWKS_BYTES_MAX)) as url:
        assert len(fetch(url)) == bounds.JWKS_BYTES_MAX + 1


def test_a_private_key_in_the_set_is_taken_for_its_public_half_only(idp: Idp) -> None:
    private = jwt.algorithms.ECAlgorithm.to_jwk(idp.keys["k1"], as_dict=True) | {"kid": "k1"}
    assert "d" in private
    import json

    keys = issuers.read_keys(json.dumps({"keys": [private]}).encode(), ["ES256"])
    assert all(not hasattr(key, "private_bytes") for key in keys.values())


def test_secrets_short_keys_and_keys_for_encryption_are_left_out() -> None:
    import json

    from cryptography.hazmat.primitives.asymmetric import rsa

    short = jwt.algorithms.RSAAlgorithm.to_jwk(
        rsa.generate_private_key(65537, 1024).public_key(), as_dict=True
    )
    for item in (
        {"kty": "oct", "k": "c2VjcmV0", "kid": "a"},
        short | {"kid": "b"},
        short | {"kid": "c", "use": "enc"},
        {"kty": "EC", "crv": "P-256", "kid": "d"},
    ):
        with pytest.raises(ValueError, match="no key"):
            issuers.read_keys(json.dumps({"keys": [item]}).encode(), ["ES256", "RS256"])


# --- the file -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('algorithms = ["ES256"]', 'algorithms = ["HS256"]', "HS256"),
        ('algorithms = ["ES256"]', 'algorithms = ["none"]', "none"),
        ('algorithms = ["ES256"]', "algorithms = []", "algorithms"),
        ('jwks_file = "jwks.json"', "", "jwks_file or jwks_url"),
        ('jwks_file = "jwks.json"', 'jwks_url = "http://idp.example/x"', "not https"),
        ('jwks_file = "jwks.json"', 'jwks_url = "file:///etc/passwd"', "not https"),
        ('name = "idp"', 'name = "Big Name"', "name"),
        ('"mall",', '"terminal",', "certificates"),
        ('"mall",', '"emperor",', "roles"),
        ("leeway_s = 5", "leeway_s = 3600", "leeway_s"),
        ("leeway_s = 5", "colour = 5", "colour"),
        ("[[issuer]]", "[issuers]", "[[issuer]]"),
        ("[[issuer]]", "issuer =", "TOML"),
    ],
)
def test_a_mistake_in_the_file_is_said(idp: Idp, old: str, new: str, says: str) -> None:
    text = idp.file.read_text()
    assert old in text
    idp.file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        Issuers(idp.file)
    assert says in caught.value.message
    assert str(idp.file) in caught.value.message


def test_two_of_one_name_and_files_that_are_not_there_are_refused(idp: Idp, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        Issuers(tmp_path / "absent.toml")
    text = idp.file.read_text()
    idp.file.write_text(text + text)
    with pytest.raises(ConfigError, match="two issuers"):
        Issuers(idp.file)
    idp.file.write_text(text.replace("jwks.json", "absent.json"))
    with pytest.raises(SetupError, match=r"absent\.json"):
        Issuers(idp.file)
    assert AUDIENCE in text
