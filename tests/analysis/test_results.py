"""docs/results.md, the pages of studies, the README's blocks and the report: they print
one list of comparisons, and every published study is in it or in the list of what is
left out."""

import re
from functools import cache

import pytest
from ledgers import ledger
from matplotlib.markers import CARETLEFT, CARETRIGHT
from small import minilm_records, minilm_records_by_row

from analysis import report
from analysis.frame import runs
from analysis.inference import Mean
from analysis.results import pages
from analysis.results.__main__ import main
from analysis.results.claims import PAIRED_KINDS
from analysis.results.findings import findings
from analysis.results.forest import AXIS_END, _draw, forest
from analysis.results.pages import (
    BEGIN,
    END,
    comparisons_page,
    overview,
    readme_block,
    studies_of,
)
from analysis.results.scores import SeedDifferences, distance_of, gap
from analysis.results.templates import distance
from runs.command.errors import UserError
from runs.record.ledger import PUBLISHED, read_ledger, read_study, write_study

pytestmark = pytest.mark.properties


def records():
    """VeRA, LoRA, Adapter P and full fine-tuning on tasks of two families."""
    scores = {
        "vera": (0.70, 0.71, 0.72),
        "lora": (0.72, 0.73, 0.71),
        "adapter_p": (0.70, 0.71, 0.72),
        "full": (0.9, 0.5, 0.2),
    }
    made = minilm_records_by_row("mrpc", **scores) + minilm_records_by_row(
        "cola", vera=(0.4, 0.41), lora=(0.4, 0.42)
    )
    for row, level in (("vera", 0.2), ("lora", 0.3)):
        made += minilm_records(row, "mine", (level, level + 0.01), family="maths")
    return made


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def comparisons_of_page(text):
    """The comparisons of rows on the results page: claim, task, difference, interval
    and verdict."""
    found = []
    for part in text.split("<details")[1:]:
        title = re.search(r"<summary>\d+\. (.*?):? (?:supported|contra|inconcl)", part)
        # what stands below the table of comparisons is about its runs
        part = part.partition("Epochs, and the rows")[0]
        lines = [line for line in part.splitlines() if line.startswith("| ")]
        header = cells_of(lines[0]) if lines else []
        if not title or "difference" not in header:
            continue
        places = [
            header.index(name) for name in ("task", "difference", "95% CI", "verdict")
        ]
        for line in lines[2:]:
            cells = cells_of(line.replace("**", ""))
            found.append((title[1].rstrip(":"), *(cells[place] for place in places)))
    return found


def comparisons_of_report(text):
    section = text[text.index('id="findings"') : text.index('id="verdicts"')]
    found = []
    for part in section.split("<details>")[1:]:
        title = re.search(r"<summary>(.*?): <span", part)[1]
        for line in re.findall(r"<tbody><tr>(.*?)</tr>", part, re.DOTALL):
            cells = re.findall(r"<td[^>]*>(.*?)</td>", line, re.DOTALL)
            cells = [re.sub("<[^>]*>", "", cell).strip() for cell in cells]
            cells[5] = cells[5].removesuffix(" (seeds only)")
            found.append((title, cells[0], *cells[4:7]))
    return found


def test_the_page_the_report_and_the_readme_print_the_same_comparisons(monkeypatch):
    monkeypatch.setattr(report.tables, "TABLES", {})
    monkeypatch.setattr(report.figures, "FIGURES", {})
    of_ledger = ledger(*records())
    made = findings(runs(of_ledger))
    on_page = comparisons_of_page(comparisons_page(made))
    in_report = [
        line for line in comparisons_of_report(report.page(of_ledger)) if line[2] != "-"
    ]
    assert len(on_page) == 5
    assert on_page == in_report
    headline = f"{-made[0].mean.mean:.1f} points below LoRA"
    assert headline in " ".join(readme_block(made).split())
    assert headline in overview(made)


@pytest.mark.parametrize("mean", [-0.04, 0.0, 0.04])
def test_a_difference_that_rounds_to_0_has_no_side(mean):
    difference = SeedDifferences((0, 1), (mean - 1, mean + 1))
    texts = [
        distance(Mean(mean, 0.5, 1), "LoRA"),
        distance_of(difference),
        gap(difference, "LoRA", decimals=1),
    ]
    for text in texts:
        assert text.startswith("less than 0.05 points ")
        assert not re.search("above|below", text)
    assert "from LoRA (95% CI" in texts[2]
    assert "0.04" in distance(Mean(mean, 0.5, 1), decimals=2) or mean == 0


