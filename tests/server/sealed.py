"""A terminal in the SM profile, with the bytes that were on the wire."""

from __future__ import annotations

import os
import time
from typing import Any

import grpc
import pytest

from engine.sm_profile import Sealed, open_answer, seal_request
from engine.terminals import Key
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from pickgate.v1 import types_pb2 as types_pb
from tests.engine import sm_terminals

REDEEM = "/pickgate.v1.RedemptionService/Redeem"
INSPECT = "/pickgate.v1.RedemptionService/Inspect"
RENDER = "/pickgate.v1.CodeService/Render"
GET = "/pickgate.v1.CodeService/GetCode"
ROTATE = "/pickgate.v1.TerminalService/RotateSecret"


class SealedTerminal:
    """What a terminal does with its number and secret, on a channel of its own."""

    def __init__(
        self, key: Key, number: int, secret: bytes, channel: grpc.Channel, *, token: str = ""
    ) -> None:
        self.key, self.number, self.secret = key, number, secret
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self.wire: list[bytes] = []

    @property
    def at(self) -> types_pb.Terminal:
        return types_pb.Terminal(mall_id=self.key[0], store_id=self.key[1], terminal_id=self.key[2])

    def seal(self, path: str, body: bytes, **fields: Any) -> tuple[bytes, Sealed]:
        given: dict[str, Any] = {"time_ms": int(time.time() * 1000), "nonce": os.urandom(16)}
        secret = fields.pop("secret", self.secret)
        return seal_request(secret, self.key, self.number, path.encode(), body, **given | fields)

    def send(self, path: str, envelope: bytes) -> bytes:
        answer: bytes = self._channel.unary_unary(path, None, None)(
            envelope, timeout=20, metadata=self._metadata
        )
        self.wire += [envelope, answer]
        return answer

    def call(self, path: str, message: Any, kind: Any, **fields: Any) -> Any:
        envelope, request = self.seal(path, message.SerializeToString(), **fields)
        return kind.FromString(open_answer(request, self.send(path, envelope)))

    def rotate(self, request_id: str, **fields: Any) -> None:
        """Ask for the next secret, and use it."""
        asked = terminal_pb.RotateSecretRequest(
            terminal=self.at, request_id=request_id, sm_public_key=sm_terminals.PUBLIC
        )
        given = self.call(ROTATE, asked, terminal_pb.RotateSecretResponse, **fields)
        assert given.request_id == request_id
        self.number, self.secret = given.sm_number, sm_terminals.opened(given.sm_sealed_secret)

    def refused(self, path: str, envelope: bytes) -> grpc.Call:
        with pytest.raises(grpc.RpcError) as caught:
            self.send(path, envelope)
        return caught.value  # type: ignore[return-value]

    def close(self) -> None:
        self._channel.close()
