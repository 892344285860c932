"""`pickgate doctor`: what is wrong with a set-up, and how to mend it. It changes nothing.

It looks from the ground up (kernels, disk, store, keys, server) and goes on after a failure, as far as what comes next
does not need what failed. Where the embedded store is not running, it is started for the look and stopped again.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
from rich.markup import escape

from engine.errors import PickgateError
from engine.state.server import find_binary
from server.client import CallFailed, Client
from server.config import PASSPHRASE_BESIDE_DATA, Settings
from server.console import EXIT_OK, EXIT_USAGE, Console, ask_passphrase, command, credentials, people
from server.findings import Finding, Level

FREE_BYTES_WARN: Final = 2 * 1024**3
FREE_BYTES_FAIL: Final = 256 * 1024**2
"""A rewrite of the append-only file needs as much room again as the file has; below this no start is worth trying."""
FSYNC_MS_WARN: Final = 10.0
"""An answer waits for one fsync: a disk slower than this eats a good part of the 50 ms that a terminal is promised."""
FSYNC_WRITES: Final = 20

_OPENSSL_VERSION_MIN: Final = (3, 0)


def examine(settings: Settings, *, ask: Callable[[], str] | None = None) -> Iterator[Finding]:
    """Look at everything, in order; `ask` asks a person for the keyring's passphrase."""
    kernels = list(_kernels())
    yield from kernels
    yield from _disk(settings)
    yield from _passphrase_mode(settings)
    if all(finding.level is not Level.FAIL for finding in kernels):
        # By name: it needs the kernels, and the doctor must be able to say that they are missing.
        store = importlib.import_module("server.commands.doctor_store")
        yield from store.examine(settings, ask)
    yield _server(settings)


# --- kernels ------------------------------------------------------------------------------------------------------


def _kernels() -> Iterator[Finding]:
    try:
        importlib.import_module("engine.redemption")
    except ImportError as error:
        yield Finding("kernels", Level.FAIL, str(error), "run `make build`")
        return
    if os.environ.get("PICKGATE_PURE") == "1":
        yield Finding(
            "kernels",
            Level.WARN,
            "the slow pure Python twins are in use (PICKGATE_PURE=1)",
            "unset PICKGATE_PURE, except to compare",
        )
        return
    yield Finding("kernels", Level.OK, "native")
    yield _openssl()


