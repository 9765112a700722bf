"""What others report: the data, their page, and the lines of the tables."""

import math

import pandas as pd
import pytest
from ledgers import instruction_record, ledger, lines, record, with_halves

from analysis import frame, tables
from analysis.others import (
    EPOCHS,
    METHODS,
    RUN_FACTS,
    range_texts,
    report_lines,
    reported_sources,
    reports_of,
    reports_of_others,
)
from analysis.paper import GLUE, IMAGES, printed_numbers
from analysis.results import others_page
from runs.record.ledger import CONF, ROOT

pytestmark = pytest.mark.properties

PAPER = (
    printed_numbers()
    .query("table in ('table2', 'table5')")
    .set_index(["model", "row", "column"])
    .value
)


@pytest.mark.parametrize("source", reported_sources())
def test_a_source_says_where_its_numbers_are_from(source):
    of = reported_sources()[source]
    assert all(of[key] for key in ("name", "cite", "url", "where", "read", "note"))
    for part in of["parts"]:
        for row in part["rows"]:
            assert row.keys() <= {*RUN_FACTS, "model", "row", "by", "note", "values"}
            assert len(row["values"]) == len(part["columns"])
            assert row["row"] in METHODS


def test_a_number_is_in_the_unit_of_the_paper_and_none_is_a_copy_of_it():
    """An average is that of its tasks, to half of its last digit and what rounding its
    tasks adds."""
    theirs = reports_of_others()
    assert {*theirs.epoch} <= {*EPOCHS}
    known = theirs[theirs.model.str.startswith(("roberta_", "vit_"))]
    assert all((CONF / "model" / f"{model}.yaml").is_file() for model in known.model)
    assert known.value.between(50, 100).all()
    assert {*known.column} <= {*GLUE, "avg", *IMAGES}
    for key, of in theirs.groupby(["label", "model", "row", "sites"]):
        values = dict(zip(of.column, of.value, strict=True))
        alike = [
            PAPER.get((*key[1:3], column)) == value for column, value in values.items()
        ]
        assert not all(alike) or len(alike) < 2, key
        if key[1].startswith("roberta_") and (average := values.pop("avg", None)):
            assert math.fsum(values.values()) / 6 == pytest.approx(average, abs=0.1), (
                key
            )


def test_target_modules_decide_with_which_row_of_ours_a_source_is_compared():
    like = (
        reports_of_others()
        .query("model == 'roberta_base' and row == 'vera' and column == 'rte'")
        .set_index("source")
    )
    assert dict(like.like) == {
        "randlora": "vera_all",
        "c3a": "vera",
        "vblora": "vera_all",
    }
    assert dict(like.same_sites) == {"randlora": False, "c3a": True, "vblora": False}
    assert (CONF / "method" / "vera_all.yaml").is_file()
    # table 4's rows adapt every linear layer
    assert reports_of_others().query("model == 'llama_7b'").same_sites.all()


@pytest.mark.usefixtures("undrawn")
def test_the_page_is_what_the_data_give():
    """A picture's bytes depend on matplotlib's version."""
    made = others_page.others_pages()
    assert (ROOT / "docs" / "others.md").read_text() == made["others.md"], (
        "make results"
    )
    assert (ROOT / "docs" / "others.svg").is_file()
    assert "VB-LoRA 85.5 (r 1,024, all linear)" in made["others.md"]
    assert "r 32, q, v, lr 1e-5 x 1,024 steps" in made["others.md"]


def test_the_picture_leaves_out_what_started_from_mnli():
    data = (
        others_page.others_picture()
        .data.set_index(["source", "model", "row", "column"])
        .difference
    )
    assert data["c3a", "roberta_base", "vera", "rte"] == pytest.approx(75.74 - 78.7)
    assert ("c3a", "roberta_base", "lora", "rte") not in data
    assert ("c3a", "roberta_large", "lora", "rte") in data


# --- the lines of the tables


def table(name, *records, model="roberta_large", others="true", **how):
    how |= {"models": [model], "others": others}
    (made,) = tables.tables_of_runs(name, frame.runs(ledger(*records)), **how)
    return made


def line(of, source, number=0):
    return lines(of, source)[number]


