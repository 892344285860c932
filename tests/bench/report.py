"""From pytest-benchmark's figures to ratios: what the kernels are worth on this machine, in this run.

A ratio of two figures of one run holds on a slow or a busy machine, where a figure alone says little. The figure of a
computation is that of its fastest round: other load makes rounds slower and never faster. The figure of a call of the
store, which waits for a disk, is that of the median round.
"""

import ctypes
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.backends.openssl import backend

OUT: Final = Path(__file__).parents[2] / "build" / "bench"
"""Where everything that a run leaves is written."""

OWN: Final = ("kernel", "engine")
"""What is held against the others; a row has one of the two."""
OTHERS: Final = ("reference", "plain", "copied")
WIDE_MARGIN: Final = 0.7
"""Below this part of a target the run fails; between it and the target the report says so."""

_CPU_FLAGS: Final = ("aes", "pclmulqdq", "sha_ni", "avx2", "vaes", "avx512f", "asimd", "sha2", "sm3", "sm4")


@dataclass(frozen=True, slots=True)
class Target:
    """What must hold: the kernel so many times as fast as another implementation, or so many items a second."""

    subject: str
    case: str
    against: str | None
    """An implementation; None when `wanted` is items per second."""
    wanted: float


TARGETS: Final = (
    Target("open", "V1 AES", "plain", 10.0),
    Target("open", "V2 AES", "plain", 10.0),
    Target("open", "V1 SM", "plain", 6.0),
    Target("open", "V2 SM", "plain", 6.0),
    Target("within", "one centre", None, 50e6),
    Target("write the ledger", "SQLite, a full stream", None, 20_000),
    # A million codes within sixty seconds.
    Target("rebuild a store", "from SQLite, live codes", None, 1_000_000 / 60),
)


REGRESSION: Final = 1.5
"""A ratio that is so many times smaller than when it was written down has regressed."""
GUARDS: Final = (
    Target("seal", "V1 AES", "plain", 12.6),
    Target("seal", "V2 AES", "plain", 35.6),
    Target("seal", "V1 SM", "plain", 5.5),
    Target("seal", "V2 SM", "plain", 11.1),
    Target("open", "V1 AES", "plain", 18.2),
    Target("open", "V2 AES", "plain", 39.9),
    Target("open", "V1 SM", "plain", 7.4),
    Target("open", "V2 SM", "plain", 12.8),
    Target("redeem in the store", "memory, batches of 64", "plain", 0.33),
    Target("redeem, wire to wire", "batches of 64", "plain", 10.0),
)
"""Ratios as they were found, for `make ratios`: what a change makes REGRESSION times worse, fails."""


class Judgement(StrEnum):
    """How a target stands."""

    MET = "met"
    NEAR = "near"
    MISSED = "missed"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Row:
    """One subject and case: seconds per item, of each implementation that was measured (those of OWN and OTHERS)."""

    subject: str
    case: str
    batch: int
    """Items in one call, of our own implementation where it was measured."""
    per_item_s: Mapping[str, float]

    @property
    def own_s(self) -> float | None:
        """Seconds per item of our own implementation."""
        return next((self.per_item_s[name] for name in OWN if name in self.per_item_s), None)

    def ratio(self, against: str) -> float | None:
        """Return how many times as fast ours is as another implementation; None if either is missing."""
        own, other = self.own_s, self.per_item_s.get(against)
        return other / own if own and other else None


@dataclass(frozen=True, slots=True)
class Finding:
    """A target and what was found."""

    target: Target
    found: float | None
    judgement: Judgement


