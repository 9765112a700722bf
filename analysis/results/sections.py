"""The pages as Markdown: results.md with what ran, the findings and the benchmarks, and for each study a page
with its tables, figures and runs."""

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from analysis import figures
from analysis.cells import Cell, label_of, run_seconds
from analysis.inference import FIRM_PAIRS
from analysis.own import with_variants
from analysis.ranks import ranks
from analysis.results.claim import WORDS, Claim
from analysis.results.findings import MARGIN, left_out
from analysis.results.of_figures import FITTED
from analysis.series import series
from analysis.statistics import costs, statistics_tables
from analysis.table import Table, grid
from analysis.tables import TABLES, WITHOUT_RECORDS
from runs.record import FINISHED, Ledger, Record, is_trial
from runs.record.text import one_line, plural


def merged(studies: Iterable[Ledger]) -> Ledger:
    """The records and measures of all studies."""
    whole = Ledger()
    for ledger in studies:
        whole.records |= ledger.records
        whole.measures |= ledger.measures
    return whole


def pages(studies: Mapping[Path, Ledger], comparisons: list[Claim], docs: Path) -> dict[str, str]:
    """The pages of these studies (their folders, with their records), and the pictures that they show, by
    their paths in docs/. comparisons: over all of them. Benchmarks come from docs/bench."""
    tries = _left_out(left_out(studies, comparisons), comparisons)
    files = {"results.md": overview(comparisons, _what_ran(studies), _speed(docs / "bench"), tries)}
    for folder, ledger in studies.items():
        files |= study(folder, ledger)
    return files


