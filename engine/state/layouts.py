"""Binary layouts that Lua and Python share, each written once.

A layout is a list of `name:code` fields, big-endian: `c8` eight raw bytes, `B` one byte, `I2` `I4` `I6` `I8` unsigned integers.
The script loader hands the Lua side its format string from here, and each script's header repeats the fields; a test compares
both. Times of day are unix milliseconds in six bytes (good until the year 10889), expiries unix seconds in four.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final

import numpy as np

_CODES: Final = {"B": "B", "I2": "H", "I4": "I", "I6": "6s", "I8": "Q"}
_DTYPES: Final = {"B": "u1", "I2": ">u2", "I4": ">u4", "I8": ">u8"}


class Layout:
    """A fixed run of fields, packed and unpacked in one step."""

    __slots__ = ("_sixes", "dtype", "lua", "names", "pack", "size", "struct", "text")

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        fields = [field.split(":") for field in self.text.split(" ")]
        self.names: tuple[str, ...] = tuple(name for name, _ in fields)
        self.lua = ">" + "".join(code for _, code in fields)
        python = "".join(
            f"{code[1:]}s" if re.fullmatch(r"c\d+", code) else _CODES[code] for _, code in fields
        )
        self.struct = struct.Struct(">" + python)
        self.size = self.struct.size
        self.pack = self.struct.pack
        self._sixes = tuple(at for at, (_, code) in enumerate(fields) if code == "I6")
        self.dtype = np.dtype([(name, _DTYPES.get(code, f"V{code[1:]}")) for name, code in fields])
        """The layout as a NumPy row without gaps; raw fields, and six-byte integers, as void."""

    def at(self, name: str) -> int:
        """Where a field begins, in bytes."""
        found = self.dtype.fields
        assert found is not None
        return int(found[name][1])

    def unpack(self, data: bytes, offset: int = 0) -> tuple[Any, ...]:
        """Fields at `offset`: raw ones as bytes, all others as int."""
        values = list(self.struct.unpack_from(data, offset))
        for at in self._sixes:
            values[at] = int.from_bytes(values[at], "big")
        return tuple(values)


RECORD: Final = Layout(
    "layout:B state:B flavour:B channel:B mall:I4 store:I4 policy:I4 issued:I6 changed:I6 stamp_floor:I4 exp:I4 issue_exp:I4 amount:I4 "
    "ttl:I4 flags:B pin_generation:B revision:B cycle:B tries:B issue_epoch:I4 issue_seq:I6 request:c12 body:c8 "
    "last_terminal:I4 last_at:I6 lock_epoch:I4 lock_seq:I6 n_lines:B n_bundles:B n_requests:B order_len:B split_len:I2"
)
"""A code's record; behind it n_lines × LINE, n_bundles × BUNDLE, n_requests × 12 bytes of request digests, the order id, the split,
and the uid that it replaces, if any. `ttl` is what confirm gives a held code; `flags` are FLAG_*."""

FLAG_WINDOWS_BIND: Final = 1
"""Issued while a SKU's stock was tight: it is handed out only in the store's pickup windows."""
FLAG_PROOF_NEEDED: Final = 2
"""Handed out only with a proof token, by one of the methods of the next three bits."""
FLAG_METHODS: Final = {"face": 4, "id_document": 8, "two_staff": 16}
"""Ways of proof that the code's policy offered when it was issued."""

LINE: Final = Layout("sku:I4 count:I2 left:I2")
"""One line of a record or an answer."""

BUNDLE: Final = Layout("sku:I4 units:I2 first:B n:B")
"""A bundle of a record: its SKU, its units at issue, and which lines (from `first`, 1-based, `n` of them) are its parts."""

STOCK: Final = Layout("on_hand:I4 reserved:I4 baseline:I4 tier:B")
"""Stock figures of one SKU."""

TIERS: Final = Layout("tight:B red:B closed:B emergency:B hysteresis:B")
"""Bounds of the tiers, in percent of available ÷ baseline, and the points of slack upwards (engine.policies.Tiers)."""

