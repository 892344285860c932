"""The SM profile: the documented bytes, and what opens and what does not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine import keyring as keyrings
from engine import sm_enrolment, sm_profile, terminals
from engine.deployment import Deployment
from engine.errors import Exhausted, InvalidInput, PickgateError, StaleControl, Unauthenticated
from engine.keyring import Purpose
from engine.sm_profile import TIME_S_MAX, Opener, open_answer, seal_answer, seal_request, secret_of
from engine.terminals import set_state
from ext.codec import Prf, Suite
from tests.engine import sm_oracle
from tests.engine.shop import Shop
from tests.engine.sm_terminals import PUBLIC, change, give, invite, opened

TERMINAL = (1, 2001, 7)
PATH = b"/pickgate.v1.RedemptionService/Redeem"
VECTORS = json.loads(sm_oracle.VECTORS.read_text())


def draws(seed: int = 0) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


# --- the bytes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{len(vector['body']) // 2} bytes")
def test_vectors(vector: dict[str, Any]) -> None:
    terminal = (vector["mall_id"], vector["store_id"], vector["terminal_id"])
    secret = secret_of(Prf(Suite.SM, bytes.fromhex(vector["terminal_key"])), terminal, vector["number"])
    assert secret.hex() == vector["secret"]
    envelope, request = seal_request(
        secret,
        terminal,
        vector["number"],
        vector["path"].encode(),
        bytes.fromhex(vector["body"]),
        time_ms=vector["time_ms"],
        nonce=bytes.fromhex(vector["nonce"]),
    )
    assert envelope.hex() == vector["request_envelope"]
    answered = seal_answer(
        request, bytes.fromhex(vector["answer_body"]), lambda size: bytes.fromhex(vector["answer_nonce"])
    )
    assert answered.hex() == vector["answer_envelope"]
    assert open_answer(request, answered).hex() == vector["answer_body"]


def test_an_independent_writing_of_the_recipe_agrees() -> None:
    draw = random.Random(3)
    for size in (0, 1, 16, 31, 100, 1_000):
        secret, nonce, own, body = (draw.randbytes(n) for n in (32, 16, 16, size))
        envelope, request = seal_request(secret, TERMINAL, 3, PATH, body, time_ms=5, nonce=nonce)
        theirs, tag = sm_oracle.request(secret, TERMINAL, 3, PATH, body, 5, nonce)
        assert envelope == theirs
        assert seal_answer(request, body, lambda _, own=own: own) == sm_oracle.answer(  # type: ignore[misc]
            secret, PATH, nonce, tag, body, own
        )


def test_no_protobuf_message_begins_as_an_envelope_does() -> None:
    """Field numbers are 1 or more, and stand above the lowest three bits of the first varint."""
    assert sm_profile.MAGIC[:1] == sm_profile.MARK == b"\0"
    assert sm_profile.MARK[0] >> 3 == 0


# --- opening ----------------------------------------------------------------------------------------------------------
class Counter:
    """An enrolled terminal and the opener that it talks to."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.number, self.secret = give(shop.deployment, TERMINAL)
        self.opener = Opener(shop.deployment.control, shop.deployment.now_ms)
        self._draw = random.Random(1)

    def seal(self, body: bytes = b"body", path: bytes = PATH, **fields: Any) -> bytes:
        given: dict[str, Any] = {"time_ms": self.shop.clock.now_ms, "nonce": self._draw.randbytes(16)}
        secret, number = fields.pop("secret", self.secret), fields.pop("number", self.number)
        terminal = fields.pop("terminal", TERMINAL)
        return seal_request(secret, terminal, number, path, body, **given | fields)[0]

    def refused(self, envelope: bytes, path: bytes = PATH) -> PickgateError:
        with pytest.raises(PickgateError) as caught:
            self.opener.open(path, envelope)
        return caught.value


@pytest.fixture
def counter(shop: Shop) -> Counter:
    return Counter(shop)


def test_a_request_opens_and_its_answer_too(counter: Counter) -> None:
    body, sealed = counter.opener.open(PATH, counter.seal(b"a request"))
    assert body == b"a request"
    assert sealed.terminal == TERMINAL
    assert open_answer(sealed, seal_answer(sealed, b"an answer")) == b"an answer"
    assert counter.secret.hex() not in repr(sealed) + str(sealed)


