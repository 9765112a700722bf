"""Every table, figure, the report's data and the results page, from a frozen copy of records: byte for
byte."""

import json
import re

import pytest
from ledgers import record, seeds

from analysis import figures, report, results, tables
from analysis.command import open_ledger
from analysis.ranks import ranks
from analysis.statistics import costs, statistics_tables
from nets.golden import FOLDER, same_text
from runs.record import read_study

#: Records of the paper's own models, made by hand, so that its rows have something beside them.
OWN = [
    *seeds(),
    *seeds(row="lora", bests=(0.85, 0.86, 0.87, 0.86, 0.85)),
    *seeds(task="mrpc", bests=(0.895, 0.9, 0.89)),
    *seeds(row="bitfit", task="cola", bests=(0.6, 0.62, 0.58, 0.61, 0.63), deviations=["one epoch less"]),
    *seeds(row="vera", task="cola", model="roberta_large", bests=(0.68, 0.67, 0.69, 0.66, 0.7)),
    *(r for row in ("vera", "vera_only_d", "vera_only_b") for r in seeds(row, model="roberta_large")),
    record(row="full", status="diverged", values=[]),
]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A folder of records, and the studies, both as on the day of the freeze."""
    folder = tmp_path_factory.mktemp("frozen")
    for line in (FOLDER / "records.jsonl").read_text().splitlines():
        entry = json.loads(line)
        kind = "record" if "record" in entry else "measure"
        place = folder / "studies" / entry["study"] / ("measures" if kind == "measure" else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{entry[kind]['id']}.json").write_text(json.dumps(entry[kind]))
    for study in (folder / "studies").iterdir():
        (study / "NOTES.md").write_text(f"Notes of {study.name}.\n")
    (folder / "records").mkdir()
    for one in OWN:
        (folder / "records" / f"{one['id']}.json").write_text(json.dumps(one))
    return folder


@pytest.fixture
def ledger(output, monkeypatch):
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", output / "studies")
    return open_ledger(str(output))


@pytest.mark.parametrize("name", tables.TABLES)
@pytest.mark.parametrize("form", ["md", "latex", "csv"])
def test_tables(name, form, ledger):
    made = tables.make(name, ledger)
    same_text(f"tables/{name}.{form}", "\n\n".join(table.render(form, True) for table in made) + "\n")


@pytest.mark.parametrize("name", ["table2", "table3", "table6"])
def test_tables_by_the_other_protocol(name, ledger):
    made = tables.make(name, ledger, "crossfit")
    same_text(f"tables/{name}.crossfit.md", "\n\n".join(table.render("md", False) for table in made) + "\n")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", figures.NAMES)
def test_figures(name, ledger, tmp_path):
    """The CSV behind each, with its title and notes."""
    lines = []
    for figure in figures.make(name, ledger):
        (path,) = (
            [path for path in figures.save(figure, tmp_path) if path.suffix == ".csv"]
            if figure.rows
            else [None]
        )
        lines += [figure.title, path.read_text() if path else "nothing to draw", *figure.notes, ""]
    same_text(f"figures/{name}.csv", "\n".join(lines))


@pytest.mark.slow  # a picture in three forms takes two seconds
@pytest.mark.parametrize("name", figures.NAMES)
def test_every_figure_is_drawn(name, ledger, tmp_path):
    for figure in figures.make(name, ledger):
        paths = figures.save(figure, tmp_path)
        assert {path.suffix for path in paths if path.stat().st_size} == {".pdf", ".png", ".csv"}
        assert figures.svg(figure).rstrip().endswith("</svg>")


def test_statistics(ledger):
    made = [*statistics_tables(ledger), *ranks(ledger), costs(ledger)]
    same_text("statistics.md", "\n\n".join(table.render("md", True) for table in made) + "\n")


@pytest.mark.usefixtures("undrawn")
def test_the_report(ledger):
    """Its data, a line for each cell, and its page without pictures and dates."""
    page = report.page(ledger)
    text = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)[1]
    data = json.loads(text)
    lines = [json.dumps({key: value}) for key, value in data.items() if key != "cells"]
    same_text("report/data.jsonl", "\n".join([*lines, *map(json.dumps, data["cells"])]) + "\n")
    rest = page.replace(text, "").replace(">", ">\n")
    rest = re.sub(r"data:image/[^\"]*", "PICTURE", re.sub(r"Made on \d{4}-\d\d-\d\d", "Made on DATE", rest))
    same_text("report/page.html", rest)


@pytest.mark.usefixtures("undrawn")
def test_the_results_page(output, ledger, tmp_path):
    studies = {path: read_study(path) for path in sorted((output / "studies").iterdir())}
    assert all(of.records for of in studies.values())
    made = results.pages(studies, results.claims(results.merged(studies.values())), tmp_path)
    texts = {path: text for path, text in made.items() if path.endswith(".md")}
    same_text("results.md", "\n".join(f"=== {path}\n\n{text}" for path, text in texts.items()))
