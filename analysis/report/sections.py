"""The page as HTML: a section for verdicts, tables, figures, statistics and what is left out, in the frame
report.html."""

import contextlib
import html
import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from analysis import figures, tables, verdicts
from analysis.beside import MARGIN, MARGIN_OF_10, MARGIN_OF_JUDGES, VERDICT_SEEDS
from analysis.cells import Cell
from analysis.figures import Figure
from analysis.inference import FIRM_PAIRS
from analysis.report.data import Entry, entries, finding_texts, limit, page_data, words_of
from analysis.report.html import bullets, escape, folded, grid, link, marked, picture_html, table_html
from analysis.results import claims
from analysis.results.claim import WORDS
from analysis.results.sections import by_finding
from analysis.statistics import costs, statistics_tables
from analysis.tables import TABLES, WITHOUT_RECORDS
from analysis.verdicts import Finding
from runs.record import FINISHED, Ledger, Record, is_trial
from runs.record.text import plural

#: How many lines of each list of what is left out the page has.
LINES_SHOWN = 200

T = TypeVar("T")


@dataclass
class Report:
    """What the sections share: the records, their entries (all, and those shown), the verdicts, and the parts
    of the page that could not be made."""

    ledger: Ledger
    entries: list[Entry]
    shown: list[Entry]
    findings: list[Finding]
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.position = {record["id"]: i for i, entry in enumerate(self.shown) for record in entry.records}

    def attempt(self, what: str, make: Callable[[], Iterable[T]]) -> list[T]:
        """What `make` gives. A record that lacks what one part reads costs that part alone, and a line."""
        try:
            return list(make())
        except Exception as error:
            self.problems.append(f"{what}: {type(error).__name__}: {error}")
            return []


def _about(report: Report, table: Any, name: str = "") -> str:
    """What the filters go by: models, tasks and rows of a table or figure; an empty list fits everything."""
    position, model = report.position, getattr(table, "model", "")
    ids = {one for row in table.rows for cell in row for one in cell.ids if one in position}
    keys = {report.shown[position[one]].key for one in ids}
    keys |= {(f.model, f.row, f.task) for f in report.findings if f.table == name and f.model == model}
    models, rows, tasks = ({key[i] for key in keys} for i in range(3))
    if name in WITHOUT_RECORDS:
        models = set(verdicts.MODELS)
    models = models | {model} if model else models
    tasks |= set(getattr(table, "tasks", {}))
    about = {"model": sorted(models), "row": sorted(rows), "task": sorted(tasks)}
    return f'data-about="{html.escape(json.dumps(about))}"'


def _tables(report: Report) -> str:
    parts = []
    for name in TABLES:
        for table in report.attempt(f"{name} could not be made", partial(tables.make, name, report.ledger)):
            about, title = _about(report, table, name), escape(table.title)
            parts.append(f"<div {about}><h3>{title}</h3>{table_html(table, report.position)}</div>")
    return "".join(parts) or "<p>No table has records.</p>"


def _in_tables(ledger: Ledger) -> set[str]:
    """The runs behind the page's tables."""
    runs = set[str]()
    for name in TABLES:
        with contextlib.suppress(Exception):  # `_tables` says of what could not be made
            runs |= {run for table in tables.make(name, ledger) for of in table.runs.values() for run in of}
    return runs


def _figures(report: Report) -> str:
    parts = []
    for name in figures.FIGURES:

        def drawn(name: str = name) -> Iterable[str]:
            for figure in figures.make(name, report.ledger):
                about, title = _about(report, figure, name), escape(figure.title)
                yield f"<div {about}><h3>{title}</h3>{_figure(report, figure)}</div>"

        parts += report.attempt(f"figure {name} could not be drawn", drawn)
    return "".join(parts) or "<p>No figure has records.</p>"


def _figure(report: Report, figure: Figure) -> str:
    if not figure.rows:
        return bullets(figure.notes)
    picture = picture_html(figure.title, *figures.svg_and_points(figure))
    return picture + folded("Numbers of this figure", table_html(figure, report.position))


def _claims(report: Report) -> str:
    """What the records say of the paper's findings: a line for each, and folded one for each model and
    task."""
    comparisons = report.attempt("the findings could not be made", lambda: claims(report.ledger))
    rows, lines = list[str](), list[str]()
    for name, group in by_finding(comparisons).items():
        counts = [sum(claim.verdict is word for claim in group) for word in WORDS]
        cells = "".join(f"<td>{n or '·'}</td>" for n in (len(group), *counts))
        lines.append(f'<tr><th scope="row" class="words">{escape(name)}</th>{cells}</tr>')
        for claim in group:
            ids = [one for runs in claim.runs for one in runs.ids]
            word = re.sub(r"\*\*(.*)\*\*", r"<strong>\1</strong>", claim.word)
            rows.append(
                f'<tr><th scope="row" class="words">{escape(name)}</th>'
                f'<td class="words">{link(claim.where, ids, report.position)}</td>'
                f'<td class="text">{word}</td><td class="words">{escape(claim.here)}</td></tr>'
            )
    if not rows:
        return "<p>No run here can be compared with a finding of the paper yet.</p>"
    first = "the paper's finding"
    each = grid("Findings by model and task", [first, "tried on", "verdict", "numbers"], rows)
    rule = f"By pairs of runs of one seed, and unpaired; bold: of at least {FIRM_PAIRS} pairs or runs."
    return grid("Findings of the paper", [first, "tried", *WORDS.values()], lines) + folded(
        f"Each on its models and tasks: {len(rows)}", f'<p class="quiet">{rule}</p>{each}'
    )


