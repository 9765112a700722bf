"""Records of small studies with MiniLM, for the tests of findings and of study pages."""

from ledgers import metric_fields, seed_records


def minilm_records(row, task, bests, dev_rows=1000, family=None, **changes):
    """A record for each best value, with seeds from 0.

    dev_rows: of the task. There are more than ledgers.record has, since among ten rows a
    Matthews correlation of 0.4 may be chance."""
    records = seed_records(row, task, bests, model="minilm", **changes)
    for record in records:
        record["determinism"] = {"threads": 1}
        record["data"]["dev_rows"] = dev_rows
        record["config"]["task"]["family"] = family or "glue"
        metric = "matthews" if task == "cola" else "accuracy"
        record["result"] |= metric_fields(metric)
    return records


def minilm_records_by_row(task, **bests):
    """A list of the records of several rows on one task. bests: the best values of each
    row."""
    records = []
    for row, scores in bests.items():
        records += minilm_records(row, task, scores)
    return records
