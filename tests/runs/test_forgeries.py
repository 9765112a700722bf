"""Records that somebody has edited: what `publish check` notices, and what nobody can
prove."""

import copy
import json

import pytest
from running import trained

from runs.publishing.study_check import problems_of_study, read_study_folder
from runs.record.derived import NOT_PROVABLE, contradictions, derived_keys
from runs.record.items import pack, unpack
from runs.record.ledger import PUBLISHED, read_study, write_study

pytestmark = pytest.mark.properties

#: A study with several seeds, whose records name their overrides.
STUDY = "near_minilm"


def edit(path, value):
    """An edit of a record: a dotted path, and its new value or a function of the old
    one."""

    def change(record):
        *parents, name = path.split(".")
        part = record
        for parent in parents:
            part = part[int(parent) if isinstance(part, list) else parent]
        key = int(name) if isinstance(part, list) else name
        part[key] = value(part[key]) if callable(value) else value

    change.__name__ = path
    return change


def both(*changes):
    """Several edits as one."""

    def change(record):
        for single in changes:
            single(record)

    return change


def with_score(score, *columns):
    """The best epoch's score, in the curve and in every place that follows from it."""

    def change(record):
        curve, result = record["curve"], record["result"]
        best = curve["metric"].index(max(curve["metric"]))
        for column in ("metric", *columns):
            curve[column][best] = score
        result["best"] = score
        result["protocols"]["paper"]["best"] = score

    return change


def swap_overrides(record):
    record["overrides"] = ["train.lr=0.5", "model=minilm", "task=sst2"]


FORGERIES = {
    "score in curve and result": with_score(0.99),
    "accuracy above 1": with_score(1.7),
    "accuracy of no number of rows": with_score(0.99003),
    "score in curve alone": edit("curve.metric.0", 0.99),
    "score in result alone": edit("result.best", 0.99),
    "last score": edit("result.last", 0.99),
    "best epoch": edit("result.best_epoch", 1.5),
    "protocols.paper": edit("result.protocols.paper.best", 0.99),
    "protocols.crossfit": edit("result.protocols.crossfit.best", 0.99),
    "select": both(edit("result.select", "crossfit"), edit("result.best", 0.99)),
    "select of no protocol": edit("config.select", "xyz"),
    "an evaluation without a score": edit("curve.metric.0", None),
    "half of the test rows": edit("curve.metric_select.0", 0.99),
    "other half of the test rows": edit("curve.metric_report.0", 0.99),
    "scale": edit("result.scale", 200.0),
    "direction": edit("result.higher_is_better", False),
    "epoch that is reported": edit("result.reported", "last"),
    "metric": edit("result.metric", "pearson"),
    "hash of the model": edit("model", "sha256:" + "0" * 64),
    "hash of the data": edit("data.content", "sha256:" + "0" * 64),
    "training rows": edit("data.train_rows", 100_000),
    "test rows": edit("data.dev_rows", lambda rows: rows - 1),
    "row of the cell": edit("cell.row", "full"),
    "task of the cell": edit("cell.task", "rte"),
    "seed of the cell": edit("cell.seed", 77),
    "label of the row": edit("label.row", "Ours"),
    "label of the model": edit("label.model", "RoBERTa-base"),
    "label of the task": edit("label.task", "RTE"),
    "learning rate": edit("config.train.lr", 0.5),
    "weight decay": edit("config.train.weight_decay", 0.5),
    "seed": edit("config.seed", 77),
    "seed of the order": edit("config.data_seed", 77),
    "epochs": edit("config.train.epochs", lambda epochs: epochs + 1),
    "batch": edit("effective_batch", 7),
    "batch of the configuration": edit("config.train.effective_batch", 7),
    "micro-batch": edit("micro_batch", 3),
    "steps": edit("steps", 7),
    "steps of the curve": edit("curve.step.0", 7),
    "epochs of the curve": edit("curve.epoch.0", 0.5),
    "rank": edit("config.method.rank", lambda rank: rank * 2),
    "another run's overrides": swap_overrides,
    "id": edit("id", "0" * 12),
    "id of a path": edit("id", "../../../x"),
    "trained parameters": edit("parameters.adapter", 1),
    "formula": edit("parameters.formula", 1),
    "parameters of a group": edit("groups.0.parameters", 1),
    "rate of a group": edit("groups.0.lr", 0.5),
    "source of the recipe": edit("recipe.source", "the paper"),
    "seeds": edit("seeds.training", 77),
    "cell id": edit("cell_id", "0" * 16),
    "protocol": edit("protocol", 99),
    "sources of the code": edit("code.sources.method.sha256", "0" * 16),
    "changed code": edit("code.altered", ["runs/run/definition.py"]),
}


@pytest.fixture(scope="module")
def records():
    """Four sound records of two rows."""
    of_rows = {}
    for record in read_study(PUBLISHED / STUDY):
        of_rows.setdefault(record["cell"]["row"], []).append(record)
    return [record for group in of_rows.values() for record in group[:2]]


def check(records, folder):
    write_study(folder, records)
    (folder / "NOTES.md").write_text("On a laptop.\n")
    return problems_of_study(read_study_folder(folder))


def test_sound_records_have_no_problem(records, tmp_path):
    assert check(records, tmp_path / "sound") == []


@pytest.mark.parametrize("name", FORGERIES)
def test_an_edited_record_is_noticed(name, records, tmp_path):
    forged = copy.deepcopy(records)
    FORGERIES[name](forged[0])
    try:
        found = check(forged, tmp_path / "forged")
    except ValueError as error:  # write_study takes no record with such an id
        found = [str(error)]
    assert found


def test_a_curve_under_a_second_seed_is_noticed(records, tmp_path):
    forged = copy.deepcopy(records[0])
    forged["config"]["seed"] = forged["config"]["data_seed"] = 77
    for key, value in derived_keys(forged).items():
        forged[key] = forged[key] | value if isinstance(value, dict) else value
    assert list(contradictions(forged)) == []
    (problem,) = check([records[0], forged], tmp_path / "forged")
    assert "same training losses" in problem


@pytest.mark.parametrize(
    "change",
    [
        edit("predictions.best", "0" * 16),
        edit("cost.train_seconds", 1.0),
        edit("texts", None),
    ],
)
def test_what_cannot_be_proven_is_said_and_not_claimed(change, records, tmp_path):
    forged = copy.deepcopy(records)
    change(forged[0])
    assert check(forged, tmp_path / "forged") == []
    assert change.__name__.partition(".")[0] in NOT_PROVABLE


def test_a_records_keys_are_those_that_are_derived(words):
    """Training writes with the function that the check compares with."""
    record = trained(words)
    assert list(contradictions(record)) == []
    assert json.loads(json.dumps(record["right"])) == record["right"]
    rows = record["data"]["dev_rows"]
    record["right"]["best"] = pack(~unpack(record["right"]["best"], rows))
    assert list(contradictions(record)) != []


def test_a_strangers_record_without_a_key_is_a_problem_and_no_crash(records, tmp_path):
    forged = copy.deepcopy(records)
    forged[0]["config"]["train"]["epochs"] = 10**12
    assert any("epochs" in line for line in check(forged, tmp_path / "forged"))
    forged = copy.deepcopy(records)
    del forged[0]["config"]["train"]["lr_head"]
    assert check(forged, tmp_path / "forged") != []
