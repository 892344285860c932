"""The SM profile: bodies of requests and answers sealed with SM4 and SM3, under a secret of each terminal. See docs/sm-profile.md.

For networks that require Chinese algorithms end to end. It changes no method and no meaning: the body of a request is an envelope
instead of a protobuf message, and so is that of its answer. An envelope begins with a zero byte, which no protobuf message does.

    request   magic 4 | mall 4 | store 4 | terminal 4 | number 4 | time_ms 8 | nonce 16 | ciphertext n | tag 32
    answer    magic 4 | nonce 16 | ciphertext n | tag 32

    secret    = PRF(terminal key, "pickgate/terminal/1:" | mall | store | terminal | number)                                    32
    request   enc 16 | mac 32 = HKDF-SM3(secret, salt nonce,               info "pickgate/sm/1:request:"  | path)
    answer    enc 16 | mac 32 = HKDF-SM3(secret, salt nonce | answer nonce, info "pickgate/sm/1:answer:" | path)
    ciphertext = SM4-CTR(enc, counter block of zeros, body)
    tag        = HMAC-SM3(mac, all before it); in an answer the request's tag stands before that

Each message has keys of its own, so no counter block ever comes twice. The path is in the derivation: what was sealed for one method
opens for no other. The answer is bound to its request. Numbers are big-endian.

Replays: an envelope counts for TIME_S_MAX around its time, and each process remembers the nonces of that time. A replay that reaches
another process of several within it is answered as a retry is: what was changed is not changed again (request ids), and who replays
can't read the answer, which has keys of its own.

Sources: SM4 GB/T 32907-2016, CTR NIST SP 800-38A section 6.5, SM3 GB/T 32905-2016, HMAC RFC 2104, HKDF RFC 5869.
"""

from __future__ import annotations

import hmac
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from engine.control import Control
from engine.errors import Exhausted, InvalidInput, StaleControl, Unauthenticated
from engine.keyring import Keys
from engine.terminals import Key, Terminal
from engine.wrapping import Random, exactly
from ext.codec import Prf, Suite, hkdf, hmac_sm3, sm4_ctr

MARK: Final = b"\0"
"""The first byte of an envelope; that of a protobuf message has a field's number in it, which is never 0."""
MAGIC: Final = b"\0SM\1"
NONCE_BYTES: Final = 16
TAG_BYTES: Final = 32
TIME_S_MAX: Final = 30
"""How far an envelope's time may lie from the server's, either way."""
NONCES_MAX: Final = 262_144
"""Nonces remembered per process, some 30 MB: over a minute, four thousand calls a second."""
LABEL_SECRET: Final = b"pickgate/terminal/1:"
LABEL_REQUEST: Final = b"pickgate/sm/1:request:"
LABEL_ANSWER: Final = b"pickgate/sm/1:answer:"

_HEAD: Final = struct.Struct(f">4sIIIIQ{NONCE_BYTES}s")
ENVELOPE_BYTES: Final = _HEAD.size + TAG_BYTES
"""What an envelope adds to its body."""
_ENC_BYTES, _MAC_BYTES = 16, 32
_ZERO_BLOCK: Final = bytes(16)
_REFUSED: Final = (
    "the sealed body does not open: it was changed, or its terminal is not enrolled for it, or not any more"
)
"""One answer for a wrong tag, an unknown terminal, an old secret and a disabled key."""


class Sealed(NamedTuple):
    """What the answer to a sealed request needs."""

    terminal: Key
    number: int
    """Of the secret."""
    path: bytes
    secret: bytes
    nonce: bytes
    tag: bytes

    def __repr__(self) -> str:
        return f"Sealed({self.terminal}, {self.number}, {self.path!r})"


class Opened(NamedTuple):
    """A sealed request, opened."""

    body: bytes
    sealed: Sealed


def secret_of(prf: Prf, terminal: Key, number: int) -> bytes:
    """A terminal's secret, 32 bytes: of its `number`-th enrolment."""
    return prf.one(LABEL_SECRET + struct.pack(">IIII", *terminal, number))


def _keys(secret: bytes, salt: bytes, label: bytes, path: bytes) -> tuple[bytes, bytes]:
    made = hkdf(Suite.SM, secret, salt, label + path, _ENC_BYTES + _MAC_BYTES)
    return made[:_ENC_BYTES], made[_ENC_BYTES:]


def seal_request(
    secret: bytes, terminal: Key, number: int, path: bytes, body: bytes, *, time_ms: int, nonce: bytes
) -> tuple[bytes, Sealed]:
    """What a terminal does: the envelope of a request, and what opens its answer.

    path: "/pickgate.v1.<Service>/<Method>". nonce: 16 random bytes, never twice.
    """
    head = _HEAD.pack(MAGIC, *terminal, number, time_ms, nonce)
    enc, mac = _keys(secret, nonce, LABEL_REQUEST, path)
    sealed = head + sm4_ctr(enc, _ZERO_BLOCK, body)
    tag = hmac_sm3(mac, sealed)
    return sealed + tag, Sealed(terminal, number, path, secret, nonce, tag)


def seal_answer(request: Sealed, body: bytes, random: Random = os.urandom) -> bytes:
    """The envelope of the answer to a request."""
    nonce = exactly(random, NONCE_BYTES)
    enc, mac = _keys(request.secret, request.nonce + nonce, LABEL_ANSWER, request.path)
    sealed = MAGIC + nonce + sm4_ctr(enc, _ZERO_BLOCK, body)
    return sealed + hmac_sm3(mac, request.tag + sealed)


