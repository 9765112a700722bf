"""The pages as Markdown, through the templates beside this file: results.md with what ran, the findings and
the benchmarks; study.md with a study's tables, figures and runs; words.md, a finding in words; readme.md."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis import figures
from analysis.figures.figure import Part
from analysis.frame import reported
from analysis.inference import FIRM_PAIRS
from analysis.ranks import ranks
from analysis.render import Number, Table, grid
from analysis.results.finding import WORDS, Finding, Side
from analysis.results.of_figures import FITTED
from analysis.results.of_rows import MARGIN, left_out
from analysis.statistics import costs, middle, statistics_tables
from analysis.tables import TABLES, WITHOUT_RECORDS, made
from analysis.tables.view import View
from analysis.variants import every_variant
from runs.record import FINISHED, Ledger, Record, is_trial
from runs.record.text import one_line, plural


def environment(*folders: Path, autoescape: bool = False) -> jinja2.Environment:
    """Templates of this folder and of others. autoescape: for HTML; in Markdown the filter `cell` escapes
    labels."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"cell": _in_cell, "codes": lambda ids: " ".join(f"`{run}`" for run in ids)}
    made.globals |= {"plural": plural, "counted": _counted, "verdicts": WORDS}
    return made


def _in_cell(text: object) -> str:
    """A text of a Markdown table, in which a label's sign begins neither a column nor HTML."""
    return one_line(str(text)).replace("|", "\\|").replace("<", "&lt;")


def _counted(numbers: Sequence[int], word: str) -> str:
    """Such as "3 to 5 seeds"."""
    return f"{' to '.join(map(str, numbers))} {word}{'s' * ([*numbers] != [1])}"


def rendered(page: str, **gaps: Any) -> str:
    """A page: its template with the gaps filled, without the blank lines that empty parts leave."""
    return re.sub(r"\n{3,}", "\n\n", environment().get_template(page).render(gaps)).strip() + "\n"


def pages(
    studies: Mapping[Path, Ledger], runs: Mapping[Path, pd.DataFrame], found: Sequence[Finding], docs: Path
) -> dict[str, str]:
    """The pages of these studies (their folders, with their records and runs), and the pictures that they
    show, by their paths in docs/. found: the findings over all of them. Benchmarks come from docs/bench."""
    measures = [measure for ledger in studies.values() for measure in ledger.measures.values()]
    tries = left_out(runs, measures, found)
    files = {
        "results.md": overview(found, [*map(_what_ran, studies.items())], _benches(docs / "bench"), tries)
    }
    for folder, ledger in studies.items():
        files |= study(folder, ledger, runs[folder])
    return files


# --- results.md


def _what_ran(study: tuple[Path, Ledger]) -> dict[str, Any]:
    folder, ledger = study
    finished = [record for record in ledger if record["status"] in FINISHED]
    trials = sum(is_trial(record["config"]) for record in finished)
    costs = [record["cost"] for record in finished]
    parts = ("train_seconds", "evaluate_seconds", "decode_seconds")
    return {
        "name": folder.name,
        "runs": len(finished) - trials,
        "trials": trials,
        "diverged": sum(record["status"] == "diverged" for record in finished),
        "hours": sum(cost.get(part) or 0.0 for cost in costs for part in parts) / 3600,
        "devices": sorted({*map(_device, finished)}),
        "ids": list(ledger.records),
    }


def _device(record: Record) -> str:
    threads = record["determinism"].get("threads")
    cpu = f", {plural(threads, 'thread')}" if record["device"]["type"] == "cpu" and threads else ""
    return f"{record['device']['name']}{cpu}"


def overview(
    found: Iterable[Finding],
    studies: Sequence[Mapping[str, Any]] = (),
    benches: Sequence[Mapping[str, Any]] = (),
    tries: Sequence[tuple[str, Finding]] = (),
) -> str:
    """The page of all studies."""
    groups, sides = defaultdict[str, list[Finding]](list), dict[Any, Side]()
    for one in found:
        groups[one.finding].append(one)  # which the paper may have in several tables
        sides |= {(side.label, side.ids): side for side in one.sides if (side.label, side.ids) not in sides}
    ids = [run for of in studies for run in of["ids"]]
    return rendered(
        "results.md",
        findings=groups,
        sides=sides.values(),
        behind=list(sides),
        studies=studies,
        numbers={name: n for n, name in enumerate(groups, 1)},
        tries=tries,
        benches=benches,
        firm_pairs=FIRM_PAIRS,
        margin=f"{MARGIN:g}",
        fitted=f"{FITTED:g}",
        repeated=len(ids) - len(set(ids)),
    )


