"""Every cell, verdict, finding and table row, of the published records and of a ledger
made by hand, as plain values. A rewrite of analysis replaces the functions at the end
alone: the golden lines stay."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import pytest
from tiers import slow_except

from analysis import figures, tables
from analysis.command import own_and_published
from analysis.frame import reported_cells, runs
from analysis.inference import mean_of, sign_test
from analysis.notes import NOTE_LENGTH
from analysis.paired import paired_differences
from analysis.paper_comparison import WITH_SPREAD, WITHOUT_SPREAD
from analysis.render import Number, Table, render
from analysis.results.findings import findings as found_findings
from analysis.stats import MODELS, statistics_tables, verdicts_by_runs
from nets.golden import read_lines, same_lines
from nets.made import made_ledger
from runs.record.intervals import median_interval
from runs.record.ledger import PUBLISHED, read_ledger
from runs.record.schema import TEXT_SCORES, Record

pytestmark = pytest.mark.nets

#: All verdicts on a cell that a table may show.
VERDICTS = {
    *WITH_SPREAD,
    *WITHOUT_SPREAD,
    "incomplete",
    "other size",
    "other model",
    "not in the paper",
    "not run",
    "quoted",
}
LEDGERS = ("published", "made")
OF_RECORDS = [
    name for name in ("", *tables.TABLES) if name not in tables.WITHOUT_RECORDS
]
FIGURES = sorted({*figures.NAMES} - {"parameters", "demo"})
#: Of the made ledger's cells.
BRIEF = (
    "model",
    "row",
    "task",
    "label",
    "ids",
    "n",
    "wanted",
    "median",
    "spread",
    "parameters",
    "word",
)


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory):
    with pytest.MonkeyPatch.context() as own:
        own.setattr("runs.record.ledger.PUBLISHED", PUBLISHED)
        published = read_ledger(tmp_path_factory.mktemp("nothing"))
    assert not published.problems
    return {"published": published, "made": made_ledger()}


@pytest.fixture(scope="module")
def whole(ledgers):
    """The runs of each ledger."""
    return {which: runs(of) for which, of in ledgers.items()}


@pytest.fixture(scope="module")
def frames(ledgers, whole):
    """The runs of each ledger: of this machine, and published ones."""
    return {which: own_and_published(of, whole[which]) for which, of in ledgers.items()}


@pytest.fixture(scope="module")
def judged(whole):
    """The verdicts on each ledger."""
    return {which: tables.verdicts(of) for which, of in whole.items()}


@pytest.mark.parametrize("which", LEDGERS)
def test_cells(which, whole, judged):
    lines = [*cells(whole[which], judged[which])]
    brief = [{key: line[key] for key in BRIEF} for line in lines]
    same_lines("cells.jsonl", brief if which == "made" else lines, ledger=which)


@pytest.mark.parametrize("which", LEDGERS)
def test_verdicts(which, judged):
    """Of the published records, the rows with a number of ours."""
    lines = [*printed_verdicts(judged[which])]
    words = {
        value[0] for line in lines for value in line.values() if isinstance(value, list)
    }
    ours = [
        line
        for line in lines
        if any(isinstance(v, list) and v[1] is not None for v in line.values())
    ]
    same_lines("verdicts.jsonl", lines if which == "made" else ours, ledger=which)
    assert (
        which != "made"
        or words | {line["word"] for line in read_lines("cells.jsonl")} >= VERDICTS
    )


@pytest.mark.parametrize("which", LEDGERS)
def test_findings(which, ledgers, whole):
    found = findings(whole[which], ledgers[which].measures.values())
    same_lines("findings.jsonl", found, ledger=which)


def test_comparisons(whole):
    same_lines("comparisons.jsonl", comparisons(whole["published"]))


@pytest.mark.parametrize(
    ("name", "which"),
    slow_except(
        [
            *itertools.product(OF_RECORDS, LEDGERS),
            *((name, "none") for name in tables.WITHOUT_RECORDS),
        ],
        *((name, "made") for name in OF_RECORDS),
        *((name, "none") for name in tables.WITHOUT_RECORDS),
        ("table2", "published"),
    ),
)
def test_tables(name, which, ledgers, frames):
    """Their rows, each number of ours with its runs; the first can be shown in every
    form."""
    of = which if which in ledgers else "made"
    made = tables.tables_of_ledger(name, ledgers[of], frames[of])
    same_lines("tables.jsonl", table_rows(name, made), ledger=which, table=name)
    assert too_long(made) == []
    for line in (line for table in made if table.ids for line in table.rows):
        quoted = isinstance(line[1], str) and line[1].startswith(("paper", "others"))
        assert all(
            bool(entry.ids) is not quoted for entry in line if isinstance(entry, Number)
        )
    for form, mark in (("md", "|"), ("latex", "\\begin{tabular}"), ("csv", ",")):
        assert all(mark in render([table], form) for table in made[:1])


@pytest.mark.parametrize("name", slow_except(["table2", "table6"], "table2"))
def test_tables_by_the_other_protocol(name, ledgers, frames):
    made = tables.tables_of_ledger(
        name, ledgers["published"], frames["published"], select="crossfit"
    )
    lines = table_rows(name, made)
    same_lines("tables.jsonl", lines, ledger="published", table=f"{name} crossfit")


@pytest.mark.parametrize(
    "name", slow_except(FIGURES, *(name for name in FIGURES if name != "pareto"))
)
def test_figures(name, ledgers, frames):
    """Parameters and demo are parts of pareto."""
    axes = ("parameters", "metric")
    made = figures.figures_of_ledger(
        name, ledgers["published"], frames=frames["published"], axes=axes
    )
    same_lines("figures.jsonl", figure_rows(made), ledger="published", figure=name)
    assert too_long(made) == []


def test_notes_of_statistics_are_short(whole, judged):
    made = statistics_tables(whole["published"], paper_verdicts=judged["published"])
    assert len(made) > 5
    assert too_long(made) == []


# each picture takes half a second; of the others test_figures.py draws some
@pytest.mark.slow
@pytest.mark.parametrize("name", ["figure3", "figure5"])
def test_a_figure_of_measures_is_drawn(name, ledgers, frames, tmp_path):
    made = figures.figures_of_ledger(
        name, ledgers["published"], frames=frames["published"]
    )
    paths = figures.save_figure(made[0], tmp_path)
    assert {path.suffix for path in paths if path.stat().st_size} == {
        ".pdf",
        ".png",
        ".csv",
    }
    assert all(figures.svg(figure).rstrip().endswith("</svg>") for figure in made)


# --- numbers of a ledger, as the code in analysis/ makes them

Lines = Iterator[dict[str, Any]]


def too_long(made: Iterable[Table | figures.Figure]) -> list[str]:
    """The notes of tables and figures that a reader would skip."""
    return [note for part in made for note in part.notes if len(note) > NOTE_LENGTH]


def none(value: Any) -> Any:
    """None for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def median(values: Any) -> float | None:
    known = [value for value in values if value is not None and value == value]
    return none(float(pd.Series(known, dtype=float).median())) if known else None


