"""What knowing the callers costs: one store, a server over it for each way to be known, the same calls to each in turn.

open: nobody is known. token: an access token with each call, sent whole each time (a gRPC client sends its index in the header table
from the second call on); "open, token sent" has the same bytes and nobody looks at them, so beside it stands what knowing the caller costs
by itself. mtls: a terminal's certificate under TLS 1.3, the generator's own share of the cipher included.

Redemptions take each code once; inspections change nothing and cost the store less, so there the same cost weighs more.
"""

from __future__ import annotations

import json
import os
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from loadtests import books, bounds
from loadtests.checks import Check
from loadtests.openloop import Reader, closed_loop
from loadtests.runs import Run
from loadtests.stacks import ROOT, Ours, StackFailed
from loadtests.supply import (
    FIRST_STORE,
    INSPECT,
    MALL,
    REDEEM,
    Codes,
    Supply,
    near,
    read_redeem,
)
from loadtests.wire import connection
from loadtests.wire.connection import Request
from loadtests.wire.pool import Pool
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb

HEADS: Final = (
    "",
    "redeem",
    "of open",
    "server's CPU",
    "inspect",
    "of open",
    "server's CPU",
    "rounds (redeem)",
)
ISSUER: Final = "https://load.example"
TERMINAL: Final = 1
_PASSPHRASE: Final = secrets.token_hex(16)


class _Server(Ours):
    """One of several: the first brings the store and is used to set up, the others come to it and are measured."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        super().__init__(folder)
        self._words = words

    def command(self, listen: str) -> list[str]:
        """See Stack."""
        return [sys.executable, "-m", "server.cli", "--json", "serve", "--listen", listen, *self._words]

    def environment(self) -> dict[str, str]:
        """See Stack."""
        return {"PICKGATE_PASSPHRASE": _PASSPHRASE, "PICKGATE_LEDGER_URL": "off"}


class OneStore(Supply):
    """Codes of one store, for one terminal: a connection with a certificate is one terminal's."""

    def _issue_request(self) -> code_pb.IssueRequest:
        request = super()._issue_request()
        request.store_id = FIRST_STORE
        return request

    def _redeem_message(self, store_id: int, request_id: str, text: str) -> redemption_pb.RedeemRequest:
        request = super()._redeem_message(store_id, request_id, text)
        request.terminal.terminal_id = TERMINAL
        return request

    def messages(self, codes: Codes) -> list[bytes]:
        """What the terminal sends to redeem each code."""
        return [
            self._redeem_message(FIRST_STORE, request_id, text).SerializeToString()
            for request_id, text in zip(codes.request_ids, codes.texts, strict=True)
        ]

    def look(self, codes: Codes) -> bytes:
        """What the terminal sends to inspect one of them."""
        request = redemption_pb.InspectRequest(code=codes.texts[0], position=near(FIRST_STORE, self._random))
        request.terminal.mall_id, request.terminal.store_id = MALL, FIRST_STORE
        request.terminal.terminal_id = TERMINAL
        return request.SerializeToString()


@dataclass
class Way:
    """One way to call: where, with what, and what it gave."""

    name: str
    stack: _Server
    address: str
    metadata: Sequence[tuple[str, str]] = ()
    tls: ssl.SSLContext | None = None
    redeem: list[Run] = field(default_factory=list)
    inspect: list[Run] = field(default_factory=list)
    cpu: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: {REDEEM: [], INSPECT: []})
    """Seconds of the server's processes, and calls, by round. What a call costs the server is steadier than its rate."""

    def cpu_us(self, path: str) -> float:
        """Of the server, for each call, over all rounds."""
        spent = self.cpu[path]
        return 1e6 * sum(seconds for seconds, _ in spent) / sum(calls for _, calls in spent)

    def prepare(self, path: str, messages: Sequence[bytes]) -> list[Request]:
        """Requests as they go over the wire."""
        method = connection.method(path, metadata=self.metadata)
        return [connection.request(method, message) for message in messages]

    def run(self, path: str, messages: Sequence[bytes], read: Reader) -> Run:
        """One round."""
        requests = self.prepare(path, messages)
        before_s = self.stack.usage().cpu_s
        with Pool(self.address, bounds.CONNECTIONS_DEFAULT, tls=self.tls) as pool:
            run = closed_loop(pool, requests, bounds.IDENTITY_WINDOW, read)
        self.cpu[path].append((self.stack.usage().cpu_s - before_s, len(messages)))
        return run


def _read_inspect(message: bytes) -> tuple[str, bool]:
    # Field 1, the verdict, stands first.
    return "", message[:2] == bytes((1 << 3, redemption_pb.INSPECT_VERDICT_REDEEMABLE))


def rate_per_s(runs: Sequence[Run]) -> float:
    """Good answers of all rounds by their time."""
    return sum(run.good for run in runs) / sum(run.total_s for run in runs)


