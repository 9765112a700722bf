"""What lm-eval has measured of a run."""

from typing import Any

from runs.record.schema import Record

#: A result of lm-eval, as LM_EVAL in schema.py says.
LmEvalResult = dict[str, Any]


def evaluated(record: Record) -> list[LmEvalResult]:
    """What lm-eval has measured of a run."""
    return (record.get("result") or {}).get("lm_eval") or []


def adding(record: Record, *results: list[LmEvalResult]) -> Record:
    """A record's result with those of lm-eval: one of each way of asking a task, the
    last."""
    latest = dict[tuple[str, str], LmEvalResult]()
    for entries in results:
        for entry in entries:
            latest[entry["task"], entry["asked"]] = entry
    return {**record["result"], "lm_eval": [*latest.values()]}
