"""The key service: its contract, what opens a keyring through it, and what must not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine import keyring as keyrings
from engine.errors import KeyringLocked, SetupError
from engine.key_service import CONTEXT, SERVICE_KEYS_MAX, ServiceUnlock, SoftwareKeyService
from engine.wrapping import MovingUnlock, PassphraseUnlock, Random, unwrap, wrap
from tests.engine import key_service_contract
from tests.engine import shop as shops
from tests.engine.shop import Clock

PLAIN = b"the keyring"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "service.json"
    SoftwareKeyService.create(made)
    return made


def test_the_software_service_keeps_the_contract(path: Path) -> None:
    key_service_contract.check(lambda: SoftwareKeyService(path))


def test_it_keeps_the_contract_after_a_rotation(path: Path) -> None:
    before = SoftwareKeyService(path)
    wrapped = before.wrap(bytes(32), CONTEXT)
    assert SoftwareKeyService(path).rotate() == "k2"
    # One that was open already: wraps with the new key, and opens what either wrapped.
    assert before.wrap(bytes(32), CONTEXT)[:3] == b"\x02k2"
    assert before.unwrap(wrapped, CONTEXT) == bytes(32)
    assert SoftwareKeyService(path).unwrap(before.wrap(b"x" * 32, CONTEXT), CONTEXT) == b"x" * 32
    key_service_contract.check(lambda: SoftwareKeyService(path))


def test_the_file_is_its_owner_s_alone(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    SoftwareKeyService(path).rotate()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(SetupError, match="chmod 600"):
        SoftwareKeyService(path)


def test_no_file_is_overwritten(path: Path) -> None:
    with pytest.raises(SetupError, match="can't be written"):
        SoftwareKeyService.create(path)
    assert SoftwareKeyService(path).rotate() == "k2"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"format":1,"active":"k1","keys":{}}',
        '{"format":2,"active":"k1","keys":{"k1":"%s"}}' % ("A" * 43 + "="),
        '{"format":1,"active":"k1","keys":{"k1":"c2VjcmV0"}}',
        '{"format":1,"active":"k1","keys":{"k 1":"c2VjcmV0"}}',
        '{"format":1,"active":"k1","keys":{"k1":5}}',
        '{"format":1,"active":"k1","keys":{"k1":"****"}}',
        "[" * 100_000,
        " " * 70_000,
    ],
)
def test_a_file_that_is_none_is_refused_without_its_content(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(SetupError, match="no file of a key service") as caught:
        SoftwareKeyService(path)
    assert "c2VjcmV0" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KeyringLocked, match="keys service create"):
        SoftwareKeyService(tmp_path / "nowhere")


def test_a_service_has_a_bounded_number_of_keys(path: Path) -> None:
    service = SoftwareKeyService(path)
    for _ in range(SERVICE_KEYS_MAX - 1):
        service.rotate()
    with pytest.raises(SetupError, match="rewrap"):
        service.rotate()


def test_nothing_shows_its_keys(path: Path) -> None:
    keys = json.loads(path.read_text())["keys"]
    service = SoftwareKeyService(path)
    shown = f"{service!r} {service} {service.name} {ServiceUnlock(service)!r}"
    assert not [key for key in keys.values() if key in shown]


# --- keyrings ---------------------------------------------------------------------------------------------------------
def test_a_keyring_opens_in_another_process_of_the_same_service_only(path: Path, tmp_path: Path) -> None:
    blob = wrap(PLAIN, ServiceUnlock(SoftwareKeyService(path)), "d-1", os.urandom)
    assert PLAIN not in blob
    assert unwrap(blob, ServiceUnlock(SoftwareKeyService(path)), "d-1") == PLAIN
    other = SoftwareKeyService.create(tmp_path / "other.json")
    with pytest.raises(SetupError, match="does not open"):
        unwrap(blob, ServiceUnlock(other), "d-1")
    with pytest.raises(KeyringLocked):
        unwrap(blob, ServiceUnlock(SoftwareKeyService(path)), "d-2")
    with pytest.raises(SetupError, match="scheme 2"):
        unwrap(blob, PassphraseUnlock(b"four words by dice"), "d-1")


def test_each_wrap_takes_another_data_key(path: Path) -> None:
    unlock = ServiceUnlock(SoftwareKeyService(path))
    drawn: list[bytes] = []

    def random(size: int) -> bytes:
        drawn.append(os.urandom(size))
        return drawn[-1]

    for _ in range(2):
        wrap(PLAIN, unlock, "d-1", random)
    assert len({one for one in drawn if len(one) == 32}) == 2


class Dull:
    """A service that breaks its contract."""

    name = "dull"

    def __init__(self, wrapped: bytes, plain: bytes) -> None:
        self._wrapped, self._plain = wrapped, plain

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        return self._wrapped

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return self._plain


@pytest.mark.parametrize("wrapped", [b"", bytes(8_193)])
def test_a_wrapped_key_of_a_strange_size_is_refused(wrapped: bytes) -> None:
    with pytest.raises(SetupError, match="dull"):
        wrap(PLAIN, ServiceUnlock(Dull(wrapped, bytes(32))), "d-1", os.urandom)


def test_a_data_key_of_a_strange_size_is_refused() -> None:
    blob = wrap(PLAIN, ServiceUnlock(Dull(b"w", bytes(32))), "d-1", os.urandom)
    with pytest.raises(SetupError, match="16 bytes"):
        unwrap(blob, ServiceUnlock(Dull(b"w", bytes(16))), "d-1")


def test_a_keyring_moves_from_a_passphrase_to_a_service(
    path: Path, empty_store_url: str, clock: Clock
) -> None:
    """Both configured: either opens it; what is written next is the service's, and the passphrase is needed no more."""
    shops.create(empty_store_url, clock)
    service = ServiceUnlock(SoftwareKeyService(path))
    moving = MovingUnlock(service, shops.UNLOCK)
    with (
        shops.open_deployment(empty_store_url, clock, unlock=moving) as ours,
        shops.open_deployment(empty_store_url, clock, unlock=shops.UNLOCK) as late,
    ):
        before = ours.control.copy()
        assert before.keyring is not None
        changed = ours.control.rewrap(moving, request_id="rewrap-0001", actor="test")
        assert changed.records == before.keyring.records
        assert changed.revision == before.keyring.revision + 1
        assert ours.control.copy().usable_keys().revision == changed.revision
        # A process without the service is locked, and says by what; it does not go on with what it had.
        with pytest.raises(KeyringLocked, match="scheme 2"):
            late.control.refresh().usable_keys()
    with shops.open_deployment(empty_store_url, clock, unlock=service) as alone:
        assert alone.control.copy().keyring == changed


def test_two_providers_of_one_scheme_are_no_move() -> None:
    with pytest.raises(SetupError, match="different schemes"):
        MovingUnlock(shops.UNLOCK, shops.UNLOCK)


def test_another_passphrase(empty_store_url: str, clock: Clock) -> None:
    shops.create(empty_store_url, clock)
    new = PassphraseUnlock(b"another four words")
    with shops.open_deployment(empty_store_url, clock) as deployment:
        deployment.control.rewrap(new, request_id="rewrap-0001", actor="test")
    with shops.open_deployment(empty_store_url, clock) as old, pytest.raises(KeyringLocked):
        old.control.copy().usable_keys()
    with shops.open_deployment(empty_store_url, clock, unlock=new) as opened:
        assert opened.control.copy().usable_keys().revision == 2


def test_a_failing_random_source_is_refused(path: Path) -> None:
    short: Random = lambda size: bytes(size - 1)  # noqa: E731
    with pytest.raises(SetupError, match="random source"):
        keyrings.dump(keyrings.Keyring(), ServiceUnlock(SoftwareKeyService(path)), "d-1", short)
