"""Named limits of the wire and of the server; those of the domain are in `engine.limits`.

A thing a caller can size has its bound here, with the reason for the number. Units stand last in the names.
"""

from __future__ import annotations

from typing import Final

from engine import limits

CODE_CHARS_MAX: Final = 512
"""A scanned text up to this length is judged (INVALID_CODE); the longest genuine one has 186 characters. Past it the
caller is no scanner, and gets INVALID_ARGUMENT."""
RENDER_COUNT_MAX: Final = limits.RENDER_AHEAD_S_MAX // limits.PAYLOAD_LIFE_S_MIN
"""A day's worth of the shortest payloads."""
REVIEWS_PAGE_DEFAULT: Final = 50
PAGE_TOKEN_CHARS_MAX: Final = 128
NEAREST_DEFAULT: Final = 10
PUT_ITEMS_MAX: Final = limits.BATCH_MAX
"""Entries of one put: one script call, so that a put happens whole or not at all."""
PAGE_ITEMS_MAX: Final = 1_000
READ_SKUS_MAX: Final = 1_000
UNIT_CHARS_MAX: Final = 16
TIME_ZONE_CHARS_MAX: Final = 64
SHOWN_CHARS_MAX: Final = 60
"""How much of an offending value an error message repeats."""

ERROR_CHARS_MAX: Final = 300
"""How much of a foreign exception's text an error line repeats."""

