"""The geo kernel that this process uses: the compiled one, or its twin when ``PICKGATE_PURE=1`` (see :mod:`ext`)."""

from typing import TYPE_CHECKING

from ext import PURE
from ext.datum import Datum

if TYPE_CHECKING or not PURE:
    try:
        from ext.geo import (
            DISTANCE_BUCKET_UNKNOWN,
            convert,
            distance_batch,
            distance_bucket,
            within_batch,
        )
    except ImportError as missing:
        raise ImportError(
            f"the geo kernel is not built or not loadable ({missing}): run `make build`, "
            "or set PICKGATE_PURE=1 to use the slow pure Python twin"
        ) from missing
else:
    from ext.geo_reference import (
        DISTANCE_BUCKET_UNKNOWN,
        convert,
        distance_batch,
        distance_bucket,
        within_batch,
    )

__all__ = ["DISTANCE_BUCKET_UNKNOWN", "Datum", "convert", "distance_batch", "distance_bucket", "within_batch"]
