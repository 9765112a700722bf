"""Writes one HTML page from the records: verdicts, tables, figures, statistics, and a view of each cell.

    python -m analysis.report [--output outputs]       (make report)

The page is OUTPUT/report.html. It holds its data, styles and script, and asks for nothing else: no server, no network. The
words and numbers of its tables are those of analysis.tables and analysis.stats; report.html beside this file is its frame.
"""

import base64
import html
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import figures, tables, verdicts
from analysis.beside import MARGIN, MARGIN_OF_10, MARGIN_OF_JUDGES, VERDICT_SEEDS, VERDICTS, summary
from analysis.cells import Cell, Key, one_each, row_of
from analysis.command import Parser, entry_point, open_ledger
from analysis.series import PERPLEXITY
from analysis.tables import TABLES, WITHOUT_RECORDS
from analysis.verdicts import Finding, number
from runs.record import FINISHED, Ledger, Record, cell_id, is_trial, protocol, records_folder, reported, write_atomically
from runs.record.text import megabytes, one_line, plural

#: Parts of a record that a cell's view shows as keys and values.
SHOWN: tuple[str, ...] = (
    *("config", "recipe", "seeds", "start", "code", "versions", "device", "determinism", "model", "data", "parameters"),
    *("groups", "effective_batch", "micro_batch", "steps", "config_hash", "predictions", "tries", "schema", "judged"),
)
#: Where things lay is nobody's business: of a path the last part is shown.
PLACES = {"path", "data_dir", "train_file", "dev_file", "cache_dir", "mt_bench_dir", "template", "output", "init_from", "from"}
COSTS = {"train_seconds": "training, s", "evaluate_seconds": "evaluation, s", "decode_seconds": "decoding, s"}
COSTS |= {"tokens_per_second": "tokens/s", "images_per_second": "images/s"}
COSTS |= {"peak_memory_bytes": "memory", "adapter_bytes": "adapter"}
MARKS = {"reproduced": ("good", "✓"), "not reproduced": ("bad", "✗"), "incomplete": ("part", "…")}
MARKS |= {"consistent, wide": ("part", "≈"), "inside our interval": ("part", "≈"), "outside our interval": ("bad", "✗")}


#: A page stays below 20 MB: of what is in no table the newest runs are shown one by one, and of older ones the cell alone;
#: and of each list of what is left out, the first lines.
RUNS_SHOWN, CELLS_SHOWN, LINES_SHOWN = 8_000, 20_000, 200


@dataclass
class Entry:
    """Records of one model, row and task with the same settings. `kind` in words: in the tables, or why not. `whole`:
    whether its runs are shown one by one."""

    key: Key
    records: list[Record]
    kind: str
    whole: bool = True

    def cell(self) -> Cell | None:
        """What of it is a result; of several records of a seed one, as in the tables."""
        done, _ = one_each(record for record in self.records if record["status"] in FINISHED)
        return Cell(done, verdicts.wanted(self.key)) if done else None


def entries(ledger: Ledger) -> list[Entry]:
    """Every record is in one of them."""
    groups: dict[tuple[Key, str, bool], list[Record]] = defaultdict(list)
    for record in ledger:
        cell = record["cell"]
        # A failed run's record has no model, data or recipe: it may have failed before they were known.
        settings = cell_id(record) if record["status"] in FINISHED else ""
        groups[(cell["model"], row_of(record), cell["task"]), settings, is_trial(record["config"])].append(record)
    in_tables = verdicts.all_cells(ledger)
    chosen = {record["id"] for cell in in_tables.values() for record in cell.records}
    found = []
    for (key, _, trial), records in groups.items():
        records.sort(key=lambda r: (r["cell"]["seed"], r["id"]))
        if any(record["id"] in chosen for record in records):
            kind = ""
        elif trial:
            kind = "A trial (stopped early, or judged on training rows): in no table."
        elif not any(record["status"] in FINISHED for record in records):
            kind = "No run has finished: in no table."
        elif key in in_tables and protocol(records[0]) != protocol(in_tables[key].records[0]):
            kind = f"Protocol {protocol(records[0])}, and the cell of the tables is of a newer one."
        else:
            kind = "Other settings than the cell of the tables."
        found.append(Entry(key, records, kind))
    return sorted(found, key=lambda entry: (entry.key[0], entry.key[2], entry.kind != "", entry.key[1]))


