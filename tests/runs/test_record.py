"""What a record says by each protocol: the best epoch of all, and cross-fitted selection."""

import json
import math

import pytest
from ledgers import of_metric, record

from runs.record import (
    SCHEMA,
    Metric,
    best_and_last,
    cell_id,
    crossfit,
    read_ledger,
    read_record,
    without_paths,
    write_record,
)
from runs.run import overrides_of

pytestmark = pytest.mark.properties

ACCURACY, PERPLEXITY = Metric("accuracy"), Metric("perplexity", higher_is_better=False, scale=1.0)


def curve(a, b, rows=10):
    """A curve whose halves of dev are these: A of rows // 2 rows, B of the others."""
    share = (rows // 2) / rows
    whole = [share * of_a + (1 - share) * of_b for of_a, of_b in zip(a, b, strict=True)]
    return {
        "epoch": [i + 1.0 for i in range(len(a))],
        "metric": whole,
        "metric_select": list(a),
        "metric_report": list(b),
    }


def test_the_best_epoch_is_the_earliest_of_equals():
    assert ACCURACY.best([0.5, 0.7, 0.7]) == 1
    assert PERPLEXITY.best([3.0, 2.0, 2.0]) == 1
    assert ACCURACY.best([]) == 0


@pytest.mark.parametrize(
    ("a", "b", "rows", "metric", "best", "epochs", "last", "optimism"),
    [
        # 5 rows: two in A and three in B. By A the first epoch, where B has 1/3; by B the third, where A has
        # 1/2. On the whole, epochs 1 and 3 have three of five rows right
        ((1, 0.5, 0.5), (1 / 3, 1 / 3, 2 / 3), 5, ACCURACY, 0.4, [1, 3], 0.6, 0.2),
        ((0.9, 0.9, 0.1), (0.2, 0.8, 0.8), 10, ACCURACY, 0.55, [1, 2], 0.45, 0.3),  # the earliest of equals
        ((3, 2, 2.6), (3, 2.8, 2), 10, PERPLEXITY, 2.7, [2, 3], 2.3, 0.4),  # less is better
        ((0.5, 0.9), (0.4, 0.7), 10, ACCURACY, 0.8, [2, 2], 0.8, 0),
        ((0.5,), (0.4,), 10, ACCURACY, 0.45, [1, 1], 0.45, 0),
    ],
)
def test_cross_fitting_by_hand(a, b, rows, metric, best, epochs, last, optimism):
    found = crossfit(curve(a, b, rows), rows, metric)
    numbers = [found["best"], *found["best_epoch"], found["last"], found["optimism"]]
    assert numbers == pytest.approx([best, *epochs, last, optimism])


ONE, TWO = {"epoch": [1.0], "metric": [0.5]}, {"epoch": [1.0, 2.0], "metric": [0.5, 0.6]}


@pytest.mark.parametrize(
    "odd",
    [
        {"epoch": [], "metric": [], "metric_select": [], "metric_report": []},
        ONE,  # a curve without halves
        ONE | {"metric_select": [0.5]},
        TWO | {"metric_select": [0.5, 0.6], "metric_report": [0.5]},
        TWO | {"metric_select": [0.5, None], "metric_report": [0.5, 0.5]},
    ],
)
def test_a_curve_without_halves_has_no_cross_fitted_number(odd):
    assert crossfit(odd, 10, ACCURACY) is None
    record = {"curve": odd, "data": {"dev_rows": 10}, "result": of_metric("accuracy")}
    assert best_and_last(record, "crossfit") == best_and_last(record, "half") == {}
    assert best_and_last(record, "paper") == {}  # of a run that diverged before its first epoch


def test_a_record_of_before_cross_fitting_says_it_from_its_curve():
    paper = {"best": 0.75, "best_epoch": 2.0, "last": 0.75}
    record = {"curve": curve((0.6, 0.9, 0.7), (0.5, 0.6, 0.8)), "data": {"dev_rows": 10}}
    record["result"] = {
        **of_metric("accuracy"),
        "select": "paper",
        "protocols": {"paper": paper, "unbiased": {"best": 0.6}},
    }
    assert best_and_last(record, "paper") == paper
    assert best_and_last(record, "crossfit")["best"] == pytest.approx(0.65)
    assert math.isclose(best_and_last(record, "crossfit")["optimism"], 0.1)
    # Half A chooses the second epoch, of which half B says 0.6; as perplexities the first
    assert best_and_last(record, "half") == {"best": 0.6, "last": 0.8}
    assert best_and_last(record | {"result": of_metric("perplexity")}, "half")["best"] == 0.5


@pytest.mark.parametrize(
    ("metric", "family", "reported"),
    [
        *(("accuracy", "glue", "best"), ("accuracy", "images", "last")),
        *(("perplexity", "e2e", "last"), ("accuracy", None, "best")),
    ],
)
def test_an_older_record_gets_its_metric_and_the_reported_epoch_when_it_is_read(
    metric, family, reported, tmp_path
):
    older = record() | {"schema": 2}
    older["config"]["task"] |= {"family": family}
    if family is None:
        del older["config"]["task"]["family"]
    kept = ("select", "best", "best_epoch", "last")
    older["result"] = {"metric": metric, **{key: older["result"][key] for key in kept}}
    (tmp_path / "older.json").write_text(json.dumps(older))
    read = read_record(tmp_path / "older.json")
    assert (read["schema"], read["result"]["reported"]) == (SCHEMA, reported)
    assert Metric.of_record(read) == (ACCURACY if metric == "accuracy" else PERPLEXITY)


PUBLISHED = {
    "task.data_dir=/home/alice/glue": "task.data_dir=glue",
    "task.data_dir='~/my data'": "task.data_dir='my data'",
    "init_from=../of others/a.safetensors": "init_from=a.safetensors",
    **{word: word for word in ("model.path=null", "init_from=lora@mnli", "method.sites=[query,value]")},
    "task.forgetting_text=hub:a/b/c.txt": "task.forgetting_text=hub:a/b/c.txt",
}


def test_what_is_published_is_without_the_places_of_this_machine():
    error = "/home/alice/bad/model.st: cannot be read (see ~/notes/x.txt, 5 tokens/s)"
    tries = ["../up/checkpoint.safetensors: No space left on device. https://a.org/b/c"]
    made = record() | {"overrides": [*PUBLISHED], "error": error, "tries": tries}
    made["config"] |= {"output": "/home/alice/outputs", "init_from": None}
    clean = without_paths(made)
    assert overrides_of(clean) == [*PUBLISHED.values(), "seed=0"]
    assert clean["error"] == "model.st: cannot be read (see x.txt, 5 tokens/s)"
    assert clean["tries"] == ["checkpoint.safetensors: No space left on device. https://a.org/b/c"]
    assert without_paths(record())["error"] is None


def test_what_follows_the_seed_is_no_other_cell_and_another_order_of_the_rows_is(tmp_path):
    """The draw of images, and A and B where they are drawn anew for each seed."""

    def ids(redrawn, **task):
        made = [record() for _ in range(2)]
        for seed, one in enumerate(made):
            one["config"]["method"] |= {"projection_seed": seed, "redrawn": redrawn}
            one["config"]["task"] |= dict.fromkeys(task, seed)
        return len({cell_id(one) for one in made})

    assert ids(redrawn=True) == ids(redrawn=True, draw_seed=True) == 1
    assert ids(redrawn=True, train_rows=True) == ids(redrawn=False) == 2
    made = [record() for _ in range(4)]
    for one, data_seed in zip(made[1:], (made[0]["config"]["seed"], 8, 7), strict=True):
        one["config"]["data_seed"] = data_seed
    assert [cell_id(one) == cell_id(made[0]) for one in made] == [True, True, False, False]
    assert cell_id(made[2]) != cell_id(made[3])
    for number, one in enumerate(made[1:3]):
        write_record(tmp_path, one | {"id": f"{number:012}"})
    assert len({cell_id(each) for each in read_ledger(tmp_path, published=False)}) == 2
