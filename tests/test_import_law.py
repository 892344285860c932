"""The layering law: who may import whom, over every source file of the tree, Cython kernels included."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"engine", "ext", "server", "loadtests", "pickgate", "tests", "examples", "proto"}
SOURCE_FOLDERS = ("engine", "ext", "server", "loadtests", "tests", "examples")
SQL = {"sqlalchemy", "sqlite3", "psycopg", "psycopg2", "alembic", "aiosqlite", "asyncpg"}
HOMELESS_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

MAY_IMPORT_OF_OURS: dict[str, set[str]] = {
    "ext": {"ext"},
    "engine": {"engine", "ext"},
    "server": {"server", "engine", "pickgate"},
    "loadtests": {"loadtests", "pickgate"},
    "tests": OURS - {"proto"},
    "examples": OURS - {"proto", "tests"},
}
"""ext at the bottom, engine over it, server on top. Load tests see the contract only, as any client does."""

MAY_IMPORT_BESIDES: dict[str, set[str]] = {
    "loadtests/books.py": {"engine"},
    "server/hot.py": {"ext"},
    "server/written.py": {"ext"},
}
"""The audit of a load run reads the store itself, and needs the engine's layouts to do so: what the contract says about the books
would be the word of the server that is being checked. And only the server knows protobuf, so the kernels that
read and write messages are called there; they know nothing of codes."""

STORE_CLIENTS = ("engine/state", "loadtests/comparison")
"""Who talks to the store. The comparison is another service with a store of its own, and calls it as most would: by redis.asyncio."""


@dataclass(frozen=True)
class Import:
    """One import or cimport, absolute: `from a import b` gives `a.b`, since b may be a module."""

    module: str
    line: int

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def is_in(self, *packages: str) -> bool:
        return any(self.module == package or self.module.startswith(package + ".") for package in packages)


def imports_of_python(source: str, path: PurePosixPath) -> Iterator[Import]:
    """Every import at any depth, also those under TYPE_CHECKING and by importlib with a literal name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.parts[: len(path.parts) - node.level]
                base = ".".join([*package, *([base] if base else [])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(node.args[0].value, node.lineno)


CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<base>\.*[\w.]*)\s+c?import\s+(?P<names>\(?[\w*,\s]+)|c?import\s+(?P<modules>[\w., ]+))"
)


def imports_of_cython(source: str, path: PurePosixPath) -> Iterator[Import]:
    """Imports and cimports of a .pyx or .pxd file, by line (Cython's grammar is not Python's)."""
    for number, line in enumerate(source.splitlines(), 1):
        match = CYTHON_IMPORT.match(line.partition("#")[0])
        if match is None:
            continue
        if match["modules"]:
            for part in match["modules"].split(","):
                yield Import(part.split()[0] if part.split() else "", number)
            continue
        base = match["base"]
        if level := len(base) - len(base.lstrip(".")):
            base = ".".join([*path.parts[: len(path.parts) - level], *filter(None, [base.lstrip(".")])])
        for name in match["names"].strip("( ").split(","):
            if name.split():
                yield Import(f"{base}.{name.split()[0]}", number)


def breaches(path: PurePosixPath, source: str) -> list[str]:
    """Say which rules the file at `path` (relative to the root) breaks, one line each."""
    read = imports_of_cython if path.suffix in (".pyx", ".pxd") else imports_of_python
    layer = path.parts[0]
    found = []
    for part in (*path.parts[:-1], path.stem):
        if part in HOMELESS_NAMES:
            found.append(f"{path}: a thing without a home has not been understood yet: no {part!r}")
    for item in read(source, path):
        where = f"{path}:{item.line}: {item.module}"
        allowed = MAY_IMPORT_OF_OURS[layer] | MAY_IMPORT_BESIDES.get(path.as_posix(), set())
        if item.top in OURS and item.top not in allowed:
            found.append(f"{where}: {layer} must not import {item.top}")
        if layer in ("tests", "examples"):
            continue
        if item.is_in("redis", "valkey", "hiredis") and not any(map(path.is_relative_to, STORE_CLIENTS)):
            found.append(f"{where}: only engine/state talks to the store")
        if item.top in SQL and not path.is_relative_to("engine/ledger"):
            found.append(f"{where}: only engine/ledger talks SQL")
        if item.is_in("grpc", "grpc_health", "grpc_reflection", "grpc_status") and layer not in (
            "server",
            "loadtests",
        ):
            found.append(f"{where}: {layer} knows no gRPC")
        if item.is_in("google.protobuf", "google.rpc") and layer not in ("server", "loadtests"):
            found.append(f"{where}: {layer} knows no protobuf")
    return found