def _benches(folder: Path) -> list[dict[str, Any]]:
    """The tables of make bench, as it wrote them beside its JSON: docs/bench/ANY
    NAME/{training,serving,decoding}."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        bench, text = json.loads(path.read_text()), path.with_suffix(".md").read_text().strip()
        found.append(bench | {"name": path.stem, "machine": bench["machine"]["name"], "text": text})
    return found


# --- the page of a study


def study(folder: Path, ledger: Ledger, runs: pd.DataFrame) -> dict[str, str]:
    """The page of a study and its pictures, by their paths in docs/."""
    notes, shown = folder / "NOTES.md", set[str]()  # a note stands once on a page
    finished = runs[runs.kind != "failed"]
    # A study may compare settings of one row, such as epochs. A figure, where they would stand on top of each
    # other, has one of them
    every = every_variant(finished, paper=True)
    tables = [
        _table(table, shown)
        for name in TABLES
        if name not in WITHOUT_RECORDS
        for table in made(name, every)
        if _has_numbers(table)
    ]
    part, pictures, drawn = Part(finished, [*ledger.measures.values()]), dict[str, str](), []
    for figure in (figure for make in figures.FIGURES.values() for figure in make(part) if figure.ids):
        path = f"{folder.name}_{figure.name}.svg"
        pictures[f"results/{path}"] = figures.svg(figure)
        drawn.append({"title": one_line(figure.title), "path": path, "notes": _new(figure.notes, shown)})
    whole = [*statistics_tables(every, ""), *ranks(every), costs(every)] if len(every) else []
    text = rendered(
        "study.md",
        name=folder.name,
        notes=notes.read_text().strip() if notes.is_file() else "",
        tables=tables,
        figures=drawn,
        statistics=[_table(of, shown) for of in whole],
        trials=_trials(every),
        plateau=f"{PLATEAU:g}",
        runs=_runs(every),
    )
    return {f"results/{folder.name}.md": text} | pictures


def _has_numbers(table: Table) -> bool:
    """Whether it has a number of ours, beside the counts."""
    columns = (zip(table.header, row, strict=True) for row in table.rows)
    return any(isinstance(of, Number) and of.ids and name != "params" for row in columns for name, of in row)


def _new(notes: Iterable[str], shown: set[str]) -> list[str]:
    """The notes that the page does not have yet, which are then in `shown`."""
    new = [note for note in dict.fromkeys(map(one_line, notes)) if note not in shown]
    shown.update(new)
    return new


def _table(table: Table, shown: set[str]) -> dict[str, Any]:
    behind = dict[str, dict[str, None]]()
    if table.header[0] == "setting":  # rows that the table of runs has by another name
        for row in table.rows:
            ids = dict.fromkeys(run for of in row if isinstance(of, Number) for run in of.ids)
            behind |= {str(row[0]): ids} if ids and str(row[0]) else {}
    lines, title = grid(table.header, table.texts), one_line(table.title)
    return {"title": title, "lines": lines, "behind": behind, "notes": _new(table.notes, shown)}


def _runs(runs: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Every run by method, model, task and, of a trial, its rates; in the order of seeds."""
    names = [
        f"{run.label}, trial, rates {' and '.join(_rates(run))}" if run.kind != "result" else run.label
        for run in runs.itertuples()
    ]
    groups = (
        runs.assign(method=names).sort_values(["seed", "id"]).groupby(["method", "model_label", "task_label"])
    )
    return [(*key, list(zip(of.seed, of.id, strict=True))) for key, of in groups]


def _rates(run: Any, names: Sequence[str] = ("lr", "lr_head")) -> list[str]:
    return [
        f"{rate:g}" for rate in (getattr(run, name) for name in names) if rate is not None and rate == rate
    ]


#: How far below the best of its trials a rate's value may be, in points, to count as about as good.
PLATEAU = 2.0


def _trials(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The trials on held-out training rows: the budget of each method, and the rates from best to worst."""
    trials = reported(runs[runs.kind == "trial"])
    trials = trials.assign(
        rates=[
            ", ".join(_rates(run, ("lr_head",) if run.method == "head" else ("lr", "lr_head")))
            for run in trials.itertuples()
        ],
        better=trials.number.where(~trials.less, -trials.number),
    )
    found = []
    groups = trials.groupby(["model_label", "task_label", "label", "epochs", "train_rows", "dev_rows"])
    for (model, task, method, epochs, train_rows, dev_rows), of in groups:
        medians = (
            of.groupby("rates", sort=False).better.agg(middle).sort_values(ascending=False, kind="stable")
        )
        near = int((medians >= medians.iloc[0] - PLATEAU - 1e-9).sum())
        sign = -1 if of.less.iloc[0] else 1
        rates = [(name, sign * value) for name, value in medians.items()]
        about = {"model": model, "task": task, "method": method, "epochs": epochs}
        found.append(
            about | {"train_rows": int(train_rows), "dev_rows": int(dev_rows), "near": near, "rates": rates}
        )
    return found
