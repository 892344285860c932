"""The fuzzers' promises without a fuzzer: seeds, corpus and some changes of them, the same in every run."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import mutators
from tests.fuzz.targets import KERNELS, TARGETS

CORPUS = Path(__file__).parent / "corpus"
SOAK = os.environ.get("PICKGATE_SOAK") == "1"
CHANGES = 100 if SOAK else 4
"""Of each input."""


def run(name: str) -> None:
    target = TARGETS[name]
    draw = Random(name)

    def by_bytes(data: bytes, bytes_max: int) -> bytes:
        return mutators.by_bytes(data, bytes_max, draw)

    inputs = [b"", *target.seeds()]
    kept = sorted((CORPUS / name).glob("*"))
    assert kept, f"the corpus of {name} is missing"
    inputs += [path.read_bytes() for path in kept]
    with ExitStack() as stack:
        check = target.open(stack)
        for data in inputs:
            check(data)
            for _ in range(CHANGES):
                if target.request_class is not None:
                    changed = mutators.by_fields(data, target.bytes_max, draw, target.request_class, by_bytes)
                else:
                    changed = by_bytes(data, target.bytes_max)
                check(changed)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str) -> None:
    run(name)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in KERNELS])
def test_service(name: str) -> None:
    run(name)


def test_the_corpus_is_small_and_of_known_targets() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(TARGETS)
    assert sum(path.stat().st_size for path in files) < 256 * 1024
