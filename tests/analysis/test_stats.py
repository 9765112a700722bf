"""Statistics held to scipy or to values by hand."""

import functools
import math

import numpy as np
import pytest
import scipy.stats
from ledgers import (
    ledger,
    lines,
    metric_fields,
    notes,
    record,
    seed_records,
    with_halves,
)

from analysis import inference, stats, tables
from analysis.frame import runs
from analysis.notes import NOTE_LENGTH
from analysis.paired import NOTE_ON_FINDINGS, paired_differences
from analysis.stats import median_interval_entry, statistics_tables
from runs.command.errors import UserError
from runs.record.intervals import RESAMPLES, median_interval
from runs.record.ledger import write_record

pytestmark = pytest.mark.parity

VALUES = [64.1, 65.6, 60.3, 66.0, 65.2, 64.8, 63.9]


def of(*records):
    return runs(ledger(*records))


def compared(*records, row="vera"):
    """The comparisons on one task, a named tuple each."""
    lines = paired_differences(of(*records), row)
    return [*lines[lines.task != ""].itertuples()]


@functools.cache
def unjudged():
    """The verdicts on no run."""
    return tables.verdicts(of())


def told(*records, **settings):
    """The tables, without verdicts."""
    return statistics_tables(of(*records), paper_verdicts=unjudged(), **settings)


def test_the_interval_is_scipys_percentile_bootstrap_of_the_median_of_the_values_that_are_known():
    how = {
        "n_resamples": RESAMPLES,
        "method": "percentile",
        "rng": np.random.default_rng(0),
    }
    expected = scipy.stats.bootstrap(
        (sorted(VALUES),), np.median, **how
    ).confidence_interval
    assert median_interval(VALUES) == pytest.approx((expected.low, expected.high))
    assert median_interval(VALUES[::-1]) == median_interval(VALUES)
    # of so few it is their range: either end is the median of over 2.5% of resamples
    for n in (3, 5):
        assert median_interval(VALUES[:n]) == (min(VALUES[:n]), max(VALUES[:n]))
    assert median_interval(VALUES[:1]) is None
    # with ties, of an even and of an odd number
    for n in (6, 7):
        tied = [1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 5.0][:n]
        medians = np.median(
            np.array(tied)[np.random.default_rng(0).integers(0, n, (RESAMPLES, n))], 1
        )
        ends = np.percentile(medians, [2.5, 97.5])
        assert median_interval(tied) == tuple(ends)
    # a diverged perplexity
    assert median_interval([5, 6, 7, 8, math.inf]) == (5, math.inf)
    assert median_interval([math.inf, math.inf]) == (math.inf, math.inf)
    assert np.isnan(median_interval([1.0, 2.0, math.inf - math.inf])).all()
    found = median_interval_entry([3.0, math.nan, 1.0, 2.0], ["a"], 2)
    assert (found.value, found.high, str(found)) == (1.0, 3.0, "1.00 to 3.00")
    assert median_interval_entry([3.0, math.nan], ["a"], 2) == "-"


def test_the_sign_test_and_the_probability_of_improvement_are_scipys():
    for k in range(8):
        expected = scipy.stats.binomtest(k, 7).pvalue
        assert inference.sign_test(
            [1.0] * k + [-1.0] * (7 - k) + [0.0]
        ) == pytest.approx(expected), k
    assert (inference.sign_test([]), inference.sign_test([1] * 5)) == (1.0, 0.0625)
    x, y = [80.0, 81.0, 79.0, 80.0], [79.0, 80.0, 78.0]
    u = scipy.stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    assert inference.probability_of_improvement(x, y) == pytest.approx(u)


def test_runs_are_paired_by_task_and_seed():
    rte = [
        *seed_records("vera", "rte", (0.80, 0.81, 0.82)),
        *seed_records("lora", "rte", (0.79, 0.82, 0.80, 0.50)),
    ]
    cola = [
        *seed_records("vera", "cola", (0.60, 0.61, 0.62)),
        *seed_records("lora", "cola", (0.59, 0.60, 0.62)),
    ]
    first, _ = compared(*rte, *cola)
    # +1, -1, +2: seed 3 has no pair
    assert (first.task, first.pairs) == ("rte", 3)
    assert first.differences == pytest.approx((1, -1, 2))
    expected = scipy.stats.ttest_1samp(first.differences, 0)
    interval = expected.confidence_interval()
    assert (first.mean, first.p) == pytest.approx((2 / 3, expected.pvalue))
    assert (first.low, first.high) == pytest.approx(tuple(interval))
    assert first.better == pytest.approx((1.5 + 2 + 2.5) / 9)  # of the same three seeds
    assert {*first.ids} == {r["id"] for r in rte[:6]}
    # texts of the first items alone are compared with such texts
    for one in rte[3:]:
        one["config"]["task"]["items"] = 5
    assert [line.task for line in compared(*rte, *cola)] == ["cola"]


