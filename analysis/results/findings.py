"""The paper's findings that compare rows of a table, tried on our records."""

import dataclasses
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from analysis.cells import Cell, Key, over_shared_seeds, reported_epoch
from analysis.inference import both_intervals, is_above, is_near
from analysis.results.claim import WORDS, Claim, claim_of, table_of
from analysis.results.of_figures import of_figures
from analysis.series import Comparison, compare, series
from analysis.wanted import all_cells
from runs.record import Ledger
from runs.record.text import plural


def claims(ledger: Ledger, tables: Sequence[str] = ("glue", "images")) -> list[Claim]:
    """Every finding of the paper that the records can be compared with. tables: those whose tasks count,
    beside table 3's."""
    cells = all_cells(r for r in ledger if table_of(r) in tables)
    texts = all_cells(
        r for r in ledger if table_of(r) == "e2e" and (r.get("texts") or r["status"] == "diverged")
    )
    # Table 5's protocol chooses no epoch, nor does a run that evaluates the last one alone.
    fitted = {
        key: cell
        for key, cell in all_cells((r for r in ledger if table_of(r) in tables), "crossfit").items()
        if reported_epoch(cell.records[0]) == "best"
    }
    crossfit = {(claim.claim, claim.where): claim for claim in _of_rows(fitted, {})}
    of_rows = [
        dataclasses.replace(claim, crossfit=crossfit.get((claim.claim, claim.where)))
        for claim in _of_rows(cells, texts)
    ]
    return [*of_rows, *of_figures(ledger)]


def left_out(studies: Mapping[Path, Ledger], counted: Sequence[Claim]) -> list[tuple[str, Claim]]:
    """Findings on runs that no counted one has, with their study: of other settings of a row, of which a cell
    shows one, and of tasks that are in no table of the paper. By study and number of epochs."""
    known = {(claim.claim, id_) for claim in counted for runs in claim.runs for id_ in runs.ids}
    found = []
    for folder, ledger in studies.items():
        for epochs in sorted({record["config"]["train"]["epochs"] for record in ledger}):
            part = {i: r for i, r in ledger.records.items() if r["config"]["train"]["epochs"] == epochs}
            of_part = claims(dataclasses.replace(ledger, records=part), ("glue", "images", "text"))
            for claim in of_part:
                if {(claim.claim, id_) for runs in claim.runs for id_ in runs.ids} - known:
                    found.append((folder.name, claim))
    return found


def _of_rows(cells: dict[Key, Cell], texts: dict[Key, Cell]) -> list[Claim]:
    """The findings that compare rows. texts: cells compared by their BLEU."""
    return [*_near(cells | texts), *_ablations(cells), *_shared(cells), *_ranks(cells)]


def _sides(cells: dict[Key, Cell], *rows: str) -> Iterator[list[Cell]]:
    """The cells of these rows, for each model and task that has them all with a number in each run. They keep
    the seeds that all have: medians of other seeds could contradict the pairs."""
    for model, task in sorted({(key[0], key[2]) for key in cells}):
        keys = [(model, row, task) for row in rows]
        if all(key in cells and not cells[key].unknown for key in keys):
            sides = over_shared_seeds([cells[key] for key in keys])
            # A BLEU and a perplexity cannot be compared.
            if sides[0].records and len({series(cell).name for cell in sides}) == 1:
                yield sides


def _where(cells: Sequence[Cell]) -> str:
    """The model and task by their labels, and the epochs and seeds of the cells."""
    label = cells[0].records[0]["label"]
    epochs = {record["config"]["train"]["epochs"] for cell in cells for record in cell.records}
    counts = [
        f"{' to '.join(map(str, sorted(numbers)))} {word}{'s' * (numbers != {1})}"
        for word, numbers in (("epoch", epochs), ("seed", {cell.seeds for cell in cells}))
    ]
    return ", ".join([label["model"], label["task"], *counts])


def _paired(a: Cell, b: Cell) -> Comparison:
    """Two cells of the same seeds, compared by pairs of runs of one seed."""
    model, task = (a.records[0]["cell"][key] for key in ("model", "task"))
    (line,) = compare({(model, "a", task): a, (model, "b", task): b}, "a")
    return line


def _pairs_text(line: Comparison, near: bool = False) -> str:
    """The mean difference of the pairs, with its interval by pair and unpaired or, for "near", with one-sided
    bounds."""
    paired, unpaired = both_intervals(line.values, 0.9 if near else 0.95)
    span = ""
    if paired and unpaired:
        name, between = ("one-sided 95% bounds", "and") if near else ("95% interval", "to")
        bounds = (f"{low:+.1f} {between} {high:+.1f}" for low, high in (paired, unpaired))
        span = f", {name} {', unpaired '.join(bounds)}"
    return f" ({plural(line.pairs, 'pair')} by seed: mean {statistics.fmean(line.differences):+.1f}{span})"


