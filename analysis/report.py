"""Writes one HTML page from the records: the paper's claims, verdicts, tables, figures,
statistics, and a view of each cell with its runs and curves.

vera-bench report
    also: make report

The page is OUTPUT/report.html. It holds its data, styles and script, and needs neither
a server nor a network. Its tables have the words and numbers of `vera-bench table`;
its verdicts and statistics cover your runs and the published ones together.
report.html is its template.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import figures, tables
from analysis.command import open_ledger, own_and_published
from analysis.diff import leaves
from analysis.frame import SEEDS, reported_cells, runs
from analysis.others import DISPLAY_NAMES
from analysis.paper_comparison import LARGEST_HALF_WIDTH, LARGEST_HALF_WIDTH_BY_SCORE
from analysis.render import Number, Table
from analysis.results.findings import findings
from analysis.results.templates import results_environment
from analysis.rows import RowMaker
from analysis.stats import statistics_tables
from analysis.variants import every_variant
from runs.command.parser import RecordSettings, entry_point, read_command_line
from runs.record.files import write_atomically
from runs.record.folder import WholeRecords
from runs.record.intervals import median_interval
from runs.record.ledger import Ledger
from runs.record.redaction import without_paths
from runs.record.schema import Record
from runs.record.text import megabytes

#: Beginnings of the dotted keys of a record that the view of a cell shows, and of those
#: among them that it leaves out.
SHOWN_KEYS = (
    "config.",
    "recipe.",
    "start",
    "code.",
    "versions.",
    "device.",
    "determinism.",
    "model",
    "data.",
    "parameters.",
    "groups",
)
HIDDEN_KEYS = ("config.recipe.", "config.output")
#: The columns of `frame.runs` that the view of a cell shows of each run.
RUN_COLUMNS = [
    "seed",
    "status",
    "origin",
    "best",
    "best_epoch",
    "last",
    "decimals",
    "crossfit",
    "seconds",
]
#: How many runs are shown one by one: cells that come later on the page show none, so
#: that it stays below 20 MB.
MAX_RUNS_SHOWN = 8_000
#: The rows whose cells stand first, with their order.
FIRST_ROWS = {"vera": 0, "lora": 1}


#: The runs of this machine, and the published ones.
Frames = tuple[pd.DataFrame, pd.DataFrame]


@dataclass(frozen=True)
class CellView:
    """A cell as the report shows it.

    cell: its line of `frame.reported_cells`. interval: of its median; None for fewer
    than SEEDS scores. verdicts: on its numbers beside the paper's. facts: configuration
    and provenance of its first run by key, and runs: its runs (`_run_line`); both are
    empty for cells after MAX_RUNS_SHOWN."""

    cell: Any
    interval: tuple[float, float] | None
    verdicts: Sequence[str]
    facts: Sequence[tuple[str, Any]]
    runs: Sequence[dict[str, Any]]


def page(ledger: Ledger) -> str:
    """The whole page as HTML. jinja2 escapes every label."""
    frame = runs(ledger)
    frames = own_and_published(ledger, frame)
    paper_verdicts = tables.verdicts(frame)
    variants = every_variant(frame, keep_nearest_name=True)
    cells = [*cell_views(ledger, variants, paper_verdicts)]
    html = results_environment(Path(__file__).parent, autoescape=True)
    # for `is number` in the template
    html.tests["number"] = lambda entry: isinstance(entry, Number)
    return html.get_template("report.html").render(
        date=date.today(),
        runs=frame,
        findings=findings(frame, ledger.measures.values(), WholeRecords(ledger)),
        verdicts=verdicts_by_table(paper_verdicts),
        half_width=LARGEST_HALF_WIDTH,
        half_width_by_score=LARGEST_HALF_WIDTH_BY_SCORE,
        seeds=SEEDS,
        tables=all_tables(ledger, frames),
        figures=all_figures(ledger, frames),
        statistics=statistics_tables(frame, paper_verdicts=paper_verdicts),
        cells=cells,
        anchors=anchors_of(cells),
        problems=ledger.problems,
    )


def verdicts_by_table(
    paper_verdicts: pd.DataFrame,
) -> list[tuple[str, pd.DataFrame]]:
    """The verdicts (`tables.verdicts`) of each table and model, with a title such as
    "Table 2, RoBERTa-base". Those with a number that we have run, too, come first."""
    groups = list[tuple[str, pd.DataFrame]]()
    for (table, model), verdicts in paper_verdicts.groupby(
        ["table", "model"], sort=False
    ):
        title = f"Table {table.removeprefix('table')}, {DISPLAY_NAMES[model]}"
        columns = verdicts.column.replace(DISPLAY_NAMES)
        groups.append((title, verdicts.assign(column=columns)))
    return sorted(groups, key=lambda group: not group[1].ran.any())


def all_tables(ledger: Ledger, frames: Frames) -> list[Table]:
    """Every table of the paper, with the runs of this machine and the published ones
    (`frames`)."""
    all_parts = list[Table]()
    for name in tables.TABLES:
        all_parts += tables.tables_of_ledger(name, ledger, frames)
    return all_parts


def all_figures(ledger: Ledger, frames: Frames) -> list[tuple[figures.Figure, str]]:
    """Every figure with its picture."""
    drawn = list[tuple[figures.Figure, str]]()
    for name in figures.FIGURES:
        for figure in figures.figures_of_ledger(name, ledger, frames=frames):
            drawn.append((figure, figures.svg(figure)))
    return drawn


def anchors_of(cells: Sequence[CellView]) -> dict[str, int]:
    """The position of the cell that shows a run, by the run's id: the page links to it as
    #cell-0."""
    anchors = dict[str, int]()
    for number, view in enumerate(cells):
        anchors |= dict.fromkeys(view.cell.ids, number)
    return anchors


