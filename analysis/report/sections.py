"""The page as HTML: a section for verdicts, tables, figures, statistics and what is left out, in the frame
report.html."""

import html
import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis import figures, tables, verdicts
from analysis.beside import MARGIN, MARGIN_OF_10, MARGIN_OF_JUDGES, VERDICT_SEEDS, VERDICTS
from analysis.cells import Cell
from analysis.inference import FIRM_PAIRS
from analysis.report.data import Entry, entries, finding_texts, has_word, page_data, shown
from analysis.report.html import escape, grid, link, marked, picture_html, table_html
from analysis.results import claims
from analysis.results.claim import WORDS
from analysis.results.sections import by_finding
from analysis.statistics import costs, statistics_tables
from analysis.tables import TABLES, WITHOUT_RECORDS
from analysis.verdicts import Finding
from runs.record import FINISHED, Ledger, Record, is_trial
from runs.record.text import plural

#: Of each list of what is left out, the page has so many lines.
LINES_SHOWN = 200


def _about(
    table: Any, name: str, findings: list[Finding], parts: list[Entry], place: Mapping[str, int]
) -> str:
    """What the filters go by: models, tasks and rows of a table or figure; an empty list fits everything."""
    ids = {one for row in table.rows for cell in row for one in cell.ids if one in place}
    keys = {parts[place[one]].key for one in ids}
    model = getattr(table, "model", "")
    mine = {(f.model, f.row, f.task) for f in findings if f.table == name and f.model == model}
    models, rows, tasks = ({key[i] for key in keys | mine} for i in range(3))
    if name in WITHOUT_RECORDS:
        models = set(verdicts.MODELS)
    models = models | {model} if model else models
    tasks |= set(getattr(table, "tasks", {}))
    about = {"model": sorted(models), "row": sorted(rows), "task": sorted(tasks)}
    return f'data-about="{html.escape(json.dumps(about))}"'


def _tables(
    ledger: Ledger, findings: list[Finding], parts: list[Entry], place: Mapping[str, int], problems: list[str]
) -> str:
    made = []
    for name in TABLES:
        try:
            found = tables.make(name, ledger)
        except Exception as error:
            # A record that lacks what this table reads: the other tables are still there
            problems.append(f"{name} could not be made: {type(error).__name__}: {error}")
            continue
        for table in found:
            about, title = _about(table, name, findings, parts, place), escape(table.title)
            made.append(f"<div {about}><h3>{title}</h3>{table_html(table, place)}</div>")
    return "".join(made) or "<p>No table has records.</p>"


def _figures(
    ledger: Ledger, findings: list[Finding], parts: list[Entry], place: Mapping[str, int], problems: list[str]
) -> str:
    made = []
    for name in figures.FIGURES:
        try:
            for figure in figures.make(name, ledger):
                if not figure.rows:
                    notes = "".join(f"<li>{escape(note)}</li>" for note in figure.notes)
                    made.append(
                        f"<div {_about(figure, name, findings, parts, place)}><h3>{escape(figure.title)}</h3>"
                        f'<ul class="notes">{notes}</ul></div>'
                    )
                    continue
                about = _about(figure, name, findings, parts, place)
                picture = picture_html(figure.title, *figures.svg_and_points(figure))
                made.append(
                    f"<div {about}><h3>{escape(figure.title)}</h3>{picture}<details><summary>Numbers of this"
                    f" figure</summary>{table_html(figure, place)}</details></div>"
                )
        except Exception as error:
            problems.append(f"figure {name} could not be drawn: {type(error).__name__}: {error}")
    return "".join(made) or "<p>No figure has records.</p>"


def _found(ledger: Ledger, place: Mapping[str, int], problems: list[str]) -> str:
    """What the records say of the paper's findings: a line for each, and folded one for each model and
    task."""
    try:
        groups = by_finding(claims(ledger))
    except Exception as error:
        problems.append(f"the findings could not be made: {type(error).__name__}: {error}")
        groups = {}
    rows, lines = list[str](), list[str]()
    for name, of_one in groups.items():
        counts = [sum(claim.agrees is word for claim in of_one) for word in WORDS]
        cells = "".join(f"<td>{n or '·'}</td>" for n in (len(of_one), *counts))
        lines.append(f'<tr><th scope="row" class="words">{escape(name)}</th>{cells}</tr>')
        for claim in of_one:
            ids = [one for runs in claim.runs for one in runs.ids]
            word = f"<strong>{WORDS[claim.agrees]}</strong>" if claim.word.startswith("**") else claim.word
            rows.append(
                f'<tr><th scope="row" class="words">{escape(name)}</th>'
                f'<td class="words">{link(claim.where, ids, place)}</td>'
                f'<td class="text">{word}</td><td class="words">{escape(claim.here)}</td></tr>'
            )
    if not rows:
        return "<p>No finding of the paper has the runs yet that could say something of it.</p>"
    first = "the paper's finding"
    folded = grid("Findings by model and task", [first, "tried on", "verdict", "numbers"], rows)
    return (
        grid("Findings of the paper", [first, "tried", *WORDS.values()], lines)
        + f'<details><summary>Each on its models and tasks: {len(rows)}</summary><p class="quiet">By pairs'
        f" of runs of one seed; bold: of at least {FIRM_PAIRS} pairs or runs.</p>{folded}</details>"
    )