def test_every_bit_of_an_envelope_counts(counter: Counter) -> None:
    envelope = counter.seal(b"\x0a\x02")
    for bit in range(len(envelope) * 8):
        changed = bytearray(envelope)
        changed[bit // 8] ^= 1 << bit % 8
        error = counter.refused(bytes(changed))
        assert isinstance(error, InvalidInput if bit < 32 else Unauthenticated)
    assert counter.opener.open(PATH, envelope).body == b"\x0a\x02"


def test_every_length_but_its_own_is_refused(counter: Counter) -> None:
    envelope = counter.seal(b"12345")
    for cut in range(len(envelope)):
        counter.refused(envelope[:cut])
    counter.refused(envelope + b"\0")


def test_one_refusal_for_all_that_does_not_open(counter: Counter) -> None:
    """A wrong secret, an unknown terminal, an earlier number, another method: who asks learns nothing of which."""
    wrong = [
        counter.refused(counter.seal(secret=bytes(32))),
        counter.refused(counter.seal(terminal=(1, 2001, 8))),
        counter.refused(counter.seal(number=counter.number + 1)),
        counter.refused(counter.seal(), path=b"/pickgate.v1.RedemptionService/Reverse"),
        # Without the secret its time does not matter either.
        counter.refused(counter.seal(secret=bytes(32), time_ms=1)),
    ]
    assert len({(type(error), error.message) for error in wrong}) == 1
    assert counter.opener.refused == len(wrong)


def test_a_replay_is_refused(counter: Counter) -> None:
    envelope = counter.seal()
    counter.opener.open(PATH, envelope)
    assert "here before" in counter.refused(envelope).message
    counter.shop.clock.tick(TIME_S_MAX)
    counter.shop.deployment.control.refresh()
    assert "here before" in counter.refused(envelope).message
    counter.shop.clock.tick(2 * TIME_S_MAX)
    counter.shop.deployment.control.refresh()
    assert "another time" in counter.refused(envelope).message


@pytest.mark.parametrize("off_s", [-TIME_S_MAX, 0, TIME_S_MAX])
def test_clocks_may_differ_a_little(counter: Counter, off_s: int) -> None:
    at_ms = counter.shop.clock.now_ms + off_s * 1000
    envelope = counter.seal(time_ms=at_ms)
    assert counter.opener.open(PATH, envelope).body
    # As long as its time counts, it is remembered: also one from the future.
    counter.shop.clock.now_ms = at_ms + TIME_S_MAX * 1000
    counter.shop.deployment.control.refresh()
    assert "here before" in counter.refused(envelope).message


@pytest.mark.parametrize("off_s", [-TIME_S_MAX - 1, TIME_S_MAX + 1, -(10**6)])
def test_another_time_is_refused_and_says_so(counter: Counter, off_s: int) -> None:
    error = counter.refused(counter.seal(time_ms=counter.shop.clock.now_ms + off_s * 1000))
    assert isinstance(error, Unauthenticated)
    assert f"{abs(off_s)} s {'ahead of' if off_s > 0 else 'behind'} the server" in error.message


def test_what_is_remembered_is_bounded(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm_profile, "NONCES_MAX", 3)
    for _ in range(3):
        counter.opener.open(PATH, counter.seal())
    assert isinstance(counter.refused(counter.seal()), Exhausted)
    counter.shop.clock.tick(2 * TIME_S_MAX + 1)
    counter.shop.deployment.control.refresh()
    assert counter.opener.open(PATH, counter.seal()).body


def test_an_answer_opens_for_its_own_request_only(counter: Counter) -> None:
    first, second = (counter.opener.open(PATH, counter.seal()).sealed for _ in range(2))
    answered = seal_answer(first, b"an answer")
    with pytest.raises(Unauthenticated):
        open_answer(second, answered)
    for bit in range(len(answered) * 8):
        changed = bytearray(answered)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Unauthenticated):
            open_answer(first, bytes(changed))
    # Two answers to one request, as two processes may give to a replay, have no key in common.
    other = seal_answer(first, b"an answer")
    assert other[4:] != answered[4:]
    assert other[20:29] != answered[20:29]


