"""Every cell, verdict, finding and table row, of the published records and of a ledger made by hand."""

import pytest

from analysis import figures, tables
from analysis.beside import WORDS
from analysis.command import own_and_published
from analysis.frame import runs
from analysis.render import render
from analysis.stats import ranks
from nets import today
from nets.golden import read_lines, same_lines
from nets.made import made_ledger
from runs.record import PUBLISHED, read_ledger

pytestmark = pytest.mark.nets

LEDGERS = ("published", "made")
OF_RECORDS = [name for name in ("", *tables.TABLES, "ranks") if name not in tables.WITHOUT_RECORDS]
#: Of the made ledger's cells.
BRIEF = ("model", "row", "task", "label", "ids", "n", "wanted", "median", "spread", "parameters", "word")


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory):
    with pytest.MonkeyPatch.context() as own:
        own.setattr("runs.record.ledger.PUBLISHED", PUBLISHED)
        published = read_ledger(tmp_path_factory.mktemp("nothing"))
    assert not published.problems
    return {"published": published, "made": made_ledger()}


@pytest.fixture(scope="module")
def frames(ledgers):
    """The runs of each ledger: of this machine, and published ones."""
    return {which: own_and_published(of) for which, of in ledgers.items()}


@pytest.mark.parametrize("which", LEDGERS)
def test_cells(which, ledgers):
    lines = [*today.cells(ledgers[which])]
    brief = [{key: line[key] for key in BRIEF} for line in lines]
    same_lines("cells.jsonl", brief if which == "made" else lines, ledger=which)


@pytest.mark.parametrize("which", LEDGERS)
def test_verdicts(which, ledgers):
    """Of the published records, the rows with a number of ours."""
    lines = [*today.printed_verdicts(ledgers[which])]
    words = {value[0] for line in lines for value in line.values() if isinstance(value, list)}
    ours = [line for line in lines if any(isinstance(v, list) and v[1] is not None for v in line.values())]
    same_lines("verdicts.jsonl", lines if which == "made" else ours, ledger=which)
    assert which != "made" or words | {line["word"] for line in read_lines("cells.jsonl")} >= {*WORDS}


@pytest.mark.parametrize("which", LEDGERS)
def test_findings(which, ledgers):
    same_lines("findings.jsonl", today.findings(ledgers[which]), ledger=which)


def test_comparisons(ledgers):
    same_lines("comparisons.jsonl", today.comparisons(ledgers["published"]))


@pytest.mark.parametrize(
    ("name", "which"),
    [
        *((name, which) for name in OF_RECORDS for which in LEDGERS),
        *((name, "none") for name in tables.WITHOUT_RECORDS),
    ],
)
def test_tables(name, which, ledgers, frames):
    """Their rows; each can be shown in every form."""
    of = which if which in ledgers else "made"
    made = ranks(runs(ledgers[of])) if name == "ranks" else tables.make(name, ledgers[of], frames[of])
    same_lines("tables.jsonl", today.table_rows(name, made), ledger=which, table=name)
    for form, mark in (("md", "|"), ("latex", "\\begin{tabular}"), ("csv", ",")):
        assert all(mark in render([table], form) for table in made)


@pytest.mark.parametrize("name", ["table2", "table6"])
def test_tables_by_the_other_protocol(name, ledgers, frames):
    made = tables.make(name, ledgers["published"], frames["published"], select="crossfit")
    lines = today.table_rows(name, made)
    same_lines("tables.jsonl", lines, ledger="published", table=f"{name} crossfit")


@pytest.mark.parametrize("name", sorted({*figures.NAMES} - {"parameters", "demo"}))
def test_figures(name, ledgers, frames):
    """Parameters and demo are parts of pareto."""
    axes = ("parameters", "metric")
    made = figures.make(name, ledgers["published"], frames=frames["published"], axes=axes)
    same_lines("figures.jsonl", today.figure_rows(made), ledger="published", figure=name)


@pytest.mark.slow  # a picture in three forms takes two seconds
@pytest.mark.parametrize("name", figures.NAMES)
def test_every_figure_is_drawn(name, ledgers, frames, tmp_path):
    for figure in figures.make(name, ledgers["published"], frames=frames["published"]):
        paths = figures.save(figure, tmp_path)
        assert {path.suffix for path in paths if path.stat().st_size} == {".pdf", ".png", ".csv"}
        assert figures.svg(figure).rstrip().endswith("</svg>")