def _overview(report: Report) -> str:
    ledger, findings = report.ledger, report.findings
    counts = Counter(f.verdict.word for f in findings)
    counts["other model"] = sum(
        not entry.kind and entry.key[0] not in verdicts.MODELS for entry in report.shown
    )
    finished = sum(record["status"] in FINISHED for record in ledger)
    published = sum(origin != "ours" for origin in ledger.origin.values())
    whose = f", {published:,} of them published by the project and not run here" if published else ""
    trials = sum(is_trial(record["config"]) for record in ledger)
    tried = f", {trials:,} trials" if trials else ""
    size = f"{len(ledger.records):,} records ({finished:,} finished{tried})"
    what = (
        "The paper's numbers by verdict, and the cells of models that it does not use:"
        if ledger.records
        else "Until runs have finished there are only the paper's numbers:"
    )
    items = "".join(
        f"<li><strong>{counts[word]}</strong>{marked(word)}</li>"
        for word in verdicts.WORDS
        if counts[word] and word not in ("not run", "quoted")
    )
    parts = [
        f"<p>{size} in {len(report.shown):,} cells{whose}. {what}</p>",
        f'<ul class="count">{items}</ul>',
        bullets(RULES),
    ]
    words = [word for word in verdicts.WORDS if word in words_of(findings)]
    rows, without = list[str](), list[str]()
    for (table, model), group in _by_table(findings).items():
        of_table = Counter(f.verdict.word for f in group)
        cells = "".join(f"<td>{of_table[word] or '·'}</td>" for word in words)
        (rows if any(f.verdict.ids for f in group) else without).append(
            f'<tr><th scope="row"><a href="#v-{table}-{model}">{escape(_name(table, model))}</a></th>'
            f"{cells}</tr>"
        )
    header = ["table", *words]
    if rows:
        parts.append(grid("Numbers of the paper by verdict", header, rows, titled=False))
    if without:
        idle = " and ".join(f"{counts[word]} {word}" for word in ("not run", "quoted") if counts[word])
        tables_ = grid("Tables of the paper without runs", header, without)
        parts.append(folded(f"Without runs: {idle}", tables_))
    return "".join(parts)


#: What the words of a verdict mean.
RULES = (
    "Verdicts rest on the 95% interval of the difference, ours less the paper's, over the seeds of both"
    " sides. Where the paper prints no spread, its number is inside or outside the interval of ours.",
    f"reproduced: the interval holds 0, and half of it is at most {MARGIN:g} point ({MARGIN_OF_10:g} for NIST"
    f" and CIDEr, {MARGIN_OF_JUDGES:g} for judges). consistent, wide: it holds 0 and is wider. not"
    " reproduced: it does not hold 0.",
    f"incomplete: fewer than {VERDICT_SEEDS} seeds, or a run without the number. other size: our row trains"
    " another count of parameters.",
    "other model: cells of models that the paper does not use. not run: no finished run here. quoted: a row"
    " that the paper took from earlier work.",
)


def _by_table(findings: list[Finding]) -> dict[tuple[str, str], list[Finding]]:
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.table, finding.model].append(finding)
    return groups


def _name(table: str, model: str) -> str:
    return f"Table {table.removeprefix('table')}, {verdicts.MODELS.get(model, model)}"


def _verdicts(report: Report) -> str:
    """The verdict of each number, by table; folded, the numbers and tables without runs."""
    header = ["method", "number", "paper", "ours", "difference", "95%", "margin"]
    header += ["seeds", "verdict", "deviations"]
    with_runs, without = list[str](), list[str]()
    for (table, model), group in _by_table(report.findings).items():
        name = _name(table, model)
        rows = [_verdict_row(f, report.position) for f in group if f.verdict.ids]
        idle = [_verdict_row(f, report.position) for f in group if not f.verdict.ids]
        framed = grid(f"Verdicts: {name}", header, rows) if rows else ""
        if idle:
            others = grid(f"Without runs: {name}", header, idle)
            framed += folded(f"{len(idle)} without runs", others, 'class="group"') if rows else others
        about = f'class="group" id="v-{table}-{model}"{" open" if rows else ""}'
        title = f"{escape(name)}: {len(rows)} of {len(group)} numbers have runs"
        (with_runs if rows else without).append(folded(title, framed, about))
    if without:
        title = f"The paper's tables without runs: {len(without)}"
        with_runs.append(folded(title, "".join(without), 'class="group"'))
    return "".join(with_runs)


