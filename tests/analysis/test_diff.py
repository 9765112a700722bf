"""Two records side by side."""

import copy

import pytest
from ledgers import record

from analysis.diff import compared, main
from runs.errors import UserError
from runs.record import PUBLISHED, read_record, write_record

OURS = ("ours", "ours")


def rows(table):
    return {row[1]: row[2:] for row in table.texts}


def test_what_differs_is_listed_with_by_how_much_and_what_is_the_same_is_counted():
    one = record(seed=0, best=0.8)
    other = record(seed=1, best=0.85, lr=0.02)
    other["cost"]["train_seconds"] = 20.0
    other["versions"] = {"torch": "3.0"}
    other["config"]["model"]["path"] = "/elsewhere/roberta_base"
    table = compared(one, other, ("ours", "a_study"))
    assert table.header[2:4] == [f"{one['id']} (ours)", f"{other['id']} (published in a_study)"]
    found = rows(table)
    assert found["train.lr"] == ["0.01", "0.02", "+0.01"]
    assert found["seed"] == ["0", "1", "+1"]
    assert found["versions.torch"] == ["2.9", "3.0", ""]
    assert found["result.best"] == ["0.8", "0.85", "+0.05"]
    assert found["cost.train_seconds"] == ["10", "20", "2.00x"]
    assert found["metric"][2].startswith("0.05 (largest at epoch 2, 2 of 3 differ")
    assert not {"model.path", "train.epochs"} & set(found)  # the folder is nobody's business
    assert table.notes[0] == "Result: accuracy at the best epoch differs by +5.0."
    assert "train.epochs" in rows(compared(one, other, OURS, every=True))


def test_scores_of_texts_and_groups_are_compared_one_by_one():
    one, other = record(), record(seed=1)
    for made, bleu in ((one, 60.0), (other, 62.5)):
        made["texts"] = {"scores": [{"which": "last", "bleu": bleu}]}
        made["groups"] = [{"name": "adapter", "lr": 0.1 * bleu}]
    found = rows(compared(one, other, OURS))
    assert found["texts.scores.0.bleu"] == ["60", "62.5", "+2.5"]
    assert found["groups.0.lr"][2] == "+0.25"


def test_equal_records_have_no_row_and_their_predictions_count():
    one = record() | {"predictions": {"best": "a", "last": "b"}}
    table = compared(one, copy.deepcopy(one), OURS)
    assert table.rows == []
    assert table.notes[0] == "Result: the same accuracy at the best epoch; the predictions are the same."
    others = copy.deepcopy(one) | {"predictions": {"best": "c", "last": "b"}}
    assert compared(one, others, OURS).notes[0].endswith("the predictions are others.")


def test_runs_of_other_lengths_and_without_a_result():
    one, other = record(values=[0.1, 0.2]), record(values=[0.1, 0.2, 0.3])
    assert rows(compared(one, other, OURS))["metric"] == ["2 values", "3 values", "not the same epochs"]
    failed = {key: one[key] for key in ("schema", "id", "error", "tries", "cell", "label", "config")}
    table = compared(one, failed | {"status": "failed"}, OURS)
    assert table.notes[0] == "One of the two has no result."


def test_a_new_record_stands_beside_the_published_one_of_its_id(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", PUBLISHED)
    path = next((PUBLISHED / "glue_minilm").glob("*.json"))
    mine = read_record(path)
    mine["result"]["best"] += 0.01
    mine["config"]["output"] = "/somebody/outputs"
    write_record(tmp_path, mine)
    assert main([mine["id"][:9], f"output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert f"{mine['id']} (ours)" in printed
    assert f"{mine['id']} (published in glue_minilm)" in printed
    assert "result.best" in printed
    assert "-0.01" in printed
    with pytest.raises(UserError, match="has not run here: name the run"):
        main([mine["id"], f"output={tmp_path / 'none'}"])
    with pytest.raises(UserError, match="that begin with 'zz': none"):
        main([mine["id"], "zz", f"output={tmp_path}"])
