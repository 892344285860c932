"""What holds at a store at one moment, as the kernel that judges attempts reads it (ext.rows)."""

from typing import Final

import numpy as np

from ext.datum import Datum

STANDING: Final = np.dtype(
    {
        "names": ["rule", "closed", "window", "radius_m", "positions", "payload_life_s"],
        "formats": ["u1", "u1", "u1", "f8", ("f8", (len(Datum) + 1, 2)), "i8"],
        # Explicit offsets, so that every number is aligned and the C struct of ext/rows.pyx can be laid over a row.
        "offsets": [0, 1, 2, 8, 16, 80],
        "itemsize": 88,
    }
)
"""What a store (or an id that is none) says about an attempt at it.

rule: whether the terminal's position is looked at: 0 never, 1 when one is stated, 2 always, and one must be stated. closed, window: the
number of the verdict that the time of day finds against it, or 0. radius_m: metres. positions: the store's latitude and longitude in degrees, by
datum; row 0 stands for a datum that was not stated. payload_life_s: seconds.
"""