EVENT: Final = Layout(
    "layout:B type:B at:I6 mall:I4 store:I4 uid:c8 terminal:I4 request:c12 body:c8 actor_len:I2"
)
"""Head of every event; behind it the actor, then what the type says (events.py)."""

ATTEMPT: Final = Layout("at:I6 uid:c8 mall:I4 store:I4 terminal:I4 verdict:B bucket:B")
"""One refused attempt in the bounded stream."""

FORGERY: Final = Layout("minute:I6 mall:I4 store:I4 terminal:I4 count:I4 n_samples:B")
"""Codes that were not genuine, of one terminal and minute; behind it n_samples × FORGERY_SAMPLE."""

FORGERY_SAMPLE: Final = Layout("at:I6 chars:I2 shape:B dry:B")
"""One of them: when, how long, what it looked like (engine.state.forgeries.Shape), whether it was only inspected."""

REDEEM_ITEM: Final = Layout(
    "uid:c8 record_key:I2 answer_key:I2 stock_key:I2 due_key:I2 proof_key:I2 request:c12 body:c8 mall:I4 store:I4 terminal:I4 "
    "version:B stale:B pin_1:B pin_2:B generation_1:B generation_2:B proof:B place:B closed:B window:B bucket:B dry:B "
    "proof_digest:c12 proof_method:B n_lines:B actor_len:I2"
)
"""One try to redeem: keys as indexes into KEYS; behind it n_lines × (sku:I4 count:I2) and the actor."""

WANTED: Final = Layout("sku:I4 count:I2")
"""One wanted line of an issue or a redemption."""

REDEEM_ANSWER: Final = Layout(
    "verdict:B at:I6 epoch:I4 seq:I6 terminal:I4 tries_left:B sku:I4 store:I4 cycle:B flavour:B flags:B exp:I4 bucket:B "
    "n_lines:B order_len:B"
)
"""Answer of one try; behind it n_lines × LINE and the order id. This is also what is remembered."""

ISSUE_ITEM: Final = Layout(
    "request:c12 body:c8 replaces:c8 mall:I4 store:I4 state:B channel:B flavour:B flags:B policy:I4 exp:I4 ttl:I4 amount:I4 "
    "pin_generation:B finding:B finding_sku:I4 stock_key:I2 due_key:I2 n_candidates:B n_free:B n_lines:B n_bundles:B order_len:B "
    "split_len:I2 actor_len:I2"
)
"""One issue (state LIVE) or hold (HELD); behind it n_candidates × CANDIDATE, n_lines × WANTED, n_bundles × BUNDLE, order id,
split, actor."""

CANDIDATE: Final = Layout("uid:c8 record_key:I2")
"""A uid that the request may get, and the index of its bucket in KEYS."""

ISSUE_ANSWER: Final = Layout("verdict:B uid:c8 issued:I6 exp:I4 pin_generation:B epoch:I4 seq:I6 sku:I4")
"""Answer of one issue."""

VOID_ITEM: Final = Layout(
    "uid:c8 record_key:I2 answer_key:I2 stock_key:I2 due_key:I2 request:c12 body:c8 mall:I4 store:I4 actor_len:I2 reason_len:I2"
)
"""One void; behind it the actor and the reason. `stock_key` and `store` are those of the code's record as read before."""

VOID_ANSWER: Final = Layout("verdict:B at:I6 epoch:I4 seq:I6 terminal:I4 n_lines:B")
"""Answer of one void; behind it n_lines × LINE with what was released in `left`."""

STOCK_ITEM: Final = Layout(
    "stock_key:I2 answer_key:I2 request:c12 body:c8 mall:I4 store:I4 sku:I4 change:B negative:B amount:I4 finding:B "
    "actor_len:I2 reason_len:I2"
)
"""One stock change; behind it the actor and the reason. The amount's sign travels in `negative`."""

STOCK_ANSWER: Final = Layout("verdict:B sku:I4 on_hand:I4 reserved:I4 baseline:I4 tier:B epoch:I4 seq:I6")
"""Answer of one stock change: the figures after it."""