def shown(found: list[Entry], changed: Mapping[str, float]) -> list[Entry]:
    """The entries that the page has, in their order; of a large ledger only those of the tables and the newest others, by when
    their records were written."""
    newest = sorted(
        found, key=lambda entry: (entry.kind == "", max(changed.get(r["id"], 0.0) for r in entry.records)), reverse=True
    )
    runs = 0
    for entry in newest:
        runs += len(entry.records)
        entry.whole = entry.kind == "" or runs <= RUNS_SHOWN
    kept = set(map(id, newest[:CELLS_SHOWN]))
    return [entry for entry in found if id(entry) in kept]


# --- the data of the page


def _data(ledger: Ledger, parts: list[Entry], findings: list[Finding]) -> dict[str, Any]:
    pool: dict[str, int] = {}
    facts = _Facts()
    place = {record["id"]: i for i, entry in enumerate(parts) for record in entry.records}
    told: dict[int, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.verdict.ids:
            told[place[finding.verdict.ids[0]]].append(finding)
    cells = [_entry(entry, told[i], ledger, pool, facts) for i, entry in enumerate(parts)]
    names: dict[str, dict[str, str]] = {"model": {}, "task": {}, "row": {}}
    for f in findings:
        names["model"][f.model] = verdicts.MODELS[f.model]
        names["task"][f.task] = f.task
        names["row"][f.row] = f.row
    for cell in cells:
        for key, short in (("model", "m"), ("task", "t"), ("row", "r")):
            names[key][cell[short]] = cell[f"l{short}"]
    words = [word for word in verdicts.WORDS if any(word in c["words"] for c in cells) or _has(findings, word)]
    others = sorted({word for c in cells for word in c["words"]} - set(words))
    ordered = {key: dict(sorted(found.items())) for key, found in names.items()}
    return {"pool": list(pool), "cells": cells, "names": ordered, "words": [*words, *others], "costs": list(COSTS.values())}


def _has(findings: list[Finding], word: str) -> bool:
    return any(f.verdict.word == word for f in findings)


def _entry(entry: Entry, findings: list[Finding], ledger: Ledger, pool: dict[str, int], facts_of: "_Facts") -> dict[str, Any]:
    model, row, task = entry.key
    first, cell = entry.records[0], entry.cell()
    label = first.get("label") or {}
    metric = str((first.get("result") or {}).get("metric") or "metric")
    percent = metric != PERPLEXITY
    words = list(dict.fromkeys(f.verdict.word for f in findings)) or [_other_word(entry)]
    records = entry.records if entry.whole else []
    facts = [facts_of(record) for record in records]
    alike = set.intersection(*map(set, facts)) if facts else set()
    printed = next((f.verdict.printed for f in findings if f.table in ("table2", "table5")), None)
    return {
        "m": model,
        "r": row,
        "t": task,
        "lm": one_line(str(label.get("model", model))),
        "lr": one_line(str(label.get("row", row))),
        "lt": one_line(str(label.get("task", task))),
        "kind": entry.kind,
        "seeds": f"{cell.seeds if cell else 0}/{verdicts.wanted(entry.key)}"
        + (f" {cell.diverged}d" if cell and cell.diverged else ""),
        "params": f"{int((first.get('parameters') or {}).get('adapter') or 0):,}",
        "metric": metric,
        "pct": percent,
        "printed": printed,
        "facts": verdicts.facts(cell, entry.whole) if cell else dict.fromkeys(verdicts.FACTS, "-") | {"metric": metric},
        "word": words[0] if len(words) == 1 else summary([f.verdict.word for f in findings]) or ", ".join(words),
        "words": words,
        "found": [_beside(f) for f in findings],
        "dev": list(dict.fromkeys(one_line(word) for r in entry.records for word in r.get("deviations") or [])),
        "f": [pool.setdefault(fact, len(pool)) for fact in facts[0] if fact in alike] if facts else [],
        "runs": [
            _run(record, ledger, percent, [pool.setdefault(fact, len(pool)) for fact in mine if fact not in alike])
            for record, mine in zip(records, facts, strict=True)
        ],
    } | ({} if entry.whole else {"ids": [record["id"] for record in entry.records]})


def _other_word(entry: Entry) -> str:
    """The word for a cell of which the paper prints nothing, or which is in no table."""
    if entry.kind:
        return "in no table"
    return "not in the paper" if entry.key[0] in verdicts.MODELS else "other model"


def _beside(f: Finding) -> list[str]:
    said, n = f.verdict, f.decimals
    bounds = said.interval
    between = f"{number(bounds[0], '+', n)} to {number(bounds[1], '+', n)}" if bounds else "-"
    paper = number(said.printed, "", n) + (f" ±{f.spread:.{n}f}" if f.spread is not None else "")
    margin = f"±{said.margin:.1f}"
    return [f.table, f.column, paper, number(said.ours, "", n), number(said.difference, "+", n), between, margin, said.word]


def _run(record: Record, ledger: Ledger, percent: bool, own: list[int]) -> dict[str, Any]:
    finished = record["status"] in FINISHED
    paper, fitted = (reported(record, select) if finished else {} for select in ("paper", "crossfit"))
    scale = 100 if percent else 1
    made: dict[str, Any] = {"id": record["id"], "seed": record["cell"]["seed"], "st": str(record["status"])}
    made["o"] = str(ledger.origin.get(record["id"], "-"))
    for short, source, key in (("b", paper, "best"), ("l", paper, "last"), ("u", fitted, "best")):
        value = source.get(key)
        made[short] = None if value is None else round(scale * value, 3)
    made["be"] = paper.get("best_epoch")
    cost = record.get("cost") or {}
    made["cost"] = [_cost(key, cost.get(key)) for key in COSTS]
    made["f"] = own
    if record.get("error"):
        made["err"] = str(record["error"])
    if (record.get("curve") or {}).get("epoch"):
        made["c"] = _curve(record["curve"], percent)
    return made


def _cost(key: str, value: Any) -> str:
    if value is None:
        return "-"
    return megabytes(value) if key.endswith("bytes") else f"{value:,.1f}"


def _curve(curve: Mapping[str, Any], percent: bool) -> dict[str, Any]:
    """Columns of numbers, short: percents as whole hundredths, losses with four digits, epochs left out where they count."""
    epochs = curve["epoch"]
    made: dict[str, Any] = {"n": len(epochs)}
    if epochs != [i + 1 for i in range(len(epochs))]:
        made["e"] = epochs
    for short, key in (("m", "metric"), ("tl", "train_loss"), ("dl", "dev_loss")):
        values = curve.get(key)
        if values and any(value is not None for value in values):
            made[short] = [_short(value, percent and key == "metric") for value in values]
    return made


def _short(value: float | None, percent: bool) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    return round(1e4 * value) if percent else float(f"{value:.4g}")


class _Facts:
    """Configuration and provenance of a record as "key<tab>value". Parts that records of a ledger share are told once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], list[str]] = {}

    def __call__(self, record: Record) -> list[str]:
        found = []
        for part in SHOWN:
            if part == "config":
                for key, value in record["config"].items():
                    if key != "recipe":  # it is told beside the configuration that came of it
                        found += self._of(f"config.{key}", value)
            elif part in record:
                found += self._of(part, record[part])
        return found

    def _of(self, name: str, value: Any) -> list[str]:
        if not isinstance(value, dict | list):
            return list(_flat(name, value))
        known = self._known.get((name, id(value)))  # of a record of the ledger, which stays while the page is made
        if known is None:
            known = self._known[name, id(value)] = list(_flat(name, value))
        return known


def _flat(name: str, value: Any) -> Iterable[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        if name.rpartition(".")[2] in PLACES and isinstance(value, str):
            value = Path(value).name
        yield f"{name}\t{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


# --- the parts of the page


def _e(text: object) -> str:
    return html.escape(one_line(str(text)).replace("+-", "±"))


def _word(word: str) -> str:
    kind, mark = MARKS.get(word, ("part" if word.startswith("reproduced") else "none", "-"))
    return f'<span class="v v-{kind}"><span aria-hidden="true">{mark} </span>{_e(word)}</span>'


def _link(text: str, ids: Sequence[str], place: Mapping[str, int]) -> str:
    """A number, leading to the cells that it is made of."""
    found = list(dict.fromkeys(place[name] for name in ids if name in place))
    if not found:
        return _e(text)
    target = f"cell-{found[0]}" if len(found) == 1 else f"cells-{'.'.join(map(str, found))}"
    return f'<a href="#{target}">{_e(text)}</a>'


#: Columns of words, which stand to the left.
WORDS = {"source", "status", "task", "model", "number", "metric", "judge", "device", "verdict", "deviations"}


def _grid(title: str, header: Sequence[str], rows: Iterable[str], titled: bool = True) -> str:
    """A table in a frame that scrolls by itself, also by keyboard. titled: a heading above it says the same already."""
    head = "".join(f'<th scope="col"{_class(name)}>{_e(name)}</th>' for name in header)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{_e(title)}"><table>'
        f"<caption{' class=unseen' if titled else ''}>{_e(title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _class(column: str) -> str:
    wide = column in ("status", "deviations")
    return ' class="words"' if wide else ' class="text"' if column in WORDS else ""


def _table(table: Any, place: Mapping[str, int]) -> str:
    """A table of analysis.tables, or the numbers of a figure, with the runs behind it."""
    rows: list[str] = []
    behind: dict[str, None] = {}
    named = ""
    # A figure's last column are the ids that its numbers lead to; of a measure that is of no run it stays.
    known = [name for row in table.rows for text in row for name in getattr(text, "ids", ())]
    header = table.header[:-1] if table.header[-1] == "runs" and all(name in place for name in known) else table.header
    for row in table.rows:
        cells = []
        for i, (text, column) in enumerate(zip(row, header, strict=False)):
            ids = getattr(text, "ids", ())
            shown = _link(text, ids, place)
            cells.append(f'<th scope="row">{shown}</th>' if i == 0 and text else f"<td{_class(column)}>{shown}</td>")
        ids = list(dict.fromkeys(name for text in row for name in getattr(text, "ids", ()) if name in place))
        named = row[0] or named
        if ids and row[1:2] != ["difference"]:
            links = " ".join(f'<a href="#run-{_e(name)}">{_e(name)}</a>' for name in ids)
            behind[f"<li>{_e(named)}{' on ' + _e(row[1]) if table.header[1:2] == ['task'] else ''}: {links}</li>"] = None
        quoted = len(row) > 1 and row[1].startswith("paper")
        rows.append(f"<tr{' class=paper' if quoted else ''}>{''.join(cells)}</tr>")
    notes = "".join(f"<li>{_e(note)}</li>" for note in table.notes)
    made = _grid(table.title, header, rows) + (f'<ul class="notes">{notes}</ul>' if notes else "")
    if behind:
        made += f'<details><summary>Runs behind these numbers</summary><ul class="ids">{"".join(behind)}</ul></details>'
    return made


def _about(table: Any, name: str, findings: list[Finding], parts: list[Entry], place: Mapping[str, int]) -> str:
    """What the filters go by: models, tasks and rows of a table or figure; an empty list fits everything."""
    ids = {one for row in table.rows for text in row for one in getattr(text, "ids", ()) if one in place}
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


def _tables(ledger: Ledger, findings: list[Finding], parts: list[Entry], place: Mapping[str, int], problems: list[str]) -> str:
    made = []
    for name in TABLES:
        try:
            found = tables.make(name, ledger)
        except Exception as error:  # a record that lacks what this table reads: the other tables are still there
            problems.append(f"{name} could not be made: {type(error).__name__}: {error}")
            continue
        for table in found:
            made.append(
                f"<div {_about(table, name, findings, parts, place)}><h3>{_e(table.title)}</h3>{_table(table, place)}</div>"
            )
    return "".join(made) or "<p>No table has records.</p>"


def _figures(ledger: Ledger, findings: list[Finding], parts: list[Entry], place: Mapping[str, int], problems: list[str]) -> str:
    made = []
    for name in figures.FIGURES:
        try:
            for figure in figures.make(name, ledger):
                if not figure.rows:
                    notes = "".join(f"<li>{_e(note)}</li>" for note in figure.notes)
                    made.append(
                        f"<div {_about(figure, name, findings, parts, place)}><h3>{_e(figure.title)}</h3>"
                        f'<ul class="notes">{notes}</ul></div>'
                    )
                    continue
                picture = base64.b64encode(figures.svg(figure).encode()).decode()
                about = _about(figure, name, findings, parts, place)
                # A picture of its own, whose ids cannot meet another's; its numbers are the table under it.
                made.append(
                    f'<div {about}><h3>{_e(figure.title)}</h3><figure><img src="data:image/svg+xml;base64,{picture}" '
                    f'alt="{_e(figure.title)}. The numbers are in the table below."></figure>'
                    f"<details><summary>Numbers of this figure</summary>{_table(figure, place)}</details></div>"
                )
        except Exception as error:
            problems.append(f"figure {name} could not be drawn: {type(error).__name__}: {error}")
    return "".join(made) or "<p>No figure has records.</p>"


def _overview(ledger: Ledger, parts: list[Entry], findings: list[Finding]) -> str:
    counts = {word: sum(f.verdict.word == word for f in findings) for word in verdicts.WORDS}
    others = sum(not entry.kind and entry.key[0] not in verdicts.MODELS for entry in parts)
    counts["other model"] = others
    finished = sum(record["status"] in FINISHED for record in ledger)
    published = sum(origin != "ours" for origin in ledger.origin.values())
    whose = f", {published:,} of them published by the project and not run here" if published else ""
    trials = sum(is_trial(record["config"]) for record in ledger)
    tried = f", {trials:,} trials" if trials else ""
    lines = [f"<p>{len(ledger.records):,} records ({finished:,} finished{tried}) in {len(parts):,} cells{whose}. "]
    lines.append(
        "The paper's numbers by verdict, and the cells of models that it does not use:</p>"
        if ledger.records
        else "Until runs have finished there are only the paper's numbers:</p>"
    )
    items = "".join(f"<li><strong>{n}</strong>{_word(word)}</li>" for word, n in counts.items() if n)
    lines.append(f'<ul class="count">{items}</ul>')
    lines.append(
        "<p class=quiet>Of the 95% interval of the difference, ours less the paper's, over the seeds of both sides. reproduced:"
        f" it holds 0, and half of it is at most {MARGIN:g} point ({MARGIN_OF_10:g} for NIST and CIDEr, {MARGIN_OF_JUDGES:g}"
        " for judges). consistent, wide: it holds 0 and is wider. not reproduced: it does not hold 0. Where the paper prints no"
        " spread, its number is inside or outside the interval of ours. incomplete: fewer than"
        f" {VERDICT_SEEDS} seeds, or a run without the number. other size: our row trains another count of parameters. other"
        " model: cells of models that the paper does not use. not run: no finished run here. quoted: a row that the paper took"
        " from earlier work.</p>"
    )
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.table, finding.model].append(finding)
    words = [word for word in verdicts.WORDS if _has(findings, word)]
    rows = []
    for (table, model), mine in groups.items():
        cells = "".join(f"<td>{sum(f.verdict.word == word for f in mine) or '·'}</td>" for word in words)
        rows.append(f'<tr><th scope="row"><a href="#v-{table}-{model}">{_e(_name(table, model))}</a></th>{cells}</tr>')
    return "".join(lines) + _grid("Numbers of the paper by verdict", ["table", *words], rows, titled=False)


def _name(table: str, model: str) -> str:
    return f"Table {table.removeprefix('table')}, {verdicts.MODELS.get(model, model)}"


def _verdicts(findings: list[Finding], place: Mapping[str, int]) -> str:
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.table, finding.model].append(finding)
    header = ["method", "number", "paper", "ours", "difference", "95%", "margin", "seeds", "verdict", "deviations"]
    made = []
    for (table, model), mine in groups.items():
        rows = []
        for f in mine:
            said = f.verdict
            _, column, paper, ours, gap, between, margin, word = _beside(f)
            numbers = [_e(paper), _link(ours, said.ids, place), _e(gap), _e(between), _e(margin), str(said.seeds)]
            attributes = {"model": f.model, "task": f.task, "row": f.row, "word": word}
            deviations = _e("; ".join(said.deviations)) or "-"
            dim = "" if said.ids else " class=paper"
            data = " ".join(f'data-{key}="{html.escape(value)}"' for key, value in attributes.items())
            rows.append(
                f'<tr {data}{dim}><th scope="row">{_e(f.method)}</th><td class="text">{_e(column)}</td>'
                + "".join(f"<td>{one}</td>" for one in numbers)
                + f'<td class="text">{_word(word)}</td><td class="words">{deviations}</td></tr>'
            )
        ran = sum(bool(f.verdict.ids) for f in mine)
        name = _name(table, model)
        grid = _grid(f"Verdicts: {name}", header, rows)
        made.append(
            f'<details class="group" id="v-{table}-{model}"{" open" if ran else ""}>'
            f"<summary>{_e(name)}: {ran} of {len(mine)} numbers have runs</summary>{grid}</details>"
        )
    return f'<p class="quiet">{_e(" ".join(VERDICTS.values()))}</p>' + "".join(made)


def _statistics(ledger: Ledger, place: Mapping[str, int], parts: list[Entry], problems: list[str]) -> str:
    try:
        made = [*verdicts.statistics_tables(ledger), verdicts.costs(ledger)] if ledger.records else []
    except Exception as error:
        problems.append(f"the statistics could not be made: {type(error).__name__}: {error}")
        made = []
    folded = "".join(
        f"<details {_about(table, '', [], parts, place)}{' open' if len(made) < 8 else ''}><summary>{_e(table.title)}</summary>"
        f"{_table(table, place)}</details>"
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
    lists: dict[str, list[str]] = {"Files that are no whole record": list(ledger.problems), "Parts of this page": problems}
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
        f"{' on '.join(e.key[1:])}, {e.key[0]}{_rates(e.records[0])}: {plural(len(e.records), 'run')}. {e.kind}" for e in others
    ]
    made = []
    for title, found in lists.items():
        if len(found) > LINES_SHOWN:
            found = [*found[:LINES_SHOWN], f"and {len(found) - LINES_SHOWN:,} more"]
        if found:
            made.append(f'<h3>{_e(title)}</h3><ul class="notes">{"".join(f"<li>{_e(one)}</li>" for one in found)}</ul>')
    return "".join(made) or "<p>Nothing.</p>"


def page(ledger: Ledger, changed: Mapping[str, float] | None = None) -> str:
    """The whole page. changed: when records were written (seconds), by id; of a large ledger the oldest are shown less."""
    problems: list[str] = []
    everything, findings = entries(ledger), verdicts.verdicts(ledger)
    parts = shown(everything, changed or {})
    if len(parts) < len(everything):
        problems.append(f"Not listed: {plural(len(everything) - len(parts), 'cell')} of older runs, in no table.")
    if less := sum(not entry.whole for entry in parts):
        problems.append(f"Not shown one by one: the older runs of {plural(less, 'cell')} in no table.")
    place = {record["id"]: i for i, entry in enumerate(parts) for record in entry.records}
    text = json.dumps(_data(ledger, parts, findings), separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":  # no label may end the script element that the data stand in
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    sections = {
        "made": f"Made on {time.strftime('%Y-%m-%d')} from {len(ledger.records):,} records. A reproduction of VeRA (Kopiczko,"
        " Blankevoort, Asano; ICLR 2024), the paper's numbers beside ours.",
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


def main(arguments: list[str]) -> int:
    parser = Parser("report", __doc__, "the folder that holds records/; the page goes there")
    options = parser.read(arguments)
    ledger = open_ledger(options.output)
    path = Path(options.output) / "report.html"
    changed = {file.stem: file.stat().st_mtime for file in records_folder(options.output).glob("*.json") if file.is_file()}
    write_atomically(path, page(ledger, changed))
    print(f"Report: {path} ({len(ledger.records)} records, {megabytes(path.stat().st_size)})")
    return 0


if __name__ == "__main__":
    entry_point(main)
