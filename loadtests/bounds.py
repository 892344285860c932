"""Named limits and targets of the load tools, in one place. Units stand last in the names."""

from __future__ import annotations

from typing import Final

# --- the generators ----------------------------------------------------------------------------------------------
CONNECTIONS_DEFAULT: Final = 8
TICK_S: Final = 0.0005
"""Calls that are due within one tick go out together. It bounds how late a call may be sent, and how often the generator
wakes up: at 10,000 calls a second every 50 us otherwise, on a core that the server needs."""
LATENCY_US_MAX: Final = 60_000_000
GIVE_UP_LOOK_S: Final = 0.01
DRAIN_S: Final = 10.0
"""How long a run waits for its last answers; the server's own bound for the store is 3 s."""
LAG_P99_MS_MAX: Final = 5.0
"""A generator later than this is said to be the bottleneck: a fifth of the bound on p99."""
CPU_SHARE_MAX: Final = 0.8
SAMPLES_MAX: Final = 5
"""Messages of failed calls that are kept."""

# --- peak and steps ----------------------------------------------------------------------------------------------
PROBE_CODES: Final = 400
"""For a first idea of the rate, from which the number of codes is reckoned."""
WINDOWS: Final = (8, 16, 32, 64)
"""Calls outstanding on each connection when the peak is looked for."""
PEAK_ROUND_S: Final = 3.0
PEAK_ROUNDS: Final = 3
"""Rounds at the best window, of both stacks in turn, so that noise hits both; the median counts."""
STEPS_PERCENT: Final = (10, 25, 50, 80, 80, 80, 90, 95)
JUDGED_PERCENT: Final = 80
"""Where p99 is held against its goal: by the median of the steps there, as the peak is by that of its rounds. One step of six seconds may be that in which
a store begins to rewrite its file, ours or the comparison's."""
STEP_S: Final = 6.0
NAMED_RATE_PER_S: Final = 1_000
"""The owner's second figure is p50 at this rate."""
WARM_UP_SHARE: Final = 0.15
"""Of each step: the first part does not count, it still feels the step before."""
CODES_MARGIN: Final = 1.4
"""Codes made for a closed loop, by those that it should need."""
CODES_SIGMAS: Final = 6.0
"""And for an open one, whose calls are as many as a Poisson process has: more than so many standard deviations above what it should need it never needs."""
CODES_AGE_S_MAX: Final = 400.0
"""A payload older than this at the beginning of a run is not used; it lives for 600 s."""

# --- what `make load` passes and fails by ---------------------------------------------------------------------------
WIDE: Final = 0.7
"""A target counts as missed below this share of it: figures of one run scatter, most of all on a shared machine."""
PEAK_RATIO_WANTED: Final = 8.0
"""Our peak by the comparison's at equal durability."""
P99_RATIO_WANTED: Final = 3.0
"""Our p99 at 80 % of our peak by the comparison's at 80 % of its own, at some eight times the rate: the goal below, 25 ms, by the 8 ms that the
comparison takes on the machine for which the goal was set. Fails past this / WIDE."""
GOAL_PEAK_PER_S: Final = 10_000.0
GOAL_P99_MS: Final = 25.0
GOAL_P50_MS: Final = 3.0
"""Goals in absolute figures are reported, and never decide: they depend on the machine and on who else uses it."""

# --- overload -----------------------------------------------------------------------------------------------------
OVERLOAD_TIMES: Final = 3.0
OVERLOAD_CONNECTIONS: Final = 64
"""Each takes 100 calls at a time at most: 6,400 are with the server, and whoever finds no place waits at its caller."""
OVERLOAD_STREAMS: Final = 100
"""As the server says (server.bounds.STREAMS_PER_CONNECTION_MAX)."""
OVERLOAD_STREAM_WAIT_S: Final = 0.25
"""How long: then the caller gives up, as a proxy with a bound on its own queue does. Else the generator would have a queue of minutes when
the rush ends, and what is measured afterwards were that."""
OVERLOAD_BEFORE_S: Final = 4.0
OVERLOAD_AFTER_S: Final = 6.0
OVERLOAD_BESIDE: Final = 0.5
"""Load before and after, as a share of the peak."""
OVERLOAD_GOODPUT_MIN: Final = 0.8
"""By the mean of a round of the peak just before it and one just after: making the codes takes minutes, in which a machine that others use
too may have become a fifth faster or slower."""
OVERLOAD_RECOVERY_S: Final = 2.0
OVERLOAD_SPAN_S: Final = 0.5
"""Recovery is seen in spans of so long, each by its p99: the store may begin to rewrite its file just then, as at any load, and one tenth
of a second of that would be the p99 of all that came after."""
OVERLOAD_DONE_MIN: Final = 0.9
"""A span in which less than this share of its calls was done is not normal, however quick those were."""
OVERLOAD_P99_TIMES: Final = 2.0
OVERLOAD_P99_SLACK_MS: Final = 10.0
"""p99 is back to normal at OVERLOAD_P99_TIMES that of before, or this much more, whichever allows more."""
OVERLOAD_CALL_BYTES: Final = 24 * 1024
OVERLOAD_RSS_SLACK_BYTES: Final = 64 * 2**20
"""Memory is bounded if it stays below that of before, OVERLOAD_CALL_BYTES for each call that the connections may have at a time, and this: a call
with the server takes some 13 KB in gRPC, where each keeps the buffer in which it was read, and the rest in Python. Heaps have slack."""
OVERLOAD_RSS_GROWTH_MAX: Final = 0.1
"""And if in the second half of it the most is no more than this above the most of the first: all places are taken within its first second."""

