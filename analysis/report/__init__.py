"""One HTML page from the records: what was found, verdicts, tables, figures, statistics, and each cell with
its runs and curves. report.html is its template."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import beside, figures, tables
from analysis.command import split
from analysis.frame import KEY, reported_cells, runs
from analysis.inference import FIRM_PAIRS
from analysis.paper import GLUE, IMAGES, SCORES
from analysis.render import Number
from analysis.results import findings, sections
from analysis.results.finding import WORDS, Finding
from analysis.statistics import MODELS, costs, statistics_tables
from analysis.variants import every_variant
from runs.record import Ledger, Record, median_interval, without_paths
from runs.record.text import plural

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
#: And of each of its runs.
OF_A_RUN = ["seed", "status", "origin", "best", "best_epoch", "last", "decimals", "crossfit", "seconds"]
#: The names of the paper's columns.
COLUMNS = {**GLUE, **IMAGES, **{key: name for key, (name, _) in SCORES.items()}}
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
    environment.filters["verdict_counts"] = _verdict_counts
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
            "the statistics",
            lambda: [*statistics_tables(frame, judged=judged), costs(frame)] if len(frame) else [],
        ),
        cells=found,
        anchors={run: number for number, cell in enumerate(found) for run in cell["cell"].ids},
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


def _verdict_counts(found: Iterable[Finding]) -> str:
    counts = Counter(one["verdict"] for one in found)
    return ", ".join(f"{word} {counts[verdict]}" for verdict, word in WORDS.items() if counts[verdict])


def _verdicts(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The numbers of the paper beside ours, by table and model; those of which one has run first."""
    rows = rows.assign(column=rows.column.map(COLUMNS).fillna(rows.column))
    groups = [
        (f"Table {table[5:]}, {MODELS[model]}", of)
        for (table, model), of in rows.groupby(["table", "model"], sort=False)
    ]
    return sorted(groups, key=lambda group: not group[1].ran.any())


def _cells(ledger: Ledger, every: pd.DataFrame, verdicts: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Every variant of every row, with its runs and their curves: VeRA and LoRA first."""
    cells = reported_cells(every)
    words = verdicts[verdicts.ran].groupby("ids").word.agg(list).to_dict()
    first = cells.row.map({"vera": 0, "lora": 1}).fillna(2)
    by_id = every.drop_duplicates("id").set_index("id")[OF_A_RUN].to_dict("index")
    shown = 0
    for cell in cells.assign(first=first).sort_values(["first", "model", "task", "row"]).itertuples():
        known = [value for value in cell.values if value == value]
        shown += cell.runs
        yield {
            "cell": cell,
            "interval": median_interval(known) if len(known) >= beside.SEEDS else None,
            "words": words.get(cell.ids, []),
            "facts": _facts(ledger.records[cell.ids[0]]) if shown <= RUNS_SHOWN else [],
            "runs": [{"id": i, **by_id[i], "curve": curve(ledger.records[i]["curve"])} for i in cell.ids]
            if shown <= RUNS_SHOWN
            else [],
        }


def curve(of: dict[str, Any], width: int = 160, height: int = 36) -> str:
    """A run's dev metric by epoch, as the points of a polyline."""
    values = [value for value in of["metric"] if value is not None and math.isfinite(value)]
    top, step = max(values, default=0.0), width / max(len(values) - 1, 1)
    scale = (height - 4) / ((top - min(values, default=0.0)) or 1.0)
    return " ".join(f"{i * step:.1f},{2 + (top - value) * scale:.1f}" for i, value in enumerate(values))


def _facts(record: Record) -> list[tuple[str, Any]]:
    """Configuration and provenance of a record, by dotted keys."""
    record = without_paths(record)
    config = {key: value for key, value in record["config"].items() if key not in ("recipe", "output")}
    parts = {"config": config} | {part: record[part] for part in SHOWN if part in record}
    return [*_flat(parts)]


def _flat(of: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in of.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        elif value is not None:
            yield f"{above}{key}", value


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
        lists.append((f"{plural(int(groups.sum()), 'run')}: {words}", lines))
    early = frame[frame.kind.isin(["failed", "stopped"])]
    why = early.error.where(early.kind == "failed", "train.max_steps")
    names = early.id + " (" + early.label + " on " + early.task_label + ", " + early.model_label + ")"
    lists.append(("Runs that have not finished", [*(names + ": " + early.kind + ": " + why)]))
    return [(title, lines) for title, lines in lists if lines]