def _overview(ledger: Ledger, parts: list[Entry], findings: list[Finding]) -> str:
    counts = {word: sum(f.verdict.word == word for f in findings) for word in verdicts.WORDS}
    others = sum(not entry.kind and entry.key[0] not in verdicts.MODELS for entry in parts)
    counts["other model"] = others
    finished = sum(record["status"] in FINISHED for record in ledger)
    published = sum(origin != "ours" for origin in ledger.origin.values())
    whose = f", {published:,} of them published by the project and not run here" if published else ""
    trials = sum(is_trial(record["config"]) for record in ledger)
    tried = f", {trials:,} trials" if trials else ""
    lines = [
        f"<p>{len(ledger.records):,} records ({finished:,} finished{tried}) in {len(parts):,} cells{whose}. "
    ]
    lines.append(
        "The paper's numbers by verdict, and the cells of models that it does not use:</p>"
        if ledger.records
        else "Until runs have finished there are only the paper's numbers:</p>"
    )
    idle = {word: counts.pop(word, 0) for word in ("not run", "quoted")}
    items = "".join(f"<li><strong>{n}</strong>{marked(word)}</li>" for word, n in counts.items() if n)
    lines.append(f'<ul class="count">{items}</ul>')
    lines.append(
        "<p class=quiet>Of the 95% interval of the difference, ours less the paper's, over the seeds of both"
        f" sides. reproduced: it holds 0, and half of it is at most {MARGIN:g} point ({MARGIN_OF_10:g} for"
        f" NIST and CIDEr, {MARGIN_OF_JUDGES:g} for judges). consistent, wide: it holds 0 and is wider. not"
        " reproduced: it does not hold 0. Where the paper prints no spread, its number is inside or outside"
        f" the interval of ours. incomplete: fewer than {VERDICT_SEEDS} seeds, or a run without the number."
        " other size: our row trains another count of parameters. other model: cells of models that the"
        " paper does not use. not run: no finished run here. quoted: a row that the paper took from earlier"
        " work.</p>"
    )
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.table, finding.model].append(finding)
    words = [word for word in verdicts.WORDS if has_word(findings, word)]
    rows, without = list[str](), list[str]()
    for (table, model), mine in groups.items():
        cells = "".join(f"<td>{sum(f.verdict.word == word for f in mine) or '·'}</td>" for word in words)
        (rows if any(f.verdict.ids for f in mine) else without).append(
            '<tr><th scope="row"><a'
            f' href="#v-{table}-{model}">{escape(_name(table, model))}</a></th>{cells}</tr>'
        )
    header = ["table", *words]
    if rows:
        lines.append(grid("Numbers of the paper by verdict", header, rows, titled=False))
    if without:
        told = " and ".join(f"{n} {word}" for word, n in idle.items() if n)
        folded = grid("Tables of the paper without runs", header, without)
        lines.append(f"<details><summary>Without runs: {told}</summary>{folded}</details>")
    return "".join(lines)


def _name(table: str, model: str) -> str:
    return f"Table {table.removeprefix('table')}, {verdicts.MODELS.get(model, model)}"


def _verdicts(findings: list[Finding], place: Mapping[str, int]) -> str:
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.table, finding.model].append(finding)
    header = [
        "method",
        "number",
        "paper",
        "ours",
        "difference",
        "95%",
        "margin",
        "seeds",
        "verdict",
        "deviations",
    ]
    made, without = list[str](), list[str]()
    for (table, model), mine in groups.items():
        rows, idle = list[str](), list[str]()
        for f in mine:
            said = f.verdict
            _, column, paper, ours, gap, between, margin, word = finding_texts(f)
            apart = [escape(text) for text in (gap, between, margin)]
            numbers = [escape(paper), link(ours, said.ids, place), *apart, str(said.seeds)]
            attributes = {"model": f.model, "task": f.task, "row": f.row, "word": word}
            deviations = escape("; ".join(said.deviations)) or "-"
            dim = "" if said.ids else " class=paper"
            data = " ".join(f'data-{key}="{html.escape(value)}"' for key, value in attributes.items())
            (rows if said.ids else idle).append(
                f'<tr {data}{dim}><th scope="row">{escape(f.method)}</th><td'
                f' class="text">{escape(column)}</td>'
                + "".join(f"<td>{one}</td>" for one in numbers)
                + f'<td class="text">{marked(word)}</td><td class="words">{deviations}</td></tr>'
            )
        name = _name(table, model)
        framed = grid(f"Verdicts: {name}", header, rows) if rows else ""
        if idle:
            folded = grid(f"Without runs: {name}", header, idle)
            less = f'<details class="group"><summary>{len(idle)} without runs</summary>{folded}</details>'
            framed += less if rows else folded
        (made if rows else without).append(
            f'<details class="group" id="v-{table}-{model}"{" open" if rows else ""}>'
            f"<summary>{escape(name)}: {len(rows)} of {len(mine)} numbers have runs</summary>"
            f"{framed}</details>"
        )
    if without:
        summary = f"The paper's tables without runs: {len(without)}"
        made.append(f'<details class="group"><summary>{summary}</summary>{"".join(without)}</details>')
    return f'<p class="quiet">{escape(" ".join(VERDICTS.values()))}</p>' + "".join(made)


