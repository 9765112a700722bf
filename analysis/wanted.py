"""How many seeds a cell should have: those of its table's protocol, or of the preset that ran it."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import yaml

from analysis.beside import VERDICT_SEEDS
from analysis.cells import Cell, Key, cells
from runs.record import CONF, Record

#: Where it is not VERDICT_SEEDS.
PROTOCOLS = {"alpaca": 1, "e2e": 3, "reviews": 3}
#: Tasks of studies that have more seeds than the protocol: there the preset says it.
OF_STUDIES = {"alpaca", "reviews"}


def wanted(key: Key, records: Iterable[Record]) -> int:
    """For a cell of these records."""
    of_protocol = PROTOCOLS.get(key[2], VERDICT_SEEDS)
    if key[2] not in OF_STUDIES:
        return of_protocol
    return max((_seeds(str(record["cell"]["paper"])) for record in records), default=0) or of_protocol


def with_wanted(by_key: dict[Key, Cell]) -> dict[Key, Cell]:
    """The same cells, which then want so many seeds."""
    for key, cell in by_key.items():
        cell.wanted = wanted(key, cell.records)
    return by_key


def all_cells(records: Iterable[Record], select: str = "paper") -> dict[Key, Cell]:
    """Every cell of a ledger, or of some of its records, whatever table it belongs to."""
    return with_wanted(cells(records, VERDICT_SEEDS, select))


@cache
def _seeds(preset: str) -> int:
    """How many seeds a preset has; 0 where it is none, or says nothing of them."""
    path = CONF / "experiment" / f"{preset}.yaml"
    node: Any = yaml.safe_load(path.read_text()) if path.is_file() else {}
    for key in ("hydra", "sweeper", "params", "seed"):
        node = node.get(key, {})
    return len(str(node).split(",")) if node != {} else 0
