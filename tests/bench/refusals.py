"""How long it takes to refuse a code, by what is wrong with it: does the time tell a forger anything?

    python -m tests.bench.refusals                       # a minute, on an otherwise idle machine

Codes of every version and suite are made wrong in one way each, and opened one by one in random order, by the kernel alone and by
the whole of the hot lane's first step (scan, open, answer; the store is not asked for a code that isn't genuine). For each way to
be wrong it prints the median, how far that is from the median of a wrong tag, and an effect size: how often one call of this kind
takes longer than one with a wrong tag (Vargha and Delaney's A, 2000: 0.5 is "can't be told apart", from 0.56 small, from 0.71 large).

What must not differ is an unknown kid from a wrong tag: that would say which kids are in use. Malformed codes are answered sooner;
their form is public, and so it says nothing. A wrong signature comes after a right tag, so only who has the key gets there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.claims import Suite, Version
from ext.codec import OpenStatus, decode, encode, open_text_batch
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server import hot
from tests.bench import mutations
from tests.engine.shop import MALL, STORE, Shop

CALLS: Final = 2_000
"""Of each kind, for each version and suite."""
WARM: Final = 200
EFFECT_SMALL: Final = 0.56
"""Below it, by Vargha and Delaney, an effect is negligible."""

Times = npt.NDArray[np.int64]


def wrong(text: str) -> dict[str, tuple[bytes, OpenStatus]]:
    """A genuine text made wrong in each way, and what the kernel says of it."""
    payload = decode(text[2:])
    tag_at = len(payload) - (80 if len(payload) == 115 else 16)

    def written(changed: bytes) -> bytes:
        return b"PG" + encode(changed).encode()

    # All later than the kid, so that this is the one thing that is wrong.
    tag = payload[:tag_at] + bytes([payload[tag_at] ^ 1]) + payload[tag_at + 1 :]
    kid = payload[:1] + b"\xff\xfe" + payload[3:]
    found = {
        "wrong tag": (written(tag), OpenStatus.TAG),
        "unknown kid": (written(kid), OpenStatus.KID),
        "wrong header": (written(bytes([0xFF]) + payload[1:]), OpenStatus.HEADER),
        "wrong alphabet": (text[:-1].encode() + b"*", OpenStatus.ALPHABET),
        "wrong length": (text.encode() + b"0", OpenStatus.LENGTH),
    }
    if len(payload) == 115:
        found["wrong signature"] = (written(payload[:-1] + bytes([payload[-1] ^ 1])), OpenStatus.SIGNATURE)
    return found


def measure(calls: dict[str, Callable[[], object]], count: int, seed: int) -> dict[str, Times]:
    """Nanoseconds of `count` calls of each kind, in random order."""
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(calls)), count)).tolist()
    functions, clock = list(calls.values()), time.perf_counter_ns
    for function in functions:
        for _ in range(WARM):
            function()
    taken: list[list[int]] = [[] for _ in functions]
    for n in order:
        function = functions[n]
        began = clock()
        function()
        taken[n].append(clock() - began)
    return {name: np.array(times) for name, times in zip(calls, taken, strict=True)}


def superiority(these: Times, those: Times) -> float:
    """How often one of these is larger than one of those, ties by halves (Vargha and Delaney's A)."""
    ordered = np.sort(those)
    below = np.searchsorted(ordered, these, "left")
    not_above = np.searchsorted(ordered, these, "right")
    return float((below + not_above).mean() / (2 * len(those)))


def report(title: str, times: dict[str, Times]) -> list[tuple[str, float]]:
    """Print one table; gives effect sizes against a wrong tag."""
    print(f"\n{title}")
    base = times["wrong tag"]
    # The same calls, halved: what two equal kinds look like on this machine today.
    effects = [("wrong tag, against itself", superiority(base[::2], base[1::2]))]
    print(f"  {'':26} {'median µs':>10} {'to wrong tag ns':>16} {'A':>6}")
    print(f"  {effects[0][0]:26} {np.median(base) / 1e3:10.2f} {0:16.0f} {effects[0][1]:6.3f}")
    for name, those in times.items():
        if name != "wrong tag":
            effect = superiority(those, base)
            effects.append((name, effect))
            print(
                f"  {name:26} {np.median(those) / 1e3:10.2f} {np.median(those) - np.median(base):16.0f} {effect:6.3f}"
            )
    return effects


def _lane_calls(shop: Shop, codes: dict[str, bytes]) -> dict[str, Callable[[], object]]:
    redeem = hot.Redeem(shop.deployment)
    terminal = types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=7)

    def call(code: bytes) -> Callable[[], object]:
        wire = [
            redemption_pb.RedeemRequest(
                terminal=terminal, request_id="refusal-0001", code=code.decode()
            ).SerializeToString()
        ]
        return lambda: redeem.sort(wire)

    return {name: call(code) for name, code in codes.items()}


def _kernel_calls(table: Any, codes: dict[str, bytes]) -> dict[str, Callable[[], object]]:
    def call(code: bytes) -> Callable[[], object]:
        offsets = np.array([0, len(code)], np.uint64)
        return lambda: open_text_batch(table, code, offsets)

    return {name: call(code) for name, code in codes.items()}


def main(arguments: Sequence[str]) -> int:
    """Measure and report; 1 if an unknown kid can be told from a wrong tag."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.refusals")
    parser.add_argument("--calls", type=int, default=CALLS, help="of each kind (default: %(default)s)")
    given = parser.parse_args(arguments)
    told = []
    with ExitStack() as stack:
        shop = mutations.open_shop(stack)
        genuine = mutations.issue(shop)
        table = shop.deployment.control.copy().usable_keys().payload_table
        for version, suite in mutations.KINDS:
            made = wrong(genuine.texts[Version(version), Suite(suite)][0].tobytes().decode())
            for code, status in made.values():
                [opened] = open_text_batch(table, code, np.array([0, len(code)], np.uint64))
                assert opened["status"] == status
            codes = {name: code for name, (code, _) in made.items()}
            for where, calls in (
                ("kernel", _kernel_calls(table, codes)),
                ("lane", _lane_calls(shop, codes)),
            ):
                title = f"V{int(version)} {Suite(suite).name}, {where}, {given.calls} calls of each kind"
                effects = dict(report(title, measure(calls, given.calls, seed=int(version) * 2 + int(suite))))
                if abs(effects["unknown kid"] - 0.5) >= EFFECT_SMALL - 0.5:
                    told.append(title)
    print()
    print(*(f"unknown kid and wrong tag CAN be told apart: {title}" for title in told), sep="\n")
    if not told:
        print("unknown kid and wrong tag can't be told apart: every effect is negligible (|A - 0.5| < 0.06)")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
