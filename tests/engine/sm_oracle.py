"""The SM profile once more, on gmssl alone, from docs/sm-profile.md: shares no code and no library with engine.sm_profile.

`python -m tests.engine.sm_oracle` writes the vectors, tests/vectors/sm_profile.json, anew.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Final

from gmssl.sm3 import sm3_hash
from gmssl.sm4 import SM4_ENCRYPT, CryptSM4

VECTORS: Final = Path(__file__).resolve().parents[1] / "vectors" / "sm_profile.json"
MAGIC: Final = bytes.fromhex("00534d01")


def sm3(data: bytes) -> bytes:
    return bytes.fromhex(sm3_hash(list(data)))


def hmac(key: bytes, data: bytes) -> bytes:
    """RFC 2104; SM3 has blocks of 64 bytes."""
    key = (sm3(key) if len(key) > 64 else key).ljust(64, b"\0")
    return sm3(bytes(k ^ 0x5C for k in key) + sm3(bytes(k ^ 0x36 for k in key) + data))


def keys(secret: bytes, salt: bytes, info: bytes) -> tuple[bytes, bytes]:
    """RFC 5869, 48 bytes."""
    prk = hmac(salt, secret)
    first = hmac(prk, info + b"\1")
    made = first + hmac(prk, first + info + b"\2")
    return made[:16], made[16:48]


def ctr(key: bytes, data: bytes) -> bytes:
    """NIST SP 800-38A, 6.5, from a block of zeros."""
    cipher = CryptSM4()
    cipher.set_key(key, SM4_ENCRYPT)
    stream = b""
    for count in range(-(-len(data) // 16)):
        # one_round gives one block; crypt_ecb would add padding.
        stream += bytes(cipher.one_round(cipher.sk, list(count.to_bytes(16))))
    return bytes(a ^ b for a, b in zip(data, stream, strict=False))


def request(
    secret: bytes,
    terminal: tuple[int, int, int],
    number: int,
    path: bytes,
    body: bytes,
    time_ms: int,
    nonce: bytes,
) -> tuple[bytes, bytes]:
    """Envelope and tag."""
    head = MAGIC + b"".join(part.to_bytes(4) for part in (*terminal, number)) + time_ms.to_bytes(8) + nonce
    enc, mac = keys(secret, nonce, b"pickgate/sm/1:request:" + path)
    sealed = head + ctr(enc, body)
    tag = hmac(mac, sealed)
    return sealed + tag, tag


def answer(secret: bytes, path: bytes, nonce: bytes, tag: bytes, body: bytes, own_nonce: bytes) -> bytes:
    enc, mac = keys(secret, nonce + own_nonce, b"pickgate/sm/1:answer:" + path)
    sealed = MAGIC + own_nonce + ctr(enc, body)
    return sealed + hmac(mac, tag + sealed)


def secret_of(terminal_key: bytes, terminal: tuple[int, int, int], number: int) -> bytes:
    parts = b"".join(part.to_bytes(4) for part in (*terminal, number))
    return hmac(terminal_key, b"pickgate/terminal/1:" + parts)


def vectors() -> list[dict[str, Any]]:
    """The same each time, but for the SM2 ciphertext."""
    from ext import sm2_reference

    draw = random.Random(20261125)
    found = []
    for size in (0, 1, 15, 16, 17, 200):
        terminal, number = (
            (draw.getrandbits(32), draw.getrandbits(32), draw.getrandbits(32)),
            draw.getrandbits(16),
        )
        terminal_key, nonce, own_nonce, body = (draw.randbytes(n) for n in (32, 16, 16, size))
        path, time_ms = b"/pickgate.v1.RedemptionService/Redeem", 1_800_000_000_000 + draw.getrandbits(30)
        secret = secret_of(terminal_key, terminal, number)
        envelope, tag = request(secret, terminal, number, path, body, time_ms, nonce)
        private = (1 + draw.getrandbits(255)).to_bytes(32)
        answered = draw.randbytes(size + 3)
        found.append(
            {
                "terminal_key": terminal_key.hex(),
                **dict(zip(("mall_id", "store_id", "terminal_id"), terminal, strict=True)),
                "number": number,
                "secret": secret.hex(),
                "path": path.decode(),
                "time_ms": time_ms,
                "nonce": nonce.hex(),
                "body": body.hex(),
                "request_envelope": envelope.hex(),
                "answer_nonce": own_nonce.hex(),
                "answer_body": answered.hex(),
                "answer_envelope": answer(secret, path, nonce, tag, answered, own_nonce).hex(),
                "private_key": private.hex(),
                "sealed_secret": sm2_reference.encrypt(sm2_reference.public_of(private), secret).hex(),
            }
        )
    return found


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