def open_answer(request: Sealed, envelope: bytes) -> bytes:
    """What a terminal does with an answer. Raises Unauthenticated for one that is not that of its request."""
    sealed, tag = envelope[:-TAG_BYTES], envelope[-TAG_BYTES:]
    if len(envelope) < len(MAGIC) + NONCE_BYTES + TAG_BYTES or not sealed.startswith(MAGIC):
        raise Unauthenticated("the answer is not sealed")
    nonce = sealed[len(MAGIC) :][:NONCE_BYTES]
    enc, mac = _keys(request.secret, request.nonce + nonce, LABEL_ANSWER, request.path)
    if not hmac.compare_digest(tag, hmac_sm3(mac, request.tag + sealed)):
        raise Unauthenticated("the sealed answer does not open: it was changed, or answers another request")
    return sm4_ctr(enc, _ZERO_BLOCK, sealed[len(MAGIC) + NONCE_BYTES :])


class Opener:
    """Opens sealed requests; for many threads.

    Args:
        control: whose terminals and keys count.
        now_ms: the clock, unix milliseconds.
    """

    def __init__(self, control: Control, now_ms: Callable[[], int]) -> None:
        self._control = control
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[Key, bytes], int] = OrderedDict()
        """Nonces, in the order of their coming, and when they were seen."""
        self.refused = 0
        """Envelopes that did not open or did not count."""

    def open(self, path: bytes, envelope: bytes) -> Opened:
        """The body of a request to a method.

        Raises InvalidInput for what is no envelope, Unauthenticated for one that does not open, is not of now or was here before,
        Exhausted when too many are remembered, StaleControl (also for a secret that this process has not heard of yet), KeyringLocked.
        """
        try:
            return self._open(path, envelope)
        except (InvalidInput, Unauthenticated, Exhausted):
            self.refused += 1
            raise

    def _open(self, path: bytes, envelope: bytes) -> Opened:
        if len(envelope) < ENVELOPE_BYTES or not envelope.startswith(MAGIC):
            raise InvalidInput(
                "the request begins as a sealed one and is none: expected the envelope of docs/sm-profile.md, or a protobuf message"
            )
        _, mall_id, store_id, terminal_id, number, time_ms, nonce = _HEAD.unpack_from(envelope)
        terminal = (mall_id, store_id, terminal_id)
        copy = self._control.copy()
        secret, standing = _secret(copy.usable_keys(), copy.terminals.get(terminal), terminal, number)
        enc, mac = _keys(secret, nonce, LABEL_REQUEST, path)
        sealed, tag = envelope[:-TAG_BYTES], envelope[-TAG_BYTES:]
        fits = hmac.compare_digest(tag, hmac_sm3(mac, sealed))
        if not fits or standing is _Standing.NONE:
            raise Unauthenticated(_REFUSED)
        # Only now, to one that has the secret, is anything said about it.
        now_ms = self._now_ms()
        if abs(time_ms - now_ms) > TIME_S_MAX * 1000:
            raise Unauthenticated(
                f"the sealed request is of another time: {abs(time_ms - now_ms) / 1000:.0f} s "
                f"{'ahead of' if time_ms > now_ms else 'behind'} the server, at most {TIME_S_MAX} s are let pass; set the clock"
            )
        if standing is _Standing.NEWER:
            # Nobody has such a secret but one whom another process gave it.
            raise StaleControl(
                "this process does not know of the terminal's new secret yet: seal it anew and retry with the same request id"
            )
        self._remember((terminal, nonce), now_ms)
        body = sm4_ctr(enc, _ZERO_BLOCK, sealed[_HEAD.size :])
        return Opened(body, Sealed(terminal, number, path, secret, nonce, tag))

    def _remember(self, key: tuple[Key, bytes], now_ms: int) -> None:
        # What was seen twice TIME_S_MAX ago is too old by its own time, whatever that was.
        over_ms = now_ms - 2 * TIME_S_MAX * 1000
        with self._lock:
            while self._seen and next(iter(self._seen.values())) < over_ms:
                self._seen.popitem(last=False)
            if key in self._seen:
                raise Unauthenticated("this sealed request was here before: seal it anew, with another nonce")
            if len(self._seen) >= NONCES_MAX:
                raise Exhausted("too many sealed requests within a minute: try again later")
            self._seen[key] = now_ms


class _Standing(Enum):
    """Of a secret that an envelope names."""

    COUNTS = 1
    NEWER = 2
    """Later than the terminal's newest that is known here."""
    NONE = 3


def _secret(keys: Keys, entry: Terminal | None, terminal: Key, number: int) -> tuple[bytes, _Standing]:
    """The secret that an envelope names, and what it is worth; of one that is nothing a stand-in, so that all take as long."""
    if entry is not None and entry.sm_number:
        generation = entry.secret_generation(number)
        standing = _Standing.COUNTS if generation else _Standing.NONE
        if entry.state == "active" and number > entry.sm_number:
            generation, standing = keys.newest_terminal_generation, _Standing.NEWER
        prf = keys.terminal_prf(generation or entry.sm_generation)
        if prf is not None:
            return secret_of(prf, terminal, number), standing
    return secret_of(_STAND_IN, terminal, number), _Standing.NONE


_STAND_IN: Final = Prf(Suite.SM, os.urandom(32))
