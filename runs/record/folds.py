"""The runs of one cross-validation (task.folds), found from any one of them."""

from runs.record.cell import defining, hash_of
from runs.record.folder import RecordFolder
from runs.record.schema import Record

#: So many of the newest records are looked through.
LOOKED_AT = 10_000


def records_of_folds(record: Record, output: str) -> dict[int, Record]:
    """The finished records of the folds of a run's cross-validation, by fold, the run's
    own among them."""
    wanted = _without_fold(record)
    by_fold: dict[int, Record] = {}
    for other in RecordFolder(output).newest(LOOKED_AT):
        fold = other["config"]["task"].get("fold")
        if fold is None or other["status"] != "done" or fold in by_fold:
            continue
        if _without_fold(other) == wanted:
            by_fold[fold] = other
    by_fold[record["config"]["task"]["fold"]] = record
    return dict(sorted(by_fold.items()))


def _without_fold(record: Record) -> str:
    """What the folds of one cross-validation share."""
    parts = defining(record["config"])
    parts["task"] = {**parts["task"], "fold": None}
    seeds = [record["config"]["seed"], record["config"]["data_seed"]]
    start = (record.get("start") or {}).get("id")
    contents = [record["cell"]["row"], record["model"], record["data"]["content"]]
    return hash_of([parts, *contents, *seeds, start])
