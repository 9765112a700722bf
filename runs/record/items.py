"""Which test rows a run got right: one bit for each, in the order of the data file.

The seeds of a cell are judged on the same rows, so an interval over seeds alone is too
short for a claim about other rows. With these bits a difference can be computed by seed
and row (analysis/inference.py). They hold no label and no text."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runs.record.schema import Record

#: Records keep bits of at most so many rows: 10,000 rows are 1,668 characters.
MOST_ITEMS = 10_000
#: The metric of rows that are right or wrong.
METRIC_OF_ITEMS = "accuracy"

Bits = npt.NDArray[np.bool_]


def pack(right: Sequence[bool] | Bits) -> str | None:
    """Packs one bit for each row, whether it is right, into a text of base64. None for
    more than MOST_ITEMS rows."""
    if len(right) > MOST_ITEMS:
        return None
    bits = np.packbits(np.asarray(right, dtype=bool))
    return base64.b64encode(bits.tobytes()).decode()


def unpack(text: str, rows: int) -> Bits:
    """Whether each row is right, (rows,), from a text of `pack`. Raises ValueError for a
    text of another number of rows, or that is no base64."""
    data = base64.b64decode(text, validate=True)
    if len(data) != (rows + 7) // 8:
        raise ValueError(f"{len(data)} bytes do not hold {rows} bits")
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=rows).astype(bool)


def right_items(record: Record, epoch: str) -> Bits | None:
    """Whether each row behind a record's score is right, (rows,). These are the rows
    whose texts it decoded at this epoch; if it decoded none, the dev rows. epoch: best
    or last. None for a record that does not say which rows are right."""
    texts = record.get("texts")
    if texts:
        for scores in texts["scores"]:
            if scores["which"] == epoch:
                bits = scores.get("right")
                return None if bits is None else unpack(bits, texts["items"])
    right_rows: Mapping[str, Any] = record.get("right") or {}
    bits = right_rows.get(epoch)
    return None if bits is None else unpack(bits, record["data"]["dev_rows"])


def groups_of_items(record: Record) -> list[int] | None:
    """The group of each item, where some resemble each other, such as sums of the same
    terms; None where every item is a group of its own."""
    texts = record.get("texts")
    return texts.get("groups") if texts else None
