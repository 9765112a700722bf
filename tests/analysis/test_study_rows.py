"""The rows of a study beside VeRA: by pairs or a pooled variance, and over tasks."""

import math
import types

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from ledgers import ledger
from small import minilm_records, minilm_records_by_row

from analysis.frame import runs
from analysis.paired import paired_differences
from analysis.results.pages import over_tasks_table, rows_table
from analysis.results.study_rows import is_best_rate_at_end, rows_over_tasks, study_rows

pytestmark = pytest.mark.properties


def study_of(*records):
    return study_rows(runs(ledger(*records)))


def lines_of(study):
    """The difference and interval of each row, by its label."""
    table = rows_table(study)
    place = table.header.index("minus VeRA")
    return {row[0]: row[place : place + 2] for row in table.texts}


MANY = {
    f"row{i}": [0.7 + i / 100 + seed * (i % 3) / 500 for seed in range(3)]
    for i in range(18)
}


def many_rows():
    """Twenty rows of three seeds."""
    return minilm_records_by_row(
        "cola", vera=(0.70, 0.71, 0.72), lora=(0.80, 0.82, 0.81), **MANY
    )


def test_the_variance_of_many_rows_is_pooled():
    study = study_of(*many_rows())
    pooled = study.pooled["cola"].variance
    assert (study.comparisons, pooled.freedom) == (19, 2 * 19)
    half = scipy.stats.t.ppf(0.975, 38) * pooled.deviation * (2 / 3) ** 0.5
    assert lines_of(study)["LoRA r=8"] == [
        "**+10.0**",
        f"{10 - half:+.1f} to {10 + half:+.1f}",
    ]


def test_a_row_that_varies_more_is_not_pooled_and_has_its_own_interval():
    """Nor does one more seed of ten rows change what is pooled."""
    pooled = study_of(*many_rows()).pooled["cola"]
    more = [
        minilm_records(f"row{i}", "cola", (0.7, 0.7, 0.7, 0.7))[3] for i in range(10)
    ]
    wild = minilm_records_by_row("cola", wild=(0.6, 0.7, 0.8))
    study = study_of(*many_rows(), *more, *wild)
    assert study.pooled["cola"].variance == pooled.variance
    assert study.pooled["cola"].outliers == ("wild",)
    expected = scipy.stats.ttest_rel([60, 70, 80], [70, 71, 72]).confidence_interval()
    assert lines_of(study)["wild"][1] == f"{expected.low:+.1f} to {expected.high:+.1f}"


def test_few_rows_stand_beside_vera_by_their_own_pairs():
    few = minilm_records_by_row("cola", vera=(0.7, 0.71, 0.72), lora=(0.69, 0.71, 0.70))
    study = study_of(*few)
    expected = scipy.stats.ttest_rel([69, 71, 70], [70, 71, 72])
    ends = expected.confidence_interval()
    assert lines_of(study)["LoRA r=8"] == [
        "-1.0",
        f"{ends.low:+.1f} to {ends.high:+.1f}",
    ]
    assert (study.pooled, study.comparisons) == ({}, 1)
    lora = next(row for row in study.rows if row.cell.row == "lora")
    assert lora.p == lora.paired_p == pytest.approx(expected.pvalue)


def test_what_is_firm_by_a_pooled_variance_need_not_be_by_pairs():
    study = study_of(*many_rows())
    firm = {row.cell.row for row in study.rows if row.is_firm}
    by_pairs = {row.cell.row for row in study.rows if row.is_firm_by_pairs}
    assert "row3" not in by_pairs
    assert by_pairs < firm
    lora = next(row for row in study.rows if row.cell.row == "lora")
    expected = scipy.stats.ttest_rel([80, 82, 81], [70, 71, 72]).pvalue
    assert float(lora.paired.p()) == pytest.approx(expected)


def test_a_studys_pairs_are_those_of_every_other_page():
    """The same differences and corrected p as `paired_differences` gives."""
    made = runs(ledger(*many_rows()))
    lines = paired_differences(made, "vera", as_reference=True).set_index("other")
    for row in study_rows(made).rows:
        if row.cell.row != "vera":
            line = lines.loc[row.cell.row]
            assert float(row.paired.mean) == pytest.approx(line["mean"])
            assert row.paired_p == pytest.approx(line.holm)


def test_costs_of_a_study_stand_where_rows_share_what_they_depend_on():
    """One row on another device hides no other row's cost."""
    made = minilm_records_by_row(
        "cola", vera=(0.7, 0.71), lora=(0.69, 0.7), full=(0.8, 0.8)
    )
    for one in made:
        if one["cell"]["row"] == "full":
            one["device"] = one["device"] | {"name": "another card"}
    seconds = {row.cell.row: row.cell.seconds for row in study_of(*made).rows}
    assert math.isnan(seconds["full"])
    assert seconds["vera"] > 0
    assert seconds["lora"] > 0


def test_a_task_that_was_measured_in_two_ways_is_two_tasks():
    made = minilm_records_by_row("cola", vera=(0.7, 0.71), lora=(0.69, 0.7))
    other = minilm_records_by_row("cola", vera=(0.6, 0.61), lora=(0.58, 0.6))
    for one in other:
        one["id"] += "-other"
        one["data"] = one["data"] | {"train_rows": 7}
    study = study_of(*made, *other)
    by_task = {row.cell.task_label: row for row in study.rows if row.cell.row == "lora"}
    assert len(by_task) == 2
    differences = [float(row.mean.mean) for row in by_task.values()]
    assert sorted(differences) == pytest.approx([-1.5, -1.0])


