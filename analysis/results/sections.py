"""The pages as Markdown, through the templates beside this file: results.md with what ran, the findings and
the benchmarks; study.md with a study's tables, figures and runs; words.md, a finding in words; readme.md."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import pandas as pd

from analysis import figures
from analysis.figures.figure import Part
from analysis.frame import reported
from analysis.inference import FIRM_PAIRS
from analysis.ranks import ranks
from analysis.render import Number, Table, grid
from analysis.results.finding import WORDS, Finding
from analysis.results.of_figures import FITTED
from analysis.results.of_rows import MARGIN, left_out
from analysis.statistics import costs, middle, statistics_tables
from analysis.tables import TABLES, WITHOUT_RECORDS, made
from analysis.variants import every_variant
from runs.record import Record
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


def macros(page: str) -> Any:
    """The macros of a template, by name."""
    return environment().get_template(page).module


def rendered(page: str, **gaps: Any) -> str:
    """A page: its template with the gaps filled, without the blank lines that empty parts leave."""
    return re.sub(r"\n{3,}", "\n\n", environment().get_template(page).render(gaps)).strip() + "\n"


def pages(
    runs: Mapping[Path, pd.DataFrame],
    measures: Mapping[Path, Sequence[Record]],
    found: pd.DataFrame,
    docs: Path,
) -> dict[str, str]:
    """The pages of these studies (their folders, with their runs and measures), and the pictures that they
    show, by their paths in docs/. found: the findings over all of them. Benchmarks come from docs/bench."""
    tries = left_out(runs, [one for of in measures.values() for one in of], found)
    files = {"results.md": overview(found.to_dict("records"), runs, _benches(docs / "bench"), tries)}
    for folder, of in runs.items():
        files |= study(folder, of, measures[folder])
    return files


# --- results.md


def overview(
    found: Sequence[Finding],
    studies: Mapping[Path, pd.DataFrame] = MappingProxyType({}),
    benches: Sequence[Mapping[str, Any]] = (),
    tries: Sequence[tuple[str, Finding]] = (),
) -> str:
    """The page of all studies."""
    groups, sides = defaultdict[str, list[Finding]](list), dict[Any, dict[str, Any]]()
    for one in found:
        groups[one["finding"]].append(one)  # which the paper may have in several tables
        for side in one["sides"]:
            sides.setdefault((side["label"], side["ids"]), side)
    ids = [run for runs in studies.values() for run in runs.id]
    return rendered(
        "results.md",
        findings=groups,
        sides=sides.values(),
        behind=list(sides),
        studies=[_what_ran(folder.name, runs[runs.kind != "failed"]) for folder, runs in studies.items()],
        numbers={name: n for n, name in enumerate(groups, 1)},
        tries=tries,
        benches=benches,
        firm_pairs=FIRM_PAIRS,
        margin=f"{MARGIN:g}",
        fitted=f"{FITTED:g}",
        repeated=len(ids) - len(set(ids)),
    )


def _what_ran(name: str, finished: pd.DataFrame) -> dict[str, Any]:
    """The counts of a study, its hours and its devices."""
    trials, diverged = int((finished.kind == "trial").sum()), int(finished.diverged.sum())
    threads = finished.threads.where(finished.device_type == "cpu")
    devices = {
        name + (f", {plural(int(count), 'thread')}" if count == count and count else "")
        for name, count in zip(finished.device, threads, strict=True)
    }
    counts = {"runs": len(finished) - trials, "trials": trials, "diverged": diverged}
    return {"name": name, "hours": finished.seconds.sum() / 3600, "devices": sorted(devices)} | counts


def _benches(folder: Path) -> list[dict[str, Any]]:
    """The tables of make bench, as it wrote them beside its JSON: docs/bench/ANY
    NAME/{training,serving,decoding}."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        bench, text = json.loads(path.read_text()), path.with_suffix(".md").read_text().strip()
        found.append(bench | {"name": path.stem, "machine": bench["machine"]["name"], "text": text})
    return found


# --- the page of a study


def study(folder: Path, runs: pd.DataFrame, measures: Sequence[Record]) -> dict[str, str]:
    """The page of a study and its pictures, by their paths in docs/."""
    path, shown = folder / "NOTES.md", set[str]()  # a note stands once on a page
    finished = runs[runs.kind != "failed"]
    # A study may compare settings of one row, such as epochs. A figure, where they would stand on top of each
    # other, has one of them
    every = every_variant(finished, paper=True)
    models = sorted({*every.model})
    names = [name for name in TABLES if name not in WITHOUT_RECORDS]
    tables = [of for name in names for of in made(name, every, models=models) if _has_numbers(of)]
    whole = [*statistics_tables(every, ""), *ranks(every), costs(every)] if len(every) else []
    part, pictures, drawn = Part(finished, [*measures]), dict[str, str](), []
    gaps: dict[str, Any] = {"tables": [_table(of, shown) for of in tables]}
    for figure in (figure for make in figures.FIGURES.values() for figure in make(part) if figure.ids):
        name = f"{folder.name}_{figure.name}.svg"
        pictures[f"results/{name}"] = figures.svg(figure)
        drawn.append({"title": one_line(figure.title), "path": name, "notes": _new(figure.notes, shown)})
    gaps |= {"figures": drawn, "statistics": [_table(of, shown) for of in whole]}
    gaps |= {"trials": _trials(every), "plateau": f"{PLATEAU:g}", "runs": _runs(every)}
    notes = path.read_text().strip() if path.is_file() else ""
    return {
        f"results/{folder.name}.md": rendered("study.md", name=folder.name, notes=notes, **gaps)
    } | pictures


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
        label if kind == "result" else f"{label}, trial, rates {' and '.join(_rates(*rates))}"
        for label, kind, *rates in runs[["label", "kind", "lr", "lr_head"]].itertuples(index=False)
    ]
    ordered = runs.assign(method=names).sort_values(["seed", "id"])
    groups = ordered.groupby(["method", "model_label", "task_label"])
    return [(*key, list(zip(of.seed, of.id, strict=True))) for key, of in groups]


def _rates(*rates: float | None) -> list[str]:
    return [f"{rate:g}" for rate in rates if rate is not None and rate == rate]


#: How far below the best of its trials a rate's value may be, in points, to count as about as good.
PLATEAU = 2.0


def _trials(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The trials on held-out training rows: the budget of each method, and the rates from best to worst."""
    trials = reported(runs[runs.kind == "trial"])
    rates = trials[["lr", "lr_head"]].where(trials[["method"]].ne("head").to_numpy() | [[False, True]])
    trials = trials.assign(
        rates=[", ".join(_rates(*of)) for of in rates.itertuples(index=False)],
        better=trials.number.where(~trials.less, -trials.number),
    )
    keys, found = ["model_label", "task_label", "label", "epochs", "train_rows", "dev_rows"], []
    for key, of in trials.groupby(keys):
        medians = of.groupby("rates", sort=False).better.agg(middle)
        medians = medians.sort_values(ascending=False, kind="stable")
        near = int((medians >= medians.iloc[0] - PLATEAU - 1e-9).sum())
        values = (-medians if of.less.iloc[0] else medians).items()
        found.append(dict(zip(keys, key, strict=True)) | {"near": near, "rates": list(values)})
    return found