def source_files() -> Iterator[Path]:
    for folder in SOURCE_FOLDERS:
        for suffix in ("*.py", "*.pyi", "*.pyx", "*.pxd"):
            yield from (ROOT / folder).rglob(suffix)


def test_the_tree_keeps_the_law() -> None:
    files = sorted(source_files())
    assert {"engine", "ext", "server"} <= {path.relative_to(ROOT).parts[0] for path in files}
    found = [
        breach
        for path in files
        for breach in breaches(
            PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text(encoding="utf-8")
        )
    ]
    assert found == []


def test_proto_is_not_importable_and_kernels_are_seen() -> None:
    assert not (ROOT / "proto" / "__init__.py").exists()
    kernels = {path.name for path in source_files() if path.suffix == ".pyx"}
    assert {"seal.pyx", "geo.pyx"} <= kernels


@pytest.mark.parametrize(
    ("path", "source", "part"),
    [
        ("engine/policy.py", "import server.cli", "engine must not import server"),
        ("engine/policy.py", "from server import cli", "engine must not import server"),
        ("engine/state/scripts.py", "from ...server import cli", "engine must not import server"),
        ("engine/policy.py", "from pickgate.v1 import types_pb2", "engine must not import pickgate"),
        ("engine/policy.py", "def f():\n    import grpc", "engine knows no gRPC"),
        ("engine/policy.py", "from google.protobuf import message", "engine knows no protobuf"),
        ("engine/policy.py", "from google.rpc import status_pb2", "engine knows no protobuf"),
        ("engine/policy.py", "import tests.conftest", "engine must not import tests"),
        ("engine/issuance.py", "import redis.asyncio as r", "only engine/state talks to the store"),
        ("engine/issuance.py", "if TYPE_CHECKING:\n    from redis import Redis", "only engine/state"),
        ("engine/issuance.py", "import importlib\nimportlib.import_module('redis')", "only engine/state"),
        ("server/cli.py", "import redis", "only engine/state talks to the store"),
        ("server/cli.py", "import sqlite3", "only engine/ledger talks SQL"),
        ("engine/state/keys.py", "import sqlalchemy", "only engine/ledger talks SQL"),
        ("server/cli.py", "from ext import seal", "server must not import ext"),
        ("loadtests/locustfile.py", "from engine import seal", "loadtests must not import engine"),
        ("loadtests/comparison/codes.py", "from engine import seal", "loadtests must not import engine"),
        ("loadtests/books.py", "from server import cli", "loadtests must not import server"),
        ("loadtests/books.py", "import redis", "only engine/state"),
        ("ext/reference.py", "from engine import claims", "ext must not import engine"),
        ("ext/status.py", "from . import seal\nfrom ..engine import claims", "ext must not import engine"),
        ("ext/seal.pyx", "from engine.claims cimport Claims", "ext must not import engine"),
        ("ext/seal.pxd", "cimport engine.claims", "ext must not import engine"),
        ("ext/seal.pyx", "cdef f():\n    import server", "ext must not import server"),
        ("ext/seal.pyx", "import numpy, server.cli as c", "ext must not import server"),
        ("ext/sign.py", "import redis", "only engine/state talks to the store"),
        ("tests/test_x.py", "from proto.pickgate.v1 import types_pb2", "tests must not import proto"),
        ("examples/demo.py", "from tests.conftest import x", "examples must not import tests"),
        ("engine/utils.py", "", "no 'utils'"),
        ("server/common/names.py", "", "no 'common'"),
    ],
)
def test_a_breach_is_seen(path: str, source: str, part: str) -> None:
    found = breaches(PurePosixPath(path), source)
    assert len(found) == 1
    assert part in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("server/cli.py", "import grpc\nfrom pickgate.v1 import types_pb2\nfrom engine import seal"),
        ("engine/seal.py", "from ext import codec\nfrom engine.state import keys\nfrom . import claims"),
        ("engine/state/link.py", "import redis\nfrom ..errors import StoreUnavailable"),
        ("engine/ledger/writer.py", "import sqlalchemy, sqlite3"),
        (
            "ext/seal.pyx",
            "from ext.libcrypto cimport EVP_MD\nfrom libc.string cimport memcpy\ncimport cython\nimport ext.claims",
        ),
        ("loadtests/locustfile.py", "import grpc, locust\nfrom pickgate.v1 import types_pb2"),
        ("loadtests/books.py", "from engine.state import codes"),
        ("loadtests/comparison/codes.py", "import redis.asyncio"),
        ("tests/test_x.py", "import redis, grpc\nfrom server import cli\nfrom ext import seal"),
        ("engine/words.py", '"""We import redis nowhere; import server neither."""'),
    ],
)
def test_what_is_allowed_is_not_a_breach(path: str, source: str) -> None:
    assert breaches(PurePosixPath(path), source) == []
