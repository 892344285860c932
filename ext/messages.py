"""The scanner of messages that this process uses: the kernel, or its twin when ``PICKGATE_PURE=1`` (see :mod:`ext`)."""

from typing import TYPE_CHECKING

from ext import PURE

if TYPE_CHECKING or not PURE:
    try:
        from ext.scan import Scanned, Shape, scan_batch
    except ImportError as missing:
        raise ImportError(
            f"the scan kernel is not built or not loadable ({missing}): run `make build`, "
            "or set PICKGATE_PURE=1 to use the slow pure Python twin"
        ) from missing
else:
    from ext.scan_reference import Scanned, Shape, scan_batch

__all__ = ["Scanned", "Shape", "scan_batch"]
