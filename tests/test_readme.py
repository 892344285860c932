"""What the README says is so: its blocks run in order against a real server, its tables and links are true.

`sh` and `python` blocks are run as a reader would paste them, one after the other in one shell; a `text` block is what the
block before it prints, in part. `console` blocks are shown and not run: the one of the demo is compared with the demo's test.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.test_demo import ENVIRONMENT, ROWS, processes_in, rows_of, until

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)\)")
ADDRESS = "127.0.0.1:7425"
RUN_S_MAX = 180


@dataclass
class Block:
    """A block that is run, with the lines that the README says it prints."""

    language: str
    text: str
    prints: list[str] = field(default_factory=list)


def blocks_of(text: str) -> list[Block]:
    """The blocks that are run, in order."""
    blocks: list[Block] = []
    for language, body in FENCE.findall(text):
        if language in ("sh", "python"):
            blocks.append(Block(language, body))
        elif language == "text":
            blocks[-1].prints += body.splitlines()
        else:
            assert language == "console", f"a block of an unknown kind: {language!r}"
    return blocks


def script_of(blocks: list[Block], address: str) -> str:
    """One shell script that runs all blocks on a server at `address`, each announced by a line in the file `out`."""
    parts = ["set -euo pipefail"]
    for number, block in enumerate(blocks):
        parts.append(f"echo ':::: {number}'")
        parts.append(
            block.text if block.language == "sh" else f"python - <<'END OF BLOCK'\n{block.text}END OF BLOCK"
        )
        if "pickgate serve" in block.text:
            # A reader goes on when the server has said that it serves.
            parts.append(
                f'for _ in $(seq 300); do grep -q "^serving on {address} " out && break; sleep 0.1; done'
            )
    return "\n".join(parts).replace(ADDRESS, address) + "\n"


def loose(line: str) -> re.Pattern[str]:
    """A pattern for a printed line: digits, uids and payloads may differ, spaces may be more or fewer, "…" is anything."""
    pattern = "".join(
        r"\s+"
        if part.isspace()
        else r"\w+"
        if re.search(r"\d", part)
        else ".*"
        if part == "…"
        else re.escape(part)
        for part in re.findall(r"\s+|…|\w+|[^\w\s]", line.strip())
    )
    return re.compile(pattern)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the examples, and with `pickgate` and `python` on a PATH of its own."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, arguments in (("pickgate", "-m server.cli"), ("python", "")):
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        command.chmod(0o700)
    yield tmp_path
    for pid in processes_in(tmp_path):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_block_works_when_pasted_in_order(folder: Path) -> None:
    blocks = blocks_of(README)
    assert len(blocks) >= 10
    assert {"sh", "python"} == {block.language for block in blocks}
    # Another server may use the default port at this moment; nothing else is changed.
    address = f"127.0.0.1:{free_port()}"
    with (folder / "out").open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-s"],
            cwd=folder,
            env=ENVIRONMENT
            | {
                "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
                "PICKGATE_LISTEN": address,
            },
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            shell.communicate(script_of(blocks, address).encode(), timeout=RUN_S_MAX)
        finally:
            shell.kill()
            shell.wait()
    output = (folder / "out").read_text(encoding="utf-8")
    assert shell.returncode == 0, output

    printed = dict(re.findall(r"^:::: (\d+)\n(.*?)(?=^:::: |\Z)", output, re.MULTILINE | re.DOTALL))
    assert len(printed) == len(blocks)
    for number, block in enumerate(blocks):
        rest = printed[str(number)]
        for line in block.prints:
            found = loose(line.replace(ADDRESS, address)).search(rest)
            assert found, (
                f"block {number} does not print {line!r} (or not after the lines before it):\n{output}"
            )
            rest = rest[found.end() :]
    # The last block stops the server, and the store goes with it.
    until(lambda: not processes_in(folder), "the server and its store have ended")
    assert (folder / "code.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_that_is_not_printed_is_noticed() -> None:
    assert loose("REDEEMED  核销成功，请交付商品。").search("REDEEMED 核销成功，请交付商品。")
    assert loose("issued_at  2026-11-21 22:18").search("issued_at 2027-01-01 00:00")
    assert loose("PG2400095A006YZBFHCQ8…").search("PG2999995A006YZBFHCQ8AAAA")
    assert not loose("REDEEMED").search("ALREADY_REDEEME")
    assert not loose("exit status 1").search("exit state 1")


def test_the_demos_table_is_what_the_demo_prints() -> None:
    console = next(body for language, body in FENCE.findall(README) if language == "console")
    assert console.startswith("$ make demo\n")
    shown = rows_of(console.splitlines())
    # Shortened, but nothing that the demo does not print, and of every kind of answer one.
    assert shown - ROWS == Counter()
    assert {verdict for _, verdict in shown} == {verdict for _, verdict in ROWS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [target for target in LINK.findall(text) if not (document.parent / target).exists()]
    assert missing == []
    named = re.findall(r"`((?:tests|engine|server|ext|proto|docs|examples)/[\w/.-]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