#: Rows that the paper finds VeRA near to, by protocol; and the paper's numbers, VeRA's first.
NEAR = {
    ("glue", "lora"): ("LoRA", "table 2, averages: LARGE 87.8 and 87.8, BASE 85.2 and 86.6"),
    ("glue", "adapter_p"): ("Adapter P", "table 2, LARGE, averages: 87.8, and 87.6 or 86.8"),
    ("glue", "full"): ("full fine-tuning", "table 2, BASE, averages: 85.2 and 85.2"),
    ("e2e", "lora"): ("LoRA", "table 3, BLEU: MEDIUM 70.1 and 68.9, LARGE 70.3 and 70.1"),
    ("images", "lora"): (
        "LoRA",
        "table 5, means of its data sets: BASE 87.5 and 88.1, LARGE 86.1 and 86.0",
    ),
    ("images", "full"): (
        "full fine-tuning",
        "table 5, means of its data sets: BASE 87.5 and 88.8, LARGE 86.1 and 85.8",
    ),
}
NEAR |= {("text", row): NEAR["glue", row] for row in ("lora", "full")}  # in no table: see left_out
#: X is near Y if it is at most so many points below.
MARGIN = 1.0


def _hold_near(line: Comparison) -> tuple[bool, ...]:
    return tuple(difference >= -MARGIN - 1e-9 for difference in line.differences)


def _near(cells: dict[Key, Cell]) -> Iterator[Claim]:
    for (protocol, row), (name, source) in NEAR.items():
        for rows in _sides(cells, "vera", row):
            vera, other = rows
            if table_of(vera.records[0]) != protocol:
                continue
            line = _paired(vera, other)
            medians = [f"{cell.label} {statistics.median(series(cell).values.values()):.1f}" for cell in rows]
            share = f"{vera.parameters / other.parameters:.2g} of the parameters"
            if head := vera.records[0]["parameters"]["head"]:
                share += f", {(vera.parameters + head) / (other.parameters + head):.2g} with the head"
            here = f"{', '.join(medians)}{_pairs_text(line, near=True)}; {share}"
            holds, agrees = _hold_near(line), is_near(line.values, MARGIN)
            claim = f"VeRA is near {name} with fewer parameters"
            yield _of_pairs(claim, source, here, holds, agrees, line.pairs, rows)


def _of_pairs(
    claim: str,
    source: str,
    here: str,
    holds: Sequence[bool],
    agrees: bool | None,
    pairs: int,
    rows: Sequence[Cell],
) -> Claim:
    """A claim on rows that were compared by pairs: undecided where all of them may be chance."""
    if chance := _by_chance(rows):
        here, holds, agrees = f"{here}; all may be chance: {chance}", (), None
    return claim_of(claim, source, _where(rows), here, holds, agrees, pairs, rows)


#: The larger class of GLUE's dev sets: the accuracy of one answer for every row, in percent.
LARGER_CLASS = {"sst2": 50.9, "mrpc": 68.4, "qnli": 50.5, "rte": 52.7}
#: Tasks of GLUE whose metric is a correlation: chance gives 0.
CORRELATED = {"cola", "stsb"}


def _by_chance(rows: Sequence[Cell]) -> str:
    """What chance gives on a task of GLUE, in words, if no row's median is two standard errors of the dev set
    above it: then no row has learned anything that could be compared. Empty otherwise."""
    record = rows[0].records[0]
    task, dev_rows = record["cell"]["task"], record["data"]["dev_rows"]
    if task in CORRELATED:
        words, most = "the metric of chance is 0", 200 / math.sqrt(dev_rows)
    elif task in LARGER_CLASS:
        share = LARGER_CLASS[task]
        words, most = f"the larger class is {share}", share + 2 * math.sqrt(share * (100 - share) / dev_rows)
    else:
        return ""
    return words if all(statistics.median(series(row).values.values()) <= most for row in rows) else ""


