"""Writes docs/results.md: what this project's own studies found, from the records published in runs/records.

    python -m analysis.results [--docs docs] [--check]       (make results)

A study is a folder of published records. NOTES.md in it, written by hand, says how it was run and what is to be known of it;
every number and picture comes from the records. --check writes nothing and says whether the page is that of the records.
"""

import argparse
import dataclasses
import json
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import figures, verdicts
from analysis.cells import Cell, Key, label_of, over_shared_seeds
from analysis.command import entry_point
from analysis.figures import figure3, figure5, figure6
from analysis.inference import FIRM_PAIRS, is_above, is_near, paired_interval
from analysis.series import Comparison, compare, series
from analysis.tables import GLUE, ORDER, SCORES, TABLES, WITHOUT_RECORDS, Table, over_seeds, recipes, shown
from analysis.verdicts import all_cells
from runs.record import FINISHED, Ledger, Record, is_trial, read_study, reported, study_folders, write_atomically
from runs.record.text import megabytes, one_line, plural

README = Path(__file__).parent.parent / "README.md"
#: The studies whose tables the README shows.
FRONT = ("glue_minilm", "e2e_smollm2", "images_dinov2", "alpaca_smollm2")
#: What stands between these lines of the README is written here.
BEGIN, END = "<!-- results of {}: written by make results -->", "<!-- results of {}: end -->"
#: A mean squared error below which a fit of N(0, 1) is whole.
FITTED = 1e-3


# --- the paper's findings, held to our records


#: Whether a finding agrees, in a word.
WORDS = {True: "agrees", False: "does not agree", None: "undecided"}


@dataclass(frozen=True)
class Claim:
    """What the paper finds, where it was tried here, the numbers in words, and whether they agree (None: undecided).

    holds: what each run says by itself, or each pair of runs of one seed. trained: for how many epochs, beside the paper's,
    and which rows were still rising at the last. firm: of enough pairs or runs for a bold word.
    """

    claim: str
    where: str
    here: str
    holds: tuple[bool, ...]
    agrees: bool | None
    firm: bool
    trained: str = "-"
    crossfit: "Claim | None" = None  # the same, with each run's epoch chosen by cross-fitting

    @property
    def word(self) -> str:
        word = WORDS[self.agrees]
        return f"**{word}**" if self.firm and self.agrees is not None else word


def claims(ledger: Ledger) -> list[Claim]:
    """Every claim of the paper that the records can say something of."""
    found = all_cells(r for r in ledger if _protocol(r) in ("glue", "images"))
    texts = all_cells(r for r in ledger if _protocol(r) == "e2e" and (r.get("texts") or r["status"] == "diverged"))
    # Of table 2's protocol alone: the others choose no epoch.
    fitted = all_cells((r for r in ledger if _protocol(r) == "glue"), "crossfit")
    again = {(claim.claim, claim.where): claim for claim in _of_rows(fitted, {})}
    made = [dataclasses.replace(claim, crossfit=again.get((claim.claim, claim.where))) for claim in _of_rows(found, texts)]
    return [*made, *_moved(ledger), *_alike(ledger), *_fit(ledger)]


def _of_rows(found: dict[Key, Cell], texts: dict[Key, Cell]) -> list[Claim]:
    """What compares rows, seed by seed; texts: cells that are told by their BLEU."""
    return [*_near(found | texts), *_ablations(found), *_ranks(found)]


def _protocol(record: Record) -> str:
    """Whose table a record's task is held to: glue (table 2), e2e (table 3), images (table 5), or another family."""
    return "glue" if record["cell"]["task"] in GLUE else str(record["config"]["task"].get("family"))


def _sides(found: dict[Key, Cell], *rows: str) -> Iterator[list[Cell]]:
    """The cells of these rows, for each model and task that has all of them, each with its number, and of the seeds that all
    have: medians of other seeds could say the opposite of the pairs."""
    for model, task in sorted({(key[0], key[2]) for key in found}):
        mine = [found[model, row, task] for row in rows if (model, row, task) in found]
        if len(mine) == len(rows) and not any(cell.unknown for cell in mine):
            sides = over_shared_seeds(mine)
            if sides[0].records and len({series(cell).name for cell in sides}) == 1:  # not a BLEU and a perplexity
                yield sides