def cells(frame: pd.DataFrame, judged: pd.DataFrame) -> Lines:
    """Each cell, whether a table shows it or another variant of its row: its runs by
    seed, the number that its table reports over them (None: unknown), and what they
    cost, as medians."""
    shown = {cell.ids: cell for cell in reported_cells(frame).itertuples()}
    words = verdicts_by_runs(frame, judged)
    results = frame[frame.kind == "result"]
    # of a wide frame each look is slow
    scored = results.sort_values("seed")[["id", "texts", *TEXT_SCORES]]
    variants = reported_cells(
        results.assign(own_row=results.row, row=results.row + "\t" + results.cell)
    )
    variants["own_row"] = variants.row.str.partition("\t")[0]
    for cell in variants.sort_values(["model", "own_row", "task", "cell"]).itertuples():
        table = shown.get(cell.ids)
        of = scored[scored.id.isin(cell.ids)]
        yield {
            "model": cell.model,
            "row": cell.own_row,
            "task": cell.task,
            "cell": cell.cell[:12],
            **_numbers(cell, of),
            "shown": table is not None,
            "left_out": [
                table.other_settings,
                list(table.repeated_ids),
                int(bool(table.older_protocols)),
            ]
            if table
            else None,
            "word": words.get(cell.ids)
            or ("not in the paper" if cell.model in MODELS else "other model"),
        }