THREADS_DEFAULT: Final = 16
"""Calls worked on at the same time; each waits mostly for the store."""
THREADS_MAX: Final = 64
"""As many as one process has connections to its store (engine.state.connection): more would only wait for one."""
CALLS_MAX: Final = 1_024
"""Calls accepted and not yet answered; past it the answer is RESOURCE_EXHAUSTED. Each has a thread that waits, first for its
request, then for its turn: a thread that waits costs some 50 KB and no time, and so no call waits behind a silent one."""
STREAMS_PER_CONNECTION_MAX: Final = 100
"""Calls at the same time on one connection, so that no single one can take all threads; what is more waits at the caller. Not
smaller: RFC 9113, section 6.5.2."""
REQUEST_WAIT_S: Final = 5.0
"""How long a call may wait for its request behind its headers. Both usually come in one packet; on a line where they are five
seconds apart nobody gets an answer in time."""
TURN_WAIT_S_MAX: Final = 60.0
"""How long a call without a deadline waits for its turn; nobody stands at a counter for longer."""
QUEUE_CALLS_MAX: Final = 4_096
"""Calls of the hot lane that wait for an answer; one more is shed with advice to retry. Under half a second of a busy server's
work, and 64 MiB of requests at most. While half as many wait, gRPC is asked for no more: what comes then waits in gRPC, and when
a connection has as many calls as it may have, at the caller. That costs this process nothing; a call that is shed costs it half of one that
is decided, and in a rush of three times what it can do it did little else."""
PENDING_CALLS_MAX: Final = 16_384
"""Calls that may wait in gRPC, some 13 KB each; past it gRPC itself cancels more and more of those that come, all at twice as many. Its
own default is a thousand: a burst, not a rush."""
SHED_AFTER_S: Final = 0.25
"""How long it may be as full as that before callers are told: a burst is waited for, a rush that lasts is not."""
SHED_EVERY: Final = 32
"""Then one of so many calls is shed with advice to retry: enough that each busy caller is told within a second, too few to keep the lane
from deciding the others."""
QUEUE_WAIT_S: Final = limits.STORE_TIMEOUT_S
"""How long a call of the hot lane may wait behind others for its part of the store. Those before it had as long."""
SILENT_CALLS_MAX: Final = 4_096
"""Calls of the hot lane whose request is still to come; for one more the oldest of them is cancelled, if it has been silent for
SILENT_S_MIN, else the new one is shed."""
SILENT_S_MIN: Final = 0.5
UNTAKEN_CALLS_MAX: Final = 4_096
"""Answers of the hot lane that their callers do not take (a window of nothing keeps a call, and what it is answered, for as long as the
connection lives); for one more the oldest is given up, if it has been there for UNTAKEN_S_MIN."""
UNTAKEN_S_MIN: Final = 1.0
UNTAKEN_S_MAX: Final = 30.0
"""How long one may wait to be taken: a day's worth of payloads, the longest answer there is, on the slowest mobile line."""
REQUESTED_AHEAD: Final = 256
"""Calls of each method of the hot lane that gRPC may hand over before one is asked for again: more than come while the draining
thread looks away."""
LANE_CHECK_S_MAX: Final = 5.0
"""How long the check of the hot lane before the start may take; it takes some 50 ms."""
SWITCH_S: Final = 0.0005
"""How long a thread that has the interpreter's lock may keep it from one that waits. With 5 ms, the interpreter's own, an owner's thread with a
batch's answer in hand waited that long for the lane's now and then, and the store had nothing to do."""
GARBAGE_LOOK_OBJECTS: Final = 5_000
"""New objects, less those that are gone, from which on the interpreter looks for garbage that only refers to itself. Some ten of them are a call under way:
with the interpreter's own 700 it looked each time a hundred calls had come, a fiftieth of all its time, and found none."""
STATISTICS_S: Final = 1.0
REQUEST_WAIT_STOPPING_S: Final = 0.5
REQUEST_LOOK_S: Final = 0.25
HANDSHAKE_S_MAX: Final = 5.0
"""How long a new connection may take to speak HTTP/2; gRPC's own default is two minutes."""
CONNECTION_IDLE_S_MAX: Final = 900.0
"""A connection without a call for so long is closed in order; a terminal's next scan opens another, in a millisecond or two."""
DRAINED_AT_ONCE: Final = 256
"""Events of the hot lane taken before what came with them is handed on: some eighty calls."""
SORTED_AT_ONCE: Final = 64
"""Calls that are sorted as one while all owners are busy: so many cost each hardly more than any number."""
ANSWERED_AT_ONCE: Final = 32
"""Calls of the hot lane answered before the lane drains again: a third of a millisecond of work. See server.owners."""
BULKS_MAX: Final = 32
"""Calls with a large request (bulk issue) in work or waiting: 32 x 4 MiB of requests in memory at most."""
WATCH_THREADS_SPARE: Final = 4
"""Threads of watches beyond the most that can watch: for telling the others that they are too many."""
CURSOR_MESSAGE_BYTES_MAX: Final = 64 * 1024
"""A request with a cursor: one of 1,024 partitions has up to 40 KiB."""
FEED_BATCH_DEFAULT: Final = 100
FEED_BATCH_MAX: Final = 500
"""Settlements or events of one answer: half a megabyte where each has sixteen parties."""
AUDIT_PAGE_DEFAULT: Final = 100
AUDIT_PAGE_MAX: Final = 500
AUDIT_S_MAX: Final = 5.0
"""How long a search in the audit may keep its thread; one by code, order or store takes milliseconds."""
RECONCILIATIONS_PAGE_DEFAULT: Final = 50
RECONCILIATIONS_PAGE_MAX: Final = 200
"""Also drifts of one page: each may name a hundred events."""
VERIFY_ROWS_MAX: Final = 10_000
"""Rows verified by one call: some 0.2 s of the interpreter, and half of that for the signed heads (engine.ledger.heads)."""
LEDGER_OPEN_S: Final = 1.0
"""How long a ledger that could not be opened is not tried again: the calls meanwhile are told the same."""
WORKERS_MAX: Final = 32
WORKER_START_S_MAX: Final = 60.0
"""How long the first workers may take until they serve; a second or two on a quiet machine."""
WORKER_WAIT_S_MIN: Final = 0.1
WORKER_WAIT_S_MAX: Final = 5.0
"""A worker that ends is started again after the first of these, doubled each time up to the second."""
WORKER_STEADY_S: Final = 10.0
"""Once a worker has lived this long, its next end counts as its first."""
WORKER_END_S_MAX: Final = 10.0
"""How long beyond its grace a worker may take to end: the store's timeout, its pools, its threads."""
GRACE_S_DEFAULT: Final = 10.0
"""How long a stop waits for calls in flight; the longest legitimate one is bounded by the store's timeout of 3 s."""
GRACE_S_MAX: Final = 600.0
HEALTH_LOOK_S: Final = 1.0
"""How often the health service looks whether the store is there."""

