"""The page as Markdown: what ran, which findings agree, each study with its tables and figures, and the
benchmarks."""

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
    """The page as text, and the pictures that it shows, by their paths beside it."""

    text: str
    pictures: dict[str, str]


def page(studies: Sequence[Path], docs: Path) -> Page:
    """The page of these folders of published records, and of the benchmarks in docs/bench."""
    ledgers = {folder: read_study(folder) for folder in studies}
    whole = Ledger()
    for ledger in ledgers.values():
        whole.records |= ledger.records
        whole.measures |= ledger.measures
    made = Page("", {})
    parts = [INTRODUCTION, _what_ran(ledgers), agreement(claims(whole))]
    parts += [_study(folder, ledger, made) for folder, ledger in ledgers.items()]
    parts += [_speed(docs / "bench")]
    made.text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    return made


INTRODUCTION = """# Results

<!-- written by make results from runs/records: edit the NOTES.md of a study, not this page -->

What this project's own studies found, on real benchmark data. Where a model is not one of the paper's, no
number here reproduces or refutes one of the paper's; what can be compared are its findings. Every number of a
table comes from the records in `runs/records`; `make report` shows the same records with curves,
configuration, provenance and run ids. A study's notes name earlier runs that have no record here. Data sets
are no part of this repository."""


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
            f"| [{folder.name}](#{folder.name}) | {count} | {diverged} | {seconds / 3600:.1f} |"
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
    lines += [*tally(found), "", "One by one:", ""]
    lines += [
        "| the paper's finding | tried on | here | epochs | | cross-fitted |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {f.claim} | {f.where} | {f.here} | {f.trained} | {f.word} | {crossfit_word(f)} |" for f in found
    ]
    lines += ["", CAUTION]
    return "\n".join(lines)


def tally(found: list[Claim]) -> list[str]:
    """A line for each finding, over all that it was tried on."""
    groups: dict[str, list[Claim]] = defaultdict(list)
    for claim in found:
        groups[claim.claim.partition(" (")[0]].append(claim)
    lines = [
        (
            "| the paper's finding | tried on | agrees | does not agree | undecided | of at least"
            f" {FIRM_PAIRS} pairs or runs | single pairs, runs or counts that say so |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, mine in groups.items():
        words = [sum(claim.agrees is word for claim in mine) for word in (True, False, None)]
        holds = [answer for claim in mine for answer in claim.holds]
        firm = sum(claim.firm for claim in mine)
        lines.append(
            f"| {name} | {len(mine)} | {' | '.join(map(str, words))} | {firm} | {sum(holds)} of"
            f" {len(holds)} |"
        )
    return lines


def crossfit_word(claim: Claim) -> str:
    """What cross-fitting says of a finding: the same word, or another one with its numbers."""
    if claim.crossfit is None:
        return "-"
    same = claim.crossfit.agrees == claim.agrees
    return claim.crossfit.word if same else f"{claim.crossfit.word}: {claim.crossfit.here}"


def _study(folder: Path, ledger: Ledger, made: Page) -> str:
    notes = folder / "NOTES.md"
    parts = [f"## {folder.name}", notes.read_text().strip() if notes.is_file() else ""]
    finished = Ledger(
        {r["id"]: r for r in ledger if r["status"] in FINISHED}, ledger.origin, [], ledger.measures
    )
    for name in TABLES:
        for table in TABLES[name](finished, "paper", None) if name not in WITHOUT_RECORDS else []:
            # A number of ours, beside the counts
            if {table.header[column] for _, column in table.runs} - {"params"}:
                parts.append(_table(table))
    for name in figures.FIGURES:
        for figure in figures.FIGURES[name](finished):
            if any(row[-1].text for row in figure.rows):
                path = f"results/{folder.name}_{figure.name}.svg"
                made.pictures[path] = figures.svg(figure)
                notes_ = [f"- {one_line(note)}" for note in figure.notes]
                parts.append("\n".join([f"![{one_line(figure.title)}]({path})", "", *notes_]).strip())
    parts += [_table(table) for table in [*statistics_tables(finished), costs(finished)] if table.rows]
    parts += [_trials(finished)]
    return "\n\n".join(part for part in parts if part)


def _table(table: Table) -> str:
    table = table.flat()
    body = table.render("md").removeprefix(table.title).strip()
    lines = body.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"**{table.title}**", "", *lines[:end], "", *notes]).strip()


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
