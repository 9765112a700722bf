"""The paper's findings, held to our records: what compares rows, and what its figures show."""

import dataclasses
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import figures
from analysis.cells import Cell, Key, over_shared_seeds
from analysis.figures import figure3, figure5, figure6
from analysis.inference import FIRM_PAIRS, is_above, is_near, paired_interval
from analysis.paper import GLUE, recipes
from analysis.series import Comparison, compare, series
from analysis.table import texts
from analysis.verdicts import all_cells
from runs.record import Ledger, Record, reported
from runs.record.text import plural

#: A mean squared error below which a fit of N(0, 1) is whole.
FITTED = 1e-3
#: Whether a finding agrees, in a word.
WORDS = {True: "agrees", False: "does not agree", None: "undecided"}


@dataclass(frozen=True)
class Claim:
    """What the paper finds, where it was tried here, the numbers in words, and whether they agree (None:
    undecided).

    holds: what each run says by itself, or each pair of runs of one seed. trained: for how many epochs,
    beside the paper's, and which rows were still rising at the last. firm: of enough pairs or runs for a bold
    word."""

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
    found = all_cells(r for r in ledger if table_of(r) in ("glue", "images"))
    texts = all_cells(
        r for r in ledger if table_of(r) == "e2e" and (r.get("texts") or r["status"] == "diverged")
    )
    # Of table 2's protocol alone: the others choose no epoch.
    fitted = all_cells((r for r in ledger if table_of(r) == "glue"), "crossfit")
    again = {(claim.claim, claim.where): claim for claim in _of_rows(fitted, {})}
    made = [
        dataclasses.replace(claim, crossfit=again.get((claim.claim, claim.where)))
        for claim in _of_rows(found, texts)
    ]
    return [*made, *_moved(ledger), *_alike(ledger), *_fit(ledger)]


def _of_rows(found: dict[Key, Cell], texts: dict[Key, Cell]) -> list[Claim]:
    """What compares rows, seed by seed; texts: cells that are told by their BLEU."""
    return [*_near(found | texts), *_ablations(found), *_ranks(found)]


def table_of(record: Record) -> str:
    """Whose table a record's task is held to: glue (table 2), e2e (table 3), images (table 5), or another
    family."""
    return "glue" if record["cell"]["task"] in GLUE else str(record["config"]["task"].get("family"))


def _sides(found: dict[Key, Cell], *rows: str) -> Iterator[list[Cell]]:
    """The cells of these rows, for each model and task that has all of them, each with its number, and of the
    seeds that all have: medians of other seeds could say the opposite of the pairs."""
    for model, task in sorted({(key[0], key[2]) for key in found}):
        mine = [found[model, row, task] for row in rows if (model, row, task) in found]
        if len(mine) == len(rows) and not any(cell.unknown for cell in mine):
            sides = over_shared_seeds(mine)
            # Not a BLEU and a perplexity
            if sides[0].records and len({series(cell).name for cell in sides}) == 1:
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
    """The pairs in words: their mean difference, and what its word rests on (one-sided bounds, or an
    interval)."""
    bounds = paired_interval(line.differences, 0.9 if near else 0.95)
    of = "one-sided 95% bounds {:+.1f} and {:+.1f}" if near else "95% interval {:+.1f} to {:+.1f}"
    span = f", {of.format(*bounds)}" if bounds else ""
    return f" ({plural(line.pairs, 'pair')} by seed: mean {statistics.fmean(line.differences):+.1f}{span})"


def _trained(rows: Sequence[Cell]) -> str:
    """The epochs of some rows, the paper's for that task, and the rows whose best epoch is the last in most
    seeds."""
    records = [record for cell in rows for record in cell.records]
    epochs = sorted({record["config"]["train"]["epochs"] for record in records})
    words = [f"{' to '.join(map(str, epochs))}{_paper_epochs(records[0])}"]
    rising = []
    for cell in rows:
        several = [record for record in cell.records if len(record["curve"].get("epoch") or []) > 1]
        last = sum(
            reported(record, "paper").get("best_epoch") == record["curve"]["epoch"][-1] for record in several
        )
        if 2 * last > len(several):
            rising.append(f"{cell.label} ({last} of {len(several)})")
    return "; ".join([*words, *([f"still rising: {', '.join(rising)}"] if rising else [])])


