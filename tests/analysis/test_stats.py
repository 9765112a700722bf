"""Statistics held to scipy or to values by hand; verdicts by their rule."""

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from ledgers import apart, halves, ledger, of_metric, record, seeds

from analysis import inference, series, stats, tables, verdicts
from analysis.beside import Beside
from analysis.cells import Cell, cells, over_shared_seeds
from analysis.paper import GLUE
from analysis.ranks import ranks
from analysis.results.findings import claims
from analysis.statistics import costs, statistics_tables
from analysis.wanted import all_cells, wanted
from runs.errors import UserError
from runs.record import median_interval, write_record, write_sweep
from runs.record.seeds import RESAMPLES

VALUES = [64.1, 65.6, 60.3, 66.0, 65.2, 64.8, 63.9]


def cell(*records, wanted=5):
    return Cell(list(records), wanted)


def test_the_interval_is_scipys_percentile_bootstrap_of_the_median():
    expected = scipy.stats.bootstrap(
        (VALUES,),
        np.median,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert median_interval(VALUES) == pytest.approx((expected.low, expected.high))
    wider = median_interval(VALUES, 0.99)
    assert wider[0] <= median_interval(VALUES)[0] < median_interval(VALUES)[1] <= wider[1]


@pytest.mark.parametrize("n", [3, 5])
def test_over_few_seeds_the_interval_is_their_range(n):
    """The least and the largest value are the median of a resample in (n choose more than half) cases: over
    2.5%."""
    assert median_interval(VALUES[:n]) == (min(VALUES[:n]), max(VALUES[:n]))
    k = sum(math.comb(n, i) * (n - 1) ** (n - i) for i in range(n // 2 + 1, n + 1)) / n**n
    assert k > 0.025
    assert median_interval(VALUES[:1]) is None


def test_the_sign_test_is_scipys_and_has_a_floor():
    for n in range(1, 13):
        for k in range(n + 1):
            expected = scipy.stats.binomtest(k, n).pvalue
            assert inference.sign_test([1.0] * k + [-1.0] * (n - k)) == pytest.approx(expected), (k, n)
    assert inference.sign_test([1, 0, 0]) == inference.sign_test([1]) == 1.0
    assert inference.sign_test([]) == 1.0
    assert inference.sign_test([1] * 5) == inference.smallest_p(5) == 0.0625


def test_the_probability_of_improvement_is_mann_whitneys_u_and_a_mean_over_tasks():
    x, y = [80.0, 81.0, 79.0, 80.0], [79.0, 80.0, 78.0]
    u = scipy.stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    assert inference.improvement([(x, y)]) == pytest.approx(u)
    assert inference.improvement([([2, 3], [1, 1]), ([0, 0], [1, 1])]) == 0.5
    assert inference.improvement([([1], [1])]) == 0.5
    low, high = inference.improvement_interval([(x, y)])
    assert 0 <= low < u < high <= 1
    assert inference.improvement_interval([([2, 3], [0, 1]), ([2, 3], [0, 1])]) == (1.0, 1.0)
    assert inference.improvement_interval([(x, y[:1])]) is None


def test_runs_are_paired_by_task_and_seed():
    records = [*seeds("vera", "rte", (0.80, 0.81, 0.82)), *seeds("lora", "rte", (0.79, 0.82, 0.80, 0.50))]
    records += [*seeds("vera", "cola", (0.60, 0.61, 0.62)), *seeds("lora", "cola", (0.59, 0.60, 0.62))]
    rte, cola, both = series.compare(cells(records, 5))
    assert (rte.task, rte.pairs, rte.wins, rte.losses) == ("rte", 3, 2, 1)  # +1, -1, +2: seed 3 has no pair
    assert rte.difference == pytest.approx(1.0)
    assert rte.p == 1.0
    assert (cola.wins, cola.losses, cola.pairs) == (2, 0, 3)  # the equal one counts neither way
    assert cola.p == 0.5
    assert (both.task, both.pairs, both.wins, both.losses) == ("all", 6, 4, 1)
    assert both.difference == pytest.approx(1.0)
    assert both.p == pytest.approx(scipy.stats.binomtest(4, 5).pvalue)
    assert both.improvement == pytest.approx((rte.improvement + cola.improvement) / 2)
    assert set(both.ids) == {r["id"] for r in records}
    assert rte.improvement == pytest.approx((1.5 + 2 + 2.5) / 9)  # of the same three seeds


def test_tasks_are_taken_together_where_rows_have_one_size_and_numbers_one_sign():
    """LoRA of rank 4 on E2E and of rank 8 on Alpaca are two rows; BLEU and perplexity have no middle."""
    records = [
        one for row in ("vera", "lora") for task in ("e2e", "alpaca") for one in seeds(row, task, (3.0, 3.1))
    ]
    assert [line.task for line in series.compare(cells(records, 1))] == ["e2e", "alpaca", "all"]
    for one in records:
        if one["cell"]["task"] == "alpaca":
            one["result"] |= of_metric("perplexity")
    assert [line.task for line in series.compare(cells(records, 1))] == ["e2e", "alpaca"]
    for one in records:
        one["result"] |= of_metric("accuracy")
        if (one["cell"]["row"], one["cell"]["task"]) == ("vera", "e2e"):
            one["label"] = one["label"] | {"row": "VeRA r=64"}
    assert [line.task for line in series.compare(cells(records, 1))] == ["e2e", "alpaca"]
    assert [line.task for line in series.compare(cells(records, 1), "lora")] == ["e2e", "alpaca"]
    _, compared = statistics_tables(ledger(*records))
    assert compared.title.endswith("VeRA r=64 on e2e and VeRA r=1024 on alpaca against the other methods")


def test_a_presets_statistics_have_the_row_that_ran_for_another_preset():
    records = [
        *seeds("vera", "rte"),
        *seeds("vera_only_d", "rte"),
        *seeds("lora", "rte"),
        *seeds("vera", "mrpc"),
    ]
    for one in records:
        one["cell"]["paper"] = "ablations" if one["cell"]["row"] == "vera_only_d" else "table2_base"
    found = stats.part_of(ledger(*records), "experiment=ablations")
    assert {(r["cell"]["row"], r["cell"]["task"]) for r in found} == {("vera", "rte"), ("vera_only_d", "rte")}


def test_runs_on_other_data_or_of_another_choice_of_the_epoch_are_not_compared():
    vera, lora = seeds("vera", "reviews", model="minilm"), seeds("lora", "reviews", model="minilm")
    bitfit, full = seeds("bitfit", "reviews", model="minilm"), seeds("full", "reviews", model="minilm")
    for one in lora[:2]:
        one["data"]["dev_rows"] = 2000
    for one in bitfit:
        one["data"]["content"] = "other"
    for one in full:
        one["config"]["train"]["evaluate_every"] = 3  # of three epochs: the last alone
    (line,) = series.compare(cells([*vera, *lora, *bitfit, *full], 5))
    assert (line.other, line.pairs) == ("lora", 3)
    _, compared = statistics_tables(ledger(*vera, *lora, *bitfit, *full))
    assert [row[0] for row in compared.texts] == ["LoRA r=8"]
    why = "no seed of theirs was measured on the same data, by the same protocol"
    assert compared.notes[-1] == f"Not compared, as {why}: bitfit on reviews, full on reviews."
    told, *_ = statistics_tables(ledger(*full))
    assert told.texts[0][2] == "accuracy, last epoch"


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one | {"protocol": 2},
        lambda one: one | {"data": one["data"] | {"content": "other"}},
        lambda one: one | {"data": one["data"] | {"dev_rows": 9}},
        # Texts of the first so many items alone
        lambda one: one | {"config": one["config"] | {"task": one["config"]["task"] | {"items": 5}}},
        lambda one: (
            one | {"config": one["config"] | {"train": one["config"]["train"] | {"evaluate_every": 3}}}
        ),
    ],
    ids=["protocol", "data", "rows", "items", "epochs"],
)
def test_what_a_number_was_measured_on_is_the_same_on_both_sides(change):
    vera, lora = seeds("vera", "rte"), seeds("lora", "rte")
    (line,) = series.compare(cells([*vera, *lora], 5))
    assert line.pairs == 5
    unlike = cells([*vera, *map(change, lora)], 5)
    assert not series.compare(unlike)
    assert not any(cell.records for cell in over_shared_seeds(unlike.values()))
    (line,) = series.compare(cells([*map(change, vera), *map(change, lora)], 5))
    assert line.pairs == 5


def test_a_presets_own_row_is_the_one_that_the_others_are_compared_with():
    own, elsewhere = seeds("vera", "rte"), seeds("vera", "rte", lr=4e-2)
    for one in elsewhere:
        one["cell"]["paper"] = "another"
    found = stats.part_of(ledger(*own, *elsewhere, *seeds("lora", "rte")), "experiment=table2_base")
    assert {r["cell"]["paper"] for r in found} == {"table2_base"}


def test_statistics_name_what_they_leave_out():
    (table,) = statistics_tables(ledger(*seeds("vera"), *seeds("vera", lr=4e-2, deviations=("a rate",))))
    assert any(note.startswith("5 records with other settings are left out") for note in table.notes)


def test_where_the_last_epoch_is_reported_nothing_is_cross_fitted():
    made = [halves(record(seed=seed), (0.6, 0.9, 0.7), (0.5, 0.6, 0.8)) for seed in range(3)]
    for one in made:
        one["result"]["reported"] = "last"
    (table,) = statistics_tables(ledger(*made))
    line = dict(zip(table.header, table.texts[0], strict=True))
    assert (line["cross-fitted"], line["optimism"]) == ("-", "-")
    assert "ross-fitted" not in "".join(table.notes)


def test_an_interval_beside_a_diverged_perplexity_has_two_bounds():
    with np.errstate(invalid="raise"):
        assert median_interval([5, 6, 7, 8, math.inf]) == (5, math.inf)
        assert median_interval([math.inf, math.inf]) == (math.inf, math.inf)


def test_a_cost_is_of_the_runs_that_have_it_and_did_not_diverge():
    made = seeds("vera")
    for seed, one in enumerate(made):
        one["cost"] |= {"train_seconds": 100.0 + seed}
        if seed < 3:
            del one["cost"]["peak_memory_bytes"]
    made[4] |= {"status": "diverged"}
    made[4]["cost"] |= {"train_seconds": 1.0}
    table = costs(ledger(*made))
    line = dict(zip(table.header, table.texts[0], strict=True))
    assert (line["train s"], line["memory"], line["decode s"]) == ("101.5", "1.0 GB", "-")
    assert line["seeds"] == "5 1d"


def test_of_perplexity_less_is_better_and_a_diverged_seed_is_the_worst():
    records = [*seeds("vera", "alpaca", (3.0, 3.1)), *seeds("lora", "alpaca", (3.5, 3.4))]
    for r in records:
        r["result"] |= of_metric("perplexity")
    (line,) = series.compare(cells(records, 1))
    assert (line.wins, line.losses) == (2, 0)
    assert line.difference == pytest.approx(0.4)
    told, compared = statistics_tables(ledger(*records))
    # The last epoch's, with two decimals: they lie close
    assert [row[4] for row in told.texts] == ["3.44", "3.04"]
    assert compared.texts[0][3] == "+0.40"
    gone = [record(row, "alpaca", values=(), status="diverged") for row in ("vera", "lora")]
    for r in gone:
        r["result"] |= of_metric("perplexity")
    assert series.series(cell(gone[0])).values == {0: math.inf}
    (line,) = series.compare(cells(gone, 1))
    assert (line.differences, line.wins, line.losses) == ((0.0,), 0, 0)


def test_a_diverged_perplexity_among_others_has_a_median_and_no_spread():
    rows = {row: seeds(row, "mine", (0.9, 0.91, 0.92)) for row in ("lora", "vera")}
    rows["vera"][1] = record("vera", "mine", 1, values=(), status="diverged")
    rows["vera"][1]["config"] = rows["vera"][0]["config"]
    both = ledger(*rows["lora"], *rows["vera"])
    for one in both:
        one["result"] |= of_metric("perplexity")
    (table,) = tables.rows_table(both, "paper")
    assert {row[0]: row[3] for row in table.texts} == {
        "LoRA r=8": "0.90 +-0.01 (3)",
        "VeRA r=1024": "0.91 (3) 1d",
    }
    assert {claim.word for claim in claims(both)} <= {"undecided", "does not agree"}
    assert inference.paired_interval([0.1, math.inf]) is None


def test_a_diverged_seed_counts_as_in_the_tables_and_a_seed_without_a_number_is_named():
    gone, silent = record(seed=1, values=(), status="diverged"), record(seed=2)
    silent["result"]["protocols"]["paper"]["best"] = None
    found = series.series(cell(record(), gone, silent))
    assert found.values == {0: 80.0, 1: 0.0}
    assert found.unknown == (2,)


def test_the_epoch_and_the_rows_of_a_series():
    one = cell(record(values=(0.6, 0.8, 0.79)))
    assert series.series(one).name == "accuracy, best epoch"
    assert series.series(one, "last").values[0] == pytest.approx(79.0)
    assert series.series(cell(halves(record(), (0.6, 0.9), (0.7, 0.5))), "best", "crossfit").values[
        0
    ] == pytest.approx(55.0)
    image = record()
    image["config"]["task"]["family"] = "images"
    image["result"]["reported"] = "last"
    assert series.series(cell(image)).values[0] == pytest.approx(79.0)
    text = record(texts={"scores": [{"which": "last", "bleu": 68.0}, {"which": "best", "bleu": 69.0}]})
    assert series.series(cell(text)).values == {0: 68.0}


#: Five seeds of a median of 78.7 that vary by 0.3, and as many that vary by 3.
EVEN, UNEVEN = (0.783, 0.785, 0.787, 0.789, 0.791), (0.749, 0.768, 0.787, 0.806, 0.825)


@pytest.mark.parametrize(
    ("bests", "printed", "spread", "more", "word"),
    [
        (EVEN, 78.7, 0.3, {}, "reproduced"),  # half of the interval is 0.5
        (EVEN, 79.2, 0.3, {}, "reproduced"),
        (EVEN, 79.3, 0.3, {}, "not reproduced"),
        (EVEN, 78.7, 0.3, {"margin": 0.4}, "consistent, wide"),
        (UNEVEN, 78.7, 0.3, {}, "consistent, wide"),  # 4.5 points either way
        (UNEVEN, 83.0, 0.3, {}, "consistent, wide"),
        (UNEVEN, 83.5, 0.3, {}, "not reproduced"),
        (EVEN, 78.7, 14.0, {}, "consistent, wide"),  # the paper's side is as wide
        (EVEN, 88.7, 14.0, {}, "consistent, wide"),
        (EVEN, 98.7, 14.0, {}, "consistent, wide"),
        (EVEN, 99.7, 14.0, {}, "not reproduced"),
        ((0.787,) * 5, 78.7, 0.0, {}, "reproduced"),  # a printed 0.0 is 0.05
        ((0.787,) * 5, 78.77, 0.0, {}, "reproduced"),  # and half of its interval 0.074
        ((0.787,) * 5, 78.78, 0.0, {}, "not reproduced"),
        (EVEN, 79.1, None, {}, "inside our interval"),
        (EVEN, 79.3, None, {}, "outside our interval"),
        (UNEVEN, 79.3, None, {}, "inside our interval"),
        (EVEN[:4], 78.6, 0.7, {}, "incomplete"),
        (EVEN, 78.7, 0.3, {"same_size": False}, "other size"),
        (EVEN[:4], 78.7, 0.3, {"same_size": False}, "other size"),
        ((0.7, 0.7, 0.787, 0.8, 0.8), 78.7, 0.7, {}, "consistent, wide"),  # the median
        ((0.7, 0.701, 0.702, 0.787, 0.788), 78.0, 0.7, {}, "not reproduced"),  # 70.2
        # 73.6
        ((0.7, 0.701, 0.702, 0.787, 0.788), 78.0, 0.7, {"middle": statistics.fmean}, "consistent, wide"),
        (EVEN, 78.7, None, {"margin": 0.1, "values": [8.5, 8.6, 8.7, 8.8, 8.9]}, "outside our interval"),
    ],
)
def test_a_verdict_follows_its_rule(bests, printed, spread, more, word):
    assert Beside(cell(*seeds(bests=bests)), printed, spread, **more).verdict.word == word


def test_a_verdict_says_what_it_rests_on():
    records = seeds(deviations=["max_length 128"])
    said = Beside(cell(*records), 78.7, 0.7).verdict
    assert said.ids == tuple(r["id"] for r in records)
    assert said.deviations == ("max_length 128",)
    assert (said.ours, said.difference) == (pytest.approx(78.7), pytest.approx(0.0))
    gap, _, half = apart(([78.0, 79.0, 80.0, 77.0, 78.7], 78.7, 0.7), decimals=6).partition(" +-")
    low, high = (float(gap) + sign * float(half) for sign in (-1, 1))
    assert said.interval == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert said.margin == 1.0
    records[0]["result"]["protocols"]["paper"]["best"] = None
    assert Beside(cell(*records), 78.7, 0.7).verdict.word == "incomplete"


def test_every_number_of_the_paper_has_a_verdict_and_a_row_that_exists():
    found = verdicts.verdicts(ledger())
    counts = {name: sum(f.table == name for f in found) for name in dict.fromkeys(f.table for f in found)}
    assert counts == {
        "table2": 78,
        "table3": 65,
        "table4": 9,
        "table13": 2,
        "table5": 32,
        "table6": 18,
        "table7": 8,
    }
    assert {f.verdict.word for f in found} == {"not run", "quoted"}
    conf = Path(__file__).parents[2] / "conf"
    for f in found:
        assert (conf / "method" / f"{f.row}.yaml").is_file() or f.verdict.word == "quoted", f.row
        assert (conf / "model" / f"{f.model}.yaml").is_file(), f.model


def test_a_verdict_reads_the_cell_that_the_paper_means():
    from_mnli = seeds("lora_mnli", "stsb", (0.913, 0.914, 0.915, 0.916, 0.917))
    found = {
        (f.table, f.model, f.row, f.task): f
        for f in verdicts.verdicts(ledger(*from_mnli, *seeds("lora", "mrpc")))
    }
    assert found["table2", "roberta_base", "lora_mnli", "stsb"].verdict.word == "reproduced"
    plain = found["table2", "roberta_base", "lora_mnli", "mrpc"].verdict
    assert plain.word == "not run"
    assert "did not start from MNLI" in plain.deviations[0]
    # 84.8 at the last epoch
    images = seeds("vera", "cifar100", (0.856, 0.857, 0.858, 0.859, 0.86), model="vit_base")
    for r in images:
        r["config"]["task"]["family"] = "images"
        r["result"]["reported"] = "last"
    (one,) = [f for f in verdicts.verdicts(ledger(*images)) if f.verdict.ids]
    assert (one.table, one.verdict.word, one.column) == ("table5", "inside our interval", "CIFAR-100")
    mean = [*seeds("vera_only_d", "mrpc", (0.897,) * 5, model="roberta_large")]
    (one,) = [f for f in verdicts.verdicts(ledger(*mean)) if f.verdict.ids]
    assert (one.table, one.verdict.word, one.verdict.printed) == ("table6", "reproduced", 89.7)


def test_the_statistics_tell_what_choosing_the_epoch_adds():
    """Over three seeds: best and cross-fitted are medians of their own, and so is what lies between the
    two."""
    made = [
        halves(record(seed=0), (0.6, 0.9, 0.7), (0.5, 0.6, 0.8)),  # 75, cross-fitted 65
        halves(record(seed=1), (0.6, 0.8, 0.8), (0.5, 0.6, 0.7)),  # 75, cross-fitted (60 + 80) / 2 = 70
        halves(record(seed=2), (0.6, 0.9, 0.7), (0.5, 0.9, 0.8)),  # 90, both halves at the same epoch
    ]
    (table,) = statistics_tables(ledger(*made))
    (line,) = [dict(zip(table.header, row, strict=True)) for row in table.texts]
    assert [line[key] for key in ("best", "last", "best-last", "cross-fitted", "optimism")] == [
        *("75.0", "75.0", "+0.0", "70.0", "+5.0")
    ]
    assert any("An upper estimate: halves choose worse." in note for note in table.notes)
    images = record()
    images["config"]["task"]["family"] = "images"
    images["result"]["reported"] = "last"
    (table,) = statistics_tables(ledger(images))
    assert dict(zip(table.header, table.texts[0], strict=True))["optimism"] == "-"  # no epoch is chosen


def test_a_run_without_its_number_is_shown_as_such_and_enters_no_average():
    tasks = ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")
    records = [r for task in tasks for r in seeds("vera", task)]
    assert tables.table2(ledger(*records), "paper")[0].texts[-2][-2] == "78.7"
    records[7]["result"]["protocols"]["paper"]["best"] = None
    table = tables.table2(ledger(*records), "paper")[0]
    ours = dict(zip(table.header, table.texts[-2], strict=True))
    assert (ours["MRPC"], ours["Avg"]) == ("nan (4/5)", "-")
    assert "incomplete" in ours["status"]
    assert "nan: 1 of the runs finished without that number." in table.notes


def test_records_of_one_seed_are_counted_once_and_named():
    other = record(seed=0) | {"id": "the same again"}
    (one,) = cells([record(seed=0), other], 5).values()
    assert (one.seeds, len(one.again)) == (1, 1)
    table = tables.table2(ledger(record(seed=0), other), "paper")[0]
    assert any("not counted twice" in note and one.again[0] in note for note in table.notes)


def test_the_numbers_of_a_table_name_their_records():
    records = [r for task in GLUE for r in seeds("vera", task)]
    ours, difference = tables.table2(ledger(*records), "paper")[0].rows[-2:]
    assert ours[3].ids == tuple(r["id"] for r in records if r["cell"]["task"] == "sst2")
    assert difference[3].ids == ours[3].ids
    assert set(ours[-2].ids) == {r["id"] for r in records}


def test_the_command_prints_intervals_verdicts_and_comparisons(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        stats,
        "open_chosen",
        lambda settings: ledger(*seeds(), *seeds("lora", bests=(0.7, 0.7, 0.7, 0.7, 0.7))),
    )
    for words in ([], ["table2"], ["experiment=table2_base"]):
        assert stats.main(words) == 0
        text = capsys.readouterr().out
        assert "77.0 to 80.0" in text
        assert "0.062 (smallest)" in text
        assert "5/0/0" in text
        assert "| consistent, wide |" in text
    for words, message in (
        (["table3"], "no records of table3"),
        (["table99"], "no table 'table99'. Known: table1, table2"),
        (["experiment=table2_bas"], r"no preset 'table2_bas'. Did you mean table2_base\?"),
        (["table2_base"], "no table 'table2_base'. A preset's: experiment=table2_base. Known: "),
        (["table2", "experiment=table2_base"], "table2 and experiment=table2_base: name one of them"),
        (["row=verra"], "no records of row 'verra'. There are: lora, vera"),
        (["row=peft:IA3Config"], "no records of row 'peft_ia3'. There are: lora, vera"),
        (["table8"], "table8 is of formulas or recipes, and has no records"),
    ):
        with pytest.raises(UserError, match=message):
            stats.main(words)
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"no records in {tmp_path}"):
        stats.main([f"output={tmp_path}"])


