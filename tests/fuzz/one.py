"""Fuzz one target, led by coverage: `python -m tests.fuzz.one TARGET FOLDER… -libfuzzer_option=…`.

Folders and options are libFuzzer's own. Needs atheris (`make fuzz` installs it); tests.fuzz starts this once for each target.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from random import Random

import atheris

# Before anything of ours is imported: what is loaded within is instrumented.
with atheris.instrument_imports(include=["engine", "ext", "server"], enable_loader_override=False):
    from tests.fuzz import mutators
    from tests.fuzz.targets import TARGETS

    if len(sys.argv) > 1 and sys.argv[1] in ("envelope", "requests", "lane"):
        import tests.fuzz.served  # noqa: F401  # to be instrumented as well


def main() -> None:
    """Run until libFuzzer ends the process."""
    name = sys.argv.pop(1)
    target = TARGETS[name]
    stack = ExitStack()
    check = target.open(stack)
    options = {}
    if (request_class := target.request_class) is not None:

        def mutate(data: bytes, bytes_max: int, seed: int) -> bytes:
            return mutators.by_fields(data, bytes_max, Random(seed), request_class, atheris.Mutate)

        options["custom_mutator"] = mutate
    atheris.Setup([*sys.argv, f"-max_len={target.bytes_max}"], check, **options)
    # Never returns; the store behind a target ends with its owner.
    atheris.Fuzz()


if __name__ == "__main__":
    main()