def _paper_epochs(record: Record) -> str:
    """How long the paper trains VeRA on a task."""
    protocol, task = table_of(record), record["cell"]["task"]
    if protocol == "glue":
        of = [
            recipes()["glue"]["vera"][model]["epochs"][tuple(GLUE).index(task)]
            for model in ("roberta-base", "roberta-large")
        ]
        return f" (paper: {of[0]} BASE, {of[1]} LARGE)"
    return f" (paper: {recipes()[protocol]['common']['epochs']})" if protocol in ("e2e", "images") else ""


#: Rows that the paper finds VeRA near to, by protocol, and its numbers: VeRA's first.
NEAR = {
    (
        "glue",
        "lora",
    ): "LoRA with fewer parameters (table 2, averages: LARGE 87.8 and 87.8, BASE 85.2 and 86.6)",
    ("glue", "adapter_p"): (
        "Adapter P with fewer parameters (table 2, LARGE, averages: 87.8, and 87.6 or 86.8)"
    ),
    ("glue", "full"): "full fine-tuning with fewer parameters (table 2, BASE, averages: 85.2 and 85.2)",
    ("e2e", "lora"): "LoRA with fewer parameters (table 3, BLEU: MEDIUM 70.1 and 68.9, LARGE 70.3 and 70.1)",
    ("images", "lora"): (
        "LoRA with fewer parameters"
        " (table 5, means of its data sets: BASE 87.5 and 88.1, LARGE 86.1 and 86.0)"
    ),
    ("images", "full"): (
        "full fine-tuning with fewer parameters"
        " (table 5, means of its data sets: BASE 87.5 and 88.8, LARGE 86.1 and 85.8)"
    ),
}
#: What is near: so many points below, at most.
MARGIN = 1.0


def _near(found: dict[Key, Cell]) -> Iterator[Claim]:
    for (protocol, row), claim in NEAR.items():
        for vera, other in _sides(found, "vera", row):
            if table_of(vera.records[0]) != protocol:
                continue
            line = _paired(vera, other)
            middles = [
                f"{cell.label} {statistics.median(series(cell).values.values()):.1f}"
                for cell in (vera, other)
            ]
            head = vera.records[0]["parameters"]["head"]
            share = f"{vera.parameters / other.parameters:.2g} of the parameters"
            if head:
                share += f", {(vera.parameters + head) / (other.parameters + head):.2g} with the head"
            here, agrees = (
                f"{', '.join(middles)}{_words(line, near=True)}; {share}",
                is_near(line.differences, MARGIN),
            )
            holds = tuple(difference >= -MARGIN - 1e-9 for difference in line.differences)
            if (larger := _by_chance([vera, other])) is not None:
                here, holds, agrees = f"{here}; both may be chance: the larger class is {larger}", (), None
            near = f"VeRA is near {claim}"
            yield Claim(
                near, _place([vera, other]), here, holds, agrees, _firm(line.pairs), _trained([vera, other])
            )


def _firm(pairs: int) -> bool:
    return pairs >= FIRM_PAIRS


#: The larger class of GLUE's dev sets: what saying one thing of every row gives, in percent.
LARGER_CLASS = {"sst2": 50.9, "mrpc": 68.4, "qnli": 50.5, "rte": 52.7}


def _by_chance(rows: Sequence[Cell]) -> float | None:
    """The larger class, where the median of none of the rows is two standard errors of the dev set above it:
    they have learned nothing that could be compared. None elsewhere."""
    record = rows[0].records[0]
    share = LARGER_CLASS.get(record["cell"]["task"])
    if share is None:
        return None
    most = share + 2 * math.sqrt(share * (100 - share) / record["data"]["dev_rows"])
    return share if all(statistics.median(series(row).values.values()) <= most for row in rows) else None