# --- enrolment --------------------------------------------------------------------------------------------------------
def turn(deployment: Deployment, state: Any) -> None:
    change(deployment, TERMINAL, set_state(TERMINAL, state, "test"), "set_state")


def fields(given: tuple[int, bytes]) -> dict[str, Any]:
    """Of a seal by that secret."""
    return {"number": given[0], "secret": given[1]}


def rotate(deployment: Deployment, number: int) -> tuple[int, bytes]:
    """The next secret of a terminal that asks by the one of that number."""
    secret = sm_enrolment.prepare(deployment.control, PUBLIC, actor="test")
    entry = change(deployment, TERMINAL, terminals.rotate_secret(number, secret.generation), "rotate_secret")
    return entry.sm_number, opened(sm_enrolment.seal(deployment.control, entry, PUBLIC))


def test_a_new_enrolment_ends_the_one_before(counter: Counter) -> None:
    number, secret = give(counter.shop.deployment, TERMINAL)
    assert (number, secret) != (counter.number, counter.secret)
    assert isinstance(counter.refused(counter.seal()), Unauthenticated)
    assert counter.opener.open(PATH, counter.seal(secret=secret, number=number)).body


def test_a_suspended_terminal_s_seal_does_not_open(counter: Counter) -> None:
    deployment = counter.shop.deployment
    turn(deployment, "suspended")
    assert isinstance(counter.refused(counter.seal()), Unauthenticated)
    with pytest.raises(Unauthenticated):
        rotate(deployment, counter.number)
    turn(deployment, "active")
    assert counter.opener.open(PATH, counter.seal()).body
    turn(deployment, "suspended")
    # It may enrol anew, and stays suspended.
    number, secret = give(deployment, TERMINAL)
    assert isinstance(counter.refused(counter.seal(secret=secret, number=number)), Unauthenticated)
    turn(deployment, "active")
    assert counter.opener.open(PATH, counter.seal(secret=secret, number=number)).body
    assert isinstance(counter.refused(counter.seal()), Unauthenticated)


def test_a_revoked_terminal_that_comes_back_has_none_of_its_old_secrets(counter: Counter) -> None:
    """Revoked, invited anew, enrolled with a certificate: the secret from before opens nothing, and is not given again."""
    deployment = counter.shop.deployment
    turn(deployment, "revoked")
    assert isinstance(counter.refused(counter.seal()), Unauthenticated)
    token = invite(deployment, TERMINAL)
    issued = terminals.Issued("a" * 64, "b" * 64, counter.shop.clock.now_s + 3600)
    enrolling = terminals.enrol(token, counter.shop.clock.now_s, issued, None)
    entry = change(deployment, TERMINAL, enrolling, "enrol")
    assert entry.state == "active"
    assert isinstance(counter.refused(counter.seal()), Unauthenticated)
    number, secret = give(deployment, TERMINAL)
    assert number > counter.number
    assert secret != counter.secret
    assert isinstance(counter.refused(counter.seal()), Unauthenticated)
    assert counter.opener.open(PATH, counter.seal(secret=secret, number=number)).body


def test_an_enrolment_for_a_certificate_alone_ends_the_secret_and_the_other_way_round(
    counter: Counter,
) -> None:
    deployment, now_s = counter.shop.deployment, counter.shop.clock.now_s
    issued = terminals.Issued("a" * 64, "b" * 64, now_s + 3600)
    by_certificate = terminals.enrol(invite(deployment, TERMINAL), now_s, issued, None)
    entry = change(deployment, TERMINAL, by_certificate, "enrol")
    assert entry.admits("b" * 64)
    assert isinstance(counter.refused(counter.seal()), Unauthenticated)
    number, secret = give(deployment, TERMINAL)
    assert counter.opener.open(PATH, counter.seal(secret=secret, number=number)).body
    entry = deployment.control.copy().terminals[TERMINAL]
    # Not "any certificate of the CA", which an entry without certificates would mean.
    assert not entry.admits("b" * 64)
    assert not entry.admits("c" * 64)
    assert not entry.admits("")


