"""The paper's findings, held to our records, of which those that compare rows are here."""

import dataclasses
import math
import re
import statistics
from collections.abc import Iterator, Sequence

from analysis.cells import Cell, Key, over_shared_seeds
from analysis.inference import is_above, is_near, paired_interval
from analysis.results.claim import WORDS, Claim, is_firm, runs_of, table_of, trained
from analysis.results.of_figures import of_figures
from analysis.series import Comparison, compare, series
from analysis.verdicts import all_cells
from runs.record import Ledger
from runs.record.text import plural


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
    return [*made, *of_figures(ledger)]


def _of_rows(found: dict[Key, Cell], texts: dict[Key, Cell]) -> list[Claim]:
    """What compares rows, seed by seed; texts: cells that are compared by their BLEU."""
    return [*_near(found | texts), *_ablations(found), *_ranks(found)]


def _sides(found: dict[Key, Cell], *rows: str) -> Iterator[list[Cell]]:
    """The cells of these rows, for each model and task that has all of them, each with its number, and of the
    seeds that all
    have: medians of other seeds could say the opposite of the pairs."""
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
            rows = [vera, other]
            yield Claim(
                f"VeRA is near {claim}",
                _place(rows),
                here,
                holds,
                agrees,
                is_firm(line.pairs),
                trained(rows),
                runs_of(rows),
            )


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
            firm, runs = is_firm(lines[0].pairs), runs_of(rows)
            yield Claim(claim, _place(rows), here, holds, agrees, firm, trained(rows), runs)
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
            is_firm(line.pairs),
            trained(rows),
            runs_of(rows),
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
        firm = is_firm(min(len(one) for one in holds))
        words, runs = "; ".join(told), runs_of(rows_)
        yield Claim(claim, _place(rows_), words, sum(holds, ()), agree, firm, trained(rows_), runs)


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
