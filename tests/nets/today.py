"""Numbers of a ledger as plain values, as today's code in analysis/ makes them. A rewrite of analysis
replaces these functions alone: the golden lines stay."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from analysis import figures, results, tables, verdicts
from analysis.cells import Cell, reported_epoch, variants_of
from analysis.inference import both_intervals
from analysis.paper import SCORES, numbers
from analysis.ranks import ranks
from analysis.results.claim import WORDS
from analysis.series import compare, series
from analysis.statistics import cell_word
from analysis.wanted import all_cells, wanted
from runs.record import Ledger, crossfit_of, median_interval, one_class, one_each, sample_deviation

Lines = Iterator[dict[str, Any]]


def cells(ledger: Ledger) -> Lines:
    """Each cell, whether a table shows it or another variant of its row: its runs by seed, the number that
    its table reports over them (None: unknown), and what they cost, as medians."""
    shown, words = {cell.ids: cell for cell in all_cells(ledger).values()}, defaultdict[Any, list[str]](list)
    for finding in verdicts.verdicts(ledger):
        words[finding.verdict.ids].append(finding.verdict.word)
    for key, variants in sorted(variants_of(ledger).items()):
        for cell_id, records in sorted(variants.items()):
            cell = Cell(one_each(records)[0], wanted(key, records))
            table = shown.get(cell.ids)
            yield (
                dict(zip(("model", "row", "task"), key, strict=True))
                | {"cell": cell_id[:12]}
                | _numbers(cell)
                | {
                    "shown": table is not None,
                    "left_out": [table.left_out, list(table.again), len(table.problems)] if table else None,
                    "word": cell_word(cell, key[0], words),
                }
            )


def _numbers(cell: Cell) -> dict[str, Any]:
    main, epoch = series(cell), reported_epoch(cell.records[0])
    values, scale = list(main.values.values()), cell.records[0]["result"]["scale"]
    optimism = [
        scale * of["optimism"] for r in cell.records if r["status"] == "done" and (of := crossfit_of(r))
    ]
    chosen, scores = epoch == "best", {key: list(cell.scores(key).values()) for key in SCORES}
    return {
        "label": cell.label,
        "ids": list(cell.ids),
        "values": [main.values.get(seed) for seed in cell.seed_numbers],
        "n": len(values),
        "wanted": cell.wanted,
        "diverged": cell.diverged,
        "one_class": sorted(r["cell"]["seed"] for r in cell.records if one_class(r) is not None),
        "metric": main.name,
        "median": _median(values),
        "interval": median_interval(values),
        "mean": statistics.fmean(values) if values else None,
        "spread": sample_deviation(values),
        "best": _median(series(cell, "best").values.values()),
        "last": _median(series(cell, "last").values.values()),
        "crossfit": _median(series(cell, "best", "crossfit").values.values()) if chosen else None,
        "optimism": _median(optimism) if chosen else None,
        "scores": {
            key: [_median(of), sample_deviation(of)]
            for key, of in scores.items()
            if of and cell.records[0].get("texts")
        },
        "parameters": [cell.parameters, cell.head_parameters],
        "seconds": [
            cell.seconds,
            *(cell.cost(f"{part}_seconds") for part in ("train", "evaluate", "decode")),
        ],
        "bytes": cell.cost("adapter_bytes"),
        "memory": cell.cost("peak_memory_bytes"),
    }


def _median(values: Any) -> float | None:
    return statistics.median(values) if values else None


def printed_verdicts(ledger: Ledger) -> Lines:
    """Each row of the paper's tables; by column the verdict: its word, ours, the number of seeds, the paper's
    number and spread, the difference, half of its interval, and the margin."""
    judged = (n for table in verdicts.JUDGED for n in numbers() if n.table == table and n.task)
    rows: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    for n, found in zip(judged, verdicts.verdicts(ledger), strict=True):
        of, half = found.verdict, None
        if of.interval and of.difference is not None:
            half = of.interval[1] - of.difference
        row = rows[n.table, n.part, n.model, n.method, n.size]
        row[n.column] = [of.word, of.ours, of.seeds, of.printed, found.spread, of.difference, half, of.margin]
    for key, row in rows.items():
        yield dict(zip(("table", "part", "model", "method", "size"), key, strict=True)) | row


def findings(ledger: Ledger) -> Lines:
    """The paper's findings on each model and task: the words, how often each holds, the numbers behind it
    with the bounds of intervals, and the runs of each row."""
    for claim in results.claims(ledger):
        fitted = claim.crossfit
        yield {
            "claim": claim.claim,
            "source": claim.source,
            "where": claim.where,
            "verdict": WORDS[claim.verdict],
            "reported": WORDS[claim.agrees],
            "crossfit": fitted and WORDS[fitted.agrees],
            "firm": claim.firm,
            "holds": [sum(claim.holds), len(claim.holds)],
            "numbers": cell_numbers(claim.here, every=True),
            "fitted": fitted and cell_numbers(fitted.here, every=True),
            "trained": claim.trained,
            "runs": [[one.row, one.median, one.mean, *one.ids] for one in claim.runs],
        }


def comparisons(ledger: Ledger) -> Lines:
    """VeRA against every other row, by task and over tasks."""
    for line in compare(all_cells(ledger)):
        yield {
            "model": line.model,
            "other": line.other,
            "task": line.task,
            "pairs": [line.pairs, line.wins, line.losses],
            "median": [line.difference, *(line.interval or ())],
            "p": line.p,
            "better": [line.improvement, *(line.improvement_interval or ())],
            "mean": statistics.fmean(line.differences),
            "two-sided": both_intervals(line.values),
            "one-sided": both_intervals(line.values, 0.9),
        }


def table_rows(name: str, ledger: Ledger, select: str = "paper") -> Lines:
    """Each row of a table with a number of ours, or of one without records: by column the numbers of its cell
    (value, spread, seeds, ...), or its text."""
    made = ranks(ledger) if name == "ranks" else tables.make(name, ledger, select)
    for table in made:
        for row in table.rows:
            if name in tables.WITHOUT_RECORDS or any(cell.ids for cell in row):
                by_column = zip(table.header[1:], row[1:], strict=True)
                found = {
                    column: cell_numbers(cell.text)
                    for column, cell in by_column
                    if cell.text not in ("", "-")
                }
                yield {"of": table.model or table.title, "row": row[0].text, **found}
        if name == "ranks":
            yield {
                "of": table.title,
                "row": "test",
                "numbers": [cell_numbers(n, every=True) for n in table.notes[:2]],
            }


def figure_rows(name: str, ledger: Ledger) -> Lines:
    """The data behind a figure that come from runs."""
    for figure in figures.make(name, ledger):
        for row in figure.rows:
            if row[-1].text:
                yield {"of": figure.name, "row": [cell_numbers(cell.text) for cell in row[:-1]]}


NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def cell_numbers(text: str, every: bool = False) -> Any:
    """The numbers of a table's cell, such as 94.6, 0.3, 3 and 5 of "94.6 +-0.3 (3/5)"; another text, as it
    is. every: the numbers of any text."""
    plain = re.sub(r"\+-(?=\d)", " ", text)
    found = [float(number.replace(",", "").rstrip(".")) for number in NUMBER.findall(plain)]
    rest = NUMBER.sub("", plain)
    if not every and (not found or re.sub(r"\b(to|of)\b|[\s()/*x%d]", "", rest)):
        return text
    return found[0] if len(found) == 1 and not every else found
