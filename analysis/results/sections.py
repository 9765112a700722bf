"""The pages as Markdown: results.md has what ran, which findings agree and the benchmarks, and a page for
each study its tables, figures and runs."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import figures
from analysis.cells import Cell, label_of
from analysis.inference import FIRM_PAIRS
from analysis.results.claim import Claim
from analysis.results.findings import MARGIN, claims
from analysis.results.of_figures import FITTED
from analysis.series import series
from analysis.statistics import costs, statistics_tables
from analysis.table import Table
from analysis.tables import TABLES, WITHOUT_RECORDS
from runs.record import FINISHED, Ledger, Record, is_trial, read_study
from runs.record.text import one_line, plural


@dataclass
class Page:
    """The pages, and the pictures that they show, by their paths in docs/."""

    texts: dict[str, str]
    pictures: dict[str, str]


def page(studies: Sequence[Path], docs: Path) -> Page:
    """The pages of these folders of published records, and of the benchmarks in docs/bench."""
    ledgers = {folder: read_study(folder) for folder in studies}
    whole = Ledger()
    for ledger in ledgers.values():
        whole.records |= ledger.records
        whole.measures |= ledger.measures
    made = Page({}, {})
    parts = [INTRODUCTION, _what_ran(ledgers), agreement(claims(whole)), READING, _speed(docs / "bench")]
    made.texts["results.md"] = "\n\n".join(part.strip() for part in parts if part) + "\n"
    for folder, ledger in ledgers.items():
        made.texts[f"results/{folder.name}.md"] = study(folder, ledger, made.pictures)
    return made


INTRODUCTION = """# Results

<!-- written by make results from runs/records: edit the NOTES.md of a study, not this page -->

What this project's own studies found, on real benchmark data. Where a model is not one of the paper's, no
number here reproduces or refutes one of the paper's; its findings can be compared. Every number is made of
records in `runs/records`, whose ids stand with it; `make report` shows them with curves, configuration and
provenance. Data sets are no part of this repository."""


def _what_ran(ledgers: Mapping[Path, Ledger]) -> str:
    lines = ["| study | runs | diverged | hours | device |", "|---|---:|---:|---:|---|"]
    for folder, ledger in ledgers.items():
        runs = [r for r in ledger if not is_trial(r["config"])]
        trials = len(ledger.records) - len(runs)
        count = f"{len(runs)}" + (f" and {trials} trials" if trials else "")
        diverged = sum(r["status"] == "diverged" for r in ledger)
        seconds = sum(
            float(r["cost"].get(f"{part}_seconds") or 0)
            for r in ledger
            for part in ("train", "evaluate", "decode")
        )
        devices = sorted({_device(r) for r in ledger})
        lines.append(
            f"| [{folder.name}](results/{folder.name}.md) | {count} | {diverged} | {seconds / 3600:.1f} |"
            f" {'; '.join(devices)} |"
        )
    ids = [record["id"] for ledger in ledgers.values() for record in ledger]
    twice = len(ids) - len(set(ids))
    lines += (
        ["", f"{twice} of these are runs that belong to another of the studies, too, counted again."]
        if twice
        else []
    )
    return "\n".join(["## What ran", "", *lines])


def _device(record: Record) -> str:
    threads = record["determinism"].get("threads")
    cpu = f", {plural(threads, 'thread')}" if record["device"]["type"] == "cpu" and threads else ""
    return f"{record['device']['name']}{cpu}"


READING = """## How to read the pages of the studies

A page has what is to be known of the runs, the tables and figures, and at its end every run behind a number.
A row of a table is made of the runs that the last table lists for its method and task. The words and numbers
are those of `python -m analysis.tables` and `python -m analysis.stats`, which also compares the methods of a
study by pairs of runs, with sign tests."""

CAUTION = f"""Medians of the best epoch for table 2 and of the last for tables 3 and 5, means for tables 6 and
7, as the paper has them. Rows are compared over the seeds that all of them have, by pairs of runs of one
seed, with Student's t on the differences. X is near Y: agrees if the one-sided 95% bound of the mean
difference X - Y is above -{MARGIN:g} point, does not agree if the other bound is below it. X is above Y:
agrees if the 95% interval is above 0, does not agree if it is below. Otherwise, or where neither of two rows
is two standard errors above the larger class: undecided. Five seeds rarely decide: with differences that vary
by 3 points from seed to seed, a true difference of -3 is called "does not agree" in 20% of cases with 3
pairs, 34% with 5, 62% with 10 and 89% with 20. Bold words are of at least {FIRM_PAIRS} pairs or runs. Most
runs are a few epochs long: a row that is still rising (its best epoch is the last one in most seeds) would
end elsewhere if it trained as long as the paper's. The last column is the same finding with each run's epoch
chosen by cross-fitting: on one half of dev, reported on the other, both ways. Two margins are this project's
own: {MARGIN:g} point, and errors of figure 6 are equal within a tenth of LoRA's, or {FITTED:g}. That finding
is of every count, so one that differs refutes it.