def _place(sides: Sequence[Cell]) -> str:
    """A model and task by their labels, with the epochs and the seeds of the rows."""
    label = sides[0].records[0]["label"]
    told = [f"{label['model']}, {label['task']}"]
    for word, counts in (
        ("epoch", {record["config"]["train"]["epochs"] for cell in sides for record in cell.records}),
        ("seed", {cell.seeds for cell in sides}),
    ):
        told.append(f"{' to '.join(map(str, sorted(counts)))} {word}{'s' * (counts != {1})}")
    return ", ".join(told)


def _paired(a: Cell, b: Cell) -> Comparison:
    """Runs of one seed of the two, compared; they are of the same seeds (_sides)."""
    model, task = (a.records[0]["cell"][key] for key in ("model", "task"))
    (line,) = compare({(model, "a", task): a, (model, "b", task): b}, "a")
    return line


def _words(line: Comparison, near: bool = False) -> str:
    """The pairs in words: their mean difference, and what its word rests on (one-sided bounds, or an interval)."""
    bounds = paired_interval(line.differences, 0.9 if near else 0.95)
    of = "one-sided 95% bounds {:+.1f} and {:+.1f}" if near else "95% interval {:+.1f} to {:+.1f}"
    span = f", {of.format(*bounds)}" if bounds else ""
    return f" ({plural(line.pairs, 'pair')} by seed: mean {statistics.fmean(line.differences):+.1f}{span})"


def _trained(rows: Sequence[Cell]) -> str:
    """The epochs of some rows, the paper's for that task, and the rows whose best epoch is the last in most seeds."""
    records = [record for cell in rows for record in cell.records]
    epochs = sorted({record["config"]["train"]["epochs"] for record in records})
    words = [f"{' to '.join(map(str, epochs))}{_paper_epochs(records[0])}"]
    rising = []
    for cell in rows:
        several = [record for record in cell.records if len(record["curve"].get("epoch") or []) > 1]
        last = sum(reported(record, "paper").get("best_epoch") == record["curve"]["epoch"][-1] for record in several)
        if 2 * last > len(several):
            rising.append(f"{cell.label} ({last} of {len(several)})")
    return "; ".join([*words, *([f"still rising: {', '.join(rising)}"] if rising else [])])


def _paper_epochs(record: Record) -> str:
    """How long the paper trains VeRA on a task."""
    protocol, task = _protocol(record), record["cell"]["task"]
    if protocol == "glue":
        of = [recipes()["glue"]["vera"][model]["epochs"][ORDER.index(task)] for model in ("roberta-base", "roberta-large")]
        return f" (paper: {of[0]} BASE, {of[1]} LARGE)"
    return f" (paper: {recipes()[protocol]['common']['epochs']})" if protocol in ("e2e", "images") else ""


#: Rows that the paper finds VeRA near to, by protocol, and its numbers: VeRA's first.
NEAR = {
    ("glue", "lora"): "LoRA with fewer parameters (table 2, averages: LARGE 87.8 and 87.8, BASE 85.2 and 86.6)",
    ("glue", "adapter_p"): "Adapter P with fewer parameters (table 2, LARGE, averages: 87.8, and 87.6 or 86.8)",
    ("glue", "full"): "full fine-tuning with fewer parameters (table 2, BASE, averages: 85.2 and 85.2)",
    ("e2e", "lora"): "LoRA with fewer parameters (table 3, BLEU: MEDIUM 70.1 and 68.9, LARGE 70.3 and 70.1)",
    ("images", "lora"): "LoRA with fewer parameters (table 5, means of its data sets: BASE 87.5 and 88.1, LARGE 86.1 and 86.0)",
    ("images", "full"): (
        "full fine-tuning with fewer parameters (table 5, means of its data sets: BASE 87.5 and 88.8, LARGE 86.1 and 85.8)"
    ),
}
#: What is near: so many points below, at most.
MARGIN = 1.0