def gains_over_tasks(gains):
    """Records and means of rows that gain so much on three tasks."""
    draws = np.random.default_rng(1)
    made, means = [], {}
    for task, level in (("cola", 0.4), ("mrpc", 0.7), ("sst2", 0.6)):
        for row, gain in gains.items():
            bests = level + gain + draws.normal(0, 0.001) + draws.normal(0, 0.001, 3)
            means[row, task] = 100 * bests.mean()
            made += minilm_records(row, task, [*bests])
    return made, means


GAINS = {"vera": 0.0, "lora": 0.03} | {f"row{i}": 0.0 for i in range(10)}


def test_rows_stand_beside_vera_over_tasks_by_a_mixed_model():
    """Held to least squares: a column for each row, and for each task but the first."""
    made, means = gains_over_tasks(GAINS)
    # Two rows that count for nothing: on one task alone, and with a collapsed run
    made += minilm_records("row10", "cola", (0.4, 0.4, 0.4))
    made += minilm_records("row11", "cola", (0.4, 0.4, 0.0))
    made += minilm_records("row11", "mrpc", (0.7, 0.7, 0.7))
    made += minilm_records("row11", "sst2", (0.7, 0.7, 0.7))
    compared = rows_over_tasks(study_of(*made).poolable)
    assert compared.tasks == ("cola", "mrpc", "sst2")
    assert (len(compared.rows), compared.variance.freedom) == (11, 11 * 2)
    names, tasks = [*GAINS], compared.tasks
    x = [
        [row == name for name in names] + [task == other for other in tasks[1:]]
        for row, task in means
    ]
    x, y = np.array(x, dtype=float), np.array([*means.values()])
    solved, squares, *_ = np.linalg.lstsq(x, y, rcond=None)
    contrast = np.zeros(x.shape[1])
    contrast[[names.index("lora"), names.index("vera")]] = 1, -1
    error = (squares[0] / 22 * contrast @ np.linalg.inv(x.T @ x) @ contrast) ** 0.5
    half = scipy.stats.t.ppf(0.975, 22) * error
    difference = contrast @ solved
    interval = f"{difference - half:+.1f} to {difference + half:+.1f}"
    lines = {row[0]: row[1:] for row in over_tasks_table(compared).texts}
    assert lines.pop("LoRA r=8") == [f"**{difference:+.1f}**", interval, ""]
    assert [("**" in line[0], line[2]) for line in lines.values()] == [
        (False, "yes")
    ] * 10
    assert compared.firm_rows(1) == ["LoRA r=8"]
    assert compared.firm_rows(-1) == []


def test_one_task_is_not_compared_over_tasks():
    made, _ = gains_over_tasks(GAINS)
    assert rows_over_tasks(study_of(*made[:36]).poolable) is None
    assert rows_over_tasks(study_of(*made).poolable, ("cola", "mrpc")).tasks == (
        "cola",
        "mrpc",
    )


def test_a_gain_is_a_share_of_that_from_the_head_to_lora():
    made, means = gains_over_tasks(GAINS)
    for task, level in (("cola", 0.3), ("mrpc", 0.5), ("sst2", 0.5)):
        heads = minilm_records("head", task, (level, level, level))
        for record in heads:
            record["parameters"]["adapter"] = 0
        made += heads
    study = study_of(*made)
    compared = rows_over_tasks(study.poolable, reference_cells=study.cells)
    shares = compared.means.loc["row1"]
    heads = {"cola": 30, "mrpc": 50, "sst2": 50}
    for (_, task), share in shares.items():
        lora = means["lora", task] - heads[task]
        assert share == pytest.approx(100 * (means["row1", task] - heads[task]) / lora)


@pytest.mark.parametrize(
    ("bests", "is_at_end"), [((3, 5, 4), False), ((3, 4, 5), True), ((5, 4, 3), True)]
)
@pytest.mark.parametrize("less", [False, True])
def test_a_best_rate_at_an_end_of_its_grid_is_known(bests, is_at_end, less):
    about = {
        "conf_row": "vera",
        "task": "cola",
        "model": "minilm",
        "label": "VeRA",
        "lr_head": 1e-3,
    }
    cell = types.SimpleNamespace(**about, method="vera")
    numbers = [-best if less else best for best in bests]
    trials = pd.DataFrame(
        {"lr": (1e-3, 1e-2, 1e-1), "number": numbers, "lower_is_better": less}
    )
    trials = trials.assign(**about)
    assert is_best_rate_at_end(cell, trials) == is_at_end
    # another rate of the head, which fails
    beside = trials[1:2].assign(lr_head=4e-3, number=0)
    assert is_best_rate_at_end(cell, pd.concat([trials, beside])) == is_at_end
    # a single rate has no ends
    assert not is_best_rate_at_end(cell, trials[:1])


def test_seconds_of_several_processors_do_not_compare():
    made = minilm_records_by_row("cola", vera=(0.7, 0.71), lora=(0.7, 0.71))
    for record in made:
        record["cost"]["train_seconds"] = 60.0
    assert not any(math.isnan(row.cell.seconds) for row in study_of(*made).rows)
    made[0]["device"]["name"] = "another processor"
    assert all(math.isnan(row.cell.seconds) for row in study_of(*made).rows)