The lines of the first table pool tasks with different metrics (Matthews, Pearson, accuracy, BLEU), and are
not independent: findings on one task share VeRA's runs, the seeds and the dev set."""


def agreement(found: list[Claim]) -> str:
    """The part of the page on the findings: a line for each, over all that it was tried on; then one by
    one."""
    lines = ["## What agrees with the paper, and what does not", ""]
    if not found:
        return "\n".join(
            [*lines, "Nothing has been published yet that a finding of the paper could be held to."]
        )
    lines += [*tally(found), "", CAUTION]
    behind = list(dict.fromkeys(runs for claim in found for runs in claim.runs))
    for number, of_one in enumerate(by_finding(found).values(), 1):
        sources = dict.fromkeys(f.source for f in of_one)
        lines += ["", f"### Finding {number}", "", f"In the paper: {'; '.join(sources)}.", ""]
        lines += ["| tried on | here | epochs | | cross-fitted | runs |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {f.where} | {f.here} | {f.trained} | {f.word} | {crossfit_word(f)}"
            f" | {', '.join(f'R{behind.index(runs) + 1}' for runs in f.runs) or '-'} |"
            for f in of_one
        ]
    lines += ["", "### Runs behind the findings", "", BEHIND, ""]
    lines += [
        "| | row | tried on | runs | median | mean | ids, by seed |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| R{n} | {runs.row} | {runs.where} | {len(runs.ids)} | {runs.median} | {runs.mean}"
        f" | {' '.join(f'`{name}`' for name in runs.ids)} |"
        for n, runs in enumerate(behind, 1)
    ]
    return "\n".join(lines)


BEHIND = """Two rows are compared over the seeds that both have, so one row can have several numbers: of all
its seeds or of some, as a median or, for tables 6 and 7, as a mean. Of figure 6 the ids are measures."""


def by_finding(found: list[Claim]) -> dict[str, list[Claim]]:
    """The claims of each finding, which the paper may have in several tables."""
    groups: dict[str, list[Claim]] = defaultdict(list)
    for claim in found:
        groups[claim.claim].append(claim)
    return groups


