"""What a key service must keep: checks for ours, and for the provider of a KMS, an HSM or an SDF device.

    def test_contract(): key_service_contract.check(lambda: OurKms("…"))

`make` opens the service anew: what one object wrapped, another one opens, as another process would.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import PickgateError, SetupError
from engine.key_service import CONTEXT, KeyService
from engine.wrapping import PARAMETERS_BYTES_MAX

DATA_KEY = bytes(range(32))


def check(make: Callable[[], KeyService]) -> None:
    """All of it."""
    _check_it_comes_back(make)
    _check_it_is_hidden_and_fresh(make())
    _check_what_was_changed_is_refused(make())
    _check_the_context_is_bound(make())
    _check_threads(make())


def _check_it_comes_back(make: Callable[[], KeyService]) -> None:
    wrapped = make().wrap(DATA_KEY, CONTEXT)
    assert make().unwrap(wrapped, CONTEXT) == DATA_KEY
    assert 1 <= len(wrapped) <= PARAMETERS_BYTES_MAX


def _check_it_is_hidden_and_fresh(service: KeyService) -> None:
    first, second = service.wrap(DATA_KEY, CONTEXT), service.wrap(DATA_KEY, CONTEXT)
    assert first != second, "two wraps of one key are alike"
    for wrapped in (first, second):
        assert DATA_KEY not in wrapped
        assert DATA_KEY[:8] not in wrapped
    assert DATA_KEY.hex() not in repr(service) + service.name
    assert service.name


def _check_what_was_changed_is_refused(service: KeyService) -> None:
    wrapped = service.wrap(DATA_KEY, CONTEXT)
    changed = [bytes([*wrapped[:at], wrapped[at] ^ 1, *wrapped[at + 1 :]]) for at in range(len(wrapped))]
    changed += [wrapped[:-1], wrapped + b"\0", wrapped[1:], b"", b"\0", b"\xff" * 40]
    for one in changed:
        with pytest.raises(PickgateError) as caught:
            service.unwrap(one, CONTEXT)
        _assert_tells_nothing(caught.value)


def _check_the_context_is_bound(service: KeyService) -> None:
    wrapped = service.wrap(DATA_KEY, CONTEXT)
    for context in (b"", CONTEXT + b"!", CONTEXT[:-1]):
        with pytest.raises(SetupError) as caught:
            service.unwrap(wrapped, context)
        _assert_tells_nothing(caught.value)


def _check_threads(service: KeyService) -> None:
    def turn(number: int) -> bool:
        key = bytes([number]) * 32
        return service.unwrap(service.wrap(key, CONTEXT), CONTEXT) == key

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(turn, range(64)))


def _assert_tells_nothing(error: BaseException) -> None:
    told: BaseException | None = error
    while told is not None:
        for secret in (DATA_KEY.hex(), repr(DATA_KEY)[2:-1]):
            assert secret not in f"{told}{told!r}{vars(told)}"
        told = told.__cause__ or (None if told.__suppress_context__ else told.__context__)
