"""The geodetic datums a position may be given in."""

from enum import IntEnum


class Datum(IntEnum):
    """Which datum a latitude and a longitude refer to.

    The same place has coordinates some hundred metres apart in these three, so a position without its datum
    is not a position: there is no default and no value for "unspecified".
    """

    #: World Geodetic System 1984 (NGA.STND.0036): what GPS chips and most phones' raw location give.
    WGS84 = 1
    #: The shifted datum that Chinese law prescribes for public maps: AMap, Tencent, WeChat's `gcj02`.
    GCJ02 = 2
    #: Baidu's own further shift of GCJ-02 (its `bd09ll`).
    BD09 = 3