def _openssl() -> Finding:
    """The libcrypto that the kernels were loaded with, which need not be the one that Python has."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    paths = sorted({line.split(maxsplit=5)[5] for line in maps.splitlines() if "/libcrypto.so" in line})
    if not paths:
        return Finding(
            "openssl", Level.WARN, "not found among the loaded libraries", "run `make build` again"
        )
    library = ctypes.CDLL(paths[0])
    library.OpenSSL_version.restype = ctypes.c_char_p
    text = library.OpenSSL_version(0).decode("ascii", "replace")
    found = re.match(r"OpenSSL (\d+)\.(\d+)", text)
    if found is None or (int(found[1]), int(found[2])) < _OPENSSL_VERSION_MIN:
        return Finding(
            "openssl", Level.FAIL, f"{text} ({paths[0]})", "install OpenSSL 3.0 or newer, then `make build`"
        )
    return Finding("openssl", Level.OK, f"{text} ({paths[0]})")


# --- disk ---------------------------------------------------------------------------------------------------------


def _disk(settings: Settings) -> Iterator[Finding]:
    if not settings.embedded:
        return
    try:
        yield Finding("store binary", Level.OK, str(find_binary(settings.store_binary)))
    except PickgateError as error:
        yield Finding("store binary", Level.FAIL, error.message, "install one of those the message names")
    folder = settings.data_dir
    try:
        status = folder.stat()
    except FileNotFoundError:
        yield Finding(
            "data folder", Level.WARN, f"{folder} is not there yet", "the first `pickgate serve` makes it"
        )
        return
    except OSError as error:
        yield Finding("data folder", Level.FAIL, f"{folder}: {error.strerror}", "name another by --data-dir")
        return
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode):
        yield Finding("data folder", Level.FAIL, f"{folder} is no folder", "name another by --data-dir")
        return
    if status.st_uid != os.geteuid():
        yield Finding(
            "data folder",
            Level.FAIL,
            f"{folder} belongs to user {status.st_uid}, not to {os.geteuid()}",
            f"run as that user, or: chown -R {os.geteuid()} {folder}",
        )
    elif mode & 0o077:
        yield Finding(
            "data folder", Level.FAIL, f"{folder} is open to others (mode {mode:04o})", f"chmod 700 {folder}"
        )
    else:
        yield Finding("data folder", Level.OK, f"{folder} (mode {mode:04o})")
    yield _free(folder)
    yield _fsync(folder)


def _free(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / 1024**3:.1f} GiB free on the disk of {folder}"
    mend = "free some space, or move the data folder to a larger disk"
    if free < FREE_BYTES_FAIL:
        return Finding("free disk", Level.FAIL, text, mend)
    return (
        Finding("free disk", Level.WARN, text, mend)
        if free < FREE_BYTES_WARN
        else Finding("free disk", Level.OK, text)
    )


def _fsync(folder: Path) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=folder) as file:
            took_ms = []
            for _ in range(FSYNC_WRITES):
                file.write(b"\0" * 512)
                file.flush()
                began = time.perf_counter()
                os.fdatasync(file.fileno())
                took_ms.append((time.perf_counter() - began) * 1000)
    except OSError as error:
        return Finding(
            "fsync", Level.FAIL, f"{folder} can't be written: {error.strerror}", "check mode and space"
        )
    median_ms, worst_ms = sorted(took_ms)[FSYNC_WRITES // 2], max(took_ms)
    text = f"median {median_ms:.2f} ms, worst {worst_ms:.2f} ms of {FSYNC_WRITES}"
    if median_ms > FSYNC_MS_WARN:
        return Finding(
            "fsync", Level.WARN, text, "every answer waits for the disk: use a faster one (SSD, NVMe)"
        )
    return Finding("fsync", Level.OK, text)


def _passphrase_mode(settings: Settings) -> Iterator[Finding]:
    path = settings.passphrase_file or (settings.own_passphrase_file if settings.embedded else None)
    if path is None or not path.is_file():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            "passphrase", Level.FAIL, f"{path} is open to others (mode {mode:04o})", f"chmod 600 {path}"
        )
    elif path.parent == settings.data_dir:
        yield Finding("passphrase", Level.WARN, str(path), PASSPHRASE_BESIDE_DATA)
    else:
        yield Finding("passphrase", Level.OK, str(path))


# --- server -------------------------------------------------------------------------------------------------------


def _server(settings: Settings) -> Finding:
    address = settings.server_address
    with Client(
        address, credentials=credentials(settings), timeout_s=min(settings.timeout_s, 2.0), tries=1
    ) as client:
        try:
            healthy = client.healthy()
        except CallFailed as error:
            return Finding(
                "server",
                Level.WARN,
                f"no answer at {address} ({error.code.name})",
                "start it: `pickgate serve`",
            )
    if healthy:
        return Finding("server", Level.OK, f"serving at {address}")
    return Finding("server", Level.FAIL, f"{address} answers, but is not serving", "read the server's log")


# --- report -------------------------------------------------------------------------------------------------------

_COLOURS: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@click.command("doctor")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--store", "store_url", metavar="URL")
@click.option("--durability", type=click.Choice(["memory", "fsync", "replicated"]))
@click.option("--passphrase-file", type=click.Path(path_type=Path))
@command
def doctor(
    console: Console,
    data_dir: Path | None,
    store_url: str | None,
    durability: str | None,
    passphrase_file: Path | None,
) -> None:
    """Say what is wrong with the set-up, and how to mend it. Exit code 0 if nothing failed, 2 otherwise."""
    settings = console.settings(
        data_dir=data_dir, store_url=store_url, durability=durability, passphrase_file=passphrase_file
    )
    findings = []
    rich = people(soft_wrap=True)
    for finding in examine(settings, ask=ask_passphrase):
        findings.append(finding)
        if not console.json:
            rich.print(
                f"[{_COLOURS[finding.level]}]{finding.level.value:<4}[/]  {finding.what:<13} {escape(finding.text)}"
            )
            if finding.level is not Level.OK and finding.mend:
                rich.print(f"      {'':<13} → {escape(finding.mend)}")
    failed = sum(finding.level is Level.FAIL for finding in findings)
    warned = sum(finding.level is Level.WARN for finding in findings)
    value = {
        "findings": [
            {"what": one.what, "level": one.level.value, "text": one.text, "mend": one.mend}
            for one in findings
        ],
        "failed": failed,
        "warned": warned,
    }
    console.emit(
        value, lambda rich: rich.print(f"{failed} failed, {warned} to look at, {len(findings)} looked at")
    )
    sys.exit(EXIT_USAGE if failed else EXIT_OK)