def test_holms_correction_is_for_all_comparisons_of_a_model():
    bests = {
        "vera": (0.8, 0.83, 0.79),
        "lora": (0.7, 0.72, 0.7),
        "full": (0.8, 0.7, 0.9),
    }
    made = [
        one for row, of_row in bests.items() for one in seed_records(row, "rte", of_row)
    ]
    other_model = [
        *seed_records("vera", "rte", (0.8, 0.9), model="minilm"),
        *seed_records("lora", "rte", (0.7, 0.9), model="minilm"),
    ]
    lines = paired_differences(of(*made, *other_model), "vera").set_index(
        ["model", "other"]
    )
    p = lines.p["roberta_base"]
    assert lines.holm["roberta_base", "lora"] == pytest.approx(2 * p["lora"])
    assert lines.holm["roberta_base", "full"] == pytest.approx(p["full"])
    assert lines.holm["minilm", "lora"] == lines.p["minilm", "lora"]


def test_a_table_of_comparisons_ends_with_which_p_to_use():
    *_, table = told(*seed_records("vera"), *seed_records("lora"))
    assert table.notes[-1] == (
        "95% CI and p are not corrected and leave out the choice of dev rows. Use p for "
        "one comparison that you chose before looking, and p (Holm) for the best of a "
        "table."
    )


def test_a_table_of_comparisons_says_what_holms_correction_is_over():
    *_, table = told(
        *seed_records("vera"), *seed_records("lora"), *seed_records("full")
    )
    assert (
        "p (Holm) is corrected for the 2 comparisons of the rows and tasks selected."
        in " ".join(table.notes)
    )
    *_, table = told(*seed_records("vera"), *seed_records("lora"))
    assert "p (Holm) equals p, as the rows and tasks selected make one comparison." in (
        " ".join(table.notes)
    )


def test_a_difference_that_holm_leaves_open_comes_with_how_it_goes_with_findings():
    x, y = (0.80, 0.83, 0.79, 0.81), (0.78, 0.82, 0.76, 0.78)
    chosen = [*seed_records("vera", "rte", x), *seed_records("lora", "rte", y)]
    *_, alone = told(*chosen)
    assert NOTE_ON_FINDINGS not in alone.notes
    *_, among_many = told(
        *chosen,
        *seed_records("full", "rte", x[::-1]),
        *seed_records("bitfit", "rte", y[::-1]),
    )
    assert among_many.notes[-1] == NOTE_ON_FINDINGS
    assert len(NOTE_ON_FINDINGS) <= NOTE_LENGTH


def test_the_sign_test_and_the_median_come_on_request():
    made = [
        *seed_records("vera", "rte", (0.80, 0.81, 0.82)),
        *seed_records("lora", "rte", (0.79, 0.82, 0.80)),
    ]
    usual, more = told(*made)[1], told(*made, with_details=True)[1]
    assert usual.header == [
        "difference",
        "task",
        "pairs",
        "mean",
        "95% CI",
        "p",
        "p (Holm)",
    ]
    (line,) = lines(more)
    added = [line[name] for name in more.header[len(usual.header) :]]
    low, high = median_interval([1, -1, 2])
    assert added == [
        "2",
        "1",
        "0",
        "+1.0",
        f"{low:+.1f} to {high:+.1f}",
        "1.000",
        "0.67",
    ]


def test_one_row_has_its_own_cells_and_its_comparisons_alone():
    made = [
        *seed_records("vera"),
        *seed_records("lora"),
        *seed_records("full"),
        *seed_records("lora", "cola"),
    ]
    cells, compared_with = told(*made, row="full", own_cells_only=True)
    assert [line["method"] for line in lines(cells)] == ["full"]
    assert [line["difference"] for line in lines(compared_with)] == [
        "full minus LoRA r=8",
        "full minus VeRA r=1024",
    ]