def test_the_command_takes_a_sweep_and_filters_as_the_tables_do(tmp_path, capsys):
    rows = [one for row in ("vera", "lora") for task in ("rte", "cola") for one in seeds(row, task)]
    trial = record("vera", "mrpc")
    trial["config"]["train"]["max_steps"] = 3
    for one in (*rows, trial):
        write_record(tmp_path, one)
    write_sweep(tmp_path, "mine", [one["id"] for one in rows if one["cell"]["row"] == "lora"])

    def printed(*words):
        assert stats.main([*words, "published=false", f"output={tmp_path}"]) == 0
        return capsys.readouterr().out

    one_task = printed("task=cola")
    assert "| cola |" in one_task
    assert "| rte |" not in one_task
    assert "RTE" not in one_task
    of_sweep = printed("sweep=last")
    assert "LoRA r=8" in of_sweep
    assert "VeRA" not in of_sweep
    assert "| rte |" not in printed("sweep=mine", "task=cola")
    with pytest.raises(UserError, match=r"no sweep 'other'"):
        printed("sweep=other")
    with pytest.raises(UserError, match=r"no finished run .* for that: stopped early by train.max_steps"):
        printed("task=mrpc")


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ((5, 5), "95%"),
        ((2, 2), "range of 2 {}"),
        ((1, 4, 2), "range of 2 to 4 {}"),
        ((5, 4), "95%, or range below 5 {}"),
    ],
)
def test_no_interval_is_called_95_percent_below_five_seeds(counts, name):
    made = [one for row, n in zip(("vera", "lora", "head"), counts, strict=False) for one in seeds(row)[:n]]
    cells_, *others = statistics_tables(ledger(*made))
    assert cells_.header[5] == name.format("seeds")
    assert cells_.notes[0].startswith(f"{name.format('seeds')}: ")
    if counts == (2, 2):
        (compared,) = others
        assert compared.header[4] == "range of 2 pairs"
        assert compared.texts[0][-1] == "-"  # P(better) has no interval


