"""A house whose servers know their callers: TLS, a gate, a CA for terminals, an issuer of tokens, and somebody who may invite."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.deployment import Deployment
from engine.terminals import digest_of
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds
from server.authority import Pair, make_request
from server.client import Client
from server.config import parse_listen
from server.gate import Gate
from server.issuers import Issuers
from server.issuing import Issuing
from server.roles import Role
from server.serve import Server
from server.tls import Certificates
from tests.server.conftest import MALL, STORE, House
from tests.server.tokens import Idp
from tests.server.trust import DOMAIN, Trust

TOKEN = "A" * 31 + "B"


def place(number: int, store_id: int = STORE, mall_id: int = MALL) -> types_pb.Terminal:
    return types_pb.Terminal(mall_id=mall_id, store_id=store_id, terminal_id=number)


@dataclass
class Counter:
    """A server that enrols, a house of its own, and somebody who may invite."""

    house: House
    trust: Trust
    idp: Idp
    stack: ExitStack
    servers: list[Server] = field(default_factory=list)
    certificates: list[Certificates] = field(default_factory=list)
    """Of each server, started with it."""
    issuers: list[Issuers] = field(default_factory=list)
    admin: Client = field(init=False)
    anybody: Client = field(init=False)

    @classmethod
    def open(cls, stack: ExitStack, house: House, folder: Path, **options: Any) -> Counter:
        """Furnish a house with one such server, see `serve`."""
        made = cls(house, Trust.make(folder / "trust"), Idp(folder / "idp"), stack)
        made.trust.write("issuing", made.trust.authority.pem)
        made.trust.write("issuing-key", made.trust.authority.key_pem)
        made.serve(house.deployment, **options)
        made.admin, made.anybody = made.client(Role.ADMINISTRATOR), made.client()
        return made

    def serve(self, deployment: Deployment, *, look_s: float = bounds.CERTIFICATES_LOOK_S) -> Server:
        """One server more, of a deployment that is open. look_s: how often it looks at its certificates."""
        folder = self.trust.folder
        self.certificates.append(Certificates(self.trust.files, look_s=look_s))
        self.issuers.append(Issuers(self.idp.file))
        made = Server(
            deployment,
            [parse_listen("127.0.0.1:0")],
            threads=8,
            look=deployment.look,
            certificates=self.certificates[-1],
            listen_mtls=[parse_listen("127.0.0.1:0")],
            gate=Gate(deployment, trust_domain=DOMAIN, issuers=self.issuers[-1]),
            issuing=Issuing(folder / "issuing.pem", folder / "issuing-key.pem", trust_domain=DOMAIN, days=30),
        )
        self.servers.append(self.stack.enter_context(made))
        return made

    @property
    def server(self) -> Server:
        """The first."""
        return self.servers[0]

    def client(self, role: Role | None = None, *, server: int = 0, kid: str = "k1", **options: Any) -> Client:
        """Somebody at the port for tokens; without a role nobody in particular."""
        given: dict[str, Any] = {"tries": 1, "timeout_s": 10} | options
        token = "" if role is None else self.idp.token(role, kid=kid)
        address = self.servers[server].addresses[0]
        return self.stack.enter_context(
            Client(address, credentials=self.trust.credentials(), token=token, **given)
        )

    def terminal(self, pair: Pair, *, server: int = 0, **options: Any) -> Client:
        given: dict[str, Any] = {"tries": 1, "timeout_s": 10} | options
        credentials = self.trust.credentials(pair)
        return self.stack.enter_context(
            Client(self.servers[server].addresses[1], credentials=credentials, **given)
        )

    def invite(self, number: int, token: str = TOKEN, **more: Any) -> terminal_pb.TerminalEntry:
        request = terminal_pb.InviteTerminalRequest(
            terminal=place(number),
            request_id=self.house.request_id(),
            token_sha256=digest_of(token.encode()),
            **more,
        )
        return self.admin.call(self.admin.terminals.InviteTerminal, request).entry

    def ask_to_enrol(
        self, number: int, token: str = TOKEN, **asked: Any
    ) -> terminal_pb.EnrolTerminalResponse:
        request = terminal_pb.EnrolTerminalRequest(terminal=place(number), token=token, **asked)
        return self.anybody.call(self.anybody.terminals.EnrolTerminal, request)

    def enrol(self, number: int, token: str = TOKEN, csr: bytes | None = None) -> Pair:
        made = make_request()
        response = self.ask_to_enrol(number, token, csr_pem=(csr or made.pem).decode())
        return Pair(response.certificate_pem.encode(), made.key_pem)

    def rotate(self, number: int, client: Client) -> Pair:
        made = make_request()
        request = terminal_pb.RotateCertificateRequest(terminal=place(number), csr_pem=made.pem.decode())
        response = client.call(client.terminals.RotateCertificate, request)
        return Pair(response.certificate_pem.encode(), made.key_pem)

    def entry(self, number: int) -> terminal_pb.TerminalEntry:
        request = terminal_pb.ListTerminalsRequest(mall_id=MALL, store_id=STORE)
        listed = self.admin.call(self.admin.terminals.ListTerminals, request).entries
        (found,) = [one for one in listed if one.terminal.terminal_id == number]
        return found

    def change(self, number: int, verb: str, reason: str = "") -> terminal_pb.TerminalEntry:
        request = getattr(terminal_pb, f"{verb}TerminalRequest")(
            terminal=place(number), request_id=self.house.request_id(), reason=reason
        )
        found: terminal_pb.TerminalEntry = self.admin.call(
            getattr(self.admin.terminals, f"{verb}Terminal"), request
        ).entry
        return found
