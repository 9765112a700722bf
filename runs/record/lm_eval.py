"""What lm-eval has measured of a run."""

from runs.record.schema import LmEvalResult, Record, Result


def evaluated(record: Record) -> list[LmEvalResult]:
    """What lm-eval has measured of a run."""
    result: Result | None = record.get("result")
    return result.get("lm_eval") or [] if result else []


def adding(record: Record, *results: list[LmEvalResult]) -> Result:
    """A record's result with those of lm-eval: one of each way of asking a task, the
    last."""
    latest = dict[tuple[str, str], LmEvalResult]()
    for entries in results:
        for entry in entries:
            latest[entry["task"], entry["asked"]] = entry
    return {**record["result"], "lm_eval": [*latest.values()]}
