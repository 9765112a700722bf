"""A verdict for each cell that the paper prints, and the statistics of a ledger as tables.

The rule stands in analysis/beside.py (`verdict`). Tables 2, 3, 4, 5, 6, 7 and 13 have cells; the others print
formulas, figures and the cost on the authors' device."""

import difflib
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from analysis import tables
from analysis.beside import VERDICT_SEEDS, WITH_SPREAD, WITHOUT_SPREAD, Beside, Verdict, summary, verdict
from analysis.cells import Cell, Key, cells
from analysis.compare import CROSSFIT, beside_paper
from analysis.inference import median_interval, smallest_p
from analysis.paper import BENCHES, FROM_MNLI, GLUE, IMAGES, LLAMAS, SCORES, Printed, numbers
from analysis.series import Series, compare, series
from analysis.table import Table, TableCell, make_row
from analysis.tables.ablations import mean_beside
from analysis.tables.e2e import decoded, score_beside
from analysis.tables.images import few_shot, image_beside
from analysis.tables.instruct import instructed, is_gpt_4, judged_beside, of_table_13
from runs.record import Ledger, Record, crossfit_of
from runs.record.text import megabytes

PRESETS = Path(__file__).parent.parent / "conf" / "paper"
#: Words of a verdict, in the order in which they are told.
WORDS = (
    *WITH_SPREAD,
    *WITHOUT_SPREAD,
    "incomplete",
    "other size",
    "other model",
    "not in the paper",
    "not run",
    "quoted",
)
MODELS = {"roberta_base": "RoBERTa-base", "roberta_large": "RoBERTa-large", "gpt2_medium": "GPT-2 medium"}
MODELS |= {"gpt2_large": "GPT-2 large", "vit_base": "ViT-B/16", "vit_large": "ViT-L/16", **LLAMAS}


@dataclass(frozen=True)
class Finding:
    """A number of the paper, the cell that it belongs to, and the verdict. `column`: what the number is."""

    table: str
    model: str
    row: str
    task: str
    method: str
    column: str
    decimals: int
    spread: float | None
    verdict: Verdict


#: The tables whose numbers have a verdict, in the order in which they are told.
JUDGED = ("table2", "table3", "table4", "table13", "table5", "table6", "table7")


def verdicts(ledger: Ledger) -> list[Finding]:
    """One for each number that the paper prints of a trained and judged model, by its table."""
    glue = cells([r for r in ledger if r["cell"]["task"] in GLUE], VERDICT_SEEDS)
    found = {"table2": glue, "table3": cells(decoded(ledger), VERDICT_SEEDS), "table6": glue, "table7": glue}
    for table in ("table4", "table13"):
        part = [r for r in instructed(ledger) if of_table_13(r) == (table == "table13")]
        found[table] = cells(part, VERDICT_SEEDS)
    found["table5"] = cells(few_shot(ledger), VERDICT_SEEDS)
    return [_finding(n, found[table]) for table in JUDGED for n in numbers() if n.table == table and n.task]


def _finding(printed: Printed, found: dict[Key, Cell]) -> Finding:
    row = printed.row
    if printed.table == "table2" and printed.task in FROM_MNLI.get((printed.model, row), ()):
        row = f"{row}_mnli"  # only a run that started from MNLI, too, is like for like
    cell = found.get((printed.model, row, printed.task))
    one = _beside(cell, printed) if cell else None
    said = one.verdict if one else verdict(None, printed.value, quoted=printed.quoted)
    if row != printed.row and not said.ids and (printed.model, printed.row, printed.task) in found:
        said = replace(said, deviations=("our runs did not start from MNLI, as the paper's: not compared",))
    column, decimals = _column(printed)
    return Finding(
        printed.table,
        printed.model,
        row,
        printed.task,
        _method(printed),
        column,
        decimals,
        printed.spread,
        said,
    )


def _beside(cell: Cell, printed: Printed) -> Beside | None:
    """Our cell beside the paper's number, by what its table reports; None for a score that the paper has from
    elsewhere."""
    if printed.table in BENCH:
        scores = [score for record in cell.records for score in _scores(record, BENCH[printed.table])]
        return None if printed.quoted else judged_beside(cell, printed, scores)
    of = {"table3": score_beside, "table5": image_beside, "table6": mean_beside, "table7": mean_beside}
    return of.get(printed.table, beside_paper)(cell, printed)


BENCH = {"table4": "mt_bench", "table13": "vicuna_bench"}


def _column(printed: Printed) -> tuple[str, int]:
    """What a number is, in words, and its decimals."""
    if printed.table == "table3":
        return SCORES[printed.column]
    if printed.table in BENCH:
        return BENCHES[BENCH[printed.table]], 2
    mean = ", mean" if printed.table in ("table6", "table7") else ""
    return (GLUE | IMAGES)[printed.column] + mean, 1


def _method(printed: Printed) -> str:
    """The paper's row in words."""
    if printed.table in ("table6", "table7"):
        return f"VeRA {printed.method}"
    return printed.method if printed.row == "none" else f"{printed.method} {printed.size.partition(' ')[0]}"


