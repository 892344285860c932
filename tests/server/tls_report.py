"""`make tls-report`: sslscan (Debian's package) against `pickgate serve`, its report to docs/tls-report.txt.

Ends with status 1 when a version other than TLS 1.3 is on, or TLS 1.3 is off.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.server.test_cli import ROOT, inside, serve

REPORT = ROOT / "docs" / "tls-report.txt"
VERSIONS = {"SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1", "TLSv1.2", "TLSv1.3"}


def scan(address: str) -> str:
    """What sslscan says of a listener, without what differs at each run: port, key, time."""
    done = subprocess.run(
        ["sslscan", "--no-colour", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    kept = [
        line.rstrip()
        for line in done.stdout.replace(address.rpartition(":")[2], "PORT").splitlines()
        if not re.search(r"Not valid|Connected to", line)
    ]
    return "\n".join(kept).strip() + "\n"


def main() -> int:
    if shutil.which("sslscan") is None:
        print("sslscan is missing; run: apt-get install -y sslscan", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-")))
        assert inside("certs", "dev", str(folder / "certs")).returncode == 0
        served = serve(
            stack,
            folder / "data",
            folder,
            *("--durability", "memory", "--listen-mtls", "127.0.0.1:0"),
            *("--tls-cert-file", str(folder / "certs/server.pem")),
            *("--tls-key-file", str(folder / "certs/server-key.pem")),
            *("--tls-ca-file", str(folder / "certs/ca.pem")),
        )
        reports = [scan(address) for address in served.addresses]
    parts = zip(("listen", "listen_mtls"), reports, strict=True)
    REPORT.write_text("\n\n".join(f"=== {name} ===\n\n{report}" for name, report in parts))
    print(REPORT.read_text())
    states = [dict(re.findall(r"^(\S+)\s+(enabled|disabled)$", report, re.M)) for report in reports]
    good = all(
        {name for name in VERSIONS if state.get(name) == "enabled"} == {"TLSv1.3"}
        and state.keys() >= VERSIONS
        for state in states
    )
    print("TLS 1.3 only" if good else "NOT TLS 1.3 only", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