def _near(found: dict[Key, Cell]) -> Iterator[Claim]:
    for (protocol, row), claim in NEAR.items():
        for vera, other in _sides(found, "vera", row):
            if _protocol(vera.records[0]) != protocol:
                continue
            line = _paired(vera, other)
            middles = [f"{cell.label} {statistics.median(series(cell).values.values()):.1f}" for cell in (vera, other)]
            head = vera.records[0]["parameters"]["head"]
            share = f"{vera.parameters / other.parameters:.2g} of the parameters"
            if head:
                share += f", {(vera.parameters + head) / (other.parameters + head):.2g} with the head"
            here, agrees = f"{', '.join(middles)}{_words(line, near=True)}; {share}", is_near(line.differences, MARGIN)
            holds = tuple(difference >= -MARGIN - 1e-9 for difference in line.differences)
            if (larger := _by_chance([vera, other])) is not None:
                here, holds, agrees = f"{here}; both may be chance: the larger class is {larger}", (), None
            near = f"VeRA is near {claim}"
            yield Claim(near, _place([vera, other]), here, holds, agrees, _firm(line.pairs), _trained([vera, other]))


def _firm(pairs: int) -> bool:
    return pairs >= FIRM_PAIRS


#: The larger class of GLUE's dev sets: what saying one thing of every row gives, in percent.
LARGER_CLASS = {"sst2": 50.9, "mrpc": 68.4, "qnli": 50.5, "rte": 52.7}


def _by_chance(rows: Sequence[Cell]) -> float | None:
    """The larger class, where the median of none of the rows is two standard errors of the dev set above it: they have learned
    nothing that could be compared. None elsewhere."""
    record = rows[0].records[0]
    share = LARGER_CLASS.get(record["cell"]["task"])
    if share is None:
        return None
    most = share + 2 * math.sqrt(share * (100 - share) / record["data"]["dev_rows"])
    return share if all(statistics.median(series(row).values.values()) <= most for row in rows) else None


#: A claim, its better row and its worse rows, with the names that the numbers get.
ABLATIONS: tuple[tuple[str, tuple[str, str], dict[str, str]], ...] = (
    ("d alone is better than b alone (table 6)", ("vera_only_d", "only d"), {"vera_only_b": "only b"}),
    ("both vectors are better than one (table 6)", ("vera", "both"), {"vera_only_d": "only d", "vera_only_b": "only b"}),
    ("A and B by Kaiming's uniform draw beat one on [0, 0.1] (table 6)", ("vera", "Kaiming"), {"vera_uniform": "[0, 0.1]"}),
    ("d that starts at 0.1 beats d that starts at 1 (table 6)", ("vera", "0.1"), {"vera_d_init_1": "1"}),
    ("d that starts at 1e-7 beats d that starts at 1 (table 6)", ("vera_d_init_1e-7", "1e-7"), {"vera_d_init_1": "1"}),
)


def _ablations(found: dict[Key, Cell]) -> Iterator[Claim]:
    """By means, as tables 6 and 7 print them."""
    for claim, (better, name), worse in ABLATIONS:
        for first, *others in _sides(found, better, *worse):
            lines = [_paired(first, other) for other in others]
            told = [f"{n} {c.mean():.1f}{_words(line)}" for n, c, line in zip(worse.values(), others, lines, strict=True)]
            holds = tuple(min(apart) > 0 for apart in zip(*(line.differences for line in lines), strict=True))
            agrees = _all([is_above(line.differences) for line in lines])
            here, rows = f"{name} {first.mean():.1f}; {', '.join(told)}", [first, *others]
            yield Claim(claim, _place(rows), here, holds, agrees, _firm(lines[0].pairs), _trained(rows))
    for shared, unique in _sides(found, "vera", "vera_unique"):
        line = _paired(shared, unique)
        here = f"shared {shared.mean():.1f}; unique {unique.mean():.1f}{_words(line, near=True)}"
        claim, rows = "A and B may be shared: with them VeRA is near a pair for each matrix (table 7)", [shared, unique]
        holds = tuple(difference >= -MARGIN - 1e-9 for difference in line.differences)
        yield Claim(claim, _place(rows), here, holds, is_near(line.differences, MARGIN), _firm(line.pairs), _trained(rows))