def test_ranks_over_two_seeds_have_their_range():
    bests = {"vera": (0.8, 0.9), "lora": (0.6, 0.7), "head": (0.4, 0.5)}
    (table,) = ranks(ledger(*(one for row, best in bests.items() for one in seeds(row, bests=best))))
    assert "range of 2 seeds" in table.header
    assert "95%" not in table.header


def test_rows_are_ranked_over_the_seeds_of_most():
    """In each seed VeRA is first, LoRA second and the head last; full has one seed, and is not ranked."""
    made = [*seeds("head", bests=[0.5] * 5), *seeds("vera"), *seeds("lora", bests=[0.7] * 5)]
    (table,) = ranks(ledger(*made, record("full", best=0.9)))
    lines = [dict(zip(table.header, row, strict=True)) for row in table.texts]
    told = [[line[key] for key in ("method", "mean rank", "from the first")] for line in lines]
    # Nemenyi's of 3 rows and 5 blocks: 2.343 * sqrt(3 * 4 / (6 * 5)) = 1.48 (Demsar 2006, table 5)
    assert told == [
        *(["VeRA r=1024", "1.0", "-"], ["LoRA r=8", "2.0", "not told apart"]),
        ["head", "3.0", "told apart"],
    ]
    assert "Critical difference (Nemenyi, 5%): 1.5 ranks." in table.notes[1]
    assert table.notes[2] == "Not ranked, as they lack one of these seeds on the same data: full."
    # One seed more of one row takes no other row away
    (again,) = ranks(ledger(*made, record("vera", seed=5)))
    assert again.texts == table.texts
    # Two of the seeds of a fourth row on other data, and the fourth row is not ranked
    odd = seeds("bitfit", bests=[0.6] * 5)
    odd[0]["data"] = odd[0]["data"] | {"dev_rows": 5}
    (other,) = ranks(ledger(*made, *odd))
    assert other.texts == table.texts
    assert other.notes[2] == "Not ranked, as they lack one of these seeds on the same data: bitfit."