def test_statistics_name_what_they_leave_out():
    silent = record(seed=2)
    silent["result"]["protocols"]["paper"]["best"] = None
    (table,) = told(record(), record(seed=1, best=0.7), silent)
    assert [(line["seeds"], line["median"]) for line in lines(table)] == [
        ("2/5", "75.0")
    ]
    assert "nan: 1 run finished without the score" in notes(table)
    full = [
        one | {"data": one["data"] | {"content": "other"}}
        for one in seed_records("full")
    ]
    _, table = told(*seed_records("vera"), *seed_records("lora"), *full)
    assert [line["difference"] for line in lines(table)] == [
        "VeRA r=1024 minus LoRA r=8"
    ]
    assert table.notes[-1].endswith("full on rte, data other.")


def test_of_perplexity_less_is_better_and_a_diverged_seed_is_the_worst():
    records = [
        *seed_records("vera", "alpaca", (3.0, 3.1)),
        *seed_records("lora", "alpaca", (3.5, 3.4)),
    ]
    gone = [
        record(row, "alpaca", values=(), status="diverged") for row in ("vera", "lora")
    ]
    for r in (*records, *gone):
        r["result"] |= metric_fields("perplexity")
    (line,) = compared(*records)
    assert line.differences == pytest.approx((0.5, 0.3))
    cells, table = told(*records)
    # The last epoch's, with two decimals: they lie close
    assert [line["median"] for line in lines(cells)] == ["3.44", "3.04"]
    assert lines(table)[0]["mean"] == "+0.40"
    (line,) = compared(*gone)
    assert line.differences == (0.0,)
    assert lines(told(*gone)[0])[0]["median"] == "inf"


@pytest.mark.parametrize(
    ("reported", "columns"),
    [("best", ["75.0", "75.0", "70.0", "+5.0"]), ("last", ["75.0", "75.0", "-", "-"])],
)
def test_the_statistics_tell_what_choosing_the_epoch_adds(reported, columns):
    """Over three seeds: best and cross-fitted are medians of their own, and so is their
    difference. An interval of fewer than five is called a range."""
    made = [
        with_halves(
            record(seed=0), (0.6, 0.9, 0.7), (0.5, 0.6, 0.8)
        ),  # 75, cross-fitted 65
        # 75, cross-fitted (60 + 80) / 2 = 70
        with_halves(record(seed=1), (0.6, 0.8, 0.8), (0.5, 0.6, 0.7)),
        # 90, both halves at the same epoch
        with_halves(record(seed=2), (0.6, 0.9, 0.7), (0.5, 0.9, 0.8)),
    ]
    for one in made:
        one["result"]["reported"] = reported
    (table,) = told(*made)
    assert [
        lines(table)[0][key] for key in ("best", "last", "cross-fitted", "optimism")
    ] == columns
    assert table.header[5] == "range of 3 seeds"
    both = told(*made, *seed_records("lora"))[0]
    assert both.header[5] == "95%, or range below 5 seeds"


def test_the_command_prints_statistics_of_a_part_or_refuses_in_one_line(
    tmp_path, capsys
):
    def main(*words, folder=tmp_path):
        return stats.main([*words, "published=false", f"output={folder}"])

    with pytest.raises(UserError, match=f"no records in {tmp_path}"):
        main()
    failed = record("vera", "rte", status="failed")
    known = ("schema", "id", "status", "error", "tries", "cell", "label", "config")
    write_record(tmp_path / "failed", {key: failed[key] for key in known})
    with pytest.raises(UserError, match=r"no finished run .*failed"):
        main("table2", folder=tmp_path / "failed")
    trial = record("bitfit", "mrpc")
    trial["config"]["train"]["max_steps"] = 3
    for one in (
        *seed_records(),
        *seed_records("lora", bests=(0.7,) * 5),
        *seed_records("lora", "cola"),
        trial,
    ):
        write_record(tmp_path, one)
    assert main("table2", "task=rte") == 0
    text, there = (
        capsys.readouterr().out,
        ["77.0 to 80.0", "VeRA r=1024 minus LoRA r=8", "inconclusive"],
    )
    assert [word in text for word in (*there, "cola")] == [True, True, True, False]
    for words, message in (
        (["table3"], "no records of table3"),
        (["table99"], "no table 'table99'.*Known: table1, table2"),
        (["row=peft:IA3Config"], "no row 'peft_ia3'.*Known: bitfit, lora, vera"),
        (["table8"], "table8 is of formulas or recipes, and has no records"),
        (
            ["row=bitfit"],
            "no finished run .* for that: stopped early by train.max_steps",
        ),
    ):
        with pytest.raises(UserError, match=message):
            main(*words)