def _all(words: Sequence[bool | None]) -> bool | None:
    """Of a finding in several parts: it agrees where all do, and does not where one does not."""
    return False if False in words else None if None in words else True


#: LoRA's rows by how alpha follows the rank; the recipe's own rank is of both.
CONVENTIONS = {"a constant alpha": r"lora(_r\d+)?", "alpha proportional to the rank": r"lora(_r\d+_proportional)?"}


def _ranks(found: dict[Key, Cell]) -> Iterator[Claim]:
    """VeRA of the highest rank that has run, and LoRA of the rank whose count is nearest, if within a factor of two: the counts
    are never equal. Once for each convention of LoRA's alpha; the finding agrees only where both do."""
    for model, task in sorted({(key[0], key[2]) for key in found}):
        ranked = {row: c for (m, row, t), c in found.items() if (m, t) == (model, task) and not c.unknown}
        vera = [cell for row, cell in ranked.items() if re.fullmatch(r"vera(_r\d+)?", row)]
        if len(vera) < 2:  # no ranks to choose from
            continue
        high = max(vera, key=lambda cell: cell.parameters)
        sides, told, agrees = list[list[Cell]](), list[str](), list[bool | None]()
        holds: list[tuple[bool, ...]] = []
        for convention, rows in CONVENTIONS.items():
            near = _nearest(high, [cell for row, cell in ranked.items() if re.fullmatch(rows, row)])
            if near is None:
                told.append(f"with {convention}: not run")
                agrees.append(None)
                continue
            line = _paired(*near)
            words = "; ".join(f"{cell.label} {cell.median():.1f} ({cell.parameters:,} parameters)" for cell in near)
            agrees.append(is_above(line.differences))
            told.append(f"with {convention}: {words}{_words(line)}: {WORDS[agrees[-1]]}")
            holds.append(tuple(difference > 0 for difference in line.differences))
            sides.append(near)
        if not sides:
            continue
        claim = "of like counts of parameters, VeRA of a high rank is above LoRA (figure 2)"
        rows_ = list({cell.label: cell for near in sides for cell in near}.values())
        agree = agrees[0] if len(set(agrees)) == 1 else None
        firm = _firm(min(len(one) for one in holds))
        yield Claim(claim, _place(rows_), "; ".join(told), sum(holds, ()), agree, firm, _trained(rows_))


def _nearest(high: Cell, lora: list[Cell]) -> list[Cell] | None:
    """A cell of VeRA and the one of LoRA's whose count is nearest, over the seeds of both; None where there is none near."""
    if len(lora) < 2:
        return None
    near = min(lora, key=lambda cell: abs(math.log(cell.parameters / high.parameters)))
    if not 0.5 <= near.parameters / high.parameters <= 2:
        return None
    both = over_shared_seeds([high, near])
    return both if both[0].records else None


def _lines(figure: figures.Figure) -> list[dict[str, str]]:
    return [dict(zip(figure.header, row, strict=True)) for row in figure.rows]


def _of(figure: figures.Figure) -> str:
    """The model and task of a figure, by its title."""
    return figure.title.rpartition(", ")[2].replace(" on ", ", ")


