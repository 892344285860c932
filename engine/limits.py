"""Every named limit of the engine, in one place.

A thing a caller can size has its bound here, with the reason for the number. Units stand last in the names.
"""

from __future__ import annotations

from typing import Final

# --- identifiers -------------------------------------------------------------------------------------------
ID_MAX: Final = 2**32 - 1
"""Malls, stores, SKUs and terminals are 1 .. 2**32 - 1: four bytes in payloads and records; 0 means none."""
REQUEST_ID_CHARS_MIN: Final = 8
"""Shorter ids collide by accident (a counter that restarts at 1); a UUID has 36 characters."""
REQUEST_ID_CHARS_MAX: Final = 64
ORDER_ID_CHARS_MAX: Final = 48
"""Kept in every record, so it costs memory; marketplaces' order numbers have 18 to 32 characters."""
ACTOR_CHARS_MAX: Final = 64
NAME_CHARS_MAX: Final = 120
REASON_CHARS_MAX: Final = 200

# --- codes -------------------------------------------------------------------------------------------------
LINES_MAX: Final = 32
"""Lines of one code. One script call reads and writes each line's stock, so it bounds the script's work."""
COUNT_MAX: Final = 65_535
"""Units of one line: two bytes in payload (qty) and record."""
AMOUNT_FEN_MAX: Final = 2**32 - 1
SPLITS_MAX: Final = 16
"""Parties of one order: payee of the goods, platform, store, three referral levels, and room."""
PAYEE_CHARS_MAX: Final = 64
ROLE_CHARS_MAX: Final = 32
SPLIT_LEVEL_MAX: Final = 3
"""More than three levels of referral are pyramid selling under Chinese law."""
TTL_S_DEFAULT: Final = 48 * 3600
TTL_S_MIN: Final = 60
TTL_S_MAX: Final = 400 * 24 * 3600
EXPIRES_AT_S_MAX: Final = 2**32 - 1
"""Expiries are four bytes in payloads and records: the year 2106."""
AFTERLIFE_S: Final = 72 * 3600
"""How long an ended code still answers: when, where and why it ended."""
PAYLOAD_LIFE_S_DEFAULT: Final = 60
PAYLOAD_LIFE_S_MIN: Final = 60
"""A payload rendered ahead takes an odd second of its own minute (see engine.issuance), so no less."""
PAYLOAD_LIFE_S_MAX: Final = 600
STAMP_SKEW_S: Final = 5
"""How far a stamp may lie in the future, and how much longer than its life a payload is taken."""
RENDER_AHEAD_S_MAX: Final = 24 * 3600
REVISIONS_AHEAD_MAX: Final = 29
"""Payloads ahead are stamped in second 1 + 2 x revision of their minute: 30 revisions fit (0 .. 29)."""
TRIES_MAX: Final = 3
HOLD_S_DEFAULT: Final = 900
HOLD_S_MIN: Final = 60
HOLD_S_MAX: Final = 24 * 3600
REVERSAL_WINDOW_S_DEFAULT: Final = 3600
REVERSAL_WINDOW_S_MAX: Final = 30 * 24 * 3600
REVERSAL_LIFE_S: Final = 24 * 3600
"""How long a reversed code lives at least."""
CYCLES_MAX: Final = 10
REMEMBERED_REQUESTS_MAX: Final = 200
"""Changes of one code whose answers are remembered; a change past it is refused rather than forgotten.

Not those that a code can see only a few times (confirm, reverse, a review, its end): the record counts to 255."""
UID_CANDIDATES: Final = 4
"""Uids derived for one request. Four in a row taken by others: 10**-15 with a million live static codes."""

KEY_AGE_S_DEFAULT: Final = 24 * 3600
"""After which keys of dynamic and valuable codes are replaced by schedule (engine.rotation)."""

# --- batches, messages, waits ------------------------------------------------------------------------------
BATCH_MAX: Final = 256
"""Items of one script call: about 7 ms of a store's single thread."""
BULK_MAX: Final = 10_000
"""Items of one bulk issue; the engine cuts it into script calls of BATCH_MAX."""
WRITE_ITEMS_MAX: Final = 1_024
"""Items of one write to the store. All its calls carry the time of its sending, which may be CLOCK_SKEW_MS_MAX old when the last
of them runs: a bulk sent at once, to a store that is busy or slow on its disk, would fail of its own length."""
PARTITIONS_DEFAULT: Final = 16
PARTITIONS_MAX: Final = 1_024
"""Ten bits of the uid."""
BUCKETS_PER_PARTITION: Final = 4_096
"""Hash buckets that hold records: at one million codes and 16 partitions each holds about 15."""
MESSAGE_BYTES_MAX: Final = 16 * 1024
BULK_MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
STORE_TIMEOUT_S: Final = 3.0
"""One round trip to the store, fsync included; past it the answer is UNAVAILABLE and the call can be retried."""
REPLICATION_TIMEOUT_MS: Final = 1_000
"""Of WAIT and of WAITAOF, one behind the other: twice this and a script fit into STORE_TIMEOUT_S."""
ATTEMPTS_KEPT: Final = 10_000
"""Refused attempts kept per partition (a bounded stream outside the fold)."""
STOCK_ANSWER_TTL_S: Final = 5 * 24 * 3600
"""How long a stock change's answer is remembered under its request id: longer than the register of request ids knows the id
(three to four days), so that an id which is known there always finds its answer."""

ARRIVAL_TTL_S: Final = 400 * 24 * 3600
"""How long the arrival of a transfer is remembered."""

# --- clocks ------------------------------------------------------------------------------------------------
CLOCK_SKEW_MS_MAX: Final = 5_000
"""Largest difference between a caller's clock and the store's before scripts refuse."""
CONTROL_POLL_S: Final = 1.0
CONTROL_AGE_S_MAX: Final = 5.0
"""A process refuses to decide on a copy of the control partition older than this."""

# --- the ledger --------------------------------------------------------------------------------------------
LEDGER_LAG_S_MAX: Final = 300.0
"""How far the ledger may be behind before no change is taken: what the loss of every copy of the store may cost at most, and a
bound on how much the streams grow."""
LEDGER_EVENTS_DAYS: Final = 1_096
"""How long events are kept. Three years: records of trade, Electronic Commerce Law of the People's Republic of China, article 31."""
LEDGER_ATTEMPTS_DAYS: Final = 200
"""How long refused attempts are kept: the six months that the Cybersecurity Law (article 21) asks of logs, and some days."""

# --- place and stock ---------------------------------------------------------------------------------------
RADIUS_M_DEFAULT: Final = 500
RADIUS_M_MAX: Final = 100_000
"""The distance kernel's stated accuracy ends at 100 km."""
ACCURACY_ALLOWANCE_M_MAX: Final = 100.0
"""The stated accuracy of a position widens the radius by no more than this."""
ACCURACY_M_MAX: Final = 200.0
"""A position less certain than this can't decide anything: LOCATION_UNRELIABLE."""
TIER_TIGHT_PERCENT: Final = 30
"""Tiers, by available ÷ baseline: below this, codes issued are bound to the store's pickup windows."""
TIER_RED_PERCENT: Final = 10
"""At or below: alert, and promotional issue stops."""
TIER_CLOSED_PERCENT: Final = 5
"""At or below: the online channel closes."""
TIER_EMERGENCY_PERCENT: Final = 1
"""At or below: a transfer is asked of the region's factory store."""
TIER_HYSTERESIS_PERCENT: Final = 2
"""How far above a bound the stock must be before the tier is left upwards."""
STOCK_MAX: Final = 2**31 - 1
MALLS_PER_STORE_MAX: Final = 64