def test_an_invitation_is_good_for_the_keys_that_used_it(counter: Counter) -> None:
    deployment, now_s = counter.shop.deployment, counter.shop.clock.now_s
    token = invite(deployment, TERMINAL)
    issued = terminals.Issued("a" * 64, "b" * 64, now_s + 3600)
    secret = sm_enrolment.prepare(deployment.control, PUBLIC, actor="test")
    both = terminals.enrol(token, now_s, issued, secret)
    first = change(deployment, TERMINAL, both, "enrol")
    # Its answer was lost: the same keys again, and the secret of before is of no use.
    assert change(deployment, TERMINAL, both, "enrol").sm_number == first.sm_number + 1
    for other in (
        (issued, None),
        (None, secret),
        (issued._replace(key="d" * 64), secret),
        (issued, secret._replace(key="d" * 64)),
    ):
        with pytest.raises(Unauthenticated):
            change(deployment, TERMINAL, terminals.enrol(token, now_s, *other), "enrol")


def test_a_rotation_keeps_the_secret_that_asked_until_the_next(counter: Counter) -> None:
    deployment, first = counter.shop.deployment, fields((counter.number, counter.secret))
    second = fields(rotate(deployment, counter.number))
    assert second != first
    for given in (first, second):
        assert counter.opener.open(PATH, counter.seal(**given)).sealed.number == given["number"]
    # The answer was lost: it asks again by what it has, and the one that it never got goes.
    third = fields(rotate(deployment, counter.number))
    for given in (first, third):
        assert counter.opener.open(PATH, counter.seal(**given)).body
    assert isinstance(counter.refused(counter.seal(**second)), Unauthenticated)
    fourth = fields(rotate(deployment, third["number"]))
    for given in (third, fourth):
        assert counter.opener.open(PATH, counter.seal(**given)).body
    assert isinstance(counter.refused(counter.seal(**first)), Unauthenticated)
    with pytest.raises(Unauthenticated):
        rotate(deployment, counter.number)
    fifth = fields(give(deployment, TERMINAL))
    assert counter.opener.open(PATH, counter.seal(**fifth)).body
    for given in (third, fourth):
        assert isinstance(counter.refused(counter.seal(**given)), Unauthenticated)


def test_a_process_that_has_not_heard_of_a_new_secret_asks_to_try_again(counter: Counter) -> None:
    deployment = counter.shop.deployment
    before = deployment.control.copy()
    late = Opener(cast(Any, SimpleNamespace(copy=lambda: before)), deployment.now_ms)
    number, secret = rotate(deployment, counter.number)
    envelope = counter.seal(secret=secret, number=number)
    with pytest.raises(StaleControl):
        late.open(PATH, envelope)
    # It was not taken for a replay, and whoever does not have the secret is refused as ever.
    assert counter.opener.open(PATH, envelope).body
    for wrong in ({"number": number}, {"number": number + 1}, {"secret": bytes(32), "number": number}):
        with pytest.raises(Unauthenticated):
            late.open(PATH, counter.seal(**wrong))
    turn(deployment, "suspended")
    before = deployment.control.copy()
    with pytest.raises(Unauthenticated):
        late.open(PATH, counter.seal(secret=secret, number=number))


def test_a_rotated_key_derives_new_secrets_and_the_old_ones_count_on(counter: Counter) -> None:
    deployment = counter.shop.deployment
    ring = deployment.control.change_keyring(
        lambda keyring, now_s, draw: keyrings.rotate(
            keyring, Purpose.TERMINAL, None, Suite.SM, now_s=now_s, random=draw
        ),
        request_id="rotate-0001",
        actor="test",
    )
    assert counter.opener.open(PATH, counter.seal()).body
    counter.shop.clock.tick(keyrings.HANDOVER_S + 1)
    deployment.control.refresh()
    number, secret = give(deployment, TERMINAL)
    assert counter.opener.open(PATH, counter.seal(secret=secret, number=number)).body
    # The emergency stop: what that key derived opens nothing any more.
    newest = ring.records[-1].kid
    deployment.control.change_keyring(
        lambda keyring, now_s, draw: keyrings.disable(keyring, newest, now_s=now_s),
        request_id="disable-0001",
        actor="test",
    )
    assert isinstance(counter.refused(counter.seal(secret=secret, number=number)), Unauthenticated)


def test_secrets_differ_by_terminal_and_number(shop: Shop) -> None:
    prf = Prf(Suite.SM, bytes(32))
    places = [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (3, 2, 1)]
    made = {secret_of(prf, place, number) for place in places for number in (1, 2)}
    assert len(made) == 10