def test_a_page_without_findings_says_so():
    texts = overview([]) + readme_block([])
    assert "No published run can be compared" in texts
    assert "Nothing was compared" in texts
    assert not any(mark in texts for mark in ("nan", "{{", "{%"))


STUDIES = sorted(folder for folder in PUBLISHED.glob("*") if folder.is_dir())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The findings of the published records."""
    with pytest.MonkeyPatch.context() as own:
        own.setattr("runs.record.ledger.PUBLISHED", PUBLISHED)
        of_ledger = read_ledger(tmp_path_factory.mktemp("nothing"))
    return findings(runs(of_ledger), of_ledger.measures.values())


def test_every_published_study_is_in_a_finding_or_in_the_list_of_what_is_left_out(
    published,
):
    """Of each claim that compares rows, such as VeRA with LoRA."""
    studies = {folder.name for folder in STUDIES}
    assert len(studies) >= 15
    for finding in published:
        if finding.claim.kind in PAIRED_KINDS:
            counted = {
                study
                for one in finding.comparisons
                if not one.excluded
                for study in one.origins
            }
            left_out = {one.study for one in finding.exclusions}
            assert counted | left_out == studies, finding.title
            assert all(one.reason for one in finding.exclusions)


def test_the_headline_of_the_published_records(published):
    """VeRA is below LoRA by the rule; three of four rules say so; sums counts."""
    (near,) = [
        one for one in published if one.claim.finding.startswith("VeRA is near LoRA")
    ]
    low, high = near.mean.interval()
    assert (near.mean.mean, low, high) == pytest.approx((-1.70, -3.07, -0.32), abs=0.01)
    assert near.verdict == "contradicted"
    assert near.most_influential_task == "SmolLM2-135M, sums"
    without = near.mean_without("SmolLM2-135M, sums")
    assert (without.mean, *without.interval()) == pytest.approx(
        (-1.22, -2.18, -0.25), abs=0.01
    )
    assert near.agreeing_analyses() == [
        "weighted mean",
        "weighted mean with collapsed runs",
    ]
    assert [(one.count, one.total) for one in near.collapses] == [(0, 132), (2, 132)]
    assert near.collapse_p == pytest.approx(0.498, abs=1e-3)


def test_the_first_page_begins_with_the_answer_and_has_short_cells(published):
    page = overview(published)
    answer = page.split("\n\n")[3]
    assert answer.startswith(
        "**Is VeRA as good as LoRA here?** No: by our rule the claim is [contradicted]"
    )
    assert "The combination SmolLM2-135M, sums moves the mean most" in answer
    assert "MiniLM, RTE, where no method learned anything" in page
    assert "chose the rule and its words after we had seen these data" in page
    assert (
        "Of the 4 rules that we tried ([first 4 lines](#other-rules)), 3 give a mean"
        in page
    )
    assert "contradicted (VeRA fits better)" in page
    tables = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(tables) > 30
    assert max(len(cell) for line in tables for cell in cells_of(line)) <= 40
    # A picture or a heading stands alone
    for mark in ("\n![", "\n## "):
        assert page.count(mark) == page.count(f"\n{mark}")


@pytest.mark.slow
def test_the_pages_and_the_report_have_the_same_findings_of_the_published_records(
    published,
):
    ledgers = {folder: read_study(folder) for folder in STUDIES}
    of_pages = pages.findings_of(studies_of(ledgers))
    shown = comparisons_of_page(comparisons_page(of_pages))
    assert len(shown) > 40
    assert shown == comparisons_of_page(comparisons_page(published))
    assert [one.exclusions for one in of_pages] == [one.exclusions for one in published]


# --- the forest plot


class Axes:
    """What is drawn, by marker."""

    def __init__(self):
        self.markers = []

    def plot(self, x, y, *args, marker=None, **how):
        self.markers += [marker] * len(x) if marker else []

    def get_yticklabels(self):
        return []

    def __getattr__(self, name):
        return lambda *args, **how: None


def test_an_interval_that_leaves_the_frame_ends_in_an_arrowhead():
    figure = forest(findings(runs(ledger(*records()))))
    data = figure.data
    beyond = data[(data.low < -AXIS_END) | (data.high > AXIS_END)]
    assert len(beyond) > 0
    axes = Axes()
    axes.get_yticklabels = lambda: [Axes()] * data.height.nunique()
    _draw(axes, data)
    assert axes.markers.count(CARETLEFT) == (data.low < -AXIS_END).sum()
    assert axes.markers.count(CARETRIGHT) == (data.high > AXIS_END).sum()
    kinds = data.kind.value_counts().to_dict()
    assert kinds == {"paper": 6, "task": 3, "mean": 1, "prediction": 1, "title": 1}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A published study: head, LoRA and VeRA on CoLA, two trials, and words by hand."""
    folder = tmp_path / "records" / "glue_minilm"
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", folder.parent)
    made = minilm_records_by_row(
        "cola",
        head=(0.1, 0.2, 0.3),
        vera=(0.41, 0.415, 0.42),
        lora=(0.41, 0.415, 0.421),
    )
    for one in made[:3]:
        one["parameters"]["adapter"] = 0
    for rate, best in ((1e-2, 0.2), (4e-2, 0.3)):
        (trial,) = minilm_records("vera", "cola", (best,), lr=rate)
        trial["config"]["task"]["holdout"] = 0.2
        trial["id"] += "-trial"
        made.append(trial)
    write_study(folder, made)
    (folder / "NOTES.md").write_text(
        "# Mine\n\nRun with {{ count('vera') }} seeds.\n\n"
        "## What would change it\n\n- More.\n\n## Details\n\nMuch.\n"
    )
    (tmp_path / "README.md").write_text(f"# Mine\n{BEGIN}\nold\n{END}\nthe rest\n")
    return [f"docs={tmp_path / 'docs'}", f"readme={tmp_path / 'README.md'}"], tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_pages_have_the_words_the_table_the_pictures_and_the_runs(
    study, capsys, monkeypatch
):
    words, folder = study
    monkeypatch.setattr(pages, "others_pages", cache(pages.others_pages))
    assert main([*words, "check=true"]) == 1
    assert "is not what the records give: make results" in capsys.readouterr().out
    assert not (folder / "docs").exists()
    assert main(words) == 0
    text = (folder / "docs" / "results" / "comparisons.md").read_text()
    line = "| MiniLM, cola | 3 | 3 | VeRA r=1024 | 41.5 | LoRA r=8 | 41.5 | -0.0 | "
    assert line in text
    text = (folder / "docs" / "results.md").read_text()
    assert "| [glue_minilm](results/glue_minilm.md) | 9 | 2 | 0.0 |" in text
    text = (folder / "docs" / "results" / "glue_minilm.md").read_text()
    assert text.startswith("# Mine\n")
    order = [
        "Run with 3 seeds.",
        "| VeRA r=1024^ |",
        "## What would change it",
        "Much.",
        "![",
        "[All studies]",
    ]
    assert [text.index(part) for part in order] == sorted(
        text.index(part) for part in order
    )
    picture = (
        folder / "docs" / "results" / "glue_minilm_metric_by_parameters_cola_minilm.svg"
    )
    assert f"]({picture.name})" in text
    text = (folder / "README.md").read_text()
    assert (text[:7], text[-10:], "old" in text) == ("# Mine\n", "\nthe rest\n", False)
    assert "Across 1 combination of a model and a task" in text
    assert main([*words, "check=true"]) == 0
    picture.unlink()  # one that is missing, and one too many
    (gone := picture.with_name("gone.svg")).write_text("<svg/>")
    assert main([*words, "check=true"]) == 1
    printed = capsys.readouterr().out
    assert all(
        f"{path} is not what the records give" in printed for path in (picture, gone)
    )
    assert main(words) == 0
    assert (picture.exists(), gone.exists()) == (True, False)
    (folder / "README.md").write_text("# no marks\n")
    with pytest.raises(UserError, match=r"README\.md lacks the lines"):
        main(words)
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", folder / "none")
    with pytest.raises(UserError, match="no published records"):
        main(words)
