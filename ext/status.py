"""What opening a payload can answer: a closed set, numbered once, a retired number never used again.

Internal: whoever presents a payload learns only that it is not genuine, whatever the number was. The numbers are for
counters and tests. The names F1 to F10 are the checks of docs/format.md.
"""

from enum import IntEnum, unique


@unique
class OpenStatus(IntEnum):
    """The first check of docs/format.md that a payload failed; OK if it failed none. Fits uint8."""

    OK = 0
    """Authentic and canonical. Says nothing about freshness, place or use."""
    LENGTH = 1
    """F1: the number of bytes (or characters) is that of no version."""
    PREFIX = 2
    """F2: the text doesn't begin with "PG"."""
    ALPHABET = 3
    """F3: a character outside the 32 of the alphabet, lower case and look-alikes included."""
    SPARE_BITS = 4
    """F4: the bits of the last character that carry no data are not zero."""
    HEADER = 5
    """F5: no such version or suite, or a version of another length."""
    KID = 6
    """F6: no key of this kid, or one for another version or suite."""
    TAG = 7
    """F7: the authentication tag is wrong."""
    SIGNATURE = 8
    """F8: the tag is right and the issuer's signature is wrong."""
    UID_SHAPE = 9
    """F9: the uid is not one of this version."""
    RESERVED = 10
    """F10: a reserved bit is set."""
