"""One number for quality and cost: PEFT-Bench's PSCP (Belanec et al., arXiv 2511.21285, equation 3; the
published constants and table 3 by kinit-sk/PEFT-Factory, scripts/peftfactory/cal_psqp.py at 45de8ee).

    PSCP = P / ((1 + Mp / Cp) (1 + Mf / Cf) (1 + Mm / Cm))

P: the metric in points. Mp: trained parameters. Mf: what a forward pass over one text of 512 tokens computes
beyond the base model, in FLOPs. Mm: the largest memory in training, in bytes. Every exponent is 1.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from analysis.cells import Cell
from analysis.series import series
from analysis.table import Table, TableCell
from runs.record import Record

#: Tokens of the text whose forward pass is counted.
TOKENS = 512
#: Methods of this project whose change merges into the weights of the base model, so that inference costs
#: nothing more (docs/methods.md). Of peft's classes there, one does not merge.
MERGE = {"none", "head", "full", "bitfit", "ssf", "lora", "dylora", "lora_xs", "tied_lora", "nola"}
MERGE |= {"adalora", "vera", "vera_plus"}
PEFT_STAYS = {"LilyConfig"}


@dataclass(frozen=True)
class Costs:
    """Trained parameters, FLOPs and bytes: of a row, or the constants that they are divided by."""

    parameters: float
    flops: float
    memory: float


#: PEFT-Bench's constants, for Llama 3 8B: near full fine-tuning, and the memory of an H100 NVL.
PUBLISHED = Costs(5e8, 10e12, 94e9)


def pscp(points: float, costs: Costs, constants: Costs) -> float:
    """The score; see the module."""
    pairs = ((getattr(costs, key), getattr(constants, key)) for key in ("parameters", "flops", "memory"))
    return points / math.prod(1 + cost / constant for cost, constant in pairs)


def added_flops(record: Record) -> float | None:
    """FLOPs of a forward pass over TOKENS tokens beyond the base model's: 0 where the method merges, two for
    each weight of a bottleneck adapter and token, in each block that shares it; None where that is not
    known."""
    method = record["config"]["method"]
    if method["kind"] == "adapter":
        blocks = _blocks(record) if method.get("share") else 1
        return 2.0 * TOKENS * float(record["parameters"]["adapter"]) * blocks if blocks else None
    of_peft = method["kind"] == "peft" and method["config_class"] not in PEFT_STAYS
    return 0.0 if of_peft or method["kind"] in MERGE else None


def _blocks(record: Record) -> int | None:
    """How many blocks of the model have an adapter; None where the record does not say it."""
    architecture = record["config"]["model"].get("architecture") or {}
    layers = architecture.get("num_hidden_layers") or architecture.get("n_layer")
    return int(layers) - int(record["config"]["method"].get("drop_layers") or 0) if layers else None


@dataclass(frozen=True)
class _Row:
    """The runs of a row by task."""

    cells: dict[str, Cell]

    def over(self, tasks: Iterable[str]) -> "tuple[float, Costs] | None":
        """Its points and costs, means over these tasks of medians over seeds; None where one is not known,
        or the metric is not in points of which more is better."""
        points, memory, flops = [], [], []
        for task in tasks:
            cell = self.cells[task]
            of = series(cell)
            sizes = [r["cost"].get("peak_memory_bytes") for r in cell.records if r["status"] == "done"]
            computed = added_flops(cell.records[0])
            if of.less or of.unknown or not of.values or not all(sizes) or not sizes or computed is None:
                return None
            points.append(statistics.median(of.values.values()))
            memory.append(statistics.median(float(size) for size in sizes if size))
            flops.append(computed)
        parameters = max(float(cell.parameters) for cell in self.cells.values())
        return statistics.fmean(points), Costs(parameters, max(flops), statistics.fmean(memory))


def with_score(table: Table, records: dict[str, Record], which: str) -> Table:
    """The table with a column of scores for its rows of ours. which: "paper", with PEFT-Bench's constants, or
    "model", with those of the table's model. A table without a source column stays as it is."""
    if "source" not in table.header:
        return table
    rows = {i: row for i, line in enumerate(table.rows) if (row := _row_of(table, line, records)).cells}
    tasks = sorted(set.intersection(*(set(row.cells) for row in rows.values()))) if rows else []
    known = {i: found for i, row in rows.items() if tasks and (found := row.over(tasks))}
    constants = PUBLISHED if which == "paper" else _of_model(rows.values(), known.values())
    at = len(table.header) - (table.header[-1] == "status")
    lines = []
    for i, line in enumerate(table.rows):
        text = "-" if i in rows else ""
        if i in known:
            text = f"{pscp(*known[i], constants):.1f}"
        ids = tuple(run for task in tasks for run in rows[i].cells[task].ids) if i in known else ()
        lines.append([*line[:at], TableCell(text, ids), *line[at:]])
    header = [*table.header[:at], "cost score", *table.header[at:]]
    every = {task for row in rows.values() for task in row.cells}
    note = _note(tasks, every, constants, table, bool(known))
    return replace(table, header=header, rows=lines, notes=[*table.notes, note])


def _row_of(table: Table, line: Sequence[TableCell], records: dict[str, Record]) -> _Row:
    """The cells behind a row; none for a row that is not ours, or continues the one above it."""
    # Tables 6 and 7 name a setting once, in the paper's row
    continues = not line[0].text and table.header[0] != "setting"
    if continues or line[table.header.index("source")].text != "ours":
        return _Row({})
    by_task: dict[str, list[Record]] = defaultdict(list)
    for run in dict.fromkeys(run for cell in line for run in cell.ids if run in records):
        by_task[str(records[run]["cell"]["task"])].append(records[run])
    return _Row({task: Cell(found, 1) for task, found in by_task.items()})


def _of_model(rows: Iterable[_Row], known: "Iterable[tuple[float, Costs]]") -> Costs:
    """Constants of a table's model: its parameters, two FLOPs for each of them and token, and the largest
    memory of the table's rows."""
    cells = [cell for row in rows for cell in row.cells.values()]
    parameters = min((float(c.records[0]["parameters"].get("total") or 0) for c in cells), default=0.0)
    memory = max((costs.memory for _, costs in known), default=0.0)
    return Costs(parameters or math.inf, 2 * TOKENS * parameters or math.inf, memory or math.inf)


def _note(tasks: Sequence[str], every: Collection[str], constants: Costs, table: Table, known: bool) -> str:
    if not known:
        why = "the metric is no percentage, memory or FLOPs are not known, or the rows share no task"
        return f"cost score: no row has one ({why})."
    over = ", ".join(table.tasks.get(task, task) for task in tasks)
    if len(tasks) < len(every):
        over += " (the tasks that every row here has)"
    values = f"{constants.parameters:.3g} parameters, {constants.flops:.3g} FLOPs"
    memory = f"{constants.memory / 1e9:.3g} GB"
    return f"cost score: PSCP of PEFT-Bench over {over}; its constants are {values} and {memory}."
