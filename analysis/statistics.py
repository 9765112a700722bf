"""The statistics of a ledger as tables: its cells, a row against the others, and what each cell cost."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping

from analysis.beside import summary
from analysis.cells import Cell, Key, reported_epoch
from analysis.compare import CROSSFIT, diverged_mark, left_out, of_one_class
from analysis.inference import smallest_p
from analysis.series import Comparison, Series, compare, series
from analysis.table import Table, TableCell, make_row
from analysis.verdicts import MODELS, verdicts
from analysis.wanted import all_cells
from runs.record import INTERVAL_SEEDS, Ledger, crossfit_of, interval_name, median_interval
from runs.record.text import megabytes


def statistics_tables(ledger: Ledger, row: str = "vera") -> list[Table]:
    """For each model its cells (interval, best against last epoch, what choosing it adds), and a row against
    the others."""
    by_key, words = all_cells(ledger), defaultdict[tuple[str, ...], list[str]](list)
    for finding in verdicts(ledger):
        words[finding.verdict.ids].append(finding.verdict.word)
    tables = []
    for model in sorted({key[0] for key in by_key}):
        ours = {key: cell for key, cell in by_key.items() if key[0] == model}
        tables += [_cells_table(model, ours, words), *_comparisons_table(model, ours, row)]
    return tables


def cell_word(cell: Cell, model: str, words: Mapping[tuple[str, ...], list[str]]) -> str:
    """A cell's verdict, or how many of its numbers are reproduced. words: of the verdicts, by run ids."""
    own = words.get(cell.ids, [])
    if not own:
        return "not in the paper" if model in MODELS else "other model"
    return own[0] if len(set(own)) == 1 else summary(own) or ", ".join(dict.fromkeys(own))


def _cells_table(model: str, by_key: dict[Key, Cell], words: Mapping[tuple[str, ...], list[str]]) -> Table:
    rows, unknown, other = [], [], list[str]()
    for (_, _, task), cell in sorted(by_key.items(), key=lambda item: (item[0][2], item[0][1])):
        facts = cell_facts(cell)
        numbers = [TableCell(facts[key], cell.ids) for key in FACTS if key != "metric"]
        seeds, word = f"{cell.count}{diverged_mark(cell)}", cell_word(cell, model, words)
        rows.append(make_row(cell.label, task, facts["metric"], seeds, *numbers, word))
        metric = series(cell, "last").name.partition(",")[0]
        if not facts["metric"].startswith(metric):
            which = f"{task}: best to optimism are of the dev set's {metric}"
            other.append(f"{which}; texts are written once, at the end.")
        if missing := ", ".join(map(str, series(cell).unknown)):
            unknown.append(f"{cell.label} on {task}: seed {missing} has no number and is in no statistic.")
    counts = {cell.seeds - cell.unknown for cell in by_key.values()}
    few, name = sorted((n for n in counts if 1 < n <= 5), reverse=True), interval_name(counts)
    covers = " or ".join(f"{100 * (1 - smallest_p(n)):.0f}% ({n} seeds)" for n in few)
    of_few = f" With 5 seeds or fewer it is their range, which covers the true median in {covers} of cases."
    notes = [
        f"{name}: percentile bootstrap of the median over seeds.{of_few if few else ''}",
        "best, last: the median at the best and the last epoch.",
    ]
    if any(reported_epoch(cell.records[0]) == "best" for cell in by_key.values()):
        notes[-1] += f" {CROSSFIT.lower()}"
        notes.append(
            "optimism: by that mean, what choosing the epoch on the rows reported adds to a run, the median"
            " over seeds (best and cross-fitted are medians of their own). An upper estimate: halves choose"
            " worse."
        )
    notes += [*dict.fromkeys(other), *unknown, *of_one_class(by_key), *left_out(by_key)]
    header = [*("method", "task", "metric", "seeds", "median", name, "best", "last", "best-last")]
    header += ["cross-fitted", "optimism", "verdict"]
    return Table(f"{model}: cells", header, rows, notes, model, {key[2]: key[2] for key in by_key})


def cell_facts(cell: Cell, interval_too: bool = True) -> dict[str, str]:
    """The statistics of a cell as text (FACTS): metric, median, its interval, best, last, best less last,
    cross-fitted, and what choosing the epoch adds to a run (optimism)."""
    main, epoch = series(cell), reported_epoch(cell.records[0])
    curve = series(cell, epoch)  # of the dev metric, also where the table reports scores of texts
    best, last = (_median(series(cell, which)) for which in ("best", "last"))
    gain = None if best is None or last is None else best - last
    # Where the last epoch is reported, none is chosen
    fitted_median = _median(series(cell, epoch, "crossfit")) if epoch == "best" else None
    fitted = (crossfit_of(record) for record in cell.records if record["status"] == "done")
    scale = cell.records[0]["result"]["scale"]
    optimism = [scale * one["optimism"] for one in fitted if one and epoch == "best"]
    bounds = median_interval(list(main.values.values())) if interval_too else None
    low_high = [number(bound, "", main.decimals) for bound in bounds or ()]
    return {
        "metric": main.name,
        "median": number(_median(main), "", main.decimals),
        "interval": " to ".join(low_high) or "-",
        "best": number(best, "", curve.decimals),
        "last": number(last, "", curve.decimals),
        "gain": number(gain, "+", curve.decimals),
        "crossfit": number(fitted_median, "", curve.decimals),
        "optimism": number(statistics.median(optimism) if optimism else None, "+", curve.decimals),
    }