def _numbers(cell: Any, of: pd.DataFrame) -> dict[str, Any]:
    known = [value for value in cell.values if value == value]
    scores = {key: of[key].dropna() for key in TEXT_SCORES}
    chose = cell.reported == "best"
    return {
        "label": cell.label,
        "ids": list(cell.ids),
        "values": list(map(none, cell.values)),
        "n": cell.n,
        "wanted": cell.wanted,
        "diverged": int(cell.diverged),
        "one_class": list(cell.one_class),
        "metric": cell.name,
        "median": median(known),
        "interval": median_interval(known),
        "mean": none(float(pd.Series(known, dtype=float).mean())),
        "spread": none(float(pd.Series(known).std()))
        if all(map(math.isfinite, known))
        else None,
        "best": none(cell.best),
        "last": none(cell.last),
        "crossfit": none(cell.crossfit) if chose else None,
        "optimism": none(cell.optimism) if chose else None,
        "scores": {
            key: [median(values), none(float(values.std()))]
            for key, values in scores.items()
            if len(values) and of.texts.iloc[0]
        },
        "parameters": [cell.parameters, cell.head_parameters],
        "seconds": [
            none(getattr(cell, f"{part}seconds"))
            for part in ("", "train_", "evaluate_", "decode_")
        ],
        "bytes": none(cell.adapter_bytes),
        "memory": none(cell.peak_memory_bytes),
    }


def printed_verdicts(judged: pd.DataFrame) -> Lines:
    """Each row of the paper's tables; by column the verdict: its word, ours, the number
    of seeds, the paper's number and spread, the difference, half of its interval, and
    the margin."""
    key = ["table", "part", "model", "method", "size"]
    for names, group in judged.groupby(key, sort=False):
        line: dict[str, Any] = dict(zip(key, names, strict=True))
        for of in group.itertuples():
            ran = of.ran and of.verdict != "quoted"
            judged = ran and of.verdict not in ("incomplete", "other size")
            ours, theirs = (
                [none(of.ours), int(of.n)] if ran else [None, 0],
                [of.value, none(of.spread)],
            )
            apart = none(of.difference) if ran and of.verdict != "other size" else None
            half, margin = (
                none(float(of.half_width)) if judged else None,
                of.margin if ran else 1.0,
            )
            line[of.column] = [of.verdict, *ours, *theirs, apart, half, margin]
        yield line


def findings(frame: pd.DataFrame, measures: Iterable[Record]) -> Lines:
    """The paper's claims over tasks, with each task's mean; and on each task the
    verdict, the differences and the runs of each row."""
    for finding in found_findings(frame, measures):
        yield {
            "claim": ": ".join(filter(None, [finding.claim.finding, finding.name])),
            "verdict": str(finding.verdict),
            "mean": of_mean(finding.mean),
            "tasks": {task: of_mean(mean) for task, mean in finding.task_means.items()},
            "beside": {name: of_mean(mean) for name, mean in finding.analyses.items()},
            "collapses": [[one.count, one.total] for one in finding.collapses],
            "pairs to decide": finding.pairs_to_decide,
        }
    seen = set[tuple[str, ...]]()
    for finding in found_findings(frame, measures):
        for one in finding.comparisons:
            key = (one.claim.finding, one.place, *one.ids, *one.origins)
            if key not in seen:
                yield comparison_line(one)
            seen.add(key)


def of_mean(mean: Any) -> list[Any]:
    return [none(float(value)) for value in (mean.mean, *mean.interval())]


