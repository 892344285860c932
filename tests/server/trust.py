"""Certificates for tests: a CA, and what it signs, as files."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc

from server.authority import Authority, Pair, TerminalId
from server.tls import Files, client_credentials

DOMAIN = "mall.example"
LIFE = timedelta(days=1)


@dataclass
class Trust:
    """A folder with a CA, and a server's certificate."""

    folder: Path
    authority: Authority

    @classmethod
    def make(cls, folder: Path, name: str = "test CA") -> Trust:
        folder.mkdir(parents=True, exist_ok=True)
        trust = cls(folder, Authority.make(name))
        trust.write("ca", trust.authority.pem)
        trust.replace_server()
        return trust

    @property
    def files(self) -> Files:
        return Files(self.folder / "server.pem", self.folder / "server-key.pem", self.folder / "ca.pem")

    def write(self, name: str, content: bytes) -> Path:
        """Put a file in its place, whole."""
        new = self.folder / f"{name}.new"
        new.write_bytes(content)
        return new.replace(self.folder / f"{name}.pem")

    def replace_server(self, names: Sequence[str] = ("localhost", "127.0.0.1")) -> Pair:
        pair = self.authority.server(names, life=LIFE)
        self.write("server-key", pair.key)
        self.write("server", pair.certificate)
        return pair

    def terminal(
        self, mall_id: int, store_id: int, terminal_id: int, *, ended: bool = False
    ) -> grpc.ChannelCredentials:
        """What a terminal connects with."""
        now = datetime.now(UTC) - (2 * LIFE if ended else timedelta())
        pair = self.authority.terminal(TerminalId(mall_id, store_id, terminal_id), DOMAIN, life=LIFE, now=now)
        return self.credentials(pair)

    def credentials(self, pair: Pair | None = None) -> grpc.ChannelCredentials:
        """What a client connects with; without a pair it shows no certificate."""
        if pair is None:
            return client_credentials(self.folder / "ca.pem")
        # Two threads may connect with one pair at the same moment.
        name = f"{hash(pair.certificate) & 0xFFFFFFFF:x}-{threading.get_ident():x}"
        return client_credentials(
            self.folder / "ca.pem", self.write(name, pair.certificate), self.write(f"{name}-key", pair.key)
        )