def tally(found: list[Claim]) -> list[str]:
    """A line for each finding, over all that it was tried on."""
    lines = [
        (
            "| | the paper's finding | tried on | agrees | does not agree | undecided | of at least"
            f" {FIRM_PAIRS} pairs or runs | single pairs, runs or counts that say so |"
        ),
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for number, (name, mine) in enumerate(by_finding(found).items(), 1):
        words = [sum(claim.agrees is word for claim in mine) for word in (True, False, None)]
        holds = [answer for claim in mine for answer in claim.holds]
        firm = sum(claim.firm for claim in mine)
        lines.append(
            f"| [{number}](#finding-{number}) | {name} | {len(mine)} | {' | '.join(map(str, words))} | {firm}"
            f" | {sum(holds)} of {len(holds)} |"
        )
    return lines


def crossfit_word(claim: Claim) -> str:
    """What cross-fitting says of a finding: the same word, or another one with its numbers."""
    if claim.crossfit is None:
        return "-"
    same = claim.crossfit.agrees == claim.agrees
    return claim.crossfit.word if same else f"{claim.crossfit.word}: {claim.crossfit.here}"


def study(folder: Path, ledger: Ledger, pictures: dict[str, str]) -> str:
    """The page of a study. Its pictures are added to `pictures`."""
    notes = folder / "NOTES.md"
    parts = [f"# {folder.name}", HEAD, notes.read_text().strip() if notes.is_file() else ""]
    finished = Ledger(
        {r["id"]: r for r in ledger if r["status"] in FINISHED}, ledger.origin, [], ledger.measures
    )
    shown = set[str]()  # a note is said once on a page
    for name in TABLES:
        for table in TABLES[name](finished, "paper", None) if name not in WITHOUT_RECORDS else []:
            # A number of ours, beside the counts
            if {table.header[column] for _, column in table.runs} - {"params"}:
                parts.append(_table(table, shown))
    for name in figures.FIGURES:
        for figure in figures.FIGURES[name](finished):
            if any(row[-1].text for row in figure.rows):
                path = f"{folder.name}_{figure.name}.svg"
                pictures[f"results/{path}"] = figures.svg(figure)
                notes_ = _new(figure.notes, shown)
                parts.append("\n".join([f"![{one_line(figure.title)}]({path})", "", *notes_]).strip())
    cells = [table for table in statistics_tables(finished) if table.title.endswith(": cells")]
    parts += [_table(table, shown) for table in [*cells, costs(finished)] if table.rows]
    parts += [_trials(finished), _runs(finished)]
    return "\n\n".join(part for part in parts if part) + "\n"


HEAD = """<!-- written by make results from runs/records: edit the study's NOTES.md, not this page -->

[Results of all studies](../results.md)"""


def _new(notes: Sequence[str], shown: set[str]) -> list[str]:
    """The notes that the page does not have yet, as a list; those that say the same of several rows in one
    line."""
    groups: dict[str, list[str]] = defaultdict(list)
    for note in map(one_line, notes):
        row, colon, rest = note.rpartition(": ")
        hollow = colon and rest.endswith("(hollow).")
        if hollow or note not in shown:
            groups[rest if hollow else ""].append(row if hollow else note)
            shown.add(note)
    alone = groups.pop("", [])
    together = [f"{'; '.join(rows)}: {rest}" for rest, rows in groups.items()]
    return [f"- {note}" for note in [*alone, *together]]


def _runs(ledger: Ledger) -> str:
    """Every run of a study by method, task and, of a trial, its rates; in the order of seeds."""
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in ledger:
        train, trial = record["config"]["train"], is_trial(record["config"])
        rates = " and ".join(f"{train[key]:g}" for key in ("lr", "lr_head") if train.get(key) is not None)
        label = record["label"]
        method = f"{label_of(record)}{f', trial, rates {rates}' * trial}"
        groups[method, label["model"], label["task"]].append(record)
    lines = ["**Runs**", "", "| method | model | task | run ids, by seed |", "|---|---|---|---|"]
    for key, records in sorted(groups.items()):
        by_seed = sorted(records, key=lambda record: (record["cell"]["seed"], record["id"]))
        ids = " ".join(f"{r['cell']['seed']}: `{r['id']}`" for r in by_seed)
        lines.append(f"| {' | '.join(map(one_line, key))} | {ids} |")
    return "\n".join(lines) if groups else ""


def _table(table: Table, shown: set[str]) -> str:
    table = table.flat()
    body = table.render("md").removeprefix(table.title).strip()
    lines = body.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    behind = []
    if table.header[0] == "setting":  # rows that the table of runs has by another name
        ids = {row[0].text: dict.fromkeys(name for cell in row for name in cell.ids) for row in table.rows}
        behind = [f"- {row}: {' '.join(f'`{name}`' for name in of)}" for row, of in ids.items() if of]
    return "\n".join([f"**{table.title}**", "", *lines[:end], "", *behind, *_new(table.notes, shown)]).strip()


def _trials(ledger: Ledger) -> str:
    """What was tried on held-out training rows: the budget of each method, and which rates won."""
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in ledger:
        if record["config"]["task"].get("holdout") is not None:
            rows = " and ".join(f"{record['data'][part]:,}" for part in ("train_rows", "dev_rows"))
            label = record["label"]
            groups[
                label["model"],
                label["task"],
                label_of(record),
                f"{record['config']['train']['epochs']}",
                rows,
            ].append(record)
    if not groups:
        return ""
    lines = [
        "**Tuning: every trial on held-out training rows; by the epoch that the table reports, median over"
        " seeds, best first**"
    ]
    lines += [
        "",
        (
            "| model | task | method | epochs | rows trained on and judged on | (rate of the adapter, of the"
            " head): value |"
        ),
    ]
    lines += ["|---|---|---|---:|---:|---|"]
    for key, records in sorted(groups.items()):
        by_rate: dict[str, list[float]] = defaultdict(list)
        for record in records:
            lr, head = (f"{record['config']['train'][name]:g}" for name in ("lr", "lr_head"))
            told = series(Cell([record], 1))
            words = head if record["config"]["method"]["kind"] == "head" else f"{lr}, {head}"
            by_rate[words] += told.values.values()
        sign = 1 if told.less else -1
        best = sorted(
            by_rate.items(), key=lambda item: sign * statistics.median(item[1]) if item[1] else math.inf
        )
        values = "; ".join(
            f"({words}): {statistics.median(of):.1f}" if of else f"({words}): -" for words, of in best
        )
        lines.append(f"| {' | '.join(key)} | {values} |")
    return "\n".join(lines)


def _speed(folder: Path) -> str:
    """The tables of make bench, as it wrote them beside its JSON: docs/bench/ANY
    NAME/{training,serving,decoding}."""
    parts = []
    for path in sorted(folder.glob("*/*.json")):
        made = json.loads(path.read_text())
        threads = plural(made["threads"], "thread")
        parts.append(f"**{path.stem}, {made['date']}, {made['machine']['name']}, {threads}**")
        parts.append(path.with_suffix(".md").read_text().strip())
    return "\n\n".join(["## Speed", BENCH, *parts]) if parts else ""


BENCH = """`make bench`, `make bench-serving` and `make bench-decoding`: ratios of interleaved medians within
one process. The numbers behind them, with versions and commit, are in `docs/bench`."""
