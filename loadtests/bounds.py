"""Named limits and targets of the load tools, in one place. Units stand last in the names."""

from __future__ import annotations

from typing import Final

# --- the generators ----------------------------------------------------------------------------------------------
CONNECTIONS_DEFAULT: Final = 8
TICK_S: Final = 0.0005
"""Calls that are due within one tick go out together. It bounds how late a call may be sent, and how often the generator
wakes up: at 10,000 calls a second every 50 us otherwise, on a core that the server needs."""
LATENCY_US_MAX: Final = 60_000_000
DRAIN_S: Final = 10.0
"""How long a run waits for its last answers; the server's own bound for the store is 3 s."""
LAG_P99_MS_MAX: Final = 5.0
"""A generator later than this is said to be the bottleneck: a fifth of the bound on p99."""
CPU_SHARE_MAX: Final = 0.8
SAMPLES_MAX: Final = 5
"""Messages of failed calls that are kept."""
