"""Cells beside the paper's numbers: rows of another size, numbers that are only quoted,
and the words for a row."""

import pytest
from ledgers import COUNTS, expected_difference, ledger, record, seed_records

from analysis import paper_comparison
from analysis.frame import cells, runs

pytestmark = pytest.mark.properties


# --- the size of a row


@pytest.mark.parametrize(
    "of",
    [
        ("lora_fa", 3649999, "3.7M", False),
        ("lora_fa", 3650001, "3.7M", True),
        ("head", 0, "0", True),
        ("head", 61440, "0", False),
        ("lora", 18456, "18.4K", True),  # cut off
        ("lora", 18456, "18.5K", True),
        ("lora", 18456, "18.6K", False),
        ("lora", 159907840, "159.9M (610MB)", True),  # table 13's
        # the exact count of that row, and of no other
        ("lora", 393216, "0.35M", True, "gpt2_medium"),
        ("lora", 393216, "0.35M", False, "gpt2_large"),
        ("vera", 393216, "0.35M", False, "gpt2_medium"),
        # a size chosen here is none of the paper's
        ("adalora", 590112, "0.38M", False, "gpt2_medium"),
        ("dylora", 393216, "0.39M", True, "gpt2_medium"),
    ],
)
def test_a_row_is_the_papers_where_its_count_rounds_to_the_printed_one_or_is_the_exact_one(
    of,
):
    row, count, size, same, model = (*of, "roberta_large")[:5]
    assert paper_comparison.has_papers_size(count, model, row, size) is same


def test_every_exact_count_is_the_printed_one_rounded_or_has_a_note():
    for of in COUNTS:
        assert paper_comparison.rounds_to(of["printed"], of["count"]) != (
            "note" in of
        ), of


# --- the words for a row


def test_a_row_of_words_is_counted_with_what_chance_alone_gives():
    words = ["reproduced"] * 4 + ["inconclusive"] * 3 + ["not reproduced"] * 13
    assert paper_comparison.verdict_summary(words) == (
        "reproduced 4/20, inconclusive 3, not reproduced 13 (1 by chance)"
    )
    assert (
        paper_comparison.verdict_summary(
            [*["inside our interval"] * 2, "outside our interval"]
        )
        == "inside 2/3"
    )
    mixed = paper_comparison.verdict_summary(["reproduced", "outside our interval"])
    assert mixed == (
        "reproduced 1/1, inconclusive 0, not reproduced 0 (0.05 by chance), inside 0/1"
    )
    assert (
        paper_comparison.verdict_summary(
            ["not run", "quoted", "incomplete", "other size"]
        )
        == ""
    )


def of_table_2(*records):
    rows = paper_comparison.compare_with_paper(
        "table2", cells(runs(ledger(*records))).assign(column=lambda of: of.task)
    )
    return rows[rows.ran]


def test_the_mean_of_a_row_is_judged_where_every_cell_is():
    even = (0.0, 0.002, 0.004, 0.006, 0.008)
    printed = {"rte": 78.7, "qnli": 91.8}
    above, below = (
        [
            record("vera", task, seed, best / 100 + shift + add)
            for seed, add in enumerate(even)
        ]
        for (task, best), shift in zip(printed.items(), (0.01, -0.02), strict=True)
    )
    rows = of_table_2(*above, *below)
    assert list(rows.verdict) == ["not reproduced", "not reproduced"]
    whole = paper_comparison.mean_verdict(rows)
    values = [[100 * one["result"]["best"] for one in of] for of in (below, above)]
    expected = expected_difference(
        (values[0], 91.8, 0.2), (values[1], 78.7, 0.7), decimals=3
    )
    assert f"{whole.difference:+.3f} +-{whole.half_width:.3f}" == expected
    assert whole.verdict == "reproduced"  # 1.6 below, 1.4 above
    assert paper_comparison.row_status(rows).endswith("; mean reproduced")
    assert paper_comparison.mean_verdict(rows[:1]) is None
    fewer = of_table_2(*above, *below[:4])
    assert paper_comparison.mean_verdict(fewer) is None
    assert paper_comparison.row_status(fewer) == ""


def test_fewer_seeds_than_a_verdict_needs_and_a_seed_without_its_number_are_incomplete():
    (row,) = of_table_2(*seed_records(bests=(0.78, 0.79, 0.80))).itertuples()
    assert (row.verdict, round(row.difference, 9)) == ("incomplete", 0.3)
    six = seed_records(task="sst2", bests=(0.944, 0.945, 0.946, 0.947, 0.948, 0.946))
    assert list(of_table_2(*six).verdict) == ["reproduced"]
    # five have their number, and a sixth has none
    six[5]["result"]["protocols"]["paper"]["best"] = None
    assert list(of_table_2(*six).verdict) == ["incomplete"]
    # Without a spread of ours
    assert list(of_table_2(*seed_records(task="sst2", bests=[0.946] * 5)).verdict) == [
        "reproduced"
    ]
    assert list(of_table_2(*seed_records(task="sst2", bests=[0.95] * 5)).verdict) == [
        "not reproduced"
    ]