@dataclass
class Identity:
    """The result."""

    ways: list[Way]

    def ratio(self, way: Way, runs: Callable[[Way], list[Run]]) -> float:
        """A way's rate by that of the open one, over all rounds: many short ones in turn, so that noise hits all ways."""
        return rate_per_s(runs(way)) / rate_per_s(runs(self.ways[0]))

    def rows(self) -> list[list[str]]:
        """For the table."""
        return [
            [
                way.name,
                f"{rate_per_s(way.redeem):,.0f}/s",
                f"{self.ratio(way, lambda one: one.redeem):.2f}",
                f"{way.cpu_us(REDEEM):.0f} us",
                f"{rate_per_s(way.inspect):,.0f}/s",
                f"{self.ratio(way, lambda one: one.inspect):.2f}",
                f"{way.cpu_us(INSPECT):.0f} us",
                " ".join(f"{run.good / run.total_s:,.0f}" for run in way.redeem),
            ]
            for way in self.ways
        ]

    def checks(self) -> list[Check]:
        """What decides: what knowing a caller costs the server by itself, and that nobody was refused.

        By the server's own time, since no rate can fall by more; rates of runs this short scatter by a tenth and more.
        """
        _, sent, known, _ = self.ways
        cost = known.cpu_us(REDEEM) / sent.cpu_us(REDEEM)
        most = 1 + bounds.IDENTITY_COST_MAX
        lost = sum(run.sent - run.good for way in self.ways for run in (*way.redeem, *way.inspect))
        return [
            Check(
                "server's CPU for a redemption with a token, by open with it sent",
                f"{cost:.2f}",
                f"{most:.2f}",
                cost <= most,
            ),
            Check("calls that were refused or lost", f"{lost:,}", "0", lost == 0),
        ]

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            way.name: {
                "redeem_per_s": round(rate_per_s(way.redeem), 1),
                "redeem_cpu_us": round(way.cpu_us(REDEEM), 1),
                "inspect_cpu_us": round(way.cpu_us(INSPECT), 1),
                "redeem_ratio": round(self.ratio(way, lambda one: one.redeem), 3),
                "inspect_per_s": round(rate_per_s(way.inspect), 1),
                "inspect_ratio": round(self.ratio(way, lambda one: one.inspect), 3),
            }
            for way in self.ways
        }


# --- the set-up -------------------------------------------------------------------------------------------------------
def _certificates(folder: Path) -> None:
    terminal = f"{MALL}/{FIRST_STORE}/{TERMINAL}"
    words = [sys.executable, "-m", "server.cli", "certs", "dev", str(folder), "--terminal", terminal]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackFailed(f"no certificates: {done.stderr}")


def _issuer(folder: Path) -> str:
    """Write an issuer's file and keys; gives a token of the store's staff."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "load"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [jwk]}))
    (folder / "issuers.toml").write_text(
        f'[[issuer]]\nname = "load"\nissuer = "{ISSUER}"\naudience = "pickgate"\nalgorithms = ["ES256"]\n'
        'jwks_file = "jwks.json"\nroles = ["outlet"]\n'
    )
    claims = {"iss": ISSUER, "aud": "pickgate", "sub": "clerk-17", "exp": int(time.time()) + 3600}
    claims |= {"pickgate_role": "outlet", "pickgate_mall": MALL, "pickgate_store": FIRST_STORE}
    return jwt.encode(claims, key, "ES256", headers={"kid": "load"})


def _context(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    name = folder / f"terminal-{MALL}-{FIRST_STORE}-{TERMINAL}"
    context.load_cert_chain(f"{name}.pem", f"{name}-key.pem")
    context.set_alpn_protocols(["h2"])
    return context


def measure(folder: Path, *, seed: int, rounds: int = bounds.IDENTITY_ROUNDS) -> Identity:
    """Start the servers, and call each in turn. Raises StackFailed, SupplyFailed."""
    certificates, issuer = folder.absolute() / "certificates", folder.absolute() / "issuer"
    _certificates(certificates)
    token = _issuer(issuer)
    with ExitStack() as stack:
        data_dir = folder.absolute() / "data"
        first = stack.enter_context(
            _Server(folder / "open", ["--data-dir", str(data_dir), "--durability", "fsync"])
        )
        store = ["--store", f"unix://{books.socket_of(data_dir)}", "--durability", "fsync"]
        beside = stack.enter_context(_Server(folder / "beside", store))
        known = stack.enter_context(
            _Server(folder / "token", [*store, "--issuers-file", str(issuer / "issuers.toml")])
        )
        secure = stack.enter_context(
            _Server(
                folder / "mtls",
                [
                    *store,
                    *("--tls-cert-file", str(certificates / "server.pem")),
                    *("--tls-key-file", str(certificates / "server-key.pem")),
                    *("--tls-ca-file", str(certificates / "ca.pem"), "--listen-mtls", "127.0.0.1:0"),
                ],
            )
        )
        bearer = [("authorization", f"Bearer {token}")]
        ways = [
            Way("open", beside, beside.address),
            Way("open, token sent", beside, beside.address, metadata=bearer),
            Way("token", known, known.address, metadata=bearer),
            Way("mtls", secure, secure.addresses[1], tls=_context(certificates)),
        ]
        with OneStore(first.address, seed=seed) as supply:
            supply.furnish()
            _rounds(supply, ways, rounds)
    return Identity(ways)


def _rounds(supply: OneStore, ways: Sequence[Way], rounds: int) -> None:
    look = supply.look(supply.codes(1))
    # The first round warms up, and does not count.
    for number in range(rounds + 1):
        taken = supply.messages(supply.codes(bounds.IDENTITY_CODES * len(ways)))
        # Each comes first in its turn.
        for at in range(len(ways)):
            way = ways[(at + number) % len(ways)]
            mine = taken[at * bounds.IDENTITY_CODES : (at + 1) * bounds.IDENTITY_CODES]
            redeemed = way.run(REDEEM, mine, read_redeem)
            inspected = way.run(INSPECT, [look] * bounds.IDENTITY_CODES, _read_inspect)
            if number:
                way.redeem.append(redeemed)
                way.inspect.append(inspected)
            else:
                way.cpu = {REDEEM: [], INSPECT: []}
