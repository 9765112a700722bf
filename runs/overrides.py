"""The overrides that compose a record's run."""

import json
from functools import cache

from runs.record import PUBLISHED, Record


def overrides_of(record: Record) -> list[str]:
    """The overrides of `python -m runs` that make a record's run again; none where it has none, as of a run
    of an older version that is not published. Of a published run a local file or folder is its name alone."""
    words = record.get("overrides") or _of_older_records().get(record["id"])
    return [*words, f"seed={record['cell']['seed']}"] if words else []


@cache
def _of_older_records() -> dict[str, list[str]]:
    """Without the seed, by run, those of published records from before a record had them."""
    lines = (PUBLISHED / "overrides.jsonl").read_text(encoding="utf-8").splitlines()
    return {run: line["overrides"] for line in map(json.loads, lines) for run in line["runs"].split()}
