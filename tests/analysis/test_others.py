"""What others report: the data, their page, and the lines of the tables."""

import math

import pytest
from ledgers import halves, instructed, ledger, lines, record

from analysis import frame, tables
from analysis.others import ABOUT, EPOCHS, METHODS, SOURCES, others
from analysis.paper import GLUE, IMAGES, numbers
from analysis.results import pages
from runs.record import CONF, ROOT

pytestmark = pytest.mark.properties

PAPER = numbers().query("table in ('table2', 'table5')").set_index(["model", "row", "column"]).value


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_says_where_its_numbers_are_from(source):
    of = SOURCES[source]
    assert all(of[key] for key in ("name", "cite", "url", "where", "read", "note"))
    for part in of["parts"]:
        for row in part["rows"]:
            assert row.keys() <= {*ABOUT, "model", "row", "by", "note", "values"}
            assert len(row["values"]) == len(part["columns"])
            assert row["row"] in METHODS


def test_a_number_is_in_the_unit_of_the_paper_and_none_is_a_copy_of_it():
    """An average is that of its tasks, to half of its last digit and what rounding its tasks adds."""
    theirs = others()
    assert {*theirs.epoch} <= {*EPOCHS}
    known = theirs[theirs.model.str.startswith(("roberta_", "vit_"))]
    assert all((CONF / "model" / f"{model}.yaml").is_file() for model in known.model)
    assert known.value.between(50, 100).all()
    assert {*known.column} <= {*GLUE, "avg", *IMAGES}
    for key, of in theirs.groupby(["label", "model", "row", "sites"]):
        values = dict(zip(of.column, of.value, strict=True))
        alike = [PAPER.get((*key[1:3], column)) == value for column, value in values.items()]
        assert not all(alike) or len(alike) < 2, key
        if key[1].startswith("roberta_") and (average := values.pop("avg", None)):
            assert math.fsum(values.values()) / 6 == pytest.approx(average, abs=0.1), key


def test_target_modules_decide_with_which_row_of_ours_a_source_is_compared():
    like = others().query("model == 'roberta_base' and row == 'vera' and column == 'rte'").set_index("source")
    assert dict(like.like) == {"randlora": "vera_all", "c3a": "vera", "vblora": "vera_all"}
    assert dict(like.same) == {"randlora": False, "c3a": True, "vblora": False}
    assert (CONF / "method" / "vera_all.yaml").is_file()
    assert others().query("model == 'llama_7b'").same.all()  # table 4's rows adapt every linear layer


def test_the_page_is_what_the_data_give():
    """A picture's bytes depend on matplotlib's version."""
    made = pages.others_pages()
    assert (ROOT / "docs" / "others.md").read_text() == made["others.md"], "make results"
    assert (ROOT / "docs" / "others.svg").is_file()
    assert "VB-LoRA 85.5 (r 1,024, all linear)" in made["others.md"]


def test_the_picture_leaves_out_what_started_from_mnli():
    data = pages.others_picture().data.set_index(["source", "model", "row", "column"]).difference
    assert data["c3a", "roberta_base", "vera", "rte"] == pytest.approx(75.74 - 78.7)
    assert ("c3a", "roberta_base", "lora", "rte") not in data
    assert ("c3a", "roberta_large", "lora", "rte") in data


# --- the lines of the tables


def table(name, *records, others="true", model=0, **how):
    return tables.made(name, frame.runs(ledger(*records)), others=others, **how)[model]


def line(of, source, number=0):
    return lines(of, source)[number]


