"""One HTML page from the records: what was found, verdicts, tables, figures, statistics, and each cell with
its runs and curves. report.html is its template."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import beside, figures, tables
from analysis.command import split
from analysis.frame import KEY, runs
from analysis.inference import FIRM_PAIRS
from analysis.notes import unfinished
from analysis.render import Number
from analysis.results import findings, sections
from analysis.results.finding import WORDS
from analysis.statistics import costs, statistics_tables
from analysis.tables.view import View
from analysis.variants import every_variant
from runs.record import Ledger, Record, median_interval, without_paths

#: Parts of a record that the view of a cell shows beside its configuration.
SHOWN = (
    "recipe",
    "start",
    "code",
    "versions",
    "device",
    "determinism",
    "model",
    "data",
    "parameters",
    "groups",
)
#: Of a ledger of more runs, only so many of the newest cells show their runs one by one: a page stays below
#: 20 MB.
RUNS_SHOWN = 8_000


def page(ledger: Ledger) -> str:
    """The whole page. jinja2 escapes every label; a part that a record spoils is left out, with a line."""
    problems = [*ledger.problems]
    frame = runs(ledger)
    frames = tuple(runs(one) for one in split(ledger))
    judged = tables.verdicts(frame)
    found = [*_cells(ledger, every_variant(frame, paper=True), judged)]
    part = partial(_part, problems)
    environment = sections.environment(Path(__file__).parent, autoescape=True)
    environment.tests["number"] = lambda entry: isinstance(entry, Number)
    return environment.get_template("report.html").render(
        date=time.strftime("%Y-%m-%d"),
        runs=frame,
        origins=frame.origin.value_counts().to_dict(),
        kinds=frame.kind.value_counts().to_dict(),
        findings=part(
            "the findings", lambda: findings(frame, [*ledger.measures.values()]).to_dict("records")
        ),
        firm_pairs=FIRM_PAIRS,
        verdict_words=WORDS,
        verdicts=_verdicts(judged),
        words=beside.WORDS,
        margins=(beside.MARGIN, beside.MARGINS),
        seeds=beside.SEEDS,
        tables=[t for name in tables.TABLES for t in part(name, partial(tables.make, name, ledger, frames))],
        figures=[
            (figure, figures.svg(figure) if len(figure.data) else "")
            for name in figures.FIGURES
            for figure in part(f"figure {name}", partial(figures.make, name, ledger, frames=frames))
        ],
        statistics=part(
            "the statistics", lambda: [*statistics_tables(frame), costs(frame)] if len(frame) else []
        ),
        cells=found,
        anchors={run["id"]: number for number, cell in enumerate(found) for run in cell["runs"]},
        left_out=_left_out(frame),
        problems=problems,
    )


def _part(problems: list[str], what: str, make: Callable[[], Iterable[Any]]) -> list[Any]:
    """What `make` gives. A record that lacks what one part reads costs that part alone, and a line."""
    try:
        return list(make())
    except Exception as error:
        problems.append(f"{what} could not be made: {type(error).__name__}: {error}")
        return []


def _verdicts(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The numbers of the paper beside ours, by table and model; those of which one has run first."""
    groups = [
        (f"{table}, {model}", of) for (table, model), of in rows.groupby(["table", "model"], sort=False)
    ]
    return sorted(groups, key=lambda group: not group[1].ran.any())


def _cells(ledger: Ledger, every: pd.DataFrame, verdicts: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Every variant of every row, with its runs and their curves: VeRA and LoRA first."""
    cells = View(every).numbers()
    words = verdicts[verdicts.ran].groupby("ids").word.agg(list).to_dict()
    first = cells.row.map({"vera": 0, "lora": 1}).fillna(2)
    by_id = every.drop_duplicates("id").set_index("id")
    shown = 0
    for cell in cells.assign(first=first).sort_values(["first", "model", "task", "row"]).itertuples():
        known = [value for value in cell.values if value == value]
        shown += cell.runs
        yield {
            "cell": cell,
            "interval": median_interval(known) if len(known) >= beside.SEEDS else None,
            "words": words.get(cell.ids, []),
            "facts": _facts(ledger.records[cell.ids[0]]) if shown <= RUNS_SHOWN else [],
            "runs": [
                {"id": i, **by_id.loc[i].to_dict(), "curve": curve(ledger.records[i]["curve"])}
                for i in cell.ids
            ]
            if shown <= RUNS_SHOWN
            else [],
        }


def curve(of: dict[str, Any], width: int = 160, height: int = 36) -> str:
    """A run's dev metric by epoch, as the points of a polyline."""
    values = pd.Series(of["metric"], dtype=float).dropna()
    span = (values.max() - values.min()) or 1.0
    step = width / max(len(values) - 1, 1)
    points = enumerate((values.max() - values) / span)
    return " ".join(f"{i * step:.1f},{2 + (height - 4) * down:.1f}" for i, down in points)


def _facts(record: Record) -> list[tuple[str, Any]]:
    """Configuration and provenance of a record, by dotted keys."""
    record = without_paths(record)
    config = {key: value for key, value in record["config"].items() if key not in ("recipe", "output")}
    parts = {"config": config} | {part: record[part] for part in SHOWN if part in record}
    flat = pd.json_normalize(parts).iloc[0]
    return [(str(key), value) for key, value in flat.items() if isinstance(value, list) or pd.notna(value)]


def _left_out(frame: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """The runs that are in no cell of a table, and why."""
    reasons = {
        "trial": "judged on training rows",
        "settings": "other settings than the cell of the tables",
        "protocol": "an older protocol",
        "seed": "a second record of the same settings and seed",
    }
    lists = []
    for reason, words in reasons.items():
        groups = frame[frame.left_out == reason].groupby(KEY).size()
        lines = [f"{row} on {task}, {model}: {count}" for (model, row, task), count in groups.items()]
        lists.append((f"{groups.sum():,.0f} runs: {words}", lines))
    lists.append(("Runs that have not finished", unfinished(frame)))
    return [(title, lines) for title, lines in lists if lines]
