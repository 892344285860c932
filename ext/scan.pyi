"""Scan batches of small protobuf messages into columns, the GIL released.

An accelerator and no parser: a message that is anything but plain is only marked, and the caller parses it with the protobuf
library, which knows all the rest. So what the kernel takes is read as the library reads it, and nothing is decided here.

Source: the encoding of protocol buffers, https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

FIELDS_MAX: int
"""Fields of a shape: as many as bits in `Scanned.present`."""
NUMBER_MAX: int
"""Largest number of a field."""
MESSAGES_MAX: int
"""Messages of a shape, the outer one included."""

class Scanned(NamedTuple):
    """What a batch of n messages says. Columns are in the order of the shape's fields of that kind."""

    plain: npt.NDArray[np.bool_]
    """n: whether the message was understood; where it was not, every other column has zeros."""
    present: npt.NDArray[np.uint32]
    """n: bit f is set when field f of the shape was there."""
    numbers: npt.NDArray[np.float64]
    """Fields of kind uint32, enum and double × n; 0 where absent."""
    wire: bytes
    """All messages, back to back."""
    starts: npt.NDArray[np.int64]
    """Fields of kind text × n: where the text begins in `wire`; 0 where absent."""
    ends: npt.NDArray[np.int64]
    """Fields of kind text × n: where it ends; 0 where absent."""

@final
class Shape:
    """Which fields of a message are wanted, and of the messages within it.

    fields: (path, kind) each. path: field numbers (1 to NUMBER_MAX) from the outer message inwards, one or two of them. kind:
    "uint32", "enum", "double", "text" or "message"; the message that a path of two leads through is a field of its own, before
    it. ranges: by path, the lowest and the highest value of a number, or length in characters of a text, both included; an absent number
    is 0, an absent text has no characters. needed: paths of fields that have to be there. Neither is looked at in an inner
    message that is absent itself. Anything else raises ``ValueError``.
    """

    def __init__(
        self,
        fields: Sequence[tuple[tuple[int, ...], str]],
        ranges: Mapping[tuple[int, ...], tuple[float, float]] | None = None,
        needed: Iterable[tuple[int, ...]] = (),
    ) -> None: ...

def scan_batch(shape: Shape, messages: Sequence[bytes]) -> Scanned:
    """Scan n messages.

    A message is plain when each of its fields is in the shape, has that kind's wire type, and is there at most once; when
    varints have no more than ten bytes and values below 2**32 (enums below 2**31); when texts are printable ASCII without
    blanks (0x21 to 0x7e), and doubles are numbers; when it has what the shape needs, all within its range; and when nothing is
    cut off. Raises ``TypeError`` for anything that isn't bytes.
    """