def test_below_a_row_of_the_paper_is_what_others_report():
    theirs = line(table("table2"), "others", -1)
    assert (theirs["RTE"], theirs["Avg"]) == ("74.9^, 75.7, 81.9^", "82.7^, 83.4, 85.5^")
    assert theirs["status"] == "last epoch, epoch by other rows, best epoch"
    assert "others" not in {row[1] for row in table("table2", others="false").texts}
    each = table("table2", others="all")
    assert line(each, "RandLoRA", -1)["RTE"] == "74.9 +-1.5^"
    assert line(each, "C3A", -1)["status"] == "r 1,024, q, v; epoch by other rows"
    assert line(table("table5"), "others", -1)["Food-101"] == "76.0"
    assert line(table("table4", model=2), "others")["score"] == "5.63, 5.70"
    judged = instructed("lora", model="llama2_7b", scores=[("gpt-4", 5.33), ("gpt-4o", 9.0)])
    ours = tables.made("table4", frame.runs(ledger(judged)), others="true", seeds=1)[2]
    assert line(ours, "others")["score"] == "5.63 (-0.30), 5.70 (-0.37)"  # GPT-4's score beside theirs


def lora(a, b, task="cola"):
    """LoRA on RoBERTa-large, 5 seeds: the best epoch of half A is the first, of all of dev the second."""
    return [
        halves(record("lora", task, seed, model="roberta_large"), (a, a - 0.02, 0.1), (b, b + 0.1, 0.1))
        for seed in range(5)
    ]


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (0.66, 0.62, "CoLA within what others report (62.8 to 67.0)"),
        (0.80, 0.60, "CoLA within what others report (62.8 to 67.0)"),  # below those by other rows alone
        (0.90, 0.80, "CoLA outside what others report (62.8 to 67.0)"),
        (0.30, 0.20, "CoLA outside what others report (62.8 to 67.0)"),
    ],
)
def test_three_sources_make_a_range_that_ours_is_within_or_outside(a, b, words):
    """Each source beside ours by its own choice of the epoch."""
    made = table("table2", *lora(a, b), model=1)
    assert line(made, "ours")["status"].endswith(f"; {words}")
    base, large = tables.made("table2", frame.runs(ledger(*lora(a, b))), others="all")[:2]
    by_half = line(large, "C3A")
    assert by_half["CoLA"] == f"65.2 +-0.8 ({100 * b - 65.16:+.1f})"
    of_base = line(base, "C3A", 2)
    assert of_base["CoLA"] == "61.0 +-1.6"  # no run of another model is beside it
    by_best = line(large, "microsoft/LoRA issue 35")
    assert by_best["CoLA"] == f"67.0 ({100 * (a + b + 0.08) / 2 - 67.0:+.1f})"


@pytest.mark.parametrize("select", ["paper", "half", "crossfit"])
def test_how_our_epoch_is_chosen_changes_nothing_beside_others(select):
    one, *runs = lora(0.66, 0.62)
    made = table("table2", one, *runs, others="all", model=1, select=select)
    unsaid = line(made, "microsoft/LoRA issue 151")
    assert (unsaid["CoLA"], unsaid["status"]) == ("67.0 (+1.0)", "r 8, q, v; epoch not said")
    del one["curve"]["metric_select"]  # an older record: without the number of one seed there is no median
    made = table("table2", one, *runs, others="all", model=1, select=select)
    assert line(made, "C3A")["CoLA"] == "65.2 +-0.8"
    assert line(made, "microsoft/LoRA issue 151")["CoLA"] == "67.0 (+1.0)"


def test_fewer_sources_or_seeds_have_no_word():
    made = table("table2", *lora(0.6, 0.6, "sst2"), *lora(0.6, 0.6)[:3], model=1)
    assert "what others report" not in line(made, "ours")["status"]
    assert line(made, "others", -2)["SST-2"] == "95.5^, 95.5 (-35.5), 96.0 (-36.0)"


def test_our_average_is_compared_where_every_task_is_complete():
    runs = [of for task in GLUE for of in lora(0.86, 0.86, task)]
    each = table("table2", *runs, others="all", model=1)
    assert line(each, "C3A")["Avg"] == "86.0 (+0.0)"
    assert line(table("table2", *runs[5:], others="all", model=1), "C3A")["Avg"] == "86.0"