def cell_views(
    ledger: Ledger, variants: pd.DataFrame, verdicts: pd.DataFrame
) -> Iterator[CellView]:
    """A view of each cell of the ledger, with its runs and their curves, as long as these
    are at most MAX_RUNS_SHOWN in all; the cells of FIRST_ROWS come first. variants: the
    ledger's runs, with a row for each variant (`every_variant`). verdicts: those of
    `tables.verdicts`."""
    cells = reported_cells(variants)
    order = cells.row.map(FIRST_ROWS).fillna(len(FIRST_ROWS))
    cells = cells.assign(order=order).sort_values(["order", "model", "task", "row"])
    # the ids of its runs say which cell a verdict is on
    verdicts_by_ids = verdicts[verdicts.ran].groupby("ids").verdict.agg(list).to_dict()
    by_id = variants.drop_duplicates("id").set_index("id")
    columns_by_id = by_id[RUN_COLUMNS].to_dict("index")
    run_count = 0
    for cell in cells.itertuples():
        run_count += cell.runs
        records = list[Record]()
        if run_count <= MAX_RUNS_SHOWN:
            records = [ledger.whole_record(run) for run in cell.ids]
        scores = [score for score in cell.values if not math.isnan(score)]
        yield CellView(
            cell=cell,
            interval=median_interval(scores) if len(scores) >= SEEDS else None,
            verdicts=verdicts_by_ids.get(cell.ids, []),
            facts=facts_of(records[0]) if records else [],
            runs=[_run_line(record, columns_by_id) for record in records],
        )


def _run_line(record: Record, columns_by_id: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a run: its id, RUN_COLUMNS, and its curve as points.
    columns_by_id: RUN_COLUMNS of each run."""
    run = record["id"]
    curve = curve_points(record["curve"]["metric"])
    return {"id": run, **columns_by_id[run], "curve": curve}


def facts_of(record: Record) -> list[tuple[str, Any]]:
    """Configuration and provenance of a run, as pairs of a dotted key and a value."""
    return [
        (key, value)
        for key, value in leaves(without_paths(record)).items()
        if key.startswith(SHOWN_KEYS) and not key.startswith(HIDDEN_KEYS)
    ]


def curve_points(
    metric: Sequence[float | None], width: int = 160, height: int = 36
) -> str:
    """A run's dev metric by epoch, as the points of an SVG polyline of this size in
    pixels: "0.0,34.0 80.0,2.0". Evaluations without a finite number are left out."""
    values = [value for value in metric if value is not None and math.isfinite(value)]
    top = max(values, default=0.0)
    span = top - min(values, default=0.0)
    step = width / max(len(values) - 1, 1)
    # two pixels stay free above and below; a flat curve has a span of 0
    scale = (height - 4) / (span or 1.0)
    points = [
        f"{index * step:.1f},{2 + (top - value) * scale:.1f}"
        for index, value in enumerate(values)
    ]
    return " ".join(points)


def main(arguments: list[str]) -> int:
    line = read_command_line(arguments, RecordSettings, module=__name__)
    output = line.settings.output
    ledger = open_ledger(output, make_row=RowMaker())
    path = Path(output) / "report.html"
    write_atomically(path, page(ledger))
    size = megabytes(path.stat().st_size)
    print(f"Report: {path} ({len(ledger.records)} records, {size})")
    return 0


if __name__ == "__main__":
    entry_point(main)