# --- soak and idle ------------------------------------------------------------------------------------------------
SOAK_SHARE: Final = 0.5
SOAK_SLICE_S: Final = 20.0
"""Codes are made for one slice at a time: payloads go stale."""
SOAK_SETTLED_S: Final = 60.0
SOAK_S_MIN: Final = 180.0
"""Less says nothing of growth: a minute to settle in, and two to hold against each other."""
SOAK_RSS_GROWTH_MAX: Final = 0.05
"""By the median of each minute. One reading may be higher: calls under way take some 10 KB each, and while the store forks there are
hundreds more of them."""
IDLE_TERMINALS: Final = 2_000
IDLE_COST_MAX: Final = 0.2
IDLE_ROUNDS: Final = 3
IDLE_ROUND_S: Final = 3.0

# --- hostile callers ----------------------------------------------------------------------------------------------
HOSTILE_RATE_PER_S: Final = 500.0
"""Redemptions of honest callers, whose latency is what is looked at."""
HOSTILE_SECONDS: Final = 8.0
"""Of each behaviour: longer than the server waits for who says nothing (5 s)."""
HOSTILE_PEERS: Final = 20
"""Connections of a kind."""
HOSTILE_STREAMS: Final = 90
"""Calls open at a time on one connection, of the hundred that a server takes."""
HOSTILE_SLOW_BYTES_PER_S: Final = 5.0
HOSTILE_CALLS_PER_S: Final = 300.0
HOSTILE_GARBAGE_PER_S: Final = 100.0
HOSTILE_CONTINUATIONS_PER_S: Final = 200.0
HOSTILE_PINGS: Final = 10_000
HOSTILE_RESETS_PER_S: Final = 1_000.0
HOSTILE_CANCELLED: Final = 800
HOSTILE_AS_PLANNED: Final = 0.95
"""Of the pings and resets: with fewer nothing is shown."""
HOSTILE_P99_TIMES: Final = 2.0
HOSTILE_P99_SLACK_MS: Final = 20.0
"""p99 of the others may be HOSTILE_P99_TIMES that of before and this: a bound against a server that is stopped, wide
enough for what else the machine does."""
HOSTILE_RSS_TIMES: Final = 1.5
HOSTILE_RSS_SLACK_BYTES: Final = 64 * 2**20
HOSTILE_SETTLE_S: Final = 15.0
"""How long the server may take to let go of the last of their connections."""

# --- the ledger's lag -----------------------------------------------------------------------------------------------
LAG_RATE_PER_S: Final = 5_000.0
LAG_SECONDS: Final = 10.0
LAG_LOOK_S: Final = 0.05
"""Between two looks at store and ledger: what a lag is told too long at most, and no load of its own."""
LAG_S_MAX: Final = 1.0
LAG_CATCH_UP_S: Final = 60.0

# --- identity -----------------------------------------------------------------------------------------------------
IDENTITY_ROUNDS: Final = 5
IDENTITY_CODES: Final = 2_500
"""Of each round and way."""
IDENTITY_WINDOW: Final = 32
IDENTITY_COST_MAX: Final = 0.1
"""What knowing the caller may cost, as a share of the server's time for a redemption."""

# --- rush (Locust) ------------------------------------------------------------------------------------------------
RUSH_USERS: Final = 60
RUSH_SECONDS: Final = 60.0
LOT_RUSH_SECONDS: Final = 10.0
"""Of the rush within `make load`."""
RUSH_PROCESSES: Final = 2
RUSH_CALL_TIMEOUT_S: Final = 10.0
RUSH_RETRY_SHARE: Final = 0.1
RUSH_CALLS_MIN: Final = 100
"""Fewer calls say nothing, above all not that all is well."""
RUSH_FAIL_RATIO_MAX: Final = 0.001
RUSH_P95_MS_MAX: Final = 500.0
"""Of all calls, Locust's own greenlets on the same cores included: a bound against collapse, not a figure to be proud of."""

# --- h2load -------------------------------------------------------------------------------------------------------
H2LOAD_CALLS: Final = 5_000
H2LOAD_STREAMS: Final = 16
