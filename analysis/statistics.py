"""The statistics of a ledger as tables: its cells, a row against the others, and what each cell cost."""

import math
import statistics

from analysis.beside import summary
from analysis.cells import Cell, Key
from analysis.compare import CROSSFIT
from analysis.inference import median_interval, smallest_p
from analysis.series import Comparison, Series, compare, series
from analysis.table import Table, TableCell, make_row
from analysis.verdicts import MODELS, all_cells, verdicts
from runs.record import Ledger, crossfit_of
from runs.record.text import megabytes


def statistics_tables(ledger: Ledger, row: str = "vera") -> list[Table]:
    """For each model its cells (interval, best against last epoch, what choosing it adds), and a row against
    the others."""
    found, made = all_cells(ledger), []
    said: dict[tuple[str, ...], list[str]] = {}
    for finding in verdicts(ledger):
        said.setdefault(finding.verdict.ids, []).append(finding.verdict.word)
    for model in sorted({key[0] for key in found}):
        mine = {key: cell for key, cell in found.items() if key[0] == model}
        made += [_cells_table(model, mine, said), *_comparisons_table(model, mine, row)]
    return made


def cell_word(cell: Cell, model: str, said: dict[tuple[str, ...], list[str]]) -> str:
    """A cell's verdict, or how many of its numbers are reproduced."""
    words = said.get(cell.ids, [])
    if not words:
        return "not in the paper" if model in MODELS else "other model"
    return words[0] if len(set(words)) == 1 else summary(words) or ", ".join(dict.fromkeys(words))


def _cells_table(model: str, found: dict[Key, Cell], said: dict[tuple[str, ...], list[str]]) -> Table:
    rows, unknown, other = [], [], list[str]()
    for (_, _, task), cell in sorted(found.items(), key=lambda item: (item[0][2], item[0][1])):
        told = cell_facts(cell)
        numbers = [
            TableCell(told[key], cell.ids)
            for key in ("median", "interval", "best", "last", "gain", "crossfit", "optimism")
        ]
        seeds = f"{cell.seeds - cell.unknown}/{cell.wanted}" + (f" {cell.diverged}d" if cell.diverged else "")
        rows.append(make_row(cell.label, task, told["metric"], seeds, *numbers, cell_word(cell, model, said)))
        metric = series(cell, "last").name.partition(",")[0]
        if not told["metric"].startswith(metric):
            other.append(
                f"{task}: best to optimism are of the dev set's {metric}; texts are written once, at the end."
            )
        missing = series(cell).unknown
        if missing:
            unknown.append(
                f"{cell.label} on {task}: seed {', '.join(map(str, missing))} has no number and is in no"
                " statistic."
            )
    header = [
        "method",
        "task",
        "metric",
        "seeds",
        "median",
        "95%",
        "best",
        "last",
        "best-last",
        "cross-fitted",
        "optimism",
    ]
    few = sorted({n for cell in found.values() if 1 < (n := cell.seeds - cell.unknown) <= 5}, reverse=True)
    covers = " or ".join(f"{100 * (1 - smallest_p(n)):.0f}% ({n} seeds)" for n in few)
    range_ = (
        f" With 5 seeds or fewer it is their range, which covers the true median in {covers} of cases."
        if few
        else ""
    )
    notes = [
        f"95%: percentile bootstrap of the median over seeds.{range_}",
        f"best, last: the median at the best and the last epoch. {CROSSFIT.lower()}",
        (
            "optimism: by that mean, what choosing the epoch on the rows reported adds to a run, the median"
            " over seeds (best and cross-fitted are medians of their own). An upper estimate: halves choose"
            " worse."
        ),
        *dict.fromkeys(other),
        *unknown,
    ]
    tasks = {key[2]: key[2] for key in found}
    return Table(f"{model}: cells", [*header, "verdict"], rows, notes, model, tasks, ())


