"""The pool speaks TLS: an answer longer than a record, many calls at once, and a server that is not trusted."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from loadtests.wire import connection
from loadtests.wire.pool import NotReachable, Pool
from tests.server.trust import Trust

METHOD = "/test.Echo/Call"
LONG = bytes(range(256)) * 400
"""100 KB: seven records of TLS, and more than one frame."""


def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
    told = dict(context.invocation_metadata())["authorization"]
    return LONG if data == b"long" else data + str(told).encode()


def test_calls_go_over_tls_with_their_metadata(tmp_path: Path) -> None:
    trust = Trust.make(tmp_path / "trust")
    files = trust.files
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    method = grpc.unary_unary_rpc_method_handler(answer)
    handlers = [grpc.method_handlers_generic_handler("test.Echo", {"Call": method})]
    server = grpc.server(ThreadPoolExecutor(2), handlers=handlers)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        context = ssl.create_default_context(cafile=str(trust.folder / "ca.pem"))
        context.set_alpn_protocols(["h2"])
        of = connection.method(METHOD, metadata=[("authorization", "Bearer x")])
        with Pool(f"127.0.0.1:{port}", 2, tls=context) as pool:
            for n in range(50):
                pool.start(n % 2, connection.request(of, b"long" if n == 7 else b"%d " % n), n)
            answers: dict[int, bytes] = {}
            for _ in range(500):
                answers |= {done.tag: done.message for done in pool.poll(0.02)}
                if len(answers) == 50:
                    break
        assert answers == {n: LONG if n == 7 else b"%d Bearer x" % n for n in range(50)}
        with pytest.raises(NotReachable):
            Pool(f"127.0.0.1:{port}", 1, tls=ssl.create_default_context())
    finally:
        server.stop(0).wait()