def trained(one: Any) -> str:
    """Where and for how long the rows of a comparison trained, beside the paper."""
    text = one.place
    if one.epochs:
        text += f", {' to '.join(map(str, one.epochs))} epoch"
        text += "s" if [*one.epochs] != [1] else ""
        paper = [f"{count} {size}".strip() for size, count in one.paper_epochs.items()]
        text += f" (paper: {', '.join(paper)})" if paper else ""
    rising = [
        f"{side.label} ({side.best_at_end_count} of {side.curve_count})"
        for side in one.sides
        if side.still_rising
    ]
    return text + (f"; still rising: {', '.join(rising)}" if rising else "")


def comparison_line(one: Any) -> dict[str, Any]:
    return {
        "claim": one.claim.finding,
        "where": trained(one),
        "verdict": str(one.verdict),
        "crossfit": one.crossfit and str(one.crossfit),
        "firm": one.is_firm,
        "differences": [pairs and of_mean(pairs.mean) for pairs in one.pairs],
        "collapsed": [pairs and sum(pairs.collapsed) for pairs in one.pairs],
        "numbers": {name: none(value) for name, value in one.numbers.items()},
        "runs": [
            [side.label, none(side.median), none(side.mean), *side.ids]
            for side in one.sides
        ],
    }


def comparisons(frame: pd.DataFrame) -> Lines:
    """VeRA against every other row, by task and over tasks."""
    lines = paired_differences(frame, "vera")
    # of several ways of measuring a task, one alone, so that the data stay few
    lines = lines[~lines.task.str.startswith(("reviews, 2", "stsb, 1", "sst2, 1"))]
    for line in lines[lines.task != ""].itertuples():
        differences, known = pd.Series(line.differences), line.pairs > 1
        ends = median_interval(line.differences) or ()
        yield {
            "model": line.model,
            "other": line.other,
            "task": line.task,
            "pairs": [
                line.pairs,
                int((differences > 0).sum()),
                int((differences < 0).sum()),
            ],
            "median": [float(differences.median()), *ends],
            "p": sign_test(differences),
            "better": line.better,
            "mean": line.mean,
            "two-sided": [line.low, line.high] if known else None,
            "one-sided": mean_of(differences).interval(0.9) if known else None,
        }


def table_rows(name: str, made: Iterable[Table]) -> Lines:
    """Each row of a table's parts with a number of ours, or of one without records: by
    column the numbers of its cell (value, spread, seeds, ...), or its text."""
    for table in made:
        for row, texts in zip(table.rows, table.texts, strict=True):
            ours = any(isinstance(entry, Number) and entry.ids for entry in row)
            if name in tables.WITHOUT_RECORDS or ours:
                by_column = zip(table.header[1:], texts[1:], strict=True)
                found = {
                    column: cell_numbers(text)
                    for column, text in by_column
                    if text not in ("", "-")
                }
                yield {"of": table.model or table.title, "row": texts[0], **found}


def figure_rows(made: Iterable[figures.Figure]) -> Lines:
    """The data behind a figure's parts that come from runs."""
    for figure in made:
        for row in (
            figure.data[figure.data.runs.astype(bool)]
            .drop(columns="runs")
            .to_dict("records")
        ):
            yield {
                "of": figure.name,
                **{key: none(value) for key, value in row.items()},
            }


NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def cell_numbers(text: str, every: bool = False) -> Any:
    """The numbers of a table's cell, such as 94.6, 0.3, 3 and 5 of "94.6 +-0.3 (3/5)";
    another text, as it is. every: the numbers of any text."""
    plain = re.sub(r"\+-(?=\d)", " ", text)
    found = [
        float(number.replace(",", "").rstrip(".")) for number in NUMBER.findall(plain)
    ]
    rest = NUMBER.sub("", plain)
    if not every and (not found or re.sub(r"\b(to|of)\b|[\s()/*x%d]", "", rest)):
        return text
    return found[0] if len(found) == 1 and not every else found