def _scores(record: Record, bench: str) -> list[float]:
    """What a GPT-4 gave a run's answers; other judges have scales of their own."""
    judged = [j for j in record.get("judged", []) if j["bench"] == bench and is_gpt_4(j["judge"])]
    return [float(j["mean"]) for j in judged[:1] if j["mean"] is not None]


# --- the statistics as tables


def wanted(key: Key) -> int:
    """How many seeds the protocol of a task has."""
    return {"alpaca": 1, "e2e": 3, "reviews": 3}.get(key[2], VERDICT_SEEDS)


def all_cells(records: Iterable[Record], select: str = "paper") -> dict[Key, Cell]:
    """Every cell of a ledger, or of some of its records, whatever table it belongs to."""
    found = cells(records, VERDICT_SEEDS, select)
    for key, cell in found.items():
        cell.wanted = wanted(key)
    return found


def part(ledger: Ledger, what: str, row: str = "vera") -> Ledger:
    """The records of a table, of a preset (paper=NAME), or all of them; with a preset's those of the row that
    its others are compared with, which may have run for another preset first. ValueError for a table that
    there is not."""
    if not what:
        return ledger
    preset = what.removeprefix("paper=")
    known = {path.stem for path in PRESETS.glob("*.yaml")} | {str(r["cell"]["paper"]) for r in ledger}
    if preset != what and preset not in known:
        near = [f" Did you mean {close}?" for close in difflib.get_close_matches(preset, known, 1)]
        raise ValueError(f"no preset {preset!r}.{''.join(near)} They are the files of conf/paper")
    if preset != what:
        tried = {(r["cell"]["model"], r["cell"]["task"]) for r in ledger if r["cell"]["paper"] == preset}
        cell = [(r, r["cell"]) for r in ledger]
        keep = [
            r
            for r, c in cell
            if c["paper"] == preset or (c["row"] == row and (c["model"], c["task"]) in tried)
        ]
    elif what in tables.WITHOUT_RECORDS:
        raise ValueError(f"{what} is of formulas or recipes, and has no records")
    elif what in tables.TABLES:
        shown = {
            (table.model, task)
            for table in tables.TABLES[what](ledger, "paper", None)
            for task in table.tasks
        }
        keep = [r for r in ledger if (r["cell"]["model"], r["cell"]["task"]) in shown]
    else:
        hint = f" A preset's: paper={what}." if what in known else ""
        raise ValueError(f"no table {what!r}.{hint} Known: {', '.join(tables.TABLES)}, and paper=PRESET")
    return Ledger(
        {r["id"]: r for r in keep},
        {r["id"]: ledger.origin[r["id"]] for r in keep},
        ledger.problems,
        ledger.measures,
    )


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
    words = said.get(tuple(record["id"] for record in cell.records), [])
    if not words:
        return "not in the paper" if model in MODELS else "other model"
    return words[0] if len(set(words)) == 1 else summary(words) or ", ".join(dict.fromkeys(words))


def _cells_table(model: str, found: dict[Key, Cell], said: dict[tuple[str, ...], list[str]]) -> Table:
    rows, unknown, other = [], [], list[str]()
    for (_, _, task), cell in sorted(found.items(), key=lambda item: (item[0][2], item[0][1])):
        told = facts(cell)
        ids = tuple(record["id"] for record in cell.records)
        numbers = [
            TableCell(told[key], ids)
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


def facts(cell: Cell, interval_too: bool = True) -> dict[str, str]:
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
    rows = []
    for line in lines:
        bounds, chance, digits = line.interval, line.improvement_interval, line.decimals
        p = f"{line.p:.3f}" + (
            " (smallest)" if line.pairs and line.p <= smallest_p(line.pairs) and line.p > 0.05 else ""
        )
        rows.append(
            make_row(
                line.labels[1],
                "all tasks" if line.task == "all" else line.task,
                TableCell(f"{line.wins}/{line.losses}/{line.pairs - line.wins - line.losses}", line.ids),
                TableCell(number(line.difference, "+", digits), line.ids),
                (
                    TableCell(
                        f"{number(bounds[0], '+', digits)} to {number(bounds[1], '+', digits)}", line.ids
                    )
                    if bounds
                    else "-"
                ),
                TableCell(p, line.ids),
                TableCell(f"{line.improvement:.2f}", line.ids),
                # Where every pair says the same, so does every resample: no interval.
                (
                    TableCell(f"{chance[0]:.2f} to {chance[1]:.2f}", line.ids)
                    if chance and chance[0] < chance[1]
                    else "-"
                ),
            )
        )
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


def costs(ledger: Ledger) -> Table:
    """What each cell cost: medians over seeds."""
    rows = []
    for (model, _, task), cell in sorted(all_cells(ledger).items()):
        ids = tuple(record["id"] for record in cell.records)
        seconds = [f"{cell.cost(f'{kind}_seconds'):,.1f}" for kind in ("train", "evaluate", "decode")]
        sizes = [megabytes(cell.cost("peak_memory_bytes")), megabytes(cell.cost("adapter_bytes"))]
        devices = sorted({str((record.get("device") or {}).get("name", "-")) for record in cell.records})
        numbers = [TableCell(text, ids) for text in (f"{cell.parameters:,}", *seconds, *sizes)]
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