#: A claim, its better row and its worse rows, with the names that the numbers get.
ABLATIONS: tuple[tuple[str, tuple[str, str], dict[str, str]], ...] = (
    ("d alone is better than b alone (table 6)", ("vera_only_d", "only d"), {"vera_only_b": "only b"}),
    (
        "both vectors are better than one (table 6)",
        ("vera", "both"),
        {"vera_only_d": "only d", "vera_only_b": "only b"},
    ),
    (
        "A and B by Kaiming's uniform draw beat one on [0, 0.1] (table 6)",
        ("vera", "Kaiming"),
        {"vera_uniform": "[0, 0.1]"},
    ),
    ("d that starts at 0.1 beats d that starts at 1 (table 6)", ("vera", "0.1"), {"vera_d_init_1": "1"}),
    (
        "d that starts at 1e-7 beats d that starts at 1 (table 6)",
        ("vera_d_init_1e-7", "1e-7"),
        {"vera_d_init_1": "1"},
    ),
)


def _ablations(found: dict[Key, Cell]) -> Iterator[Claim]:
    """By means, as tables 6 and 7 print them."""
    for claim, (better, name), worse in ABLATIONS:
        for first, *others in _sides(found, better, *worse):
            lines = [_paired(first, other) for other in others]
            told = [
                f"{n} {c.mean():.1f}{_words(line)}"
                for n, c, line in zip(worse.values(), others, lines, strict=True)
            ]
            holds = tuple(min(apart) > 0 for apart in zip(*(line.differences for line in lines), strict=True))
            agrees = _all([is_above(line.differences) for line in lines])
            here, rows = f"{name} {first.mean():.1f}; {', '.join(told)}", [first, *others]
            yield Claim(claim, _place(rows), here, holds, agrees, _firm(lines[0].pairs), _trained(rows))
    for shared, unique in _sides(found, "vera", "vera_unique"):
        line = _paired(shared, unique)
        here = f"shared {shared.mean():.1f}; unique {unique.mean():.1f}{_words(line, near=True)}"
        claim, rows = (
            "A and B may be shared: with them VeRA is near a pair for each matrix (table 7)",
            [shared, unique],
        )
        holds = tuple(difference >= -MARGIN - 1e-9 for difference in line.differences)
        yield Claim(
            claim,
            _place(rows),
            here,
            holds,
            is_near(line.differences, MARGIN),
            _firm(line.pairs),
            _trained(rows),
        )


def _all(words: Sequence[bool | None]) -> bool | None:
    """Of a finding in several parts: it agrees where all do, and does not where one does not."""
    return False if False in words else None if None in words else True


#: LoRA's rows by how alpha follows the rank; the recipe's own rank is of both.
CONVENTIONS = {
    "a constant alpha": r"lora(_r\d+)?",
    "alpha proportional to the rank": r"lora(_r\d+_proportional)?",
}


def _ranks(found: dict[Key, Cell]) -> Iterator[Claim]:
    """VeRA of the highest rank that has run, and LoRA of the rank whose count is nearest, if within a factor
    of two: the counts are never equal. Once for each convention of LoRA's alpha; the finding agrees only
    where both do."""
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
            words = "; ".join(
                f"{cell.label} {cell.median():.1f} ({cell.parameters:,} parameters)" for cell in near
            )
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
    """A cell of VeRA and the one of LoRA's whose count is nearest, over the seeds of both; None where there
    is none near."""
    if len(lora) < 2:
        return None
    near = min(lora, key=lambda cell: abs(math.log(cell.parameters / high.parameters)))
    if not 0.5 <= near.parameters / high.parameters <= 2:
        return None
    both = over_shared_seeds([high, near])
    return both if both[0].records else None


# --- of figures


def _lines(figure: figures.Figure) -> list[dict[str, str]]:
    return [dict(zip(figure.header, row, strict=True)) for row in texts(figure.rows)]


def _of(figure: figures.Figure) -> str:
    """The model and task of a figure, by its title."""
    return figure.title.rpartition(", ")[2].replace(" on ", ", ")


