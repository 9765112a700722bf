"""The file of a measure."""

import time
from typing import Any

from runs.identity import hash_of
from runs.record import MEASURE_SCHEMA, Record


def new_measure(
    kind: str,
    started: float,
    of: list[dict[str, Any]],
    settings: dict[str, Any],
    seeds: dict[str, Any],
    values: dict[str, list[Any]],
    summary: dict[str, float],
) -> Record:
    """A measure. Its id is a hash of kind, runs, settings and seeds. started: by time.monotonic()."""
    import torch

    from runs.training.provenance import code_state, machine, versions

    name = hash_of([kind, [[run["id"], run["adapter"]] for run in of], settings, seeds])[:12]
    return {
        "schema": MEASURE_SCHEMA,
        "id": name,
        "kind": kind,
        "of": of,
        "settings": settings,
        "seeds": seeds,
        "code": code_state(),
        "versions": versions(),
        "device": machine(torch.device("cpu")),
        "seconds": round(time.monotonic() - started, 3),
        "values": values,
        "summary": summary,
    }