def test_below_a_row_of_the_paper_is_what_others_report():
    base = "roberta_base"
    theirs = line(table("table2", model=base), "others", -1)
    assert (theirs["RTE"], theirs["Avg"]) == (
        "74.9^, 75.7, 81.9^",
        "82.7^, 83.4, 85.5^",
    )
    assert theirs["status"] == "last epoch, epoch by other rows, best epoch"
    assert "others" not in {
        row[1] for row in table("table2", model=base, others="false").texts
    }
    each = table("table2", model=base, others="all")
    assert line(each, "RandLoRA", -1)["RTE"] == "74.9 +-1.5^"
    assert line(each, "C3A", -1)["status"] == "r 1,024, q, v; epoch by other rows"
    assert line(table("table5", model="vit_base"), "others", -1)["Food-101"] == "76.0"
    judged = instruction_record(
        "lora", model="llama2_7b", scores=[("gpt-4", 5.33), ("gpt-4o", 9.0)]
    )
    # GPT-4's beside theirs
    for of, score in (([], "5.63, 5.70"), ([judged], "5.63 (-0.30), 5.70 (-0.37)")):
        assert (
            line(table("table4", *of, model="llama2_7b", seeds=1), "others")["score"]
            == score
        )


def lora(a, b, task="cola"):
    """LoRA on RoBERTa-large, 5 seeds: the best epoch of half A is the first, of all of
    dev the second."""
    return [
        with_halves(
            record("lora", task, seed, model="roberta_large"),
            (a, a - 0.02, 0.1),
            (b, b + 0.1, 0.1),
        )
        for seed in range(5)
    ]


@pytest.mark.parametrize("select", ["paper", "crossfit"])
def test_each_source_stands_beside_ours_by_its_own_choice_of_the_epoch(select):
    """Whichever is ours: by other rows 60, below those of that choice; by the best
    epoch 74, above them."""
    one, *others = lora(0.80, 0.60)
    made = table("table2", one, *others, others="all", select=select)
    assert line(made, "ours")["status"].endswith(
        "; CoLA within what others report (62.8 to 67.0)"
    )
    assert line(made, "C3A")["CoLA"] == "65.2 +-0.8 (-5.2)"
    assert line(made, "microsoft/LoRA issue 35")["CoLA"] == "67.0 (+7.0)"
    unsaid = line(made, "microsoft/LoRA issue 151")
    assert (unsaid["CoLA"], unsaid["status"]) == (
        "67.0 (+7.0)",
        "r 8, q, v; epoch not said",
    )
    # an older record: without the number of one seed there is no median
    del one["curve"]["metric_select"]
    made = table("table2", one, *others, others="all", select=select)
    assert line(made, "C3A")["CoLA"] == "65.2 +-0.8"
    assert line(made, "microsoft/LoRA issue 151")["CoLA"] == "67.0 (+7.0)"


def test_three_sources_make_a_range_that_ours_is_within_or_outside():
    theirs = pd.DataFrame({"column": "cola", "value": [62.8, 65.2, 67.0]})
    for *less, where in (
        *((-1, 1, 2, "within"), (0, 1, 2, "within"), (-2, -1, 0, "within")),
        *((0.1, 1, 2, "outside"), (-2, -1, -0.1, "outside")),
    ):
        assert (
            range_texts(theirs.assign(difference=less))
            == f"CoLA {where} what others report (62.8 to 67.0)"
        )
    assert (
        range_texts(theirs[:2].assign(difference=(0, 1)))
        == range_texts(theirs.assign(difference=(0, 1, math.nan)))
        == ""
    )


def test_our_average_is_compared_where_every_task_is_complete():
    runs = [of for task in GLUE for of in lora(0.86, 0.86, task)]
    for some, less in ((runs, "86.0 (+0.0)"), (runs[5:], "86.0")):
        ours = frame.cells(frame.runs(ledger(*some)))
        theirs = reports_of("roberta_large", ["avg"], ours.assign(column=ours.task))
        of = theirs[(theirs.source == "c3a") & (theirs.row == "lora")]
        assert str(report_lines(of, each_source=True)[0]["avg"]) == less