def _moved(ledger: Ledger) -> Iterator[Claim]:
    """Of each run by itself: what figure 3 shows is the median of them."""
    for figure in figure3.make(ledger):
        runs = sorted({name for line in _lines(figure) for name in line["runs"].split()})
        measures = [
            m["values"]
            for m in ledger.measures.values()
            if m["kind"] == "magnitude" and m["of"][0]["id"] in runs
        ]
        moved = [
            [p for p in zip(m["layer"], m["site"], m["d"], strict=True) if p[2] is not None] for m in measures
        ]
        place = f"{_of(figure)}, {plural(len(runs), 'run')}"
        if not moved or not all({"query", "value"} <= {site for _, site, _ in run} for run in moved):
            continue
        sites = [
            [statistics.fmean(d for _, s, d in run if s == site) for site in ("query", "value")]
            for run in moved
        ]
        layers = sorted({layer for run in moved for layer, *_ in run})
        middle = layers[len(layers) // 2]
        halves = [
            [statistics.fmean(d for n, _, d in run if (n >= middle) is late) for late in (False, True)]
            for run in moved
        ]
        query, value = (statistics.median(pair[i] for pair in sites) for i in (0, 1))
        words = f"mean over layers, median of the runs: query {query:.3g}, value {value:.3g}"
        early, late = (statistics.median(pair[i] for pair in halves) for i in (0, 1))
        trained = _trained_runs(ledger, runs)
        for claim, told, apart in (
            ("d changes more in query than in value (figure 3)", words, [q - v for q, v in sites]),
            (
                "d changes more in later layers (figure 3)",
                (
                    f"mean of the first half of the layers, median of the runs: {early:.3g}, of the second"
                    f" {late:.3g}"
                ),
                [b - a for a, b in halves],
            ),
        ):
            yield Claim(
                claim, place, told, tuple(d > 0 for d in apart), is_above(apart), _firm(len(apart)), trained
            )


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
        measures = [
            m
            for m in ledger.measures.values()
            if m["kind"] == "similarity" and {o["id"] for o in m["of"]} <= runs
        ]
        means = [[_query_mean(m["values"], pair) for pair in ("lora_vera", "lora_random")] for m in measures]
        found = [
            (together, random) for together, random in means if together is not None and random is not None
        ]
        if not found:
            continue
        together, random = (statistics.median(pair[i] for pair in found) for i in (0, 1))
        told = f"LoRA and VeRA {together:.1e}, LoRA and random {random:.1e}"
        words = f"mean cosine over layers of query matrices, median of the pairs: {told}"
        if (band := null_band(measures)) is not None:
            words += f"; 95% of such means with a random matrix lie within +-{band:.1e}"
        claim = "LoRA's and VeRA's changes resemble each other more than random ones (figure 5)"
        apart = [together - random for together, random in found]
        holds = tuple(difference > 0 for difference in apart)
        place = f"{_of(figure)}, {plural(len(found), 'pair')} of runs"
        yield Claim(
            claim,
            place,
            words,
            holds,
            is_above(apart),
            _firm(len(found)),
            _trained_runs(ledger, sorted(runs)),
        )


def null_band(measures: Sequence[Record]) -> float | None:
    """Half the width of the band in which 95% of the means over layers lie where one side is a random matrix:
    1.96 standard errors, from the spread of every such cosine that was measured."""
    random = [_queries(m["values"], pair) for m in measures for pair in ("lora_random", "vera_random")]
    values = [value for of_pair in random for value in of_pair]
    if len(values) < 2:
        return None
    return 1.96 * math.sqrt(statistics.fmean(value**2 for value in values) / max(map(len, random)))


def _queries(values: dict[str, list[Any]], pair: str) -> list[float]:
    return [
        value
        for value, site in zip(values[pair], values["site"], strict=True)
        if site == "query" and value is not None
    ]


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
        words = (
            f"of {len(pairs)} counts equal at {sum(equal)}, VeRA's error lower at {lower} (VeRA and LoRA at"
            f" {told})"
        )
        claim = "VeRA and LoRA fit random matrices equally well at equal counts (figure 6)"
        # One count that differs refutes it
        yield Claim(claim, "10 x 10 matrices", words, equal, all(equal), True)