def _statistics(ledger: Ledger, place: Mapping[str, int], parts: list[Entry], problems: list[str]) -> str:
    try:
        made = [*statistics_tables(ledger), costs(ledger)] if ledger.records else []
    except Exception as error:
        problems.append(f"the statistics could not be made: {type(error).__name__}: {error}")
        made = []
    few = " open" if len(made) < 8 else ""
    folded = "".join(
        f"<details {_about(table, '', [], parts, place)}{few}><summary>{escape(table.title)}</summary>"
        f"{table_html(table, place)}</details>"
        for table in made
    )
    return folded or "<p>There are no finished runs.</p>"


def _where(record: Record) -> str:
    cell = record["cell"]
    return f"{record['id']} ({cell['row']} on {cell['task']}, {cell['model']}, seed {cell['seed']})"


def _rates(record: Record) -> str:
    """The rates that trials of a cell differ in."""
    train = record["config"]["train"]
    return "".join(f", {key}={train[key]:g}" for key in ("lr", "lr_head") if train.get(key) is not None)


def _left_out(ledger: Ledger, parts: list[Entry], problems: list[str]) -> str:
    """What is in no number above, and why."""
    lists: dict[str, list[str]] = {
        "Files that are no whole record": list(ledger.problems),
        "Parts of this page": problems,
    }
    lists["Runs that have not finished"] = [
        f"{_where(r)}: {r['status']}" + (f": {r['error']}" if r.get("error") else "")
        for r in ledger
        if r["status"] not in FINISHED
    ]
    again = []
    for entry in parts:
        by_seed: dict[int, list[Record]] = defaultdict(list)
        for record in entry.records:
            if record["status"] in FINISHED:
                by_seed[record["cell"]["seed"]].append(record)
        again += [", ".join(map(_where, same)) for same in by_seed.values() if len(same) > 1]
    lists["More than one record of the same settings and seed: counted once"] = again
    lists["Finished without the number that the tables show"] = [
        _where(r) for r in ledger if r["status"] == "done" and any(map(math.isnan, Cell([r], 1).values()))
    ]
    others = [e for e in parts if e.kind and any(r["status"] in FINISHED for r in e.records)]
    lists["In no table"] = [
        f"{' on '.join(e.key[1:])}, {e.key[0]}{_rates(e.records[0])}: {plural(len(e.records), 'run')}."
        f" {e.kind}"
        for e in others
    ]
    made = []
    for title, found in lists.items():
        if len(found) > LINES_SHOWN:
            found = [*found[:LINES_SHOWN], f"and {len(found) - LINES_SHOWN:,} more"]
        if found:
            made.append(
                f"<h3>{escape(title)}</h3><ul"
                f' class="notes">{"".join(f"<li>{escape(one)}</li>" for one in found)}</ul>'
            )
    return "".join(made) or "<p>Nothing.</p>"


def page(ledger: Ledger, changed: Mapping[str, float] | None = None) -> str:
    """The whole page. changed: when records were written (seconds), by id; of a large ledger the oldest are
    shown less."""
    problems: list[str] = []
    everything, findings = entries(ledger), verdicts.verdicts(ledger)
    parts = shown(everything, changed or {})
    if len(parts) < len(everything):
        problems.append(
            f"Not listed: {plural(len(everything) - len(parts), 'cell')} of older runs, in no table."
        )
    if less := sum(not entry.whole for entry in parts):
        problems.append(f"Not shown one by one: the older runs of {plural(less, 'cell')} in no table.")
    place = {record["id"]: i for i, entry in enumerate(parts) for record in entry.records}
    text = json.dumps(page_data(ledger, parts, findings), separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":  # no label may end the script element that the data stand in
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    sections = {
        "made": (
            f"Made on {time.strftime('%Y-%m-%d')} from {len(ledger.records):,} records. A reproduction of"
            " VeRA (Kopiczko, Blankevoort, Asano; ICLR 2024), the paper's numbers beside ours."
        ),
        "found": _found(ledger, place, problems),
        "overview": _overview(ledger, parts, findings),
        "verdicts": _verdicts(findings, place),
        "tables": _tables(ledger, findings, parts, place, problems),
        "figures": _figures(ledger, findings, parts, place, problems),
        "statistics": _statistics(ledger, place, parts, problems),
        "data": text,
    }
    sections["left_out"] = _left_out(ledger, everything, problems)
    frame = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    pieces = frame.split("{{")
    made = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        made += [sections[name], rest]
    return "".join(made)