def cell_facts(cell: Cell, interval_too: bool = True) -> dict[str, str]:
    """What the statistics say of a cell, as text: metric, median, interval, best, last, cross-fitted, and
    what choosing the epoch adds (optimism)."""
    main = series(cell)
    epoch = cell.records[0]["result"]["reported"]
    curve = series(cell, epoch)  # of the epochs, where the table reports scores of texts
    digits, of_epochs = main.decimals, curve.decimals
    others = {name: _middle(series(cell, *args)) for name, args in _WAYS.items()}
    fitted = [
        found for record in cell.records if (found := crossfit_of(record)) and record["status"] == "done"
    ]
    scale = cell.records[0]["result"]["scale"]
    optimism = (
        statistics.median(scale * found["optimism"] for found in fitted)
        if fitted and epoch == "best"
        else None
    )
    bounds = median_interval(list(main.values.values())) if interval_too else None
    return {
        "metric": main.name,
        "median": number(_middle(main), decimals=digits),
        "interval": f"{number(bounds[0], '', digits)} to {number(bounds[1], '', digits)}" if bounds else "-",
        "best": number(others["best"], "", of_epochs),
        "last": number(others["last"], "", of_epochs),
        "gain": number(_apart(others["best"], others["last"]), "+", of_epochs),
        "crossfit": number(_middle(series(cell, epoch, "crossfit")), "", of_epochs),
        "optimism": number(optimism, "+", of_epochs),
    }


FACTS = ("metric", "median", "interval", "best", "last", "gain", "crossfit", "optimism")
_WAYS = {"best": ("best",), "last": ("last",)}


def _middle(found: Series) -> float | None:
    return statistics.median(found.values.values()) if found.values else None


def _apart(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def number(value: float | None, sign: str = "", decimals: int = 1) -> str:
    """A number of a table, "-" where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:{sign}.{decimals}f}"


def _comparisons_table(model: str, found: dict[Key, Cell], row: str) -> list[Table]:
    lines = compare(found, row)
    if not lines:
        return []
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
            " (Agarwal et al. 2021); over the seeds that both have."
        ),
        *(
            [
                "all tasks: pools points of different metrics, and takes runs of one seed, and of one dev"
                " set, as independent: its p is too small."
            ]
            if any(line.task == "all" for line in lines)
            else []
        ),
        "No p is corrected for the number of comparisons.",
    ]
    title = f"{model}: {whose} against the other methods"
    header = ["against", "task", "won/lost/equal", "difference", "95%", "p", "P(better)", "95% "]
    return [
        Table(
            title,
            header,
            rows,
            notes,
            model,
            {line.task: line.task for line in lines if line.task != "all"},
            (),
        )
    ]


def _comparison_row(line: Comparison) -> list[TableCell]:
    bounds, chance, digits = line.interval, line.improvement_interval, line.decimals
    smallest = line.pairs and line.p <= smallest_p(line.pairs) and line.p > 0.05
    between = f"{number(bounds[0], '+', digits)} to {number(bounds[1], '+', digits)}" if bounds else ""
    # Where every pair says the same, so does every resample: no interval.
    chances = f"{chance[0]:.2f} to {chance[1]:.2f}" if chance and chance[0] < chance[1] else ""
    return make_row(
        line.labels[1],
        "all tasks" if line.task == "all" else line.task,
        TableCell(f"{line.wins}/{line.losses}/{line.pairs - line.wins - line.losses}", line.ids),
        TableCell(number(line.difference, "+", digits), line.ids),
        TableCell(between, line.ids) if between else "-",
        TableCell(f"{line.p:.3f}{' (smallest)' if smallest else ''}", line.ids),
        TableCell(f"{line.improvement:.2f}", line.ids),
        TableCell(chances, line.ids) if chances else "-",
    )


def costs(ledger: Ledger) -> Table:
    """What each cell cost: medians over seeds."""
    rows = []
    for (model, _, task), cell in sorted(all_cells(ledger).items()):
        seconds = [f"{cell.cost(f'{kind}_seconds'):,.1f}" for kind in ("train", "evaluate", "decode")]
        sizes = [megabytes(cell.cost("peak_memory_bytes")), megabytes(cell.cost("adapter_bytes"))]
        devices = sorted({str((record.get("device") or {}).get("name", "-")) for record in cell.records})
        numbers = [TableCell(text, cell.ids) for text in (f"{cell.parameters:,}", *seconds, *sizes)]
        rows.append(make_row(cell.label, model, task, str(cell.seeds), *numbers, " or ".join(devices)))
    header = [
        "method",
        "model",
        "task",
        "seeds",
        "params",
        "train s",
        "evaluate s",
        "decode s",
        "memory",
        "adapter",
        "device",
    ]
    notes = [
        "Medians over seeds. Memory: the device's largest, on a CPU the process's. Compare runs of one device"
        " only."
    ]
    return Table("Cost of each cell", header, rows, notes, "", {}, ())
