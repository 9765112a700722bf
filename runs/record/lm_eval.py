"""The results of lm-eval in a run's record."""

from runs.record.schema import LmEvalResult, Record, Result


def lm_eval_results(record: Record) -> list[LmEvalResult]:
    """What lm-eval has measured of a run, one entry for each task and way of asking."""
    result: Result | None = record.get("result")
    return result.get("lm_eval") or [] if result else []


def with_lm_eval(record: Record, *results: list[LmEvalResult]) -> Result:
    """A record's result with these results of lm-eval in place of its own. Of several for
    the same task and way of asking it, the one in the last list counts."""
    last_ones = dict[tuple[str, str], LmEvalResult]()
    for entries in results:
        for entry in entries:
            last_ones[entry["task"], entry["asked"]] = entry
    return {**record["result"], "lm_eval": [*last_ones.values()]}