def _moved(ledger: Ledger) -> Iterator[Claim]:
    """Of each run by itself: what figure 3 shows is the median of them."""
    for figure in figure3.make(ledger):
        runs = sorted({name for line in _lines(figure) for name in line["runs"].split()})
        measures = [m["values"] for m in ledger.measures.values() if m["kind"] == "magnitude" and m["of"][0]["id"] in runs]
        moved = [[p for p in zip(m["layer"], m["site"], m["d"], strict=True) if p[2] is not None] for m in measures]
        place = f"{_of(figure)}, {plural(len(runs), 'run')}"
        if not moved or not all({"query", "value"} <= {site for _, site, _ in run} for run in moved):
            continue
        sites = [[statistics.fmean(d for _, s, d in run if s == site) for site in ("query", "value")] for run in moved]
        layers = sorted({layer for run in moved for layer, *_ in run})
        middle = layers[len(layers) // 2]
        halves = [[statistics.fmean(d for n, _, d in run if (n >= middle) is late) for late in (False, True)] for run in moved]
        query, value = (statistics.median(pair[i] for pair in sites) for i in (0, 1))
        words = f"mean over layers, median of the runs: query {query:.3g}, value {value:.3g}"
        early, late = (statistics.median(pair[i] for pair in halves) for i in (0, 1))
        trained = _trained_runs(ledger, runs)
        for claim, told, apart in (
            ("d changes more in query than in value (figure 3)", words, [q - v for q, v in sites]),
            (
                "d changes more in later layers (figure 3)",
                f"mean of the first half of the layers, median of the runs: {early:.3g}, of the second {late:.3g}",
                [b - a for a, b in halves],
            ),
        ):
            yield Claim(claim, place, told, tuple(d > 0 for d in apart), is_above(apart), _firm(len(apart)), trained)


def _trained_runs(ledger: Ledger, runs: Sequence[str]) -> str:
    """As `_trained`, of the runs that a figure measures, where their records are there."""
    records = [ledger.records[run] for run in runs if run in ledger.records]
    by_row: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_row[record["cell"]["row"]].append(record)
    return _trained([Cell(of_row, len(of_row)) for of_row in by_row.values()]) if records else "-"


def _alike(ledger: Ledger) -> Iterator[Claim]:
    """Of each pair of runs by itself, over the query matrices; with the band in which random matrices lie."""
    for figure in figure5.make(ledger):
        runs = {name for line in _lines(figure) for name in line["runs"].split()}
        measures = [m for m in ledger.measures.values() if m["kind"] == "similarity" and {o["id"] for o in m["of"]} <= runs]
        means = [[_query_mean(m["values"], pair) for pair in ("lora_vera", "lora_random")] for m in measures]
        found = [(together, random) for together, random in means if together is not None and random is not None]
        if not found:
            continue
        together, random = (statistics.median(pair[i] for pair in found) for i in (0, 1))
        told = f"LoRA and VeRA {together:.1e}, LoRA and random {random:.1e}"
        words = f"mean cosine over layers of query matrices, median of the pairs: {told}"
        if (band := _null_band(measures)) is not None:
            words += f"; 95% of such means with a random matrix lie within +-{band:.1e}"
        claim = "LoRA's and VeRA's changes resemble each other more than random ones (figure 5)"
        apart = [together - random for together, random in found]
        holds = tuple(difference > 0 for difference in apart)
        place = f"{_of(figure)}, {plural(len(found), 'pair')} of runs"
        yield Claim(claim, place, words, holds, is_above(apart), _firm(len(found)), _trained_runs(ledger, sorted(runs)))


def _null_band(measures: Sequence[Record]) -> float | None:
    """Half the width of the band in which 95% of the means over layers lie where one side is a random matrix: 1.96 standard
    errors, from the spread of every such cosine that was measured."""
    random = [_queries(m["values"], pair) for m in measures for pair in ("lora_random", "vera_random")]
    values = [value for of_pair in random for value in of_pair]
    if len(values) < 2:
        return None
    return 1.96 * math.sqrt(statistics.fmean(value**2 for value in values) / max(map(len, random)))


def _queries(values: dict[str, list[Any]], pair: str) -> list[float]:
    return [value for value, site in zip(values[pair], values["site"], strict=True) if site == "query" and value is not None]


def _query_mean(values: dict[str, list[Any]], pair: str) -> float | None:
    """The mean over layers; None where there is no query matrix, or a change is zero."""
    found = _queries(values, pair)
    return statistics.fmean(found) if found else None


def _fit(ledger: Ledger) -> Iterator[Claim]:
    (figure,) = figure6.make(ledger)
    errors = {(line["method"], int(line["parameters"])): float(line["mse mean"]) for line in _lines(figure)}
    counts = [count for method, count in errors if method == "LoRA" and ("VeRA", count) in errors]
    if counts:
        pairs = [(count, errors["VeRA", count], errors["LoRA", count]) for count in sorted(counts)]
        equal = tuple(abs(vera - lora) <= max(0.1 * lora, FITTED) for _, vera, lora in pairs)
        lower = sum(vera < lora for (_, vera, lora), same in zip(pairs, equal, strict=True) if not same)
        told = ", ".join(f"{count}: {vera:.3f} and {lora:.3f}" for count, vera, lora in pairs)
        words = f"of {len(pairs)} counts equal at {sum(equal)}, VeRA's error lower at {lower} (VeRA and LoRA at {told})"
        claim = "VeRA and LoRA fit random matrices equally well at equal counts (figure 6)"
        yield Claim(claim, "10 x 10 matrices", words, equal, all(equal), True)  # one count that differs refutes it


# --- the page


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
    parts = [INTRODUCTION, _what_ran(ledgers), _agreement(claims(whole))]
    parts += [_study(folder, ledger, made) for folder, ledger in ledgers.items()]
    parts += [_speed(docs / "bench")]
    made.text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    return made


INTRODUCTION = """# Results

<!-- written by make results from runs/records: edit the NOTES.md of a study, not this page -->

What this project's own studies found, on real benchmark data. Where a model is not one of the paper's, no number here
reproduces or refutes one of the paper's; what can be compared are its findings. Every number of a table comes from the
records in `runs/records`; `make report` shows the same records with curves, configuration, provenance and run ids. A study's
notes name earlier runs that have no record here. Data sets are no part of this repository."""


def _what_ran(ledgers: Mapping[Path, Ledger]) -> str:
    lines = ["| study | runs | diverged | hours | device |", "|---|---:|---:|---:|---|"]
    for folder, ledger in ledgers.items():
        runs = [r for r in ledger if not is_trial(r["config"])]
        trials = len(ledger.records) - len(runs)
        count = f"{len(runs)}" + (f" and {trials} trials" if trials else "")
        diverged = sum(r["status"] == "diverged" for r in ledger)
        seconds = sum(float(r["cost"].get(f"{part}_seconds") or 0) for r in ledger for part in ("train", "evaluate", "decode"))
        devices = sorted({_device(r) for r in ledger})
        lines.append(
            f"| [{folder.name}](#{folder.name}) | {count} | {diverged} | {seconds / 3600:.1f} | {'; '.join(devices)} |"
        )
    ids = [record["id"] for ledger in ledgers.values() for record in ledger]
    twice = len(ids) - len(set(ids))
    lines += ["", f"{twice} of these are runs that belong to another of the studies, too, counted again."] if twice else []
    return "\n".join(["## What ran", "", *lines])


def _device(record: Record) -> str:
    threads = record["determinism"].get("threads")
    cpu = f", {plural(threads, 'thread')}" if record["device"]["type"] == "cpu" and threads else ""
    return f"{record['device']['name']}{cpu}"


CAUTION = f"""Medians of the best epoch for table 2 and of the last for tables 3 and 5, means for tables 6 and 7, as the
paper has them. Rows are compared over the seeds that all of them have, by pairs of runs of one seed, with
Student's t on the differences. X is near Y: agrees if the one-sided 95% bound of the mean difference X - Y is
above -{MARGIN:g} point, does not agree if the other bound is below it. X is above Y: agrees if the 95% interval
is above 0, does not agree if it is below. Otherwise, or where neither of two rows is two standard errors above the
larger class: undecided. Five seeds rarely decide: with differences that vary by 3 points from seed to seed, a true
difference of -3 is called "does not agree" in 20% of cases with 3 pairs, 34% with 5, 62% with 10 and 89% with 20.
Bold words are of at least {FIRM_PAIRS} pairs or runs. Most runs are a few epochs long: a row that is still rising
(its best epoch is the last one in most seeds) would end elsewhere if it trained as long as the paper's. The last
column is the same finding with each run's epoch chosen by cross-fitting: on one half of dev, reported on the other,
both ways. Two margins are this project's own: {MARGIN:g} point, and errors of figure 6 are equal within a tenth of
LoRA's, or {FITTED:g}. That finding is of every count, so one that differs refutes it.

The lines of the first table pool tasks with different metrics (Matthews, Pearson, accuracy, BLEU), and are not
independent: findings on one task share VeRA's runs, the seeds and the dev set."""


def _agreement(found: list[Claim]) -> str:
    lines = ["## What agrees with the paper, and what does not", ""]
    if not found:
        return "\n".join([*lines, "Nothing has been published yet that a finding of the paper could be held to."])
    lines += [*_tally(found), "", "One by one:", ""]
    lines += ["| the paper's finding | tried on | here | epochs | | cross-fitted |", "|---|---|---|---|---|---|"]
    lines += [f"| {f.claim} | {f.where} | {f.here} | {f.trained} | {f.word} | {_again(f)} |" for f in found]
    lines += ["", CAUTION]
    return "\n".join(lines)


def _tally(found: list[Claim]) -> list[str]:
    """A line for each finding, over all that it was tried on."""
    groups: dict[str, list[Claim]] = defaultdict(list)
    for claim in found:
        groups[claim.claim.partition(" (")[0]].append(claim)
    lines = [
        f"| the paper's finding | tried on | agrees | does not agree | undecided | of at least {FIRM_PAIRS} pairs or runs |"
        " single pairs, runs or counts that say so |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, mine in groups.items():
        words = [sum(claim.agrees is word for claim in mine) for word in (True, False, None)]
        holds = [answer for claim in mine for answer in claim.holds]
        firm = sum(claim.firm for claim in mine)
        lines.append(f"| {name} | {len(mine)} | {' | '.join(map(str, words))} | {firm} | {sum(holds)} of {len(holds)} |")
    return lines


def _again(claim: Claim) -> str:
    """What cross-fitting says of a finding: the same word, or another one with its numbers."""
    if claim.crossfit is None:
        return "-"
    same = claim.crossfit.agrees == claim.agrees
    return claim.crossfit.word if same else f"{claim.crossfit.word}: {claim.crossfit.here}"


def _study(folder: Path, ledger: Ledger, made: Page) -> str:
    notes = folder / "NOTES.md"
    parts = [f"## {folder.name}", notes.read_text().strip() if notes.is_file() else ""]
    finished = Ledger({r["id"]: r for r in ledger if r["status"] in FINISHED}, ledger.origin, [], ledger.measures)
    for name in TABLES:
        for table in TABLES[name](finished, "paper", None) if name not in WITHOUT_RECORDS else []:
            if {table.header[column] for _, column in table.runs} - {"params"}:  # a number of ours, beside the counts
                parts.append(_table(table))
    for name in figures.FIGURES:
        for figure in figures.FIGURES[name](finished):
            if any(row[-1] for row in figure.rows):
                path = f"results/{folder.name}_{figure.name}.svg"
                made.pictures[path] = figures.svg(figure)
                notes_ = [f"- {one_line(note)}" for note in figure.notes]
                parts.append("\n".join([f"![{one_line(figure.title)}]({path})", "", *notes_]).strip())
    parts += [_table(table) for table in [*verdicts.statistics_tables(finished), verdicts.costs(finished)] if table.rows]
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
            groups[label["model"], label["task"], label_of(record), f"{record['config']['train']['epochs']}", rows].append(
                record
            )
    if not groups:
        return ""
    lines = [
        "**Tuning: every trial on held-out training rows; by the epoch that the table reports, median over seeds, best first**"
    ]
    lines += [
        "",
        "| model | task | method | epochs | rows trained on and judged on | (rate of the adapter, of the head): value |",
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
        best = sorted(by_rate.items(), key=lambda item: sign * statistics.median(item[1]) if item[1] else math.inf)
        values = "; ".join(f"({words}): {statistics.median(of):.1f}" if of else f"({words}): -" for words, of in best)
        lines.append(f"| {' | '.join(key)} | {values} |")
    return "\n".join(lines)


def _speed(folder: Path) -> str:
    """The tables of make bench, as it wrote them beside its JSON: docs/bench/ANY NAME/{training,serving,decoding}."""
    parts = []
    for path in sorted(folder.glob("*/*.json")):
        made = json.loads(path.read_text())
        threads = plural(made["threads"], "thread")
        parts.append(f"**{path.stem}, {made['date']}, {made['machine']['name']}, {threads}**")
        parts.append(path.with_suffix(".md").read_text().strip())
    return "\n\n".join(["## Speed", BENCH, *parts]) if parts else ""


BENCH = """`make bench`, `make bench-serving` and `make bench-decoding`: ratios of interleaved medians within one process. The
numbers behind them, with versions and commit, are in `docs/bench`."""


# --- the README's tables


def headline(ledger: Ledger) -> str:
    """A table of the README: the rows of a study, those that train most first."""
    found = all_cells(ledger)
    labels = {r["cell"]["task"]: r["label"]["task"] for cell in found.values() for r in cell.records}
    tasks = {task: GLUE.get(task, labels[task]) for task in [*GLUE, *sorted(set(labels) - set(GLUE))] if task in labels}
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for (_, row, task), cell in sorted(found.items(), key=lambda item: -item[1].parameters):
        rows[row][task] = cell
    lora = next((cell.parameters for key, cell in found.items() if key[1] == "lora"), None)
    lines = []
    for mine in rows.values():
        first = next(iter(mine.values()))
        ratio = f"{first.parameters / lora:.2f}x" if lora and first.parameters else "-"
        numbers = _numbers(mine, tasks)
        lines.append(f"| {first.label} | {first.parameters:,} | {ratio} | {' | '.join(numbers.values())} |")
    return "\n".join([f"| | trainable | vs LoRA | {' | '.join(numbers)} |", f"| --- |{' ---: |' * (len(numbers) + 2)}", *lines])


def _numbers(mine: dict[str, Cell], tasks: dict[str, str]) -> dict[str, str]:
    """What a row's table shows of it, by column."""
    cell = next(iter(mine.values()))
    protocol = _protocol(cell.records[0])
    if protocol == "e2e":
        return {name: over_seeds(cell, cell.scores(key), decimals) for key, (name, decimals) in SCORES.items()}
    if protocol == "instruct":
        size = cell.cost("adapter_bytes")
        perplexity = over_seeds(cell, list(series(cell).values.values()), 2)
        return {"adapter": megabytes(size) if size else "-", "held-out perplexity": perplexity}
    which = "last" if protocol == "images" else "best"
    return {label: shown(mine[task], which) if task in mine else "missing" for task, label in tasks.items()}


def readme(text: str, study: str, table: str) -> str:
    """The README with a study's table between its two marks. Raises ValueError where a mark is missing."""
    first, last = BEGIN.format(study), END.format(study)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"README.md lacks the lines {first} and {last}")
    return f"{before}{first}\n\n{table}\n\n{last}{after}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", default=str(README.parent / "docs"), help="where results.md and results/ go")
    parser.add_argument("--readme", default=str(README), help="the file whose tables are written, too")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the records say otherwise")
    options = parser.parse_args(arguments)
    docs, front = Path(options.docs), Path(options.readme)
    folders = study_folders()
    if not folders:
        print("error: no published records in runs/records yet (make publish STUDY=name)", file=sys.stderr)
        return 2
    made = page(folders, docs)
    files = {docs / "results.md": made.text}
    shown_ = [folder for folder in folders if folder.name in FRONT]
    try:
        text = front.read_text() if shown_ else ""
        for folder in shown_:
            text = readme(text, folder.name, headline(read_study(folder)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    files |= {front: text} if shown_ else {}
    if options.check:
        stale = [str(path) for path, text in files.items() if not path.is_file() or path.read_text() != text]
        stale += [str(docs / path) for path in made.pictures if not (docs / path).is_file()]  # their bytes are matplotlib's
        print("\n".join(f"{path} is not what the records say: make results" for path in stale) or "as the records say")
        return 1 if stale else 0
    for path, picture in made.pictures.items():
        write_atomically(docs / path, picture)
    for old in set((docs / "results").glob("*.svg")) - {docs / path for path in made.pictures}:
        old.unlink()
    for file, text in files.items():
        write_atomically(file, text)
        print(f"Results: {file}")
    return 0


if __name__ == "__main__":
    entry_point(main)
