"""Writes one HTML page from the records: findings, verdicts, tables, figures,
statistics, and a view of each cell with its runs and curves. report.html is its
template.

    python -m analysis.report       (make report)

The page is OUTPUT/report.html. It holds its data, styles and script, and needs neither
a server nor a network. The words and numbers of its tables are those of
analysis.tables; its verdicts and statistics are over your runs and the published ones
together."""

import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import beside, figures, tables
from analysis.command import open_ledger, own_and_published
from analysis.diff import leaves
from analysis.frame import every_variant, reported_cells, runs
from analysis.others import NAMED
from analysis.render import Number
from analysis.results.findings import findings
from analysis.results.templates import templates
from analysis.stats import statistics_tables
from runs.command import OfRecords, entry_point, read
from runs.record import (
    Ledger,
    median_interval,
    megabytes,
    without_paths,
    write_atomically,
)

#: Parts of a record that the view of a cell shows, and what of them it does not.
SHOWN: tuple[str, ...] = (
    "config.",
    "recipe.",
    "start",
    "code.",
    "versions.",
    "device.",
    "determinism.",
)
SHOWN += ("model", "data.", "parameters.", "groups")
HIDDEN = ("config.recipe.", "config.output")
#: And of each of its runs.
OF_A_RUN = [
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
#: Of a ledger of more runs, only so many of the newest cells show their runs one by
#: one: a page stays below 20 MB.
RUNS_SHOWN = 8_000


def page(ledger: Ledger) -> str:
    """The whole page. jinja2 escapes every label."""
    frame = runs(ledger)
    frames, judged = own_and_published(ledger, frame), tables.verdicts(frame)
    found = [*_cells(ledger, every_variant(frame, paper=True), judged)]
    html = templates(Path(__file__).parent, autoescape=True)
    html.tests["number"] = lambda entry: isinstance(entry, Number)
    return html.get_template("report.html").render(
        date=date.today(),
        runs=frame,
        findings=findings(frame, ledger.measures.values()),
        # By table and model; those of which a number has run first
        verdicts=sorted(
            (
                (
                    f"Table {table[5:]}, {NAMED[model]}",
                    of.assign(column=of.column.replace(NAMED)),
                )
                for (table, model), of in judged.groupby(["table", "model"], sort=False)
            ),
            key=lambda group: not group[1].ran.any(),
        ),
        margins=(beside.MARGIN, beside.MARGINS),
        seeds=beside.SEEDS,
        tables=[
            table
            for name in tables.TABLES
            for table in tables.make(name, ledger, frames)
        ],
        figures=[
            (figure, figures.svg(figure))
            for name in figures.FIGURES
            for figure in figures.make(name, ledger, frames=frames)
        ],
        statistics=statistics_tables(frame, judged=judged),
        cells=found,
        anchors={
            run: number for number, cell in enumerate(found) for run in cell["cell"].ids
        },
        problems=ledger.problems,
    )


def _cells(
    ledger: Ledger, every: pd.DataFrame, verdicts: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Every variant of every row, with its runs and their curves: VeRA and LoRA
    first."""
    cells, shown = reported_cells(every), 0
    words = verdicts[verdicts.ran].groupby("ids").word.agg(list).to_dict()
    cells["first"] = cells.row.map({"vera": 0, "lora": 1}).fillna(2)
    by_id = every.drop_duplicates("id").set_index("id")[OF_A_RUN].to_dict("index")
    for cell in cells.sort_values(["first", "model", "task", "row"]).itertuples():
        known = [value for value in cell.values if value == value]
        shown += cell.runs
        records = (
            [ledger.records[run] for run in cell.ids] if shown <= RUNS_SHOWN else []
        )
        facts = leaves(without_paths(records[0])).items() if records else ()
        yield {
            "cell": cell,
            "interval": median_interval(known) if len(known) >= beside.SEEDS else None,
            "words": words.get(cell.ids, []),
            "facts": [
                of
                for of in facts
                if of[0].startswith(SHOWN) and not of[0].startswith(HIDDEN)
            ],
            "runs": [
                {"id": r["id"], **by_id[r["id"]], "curve": curve(r["curve"])}
                for r in records
            ],
        }


def curve(of: dict[str, Any], width: int = 160, height: int = 36) -> str:
    """A run's dev metric by epoch, as the points of a polyline."""
    values = [
        value for value in of["metric"] if value is not None and math.isfinite(value)
    ]
    top, step = max(values, default=0.0), width / max(len(values) - 1, 1)
    scale = (height - 4) / ((top - min(values, default=0.0)) or 1.0)
    return " ".join(
        f"{i * step:.1f},{2 + (top - value) * scale:.1f}"
        for i, value in enumerate(values)
    )


def main(arguments: list[str]) -> int:
    output = read(arguments, OfRecords, module=__name__).settings.output
    ledger = open_ledger(output)
    path = Path(output) / "report.html"
    write_atomically(path, page(ledger))
    print(
        f"Report: {path} ({len(ledger.records)} records, {megabytes(path.stat().st_size)})"
    )
    return 0


if __name__ == "__main__":
    entry_point(main)