EXPIRE_ITEM: Final = Layout("uid:c8 record_key:I2 stock_key:I2 due_key:I2 n_answers:B")
"""One uid whose time has come; behind it n_answers × ANSWER_KEY, for the record's remembered requests."""

ANSWER_KEY: Final = Layout("request:c12 answer_key:I2")
"""A remembered request, and the bucket that holds its answer."""

CHANGE_ITEM: Final = Layout(
    "uid:c8 record_key:I2 answer_key:I2 due_key:I2 request:c12 body:c8 mall:I4 exp:I4 actor_len:I2"
)
"""One confirm (exp unused) or extend (exp the new expiry, unix seconds); behind it the actor."""

CHANGE_ANSWER: Final = Layout("verdict:B at:I6 exp:I4 epoch:I4 seq:I6")
"""Answer of one confirm or extend."""

REVERSE_ITEM: Final = Layout(
    "uid:c8 record_key:I2 answer_key:I2 stock_key:I2 due_key:I2 forget_key:I2 request:c12 body:c8 mall:I4 store:I4 terminal:I4 "
    "window_s:I4 cycles_max:B release:B exp:I4 n_lines:B actor_len:I2 reason_len:I2"
)
"""One reversal; `exp` is the earliest expiry afterwards; behind it n_lines × WANTED, the actor and the reason."""

REVERSE_ANSWER: Final = Layout("verdict:B at:I6 epoch:I4 seq:I6 exp:I4 sku:I4 store:I4 cycle:B n_lines:B")
"""Answer of one reversal; behind it n_lines × LINE: units that came back, and units left afterwards."""

EVIDENCE: Final = Layout("at:I6 store:I4 terminal:I4 verdict:B bucket:B actor_len:I2")
"""One counted try, kept while it counts; behind it the actor. `verdict` is RedeemVerdict's number, or RenderVerdict's when
terminal is 0 (the customer's own phone)."""

TRY_ITEM: Final = Layout(
    "uid:c8 record_key:I2 answer_key:I2 request:c12 body:c8 mall:I4 verdict:B bucket:B actor_len:I2"
)
"""One failed try of the customer's own; `verdict` is RenderVerdict's number; behind it the actor."""

TRY_ANSWER: Final = Layout("verdict:B at:I6 epoch:I4 seq:I6 tries_left:B")
"""Answer of one such try."""

REVIEW_ITEM: Final = Layout(
    "uid:c8 record_key:I2 answer_key:I2 stock_key:I2 due_key:I2 request:c12 body:c8 mall:I4 store:I4 decision:B actor_len:I2 "
    "reason_len:I2"
)
"""One decision on a locked code; behind it the actor and the reason."""

REVIEW_ANSWER: Final = Layout("verdict:B at:I6 epoch:I4 seq:I6 sku:I4 n_lines:B")
"""Answer of one decision; behind it n_lines × LINE: what it handed out or released."""

TRANSFER_ITEM: Final = Layout(
    "step:B stock_key:I2 answer_key:I2 transit_key:I2 request:c12 body:c8 departure:c10 mall:I4 store:I4 other_store:I4 sku:I4 "
    "amount:I4 finding:B actor_len:I2"
)
"""One step of a transfer, from the view of `store`; behind it the actor. Answered with STOCK_ANSWER.

departure is the number of the event by which the units left (DEPARTURE), zeros in the step that makes it.
"""

DEPARTURE: Final = Layout("epoch:I4 seq:I6")
"""Number of the event by which units left, in their partition."""

TRANSIT: Final = Layout("body:c8 mall:I4 store:I4 other_store:I4 sku:I4 amount:I4 at:I6")
"""Units that left `store` and have not arrived at `other_store`; behind it the actor."""

REGISTER_ITEM: Final = Layout("request:c12 body:c8 ahead:I2 day_0:I2 day_1:I2 day_2:I2 day_3:I2")
"""One request id, and the register buckets of today and of the three days before. `ahead` is today's too, or, shortly before
midnight, that of tomorrow, in which a process with a faster clock may have entered it."""

LAYOUTS: Final = {name: value for name, value in globals().items() if isinstance(value, Layout)}