#: Findings of table 6: the rows that each compares, the better one first, and their names beside the numbers.
ABLATIONS = {
    "d alone is better than b alone": {"vera_only_d": "only d", "vera_only_b": "only b"},
    "both vectors are better than one": {"vera": "both", "vera_only_d": "only d", "vera_only_b": "only b"},
    "A and B by Kaiming's uniform draw beat one on [0, 0.1]": {"vera": "Kaiming", "vera_uniform": "[0, 0.1]"},
    "d that starts at 0.1 beats d that starts at 1": {"vera": "0.1", "vera_d_init_1": "1"},
    "d that starts at 1e-7 beats d that starts at 1": {"vera_d_init_1e-7": "1e-7", "vera_d_init_1": "1"},
}


def _ablations(cells: dict[Key, Cell]) -> Iterator[Claim]:
    """By means, as table 6 prints them. A finding against several rows agrees where it does against each."""
    for claim, names in ABLATIONS.items():
        for rows in _sides(cells, *names):
            means = [f"{name} {cell.mean():.1f}" for name, cell in zip(names.values(), rows, strict=True)]
            lines = [_paired(rows[0], other) for other in rows[1:]]
            others = [mean + _pairs_text(line) for mean, line in zip(means[1:], lines, strict=True)]
            here = f"{means[0]}; {', '.join(others)}"
            holds = [min(apart) > 0 for apart in zip(*(line.differences for line in lines), strict=True)]
            words = [is_above(line.values) for line in lines]
            agrees = False if False in words else None if None in words else True
            yield _of_pairs(claim, "table 6", here, holds, agrees, lines[0].pairs, rows)


def _shared(cells: dict[Key, Cell]) -> Iterator[Claim]:
    """By means, as table 7 prints them."""
    claim = "A and B may be shared: with them VeRA is near a pair for each matrix"
    for rows in _sides(cells, "vera", "vera_unique"):
        line = _paired(*rows)
        shared, unique = (cell.mean() for cell in rows)
        here = f"shared {shared:.1f}; unique {unique:.1f}{_pairs_text(line, near=True)}"
        agrees = is_near(line.values, MARGIN)
        yield _of_pairs(claim, "table 7", here, _hold_near(line), agrees, line.pairs, rows)


#: LoRA's rows by how alpha follows the rank; the recipe's own rank is of both.
CONVENTIONS = {
    "a constant alpha": r"lora(_r\d+)?",
    "alpha proportional to the rank": r"lora(_r\d+_proportional)?",
}


def _ranks(cells: dict[Key, Cell]) -> Iterator[Claim]:
    """VeRA of the highest rank that has run, against LoRA of the rank with the nearest count of parameters.
    Once for each convention of LoRA's alpha; the finding agrees only where it does by both."""
    for model, task in sorted({(key[0], key[2]) for key in cells}):
        ranks = {row: c for (m, row, t), c in cells.items() if (m, t) == (model, task) and not c.unknown}
        vera = [cell for row, cell in ranks.items() if re.fullmatch(r"vera(_r\d+)?", row)]
        if len(vera) < 2:  # one rank alone is no comparison of ranks
            continue
        high = max(vera, key=lambda cell: cell.parameters)
        texts, words = list[str](), list[bool | None]()
        rows, lines = dict[str, Cell](), list[Comparison]()
        for convention, pattern in CONVENTIONS.items():
            both = _nearest(high, [cell for row, cell in ranks.items() if re.fullmatch(pattern, row)])
            if both is None:
                texts.append(f"with {convention}: not run")
                words.append(None)
                continue
            line = _paired(*both)
            numbers = "; ".join(f"{c.label} {c.median():.1f} ({c.parameters:,} parameters)" for c in both)
            words.append(is_above(line.values))
            texts.append(f"with {convention}: {numbers}{_pairs_text(line)}: {WORDS[words[-1]]}")
            lines.append(line)
            rows |= {cell.label: cell for cell in both}
        if lines:
            claim = "of like counts of parameters, VeRA of a high rank is above LoRA"
            shown = list(rows.values())
            holds = [difference > 0 for line in lines for difference in line.differences]
            agrees = words[0] if len(set(words)) == 1 else None
            pairs = min(line.pairs for line in lines)
            here = "; ".join(texts)
            yield _of_pairs(claim, "figure 2", here, holds, agrees, pairs, shown)


def _nearest(high: Cell, lora: list[Cell]) -> list[Cell] | None:
    """A cell of VeRA and LoRA's with the nearest count of parameters, over the seeds of both. None where no
    count is within a factor of two, or no seed is shared."""
    if len(lora) < 2:
        return None
    near = min(lora, key=lambda cell: abs(math.log(cell.parameters / high.parameters)))
    if not 0.5 <= near.parameters / high.parameters <= 2:
        return None
    both = over_shared_seeds([high, near])
    return both if both[0].records else None