def test_ranks_need_three_rows_and_two_seeds_and_put_the_least_perplexity_first():
    assert ranks(ledger(*seeds("vera"), *seeds("lora"))) == []
    assert ranks(ledger(record("vera"), record("lora"), record("head"))) == []
    rows = {"vera": 20.0, "lora": 10.0, "head": 30.0}
    made = [
        record(row, seed=seed, values=[value, value + seed])
        for row, value in rows.items()
        for seed in range(2)
    ]
    for of in made:
        of["result"] |= of_metric("perplexity")
    (table,) = ranks(ledger(*made))
    assert [row[0] for row in table.texts] == ["LoRA r=8", "VeRA r=1024", "head"]


def test_a_cell_wants_the_seeds_of_its_protocol_or_of_the_preset_that_ran_it():
    assert [wanted(("m", "vera", task), []) for task in ("rte", "e2e", "alpaca", "reviews")] == [5, 3, 1, 3]
    for preset, seeds_of in {"demo": 3, "peers_minilm": 5, "randomness_minilm": 6, "of a user": 3}.items():
        one = record(task="reviews")
        one["cell"]["paper"] = preset
        assert wanted(("m", "vera", "reviews"), [one]) == seeds_of
    one["cell"]["paper"] = "peers_minilm"
    (cell_of,) = all_cells(ledger(one)).values()
    assert cell_of.count == "1/5"