def _verdict_row(finding: Finding, position: Mapping[str, int]) -> str:
    verdict = finding.verdict
    _, column, paper, ours, gap, interval, margin, word = finding_texts(finding)
    numbers = [escape(paper), link(ours, verdict.ids, position)]
    numbers += [escape(text) for text in (gap, interval, margin, verdict.seeds)]
    attributes = {"model": finding.model, "task": finding.task, "row": finding.row, "word": word}
    data = " ".join(f'data-{key}="{html.escape(value)}"' for key, value in attributes.items())
    cells = "".join(f"<td>{one}</td>" for one in numbers)
    return (
        f'<tr {data}{"" if verdict.ids else " class=paper"}><th scope="row">{escape(finding.method)}</th>'
        f'<td class="text">{escape(column)}</td>{cells}<td class="text">{marked(word)}</td>'
        f'<td class="words">{escape("; ".join(verdict.deviations)) or "-"}</td></tr>'
    )


def _statistics(report: Report) -> str:
    ledger = report.ledger
    statistics = report.attempt(
        "the statistics could not be made",
        lambda: [*statistics_tables(ledger), costs(ledger)] if ledger.records else [],
    )
    few = " open" if len(statistics) < 8 else ""
    parts = [
        folded(escape(table.title), table_html(table, report.position), f"{_about(report, table)}{few}")
        for table in statistics
    ]
    return "".join(parts) or "<p>There are no finished runs.</p>"


def _run_text(record: Record) -> str:
    cell = record["cell"]
    return f"{record['id']} ({cell['row']} on {cell['task']}, {cell['model']}, seed {cell['seed']})"


def _rates(record: Record) -> str:
    """The rates that trials of a cell differ in."""
    train = record["config"]["train"]
    return "".join(f", {key}={train[key]:g}" for key in ("lr", "lr_head") if train.get(key) is not None)


def _left_out(report: Report) -> str:
    """What is in no number above, and why."""
    unfinished = [record for record in report.ledger if record["status"] not in FINISHED]
    again = []
    for entry in report.entries:
        by_seed: dict[int, list[Record]] = defaultdict(list)
        for record in entry.records:
            if record["status"] in FINISHED:
                by_seed[record["cell"]["seed"]].append(record)
        again += [", ".join(map(_run_text, same)) for same in by_seed.values() if len(same) > 1]
    done = [record for record in report.ledger if record["status"] == "done"]
    others = [e for e in report.entries if e.kind and any(r["status"] in FINISHED for r in e.records)]
    lists = {
        "Files that are no whole record": report.ledger.problems,
        "Parts of this page": report.problems,
        "Runs that have not finished": [
            f"{_run_text(r)}: {r['status']}" + (f": {r['error']}" if r.get("error") else "")
            for r in unfinished
        ],
        "More than one record of the same settings and seed: counted once": again,
        "Finished without the number that the tables show": [
            _run_text(r) for r in done if any(map(math.isnan, Cell([r], 1).values()))
        ],
        "In no table": [
            f"{' on '.join(e.key[1:])}, {e.key[0]}{_rates(e.records[0])}: {plural(len(e.records), 'run')}."
            f" {e.kind}"
            for e in others
        ],
    }
    parts = []
    for title, lines in lists.items():
        if len(lines) > LINES_SHOWN:
            lines = [*lines[:LINES_SHOWN], f"and {len(lines) - LINES_SHOWN:,} more"]
        if lines:
            parts.append(f"<h3>{escape(title)}</h3>{bullets(lines)}")
    return "".join(parts) or "<p>Nothing.</p>"


def page(ledger: Ledger, changed: Mapping[str, float] | None = None) -> str:
    """The whole page. changed: when each record was written (seconds), by id; of a large ledger the oldest
    are shown less."""
    everything = entries(ledger, _in_tables(ledger))
    report = Report(ledger, everything, limit(everything, changed or {}), verdicts.verdicts(ledger))
    if missing := len(everything) - len(report.shown):
        report.problems.append(f"Not listed: {plural(missing, 'cell')} of older runs, in no table.")
    if less := sum(not entry.whole for entry in report.shown):
        report.problems.append(f"Not shown one by one: the older runs of {plural(less, 'cell')} in no table.")
    data = page_data(ledger, report.shown, report.findings)
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":  # no label may end the script element that holds the data
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    sections = {
        "summary": (
            f"Made on {time.strftime('%Y-%m-%d')} from {len(ledger.records):,} records. A reproduction of"
            " VeRA (Kopiczko, Blankevoort, Asano; ICLR 2024), the paper's numbers beside ours."
        ),
        "claims": _claims(report),
        "overview": _overview(report),
        "verdicts": _verdicts(report),
        "tables": _tables(report),
        "figures": _figures(report),
        "statistics": _statistics(report),
        "left_out": _left_out(report),  # the last one: it lists what the others could not make
        "data": text,
    }
    frame = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: sections[match[1]], frame)
