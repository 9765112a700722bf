"""Small records of studies, for the tests of findings and of study pages."""

from ledgers import metric_fields, seed_records


def minilm_records(row, task, bests, dev_rows=1000, family=None, **changes):
    """A record a seed. Of ten dev rows a Matthews of 0.4 may be chance."""
    made = seed_records(row, task, bests, model="minilm", **changes)
    for record in made:
        record["determinism"] = {"threads": 1}
        record["data"]["dev_rows"] = dev_rows
        record["config"]["task"]["family"] = family or "glue"
        metric = "matthews" if task == "cola" else "accuracy"
        record["result"] |= metric_fields(metric)
    return made


def minilm_records_by_row(task, **bests):
    """Records of several rows on one task, by row."""
    return [
        record
        for row, scores in bests.items()
        for record in minilm_records(row, task, scores)
    ]