CERTIFICATES_BYTES_MAX: Final = 1 << 20
"""Of one file of certificates: some hundreds of CAs."""
CSR_CHARS_MAX: Final = 4_096
"""Of a terminal's request for a certificate; one for a key on P-256 has some 400."""
TRUST_DOMAIN_CHARS_MAX: Final = 255
INVITATION_CHARS_MAX: Final = 256
"""Of an invitation's token; ours have 32."""
SIGHTINGS_S: Final = 60.0
"""How often it is noted which terminals have called: one write for all of them."""
CERTIFICATES_LOOK_S: Final = 1.0
CERTIFICATES_SETTLE_S: Final = 0.5
"""How long a set of files that does not fit may still be on its way; they are replaced one after the other."""
CERTIFICATE_WARNING_S: Final = 14 * 24 * 3600.0
"""How long before its end the log warns of the server's certificate."""
TLS_CONNECTION_AGE_S_MAX: Final = 3600.0
"""A connection under TLS is ended in order after this and made anew by its client, under the certificates then in force."""

CALLERS_KEPT: Final = 20_000
"""Certificates and tokens whose callers are remembered: some 20 MB. One more, and the one that called longest ago is found out anew,
in a tenth of a millisecond."""
REFUSALS_TOLD_S: Final = 60.0
"""How often the log tells of callers who are refused for the same reason."""
TOKEN_CHARS_MAX: Final = 8_192
"""Of an access token; a long one has two thousand."""
TOKEN_LEEWAY_S_MAX: Final = 120
JWKS_BYTES_MAX: Final = 1 << 20
JWKS_KEYS_MAX: Final = 100
JWKS_LOOK_S: Final = 1.0
JWKS_REFETCH_S: Final = 300.0
"""How often an issuer's keys are fetched; a file is looked at each second."""
JWKS_REFETCH_S_MIN: Final = 10.0
"""The same, when a token came under a key that is not there, or the last fetch failed."""
JWKS_AGE_S_MAX: Final = 24 * 3600.0
"""Keys that could not be fetched again for so long count no more."""
JWKS_FETCH_S_MAX: Final = 5.0
THROTTLED_MAX: Final = 16_384
"""Terminals, stores and addresses whose bad answers are remembered, some 300 bytes each; for one more, that of longest ago goes."""
SLOW_DOWN_S_MAX: Final = 60.0
"""How long who floods waits at most until one more of its codes is looked at."""
SLOW_DOWN_HOLD_S: Final = 1.0
"""How long the hot lane keeps a refusal to itself: who floods waits for its answers, and so sends less."""
HELD_CALLS_MAX: Final = 4_096
"""Refusals kept back at the same time; one more is answered at once. Each is a call without its request, some 2 KB."""
ALERT_REFUSALS: Final = 50
"""Calls refused to one that is slowed down before somebody is told: a clerk who tries again and again has not as many."""
ALERT_AGAIN_S: Final = 3_600.0
ALERTS_PER_HOUR_MAX: Final = 100
"""Lines in the log in a wide attack; all are counted."""

CLIENT_TIMEOUT_S_DEFAULT: Final = 10.0
"""For one try of a call."""
CLIENT_TRIES_DEFAULT: Final = 5
CLIENT_WAIT_S_MIN: Final = 0.2
CLIENT_WAIT_S_MAX: Final = 5.0
"""Back-off between tries doubles from the first to the second, plus jitter."""
CLIENT_WAITS_S_MAX: Final = 4.0
"""All waits of one call: a person stands at the counter. Advice to wait longer than this means that somebody must act."""
