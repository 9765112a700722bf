"""The runs of one cross-validation (task.folds), found from any one of them."""

from runs.record.cell import defining_settings, hash_of, protocol_of, recorded_start
from runs.record.folder import RecordFolder
from runs.record.schema import Record

#: How many records are searched at most: the newest ones.
MOST_RECORDS = 10_000


def records_of_folds(record: Record, output: str) -> dict[int, Record]:
    """The records of all done folds of the cross-validation that a run belongs to, by the
    number of the fold. The run's own record is among them.

    record: of a run with task.folds. output: the folder that is searched."""
    own_fold = record["config"]["task"].get("fold")
    assert own_fold is not None, "a run without task.folds has no cross-validation"
    validation_hash = _hash_without_fold(record)
    by_fold: dict[int, Record] = {}
    for candidate in RecordFolder(output).newest(MOST_RECORDS):
        fold = candidate["config"]["task"].get("fold")
        if fold is None or candidate["status"] != "done" or fold in by_fold:
            continue
        if _hash_without_fold(candidate) == validation_hash:
            by_fold[fold] = candidate
    by_fold[own_fold] = record
    return dict(sorted(by_fold.items()))


def _hash_without_fold(record: Record) -> str:
    """A hash of what defines a run, except its fold: the same for all folds of one
    cross-validation."""
    parts = defining_settings(record["config"])
    parts["task"] = {**parts["task"], "fold": None}
    seeds = [record["config"]["seed"], record["config"]["data_seed"]]
    contents = [record["cell"]["row"], record["model"], record["data"]["content"]]
    origin = [recorded_start(record), protocol_of(record)]
    return hash_of([parts, *contents, *seeds, *origin])
