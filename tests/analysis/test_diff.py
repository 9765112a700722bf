"""Two records side by side."""

import copy

import pytest
from ledgers import record

from analysis.diff import difference_table, main
from runs.command.errors import UserError
from runs.record.ledger import PUBLISHED, read_study, write_record

pytestmark = pytest.mark.properties

OURS = ("ours", "ours")


def rows(table):
    return {row[0]: row[1:] for row in table.texts}


def test_what_differs_is_listed_with_by_how_much():
    one = record(seed=0, best=0.8)
    other = record(seed=1, best=0.85, lr=0.02)
    other["cost"]["train_seconds"] = 20.0
    other["versions"] = {"torch": "3.0"}
    other["config"]["model"]["path"] = "/elsewhere/roberta_base"
    for made, bleu in ((one, 60.0), (other, 62.5)):
        made["texts"] = {"scores": [{"which": "last", "bleu": bleu}]}
        made["predictions"] = {"last": str(bleu)}
    table = difference_table(one, other, ("ours", "a_study"))
    assert table.header[1:3] == [
        f"{one['id']} (ours)",
        f"{other['id']} (published in a_study)",
    ]
    found = rows(table)
    assert found["config.train.lr"] == ["0.01", "0.02", "+0.01 (2.00x)"]
    assert found["cell.seed"] == ["0", "1", "+1"]
    assert found["versions.torch"] == ["2.9", "3.0", ""]
    assert found["predictions.last"] == ["60.0", "62.5", ""]
    assert found["result.best"] == ["0.8", "0.85", "+0.05 (1.06x)"]
    assert found["texts.scores.0.bleu"] == ["60", "62.5", "+2.5 (1.04x)"]
    assert found["curve.metric"][2] == "at most 0.05, 2 of 3 differ"
    assert not {"id", "config.model.path", "config.train.epochs"} & set(
        found
    )  # the folder is nobody's business
    assert (
        "accuracy 0.8 at the best epoch; accuracy 0.85 at the best epoch"
        in table.notes[0]
    )
    assert difference_table(one, copy.deepcopy(one), OURS).rows == []


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([None, 1, 2], [None, 1, 2.5], "at most 0.5, 1 of 3 differ"),
        ([1, None], [1, 2], "at most inf, 1 of 2 differ"),
        ([1, float("inf")], [2, float("inf")], "at most 1, 1 of 2 differ"),
        ([1, 2], [1, 2, 3], "2 and 3 values"),
    ],
)
def test_a_number_that_one_of_two_curves_lacks_is_infinitely_far(a, b, words):
    one, other = record(), record()
    one["curve"]["metric"], other["curve"]["metric"] = a, b
    assert rows(difference_table(one, other, OURS))["curve.metric"][2] == words
    failed = {
        key: one[key]
        for key in ("schema", "id", "error", "tries", "cell", "label", "config")
    }
    assert (
        "no result"
        in difference_table(one, failed | {"status": "failed"}, OURS).notes[0]
    )


def test_a_new_record_stands_beside_the_published_one_of_its_id(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", PUBLISHED)
    mine = next(iter(read_study(PUBLISHED / "ablations_minilm")))
    mine["result"]["best"] += 0.01
    mine["config"]["output"] = "/somebody/outputs"
    write_record(tmp_path, mine)
    assert main([mine["id"][:9], f"output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert f"{mine['id']} (ours)" in printed
    assert f"{mine['id']} (published in ablations_minilm)" in printed
    assert "result.best" in printed
    assert "-0.01" in printed
    with pytest.raises(UserError, match="has not run here: name the run"):
        main([mine["id"], f"output={tmp_path / 'none'}"])
    with pytest.raises(UserError, match="begin with 'zz'"):
        main([mine["id"], "zz", f"output={tmp_path}"])