FACTS = ("metric", "median", "interval", "best", "last", "gain", "crossfit", "optimism")


def _median(of: Series) -> float | None:
    return statistics.median(of.values.values()) if of.values else None


def number(value: float | None, sign: str = "", decimals: int = 1) -> str:
    """A number of a table, "-" where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:{sign}.{decimals}f}"


def _comparisons_table(model: str, by_key: dict[Key, Cell], row: str) -> list[Table]:
    lines = compare(by_key, row)
    if not lines:
        return []
    compared = {(line.other, line.task) for line in lines}
    others = [
        f"{cell.label} on {task}"
        for (_, other, task), cell in sorted(by_key.items())
        if other != row and (other, task) not in compared and (model, row, task) in by_key
    ]
    sizes = {line.task: line.labels[0] for line in lines if line.task != "all"}
    whose = " and ".join(f"{label} on {task}" for task, label in sizes.items())
    if len(set(sizes.values())) == 1:
        whose = lines[0].labels[0]
    rows = [_comparison_row(line) for line in lines]
    notes = [
        f"Positive: {whose} is better. Pairs are of one task and seed: won, lost, equal, and their median.",
        (
            f"p: sign test, two-sided. With 5 pairs it is at least {smallest_p(5):.2f}, so 5 seeds alone"
            " never show p < 0.05. (smallest): all pairs say the same, and more pairs would be needed for a"
            " smaller p."
        ),
        (
            "P(better): the chance that a run of the one is above a run of the other, the mean over tasks"
            f" (Agarwal et al. 2021); over the seeds that both have. Its interval needs {INTERVAL_SEEDS}."
        ),
    ]
    if any(line.task == "all" for line in lines):
        notes.append(
            "all tasks: pools points of different metrics, and takes runs of one seed, and of one dev set, as"
            " independent: its p is too small."
        )
    notes.append("No p is corrected for the number of comparisons.")
    if others:
        same = "no seed of theirs was measured on the same data, by the same protocol"
        notes.append(f"Not compared, as {same}: {', '.join(others)}.")
    title = f"{model}: {whose} against the other methods"
    name = interval_name((line.pairs for line in lines), "pairs")
    header = ["against", "task", "won/lost/equal", "difference", name, "p", "P(better)", "95% "]
    return [Table(title, header, rows, notes, model, {task: task for task in sizes})]


def _comparison_row(line: Comparison) -> list[TableCell]:
    bounds, chance, digits = line.interval, line.improvement_interval, line.decimals
    smallest = line.pairs and line.p <= smallest_p(line.pairs) and line.p > 0.05
    between = f"{number(bounds[0], '+', digits)} to {number(bounds[1], '+', digits)}" if bounds else ""
    # Where every pair says the same, so does every resample, and few pairs have few: no interval.
    known = chance and chance[0] < chance[1] and line.pairs >= INTERVAL_SEEDS
    chances = f"{chance[0]:.2f} to {chance[1]:.2f}" if chance and known else ""
    texts = [
        f"{line.wins}/{line.losses}/{line.pairs - line.wins - line.losses}",
        number(line.difference, "+", digits),
        between or "-",
        f"{line.p:.3f}{' (smallest)' if smallest else ''}",
        f"{line.improvement:.2f}",
        chances or "-",
    ]
    numbers = [TableCell(text, line.ids if text != "-" else ()) for text in texts]
    return make_row(line.labels[1], "all tasks" if line.task == "all" else line.task, *numbers)


def costs(ledger: Ledger) -> Table:
    """What each cell cost: medians over seeds."""
    rows = []
    for (model, _, task), cell in sorted(all_cells(ledger).items()):
        taken = (cell.cost(f"{kind}_seconds") for kind in ("train", "evaluate", "decode"))
        seconds = ["-" if of is None else f"{of:,.1f}" for of in taken]
        sizes = [megabytes(cell.cost("peak_memory_bytes")), megabytes(cell.cost("adapter_bytes"))]
        devices = sorted({str((record.get("device") or {}).get("name", "-")) for record in cell.records})
        numbers = [TableCell(text, cell.ids) for text in (f"{cell.parameters:,}", *seconds, *sizes)]
        seeds = f"{cell.seeds}{diverged_mark(cell)}"
        rows.append(make_row(cell.label, model, task, seeds, *numbers, " or ".join(devices)))
    header = ["method", "model", "task", "seeds", "params", "train s", "evaluate s", "decode s"]
    header += ["memory", "adapter", "device"]
    notes = [
        "Medians over the seeds that did not diverge. Memory: the device's largest, on a CPU the process's."
        " Compare runs of one device only."
    ]
    return Table("Cost of each cell", header, rows, notes)