def rows_of(raw: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a file of pytest-benchmark's (`--benchmark-json`), in the order of the run."""
    seconds: dict[tuple[str, str], dict[str, float]] = {}
    batches: dict[tuple[str, str], int] = {}
    for benchmark in raw["benchmarks"]:
        info = benchmark["extra_info"]
        name = info["subject"], info["case"]
        seconds.setdefault(name, {})[info["implementation"]] = (
            benchmark["stats"][info["figure"]] / info["items"]
        )
        if info["implementation"] in OWN or name not in batches:
            batches[name] = info["items"]
    return [Row(subject, case, batches[subject, case], found) for (subject, case), found in seconds.items()]


def judge(
    rows: Iterable[Row], targets: Iterable[Target] = TARGETS, margin: float = WIDE_MARGIN
) -> list[Finding]:
    """Return a finding for each target; below `margin` of what is wanted it is missed."""
    by_name = {(row.subject, row.case): row for row in rows}
    findings = []
    for target in targets:
        row = by_name.get((target.subject, target.case))
        found = None
        if row and target.against:
            found = row.ratio(target.against)
        elif row and row.own_s:
            found = 1.0 / row.own_s
        if found is None:
            judgement = Judgement.NOT_MEASURED
        elif found >= target.wanted:
            judgement = Judgement.MET
        else:
            judgement = Judgement.NEAR if found >= margin * target.wanted else Judgement.MISSED
        findings.append(Finding(target, found, judgement))
    return findings


def guarded(raw: Mapping[str, Any]) -> list[Finding]:
    """Return how the guarded ratios stand."""
    return judge(rows_of(raw), GUARDS, 1 / REGRESSION)


def acceptable(findings: Iterable[Finding], *, complete: bool) -> bool:
    """Return whether a run passes: no target missed and, in a complete run, none left out."""
    unacceptable = {Judgement.MISSED, Judgement.NOT_MEASURED} if complete else {Judgement.MISSED}
    return not any(finding.judgement in unacceptable for finding in findings)


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, versions. Nothing that names the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return {
        "architecture": platform.machine(),
        "processor": model[1] if model else "unknown",
        "features": [flag for flag in _CPU_FLAGS if flag in present],
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "libcrypto of the kernels": _linked_libcrypto(),
        "libcrypto of cryptography": backend.openssl_version_text(),
    }


def _linked_libcrypto() -> str:
    # Importing the kernel maps the library that it was linked with; that one is asked.
    import ext.seal  # noqa: F401

    maps = Path("/proc/self/maps")
    found = re.search(r"\S+/libcrypto\.so\S*", maps.read_text()) if maps.exists() else None
    if not found:
        return "unknown"
    library = ctypes.CDLL(found[0])
    library.OpenSSL_version.restype = ctypes.c_char_p
    version: bytes = library.OpenSSL_version(0)
    return version.decode()


def as_json(raw: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report as plain data. Times are seconds, rates items per second."""
    rows = rows_of(raw)
    return {
        "machine": dict(about),
        "measured_at": raw.get("datetime"),
        "fsync_s": fsync_of(raw),
        "rows": [
            {
                **asdict(row),
                "ratios": {name: row.ratio(name) for name in OTHERS if row.ratio(name) is not None},
            }
            for row in rows
        ],
        "targets": [asdict(finding) for finding in judge(rows)],
        "guards": [asdict(finding) for finding in guarded(raw)],
    }


def fsync_of(raw: Mapping[str, Any]) -> float | None:
    """Return the median latency of an fsync on the disk of the state benchmarks, None if they did not run."""
    found = [benchmark["extra_info"].get("fsync_s") for benchmark in raw["benchmarks"]]
    return next((latency for latency in found if latency is not None), None)


def as_text(
    raw: Mapping[str, Any], about: Mapping[str, Any], findings: Iterable[Finding] | None = None
) -> str:
    """Return the report for people. findings: those to show; None for the targets'."""
    rows = rows_of(raw)
    lines = [
        f"{name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in about.items()
    ]
    fsync_s = fsync_of(raw)
    if fsync_s is not None:
        lines.append(f"fsync of 4 KiB on the disk of the store: {duration(fsync_s)}")
    table: list[tuple[str, ...]] = [
        ("", "batch", "per item", "items/s", "x twin", "x per code", "x copied HMAC")
    ]
    for row in rows:
        own_s = row.own_s
        table.append(
            (
                f"{row.subject}, {row.case}",
                f"{row.batch:,}",
                duration(own_s) if own_s else "",
                rate(1.0 / own_s) if own_s else "",
                *(f"{ratio:.1f}" if (ratio := row.ratio(name)) else "" for name in OTHERS),
            )
        )
    lines += ["", *_aligned(table), "", *_explanation(), ""]
    for finding in judge(rows) if findings is None else findings:
        target = finding.target
        wanted = (
            f"{target.wanted:g} times `{target.against}`"
            if target.against
            else f"{rate(target.wanted)} items/s"
        )
        found = (
            "" if finding.found is None else f"{finding.found:.3g}" if target.against else rate(finding.found)
        )
        lines.append(
            f"{finding.judgement:>12}  {target.subject}, {target.case}: wanted {wanted}, found {found or '-'}"
        )
    return "\n".join(lines)


def _explanation() -> Sequence[str]:
    return (
        "per item: of one thread, in batches. x twin: so many times as fast as the reference implementation in the",
        "same batches. x per code: as calls of `cryptography` for each code (for distances, as plain Python for each",
        "pair; for the ledger, as a transaction for each event). x copied HMAC: as those, but with an HMAC that is keyed once and copied.",
    )


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table
    ]


def duration(seconds: float) -> str:
    """Return a duration with a unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def rate(per_second: float) -> str:
    """Return items per second with a prefix that suits them."""
    for prefix, size in (("M", 1e6), ("k", 1e3)):
        if per_second >= size:
            return f"{per_second / size:.3g} {prefix}"
    return f"{per_second:.3g} "