def _grid(header: Sequence[str], rows: Iterable[Sequence[object]], numbers: Collection[str] = ()) -> str:
    """A Markdown table. numbers: the columns that stand to the right."""
    rule = ["---:" if name in numbers else "---" for name in header]
    lines = ([_in_cell(cell) for cell in cells] for cells in (header, rule, *rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _in_cell(text: object) -> str:
    """A text of a Markdown table, in which a label's sign begins neither a column nor HTML."""
    return str(text).replace("|", "\\|").replace("<", "&lt;")


# --- results.md


def _what_ran(ledgers: Mapping[Path, Ledger]) -> str:
    rows = []
    for folder, ledger in ledgers.items():
        finished = [record for record in ledger if record["status"] in FINISHED]
        trials = sum(is_trial(record["config"]) for record in finished)
        diverged = sum(record["status"] == "diverged" for record in finished)
        seconds = sum(map(run_seconds, finished))
        name, devices = folder.name, "; ".join(sorted({_device(record) for record in finished}))
        runs = len(finished) - trials
        rows.append(
            (f"[{name}](results/{name}.md)", runs, trials, diverged, f"{seconds / 3600:.1f}", devices)
        )
    header = ("study", "runs", "trials", "diverged", "hours", "device")
    text = _grid(header, rows, header[1:5])
    ids = [record["id"] for ledger in ledgers.values() for record in ledger]
    if again := len(ids) - len(set(ids)):
        text += f"\n\nRuns of several studies are counted in each: {again} of these counts are repetitions."
    return text


def _device(record: Record) -> str:
    threads = record["determinism"].get("threads")
    cpu = f", {plural(threads, 'thread')}" if record["device"]["type"] == "cpu" and threads else ""
    return f"{record['device']['name']}{cpu}"


def overview(comparisons: list[Claim], what_ran: str = "", speed: str = "", tries: str = "") -> str:
    """The page of all studies: results.md beside this file with its gaps filled."""
    gaps = {
        "what_ran": what_ran,
        "tally": tally(comparisons)
        if comparisons
        else "No published run can be compared with a finding of the paper yet.",
        "margin": f"{MARGIN:g}",
        "fitted": f"{FITTED:g}",
        "firm_pairs": f"{FIRM_PAIRS}",
        "findings": _one_by_one(comparisons) if comparisons else "",
        "left_out": tries,
        "speed": speed,
    }
    frame = (Path(__file__).parent / "results.md").read_text()
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: gaps[match[1]], frame)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _one_by_one(comparisons: list[Claim]) -> str:
    """Each finding on every model and task, and the runs behind them."""
    parts = []
    behind = list(dict.fromkeys(runs for claim in comparisons for runs in claim.runs))
    for number, group in enumerate(by_finding(comparisons).values(), 1):
        sources = dict.fromkeys(claim.source for claim in group)
        parts += [f"### Finding {number}", f"In the paper: {'; '.join(sources)}."]
        rows = []
        for claim in group:
            runs = ", ".join(f"R{behind.index(one) + 1}" for one in claim.runs) or "-"
            rows.append((claim.where, claim.here, claim.trained, claim.word, crossfit_word(claim), runs))
        parts.append(_grid(("tried on", "here", "epochs", "verdict", "cross-fitted", "runs"), rows))
    header = ("", "row", "tried on", "runs", "median", "mean", "ids, by seed")
    lines = [
        (f"R{n}", one.row, one.where, len(one.ids), one.median, one.mean, " ".join(map(_code, one.ids)))
        for n, one in enumerate(behind, 1)
    ]
    return "\n\n".join([*parts, BEHIND, _grid(header, lines, header[3:6])])


BEHIND = """### Runs behind the findings

Two rows are compared over the seeds that both have, so one row can have several numbers: of all its seeds or
of some, as a median or, for tables 6 and 7, as a mean. For figure 6 the ids are measures."""


def _code(name: str) -> str:
    return f"`{name}`"


def by_finding(comparisons: list[Claim]) -> dict[str, list[Claim]]:
    """The claims of each finding, which the paper may have in several tables."""
    groups: dict[str, list[Claim]] = defaultdict(list)
    for claim in comparisons:
        groups[claim.claim].append(claim)
    return groups


def tally(comparisons: list[Claim]) -> str:
    """A line for each finding, over all that it was tried on."""
    header = ("", "the paper's finding", "tried on", *WORDS.values())
    header += (f"with at least {FIRM_PAIRS} pairs or runs", "holds in pairs, runs or counts")
    rows = []
    for number, (name, group) in enumerate(by_finding(comparisons).items(), 1):
        words = [sum(claim.verdict is word for claim in group) for word in WORDS]
        holds = [answer for claim in group for answer in claim.holds]
        firm = sum(claim.firm for claim in group)
        of = f"{sum(holds)} of {len(holds)}"
        rows.append((f"[{number}](#finding-{number})", name, len(group), *words, firm, of))
    return _grid(header, rows, {*header} - {header[1]})


def _left_out(tries: Sequence[tuple[str, Claim]], comparisons: list[Claim]) -> str:
    """The tries that no finding counts, beside the finding that they are of."""
    numbers = {name: f"[{n}](#finding-{n})" for n, name in enumerate(by_finding(comparisons), 1)}
    rows = [
        (
            numbers.get(claim.claim, claim.claim),
            f"[{study}](results/{study}.md)",
            claim.where,
            claim.here,
            claim.word,
        )
        for study, claim in tries
    ]
    return f"{LEFT_OUT}\n\n{_grid(('', 'study', 'tried on', 'here', 'verdict'), rows)}" if rows else ""


LEFT_OUT = """### Tries that no finding counts

A finding counts one setting of a row for each model and task, the one nearest to its recipe, and tasks that
the paper has. These are the others, by study and number of epochs; those on one task share data and seeds."""


def crossfit_word(claim: Claim) -> str:
    """The verdict by cross-fitting, with its numbers where it is another one; "-" where there is none."""
    if claim.crossfit is None:
        return "-"
    same = claim.crossfit.agrees == claim.agrees
    return claim.crossfit.word if same else f"{claim.crossfit.word}: {claim.crossfit.here}"


def _speed(folder: Path) -> str:
    """The tables of make bench, as it wrote them beside its JSON: docs/bench/ANY
    NAME/{training,serving,decoding}."""
    parts = []
    for path in sorted(folder.glob("*/*.json")):
        bench = json.loads(path.read_text())
        threads = plural(bench["threads"], "thread")
        parts.append(f"**{path.stem}, {bench['date']}, {bench['machine']['name']}, {threads}**")
        parts.append(path.with_suffix(".md").read_text().strip())
    return "\n\n".join(["## Speed", BENCH, *parts]) if parts else ""


BENCH = """`make bench`, `make bench-serving`, `make bench-decoding` and `make bench-contention` measure
these: ratios of interleaved medians; contention is timed once. The numbers behind them, with versions and
commit, are in `docs/bench`."""


# --- the page of a study


def study(folder: Path, ledger: Ledger) -> dict[str, str]:
    """The page of a study and its pictures, by their paths in docs/."""
    notes = folder / "NOTES.md"
    parts = [f"# {folder.name}", HEAD, notes.read_text().strip() if notes.is_file() else ""]
    pictures = dict[str, str]()
    records = {r["id"]: r for r in ledger if r["status"] in FINISHED}
    finished = Ledger(records, ledger.origin, [], ledger.measures)
    # A study may compare settings of one row, such as epochs. A figure, where they would stand on top of each
    # other, has one of them.
    every = with_variants(finished, paper=True)
    shown = set[str]()  # a note stands once on a page
    for name in (name for name in TABLES if name not in WITHOUT_RECORDS):
        for table in TABLES[name](every, "paper", None):
            # A number of ours, beside the counts
            if {table.header[column] for _, column in table.runs} - {"params"}:
                parts.append(_table(table, shown))
    for name in figures.FIGURES:
        for figure in figures.FIGURES[name](finished):
            if any(row[-1].text for row in figure.rows):
                path = f"{folder.name}_{figure.name}.svg"
                lines = [] if pictures else ["## Figures", ""]
                lines += [f"![{one_line(figure.title)}]({path})", "", *_new(figure.notes, shown)]
                pictures[f"results/{path}"] = figures.svg(figure)
                parts.append("\n".join(lines).strip())
    cells = [table for table in statistics_tables(every) if table.title.endswith(": cells")]
    parts += [_table(table, shown) for table in cells if table.rows]
    # The notes of ranks are each table's own, also where two say the same
    parts += [_table(table, set()) for table in ranks(every)]
    parts.append(_table(costs(every), shown) if finished.records else "")
    parts += [_trials(every), _runs(every)]
    return {f"results/{folder.name}.md": "\n\n".join(part for part in parts if part) + "\n"} | pictures


HEAD = """<!-- written by make results from runs/records: edit the study's NOTES.md instead -->

[Results of all studies](../results.md)"""


def _new(notes: Sequence[str], shown: set[str]) -> list[str]:
    """The notes that the page does not have yet, as a list; those that say the same of several rows in one
    line. Adds them to `shown`."""
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


def _table(table: Table, shown: set[str]) -> str:
    table = table.flat()
    rows = "\n".join(grid(table)).replace("<", "&lt;")
    behind = []
    if table.header[0] == "setting":  # rows that the table of runs has by another name
        ids = {row[0].text: dict.fromkeys(name for cell in row for name in cell.ids) for row in table.rows}
        behind = [f"- {row}: {' '.join(map(_code, of))}" for row, of in ids.items() if of]
    return "\n".join([f"## {table.title}", "", rows, "", *behind, *_new(table.notes, shown)]).strip()


def _groups(keyed: Iterable[tuple[tuple[str, ...], Record]]) -> list[tuple[tuple[str, ...], list[Record]]]:
    """Records by their keys, in the order of the keys."""
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for key, record in keyed:
        groups[key].append(record)
    return sorted(groups.items())


def _runs(ledger: Ledger) -> str:
    """Every run of a study by method, task and, of a trial, its rates; in the order of seeds."""

    def key(record: Record) -> tuple[str, ...]:
        train, trial = record["config"]["train"], is_trial(record["config"])
        rates = " and ".join(f"{train[key]:g}" for key in ("lr", "lr_head") if train.get(key) is not None)
        method = label_of(record) + (f", trial, rates {rates}" if trial else "")
        return method, record["label"]["model"], record["label"]["task"]

    rows = []
    for group, records in _groups((key(record), record) for record in ledger):
        by_seed = sorted((record["cell"]["seed"], record["id"]) for record in records)
        rows.append((*map(one_line, group), " ".join(f"{seed}: `{name}`" for seed, name in by_seed)))
    return f"## Runs\n\n{_grid(('method', 'model', 'task', 'run ids, by seed'), rows)}" if rows else ""


def _trials(ledger: Ledger) -> str:
    """The trials on held-out training rows: the budget of each method, and the rates from best to worst."""

    def key(record: Record) -> tuple[str, ...]:
        rows = " and ".join(f"{record['data'][part]:,}" for part in ("train_rows", "dev_rows"))
        label, epochs = record["label"], f"{record['config']['train']['epochs']}"
        return label["model"], label["task"], label_of(record), epochs, rows

    trials = [record for record in ledger if record["config"]["task"].get("holdout") is not None]
    rows = []
    for group, records in _groups((key(record), record) for record in trials):
        values: dict[str, list[float]] = defaultdict(list)
        for record in records:
            train, alone = record["config"]["train"], record["config"]["method"]["kind"] == "head"
            names = ("lr_head",) if alone else ("lr", "lr_head")
            rates = ", ".join(f"{train[name]:g}" for name in names if train.get(name) is not None)
            numbers = series(Cell([record], 1))
            values[rates] += numbers.values.values()
        sign = 1 if numbers.less else -1
        medians = {rates: statistics.median(of) if of else math.nan for rates, of in values.items()}
        best = sorted(medians, key=lambda rates: (math.isnan(medians[rates]), sign * medians[rates]))
        texts = [f"({rates}): {medians[rates]:.1f}".replace("nan", "-") for rates in best]
        near = sum(abs(medians[rates] - medians[best[0]]) <= PLATEAU + 1e-9 for rates in best)
        rows.append((*group, f"{near} of {len(best)}", "; ".join(texts)))
    if not rows:
        return ""
    right = ("epochs", "rows trained on and judged on", f"within {PLATEAU:g} points of the best")
    header = ("model", "task", "method", *right, "(rate of the adapter, of the head): value")
    return f"{TRIALS}\n\n{_grid(header, rows, right)}"


#: How far below the best of its trials a rate's value may be, in points, to count as about as good.
PLATEAU = 2.0
TRIALS = """## Tuning

Every trial on held-out training rows, by the epoch that the table reports: medians over seeds, best first."""
