"""Small records of studies, for the tests of findings and of study pages."""

from ledgers import of_metric, seeds


def small(row, task, bests, dev_rows=1000, family=None, **changes):
    """A record a seed. Of ten dev rows a Matthews of 0.4 may be chance."""
    made = seeds(row, task, bests, model="minilm", **changes)
    for record in made:
        record["determinism"] = {"threads": 1}
        record["data"]["dev_rows"] = dev_rows
        record["config"]["task"]["family"] = family or "glue"
        metric = "matthews" if task == "cola" else "accuracy"
        record["result"] |= of_metric(metric)
    return made


def rows(task, **bests):
    """Records of several rows on one task, by row."""
    return [
        record for row, scores in bests.items() for record in small(row, task, scores)
    ]
