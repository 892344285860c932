"""The kernels of the hot lane that this process uses, or their twins when ``PICKGATE_PURE=1`` (see :mod:`ext`).

From the wire to the store and back: messages into columns, columns into rows, rows into script calls, answers into messages.
"""

from typing import TYPE_CHECKING

from ext import PURE

if TYPE_CHECKING or not PURE:
    try:
        from ext.answers import Answers
        from ext.rows import Judge, digests, gather, join_rows, slices
        from ext.scan import Scanned, Shape, scan_batch
        from ext.script_calls import Pointers, group_rows, script_call
    except ImportError as missing:
        raise ImportError(
            f"a kernel of the lane is not built or not loadable ({missing}): run `make build`, "
            "or set PICKGATE_PURE=1 to use the slow pure Python twin"
        ) from missing
else:
    from ext.answers_reference import Answers
    from ext.rows_reference import Judge, digests, gather, join_rows, slices
    from ext.scan_reference import Scanned, Shape, scan_batch
    from ext.script_calls_reference import Pointers, group_rows, script_call

__all__ = [
    "Answers",
    "Judge",
    "Pointers",
    "Scanned",
    "Shape",
    "digests",
    "gather",
    "group_rows",
    "join_rows",
    "scan_batch",
    "script_call",
    "slices",
]
