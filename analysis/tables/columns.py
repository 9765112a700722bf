"""Columns that any table with rows of ours can have beside its own: a number of `frame.runs` over the row's
runs (its median), the difference to another row, forgetting, and the cost score.

forgetting: the cross-entropy on a fixed text after training less that of the base model, in nats a token.

cost score: PEFT-Bench's PSCP (Belanec et al., arXiv 2511.21285, equation 3; the published constants and
table 3 by kinit-sk/PEFT-Factory, scripts/peftfactory/cal_psqp.py at 45de8ee).

    PSCP = P / ((1 + Mp / Cp) (1 + Mf / Cf) (1 + Mm / Cm))

P: the metric in points. Mp: trained parameters. Mf: what a forward pass over one text of 512 tokens
computes beyond the base model, in FLOPs. Mm: the largest memory in training, in bytes. Every exponent is
1."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.facts import TOKENS
from analysis.frame import pairs, reported
from analysis.inference import welch_half
from analysis.render import NONE, Entry, Number, Row, Table, with_column
from runs.errors import UserError

#: How the columns of `frame.runs` are written, by how their names end.
FORMS = {"bytes": "bytes", "parameters": "count", "rows": "count", "steps": "count"}
FORMS |= dict.fromkeys(("seconds", "best", "last", "value", "crossfit", "optimism"), "number")


def row_runs(table: Table, row: Row, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs behind a row of ours; none for a row of the paper, and for one that belongs to the row above
    it."""
    # Tables 6 and 7 name a setting once, in the paper's row
    named = row[0] != "" or table.header[0] == "setting"
    whose = row[table.header.index("source")] if "source" in table.header else "ours"
    ids = {run for entry in row if isinstance(entry, Number) for run in entry.ids}
    return runs[runs.id.isin(ids)] if named and whose in ("ours", "published") else runs[:0]


def with_numbers(table: Table, runs: pd.DataFrame, name: str) -> Table:
    """The table with a number of `frame.runs`: of each row the median over its runs that did not diverge."""
    entries = list[Entry]()
    form = next((form for end, form in FORMS.items() if name.endswith(end)), "general")
    try:
        numbers = pd.to_numeric(runs[name])
    except (ValueError, TypeError):
        raise UserError(f"columns={name}: {name} is no number of a run") from None
    for row in table.rows:
        of = row_runs(table, row, runs)
        known = numbers[of.index[~of.diverged.astype(bool)]].dropna()
        text = NONE if len(of) else ""
        entries.append(Number(float(known.median()), form=form, ids=tuple(of.id)) if len(known) else text)
    return with_column(table, name, entries)


# --- against another row


def with_against(table: Table, runs: pd.DataFrame, other: str) -> Table:
    """The table with each row's mean difference to another row, over the seeds that both have, measured on
    the same, with half of its 95% interval: by Student's t on pairs and, of several tasks, of the mean over
    tasks (Welch). Positive: the row is better."""
    shown, entries = reported(runs), list[Entry]()
    for row in table.rows:
        of = row_runs(table, row, runs)
        both = pairs(shown, of.row.iloc[0], other) if len(of) and of.row.iloc[0] != other else shown[:0]
        both = both[both.id.isin(of.id)]
        entries.append(mean_difference(both) if len(both) else NONE if len(of) else "")
    if not any(isinstance(entry, Number) for entry in entries):
        return table
    note = (
        f"against {other}: mean difference over the seeds that both have (positive: better), +- half of its"
        " 95% interval; over several tasks, the mean of theirs."
    )
    return with_column(table, f"against {other}", entries, [note])


def mean_difference(both: pd.DataFrame) -> Number:
    """Of the pairs of two rows (`frame.pairs`): the mean over tasks, with half of its 95% interval; without
    it where a task has one pair."""
    of_tasks = both.groupby("task").difference.agg(["mean", "var", "size"])
    count = len(of_tasks)
    half = welch_half(of_tasks["var"] / of_tasks["size"] / count**2, of_tasks["size"] - 1)
    return Number(
        float(of_tasks["mean"].mean()),
        float(half) if (of_tasks["size"] > 1).all() else math.nan,
        decimals=int(both.digits.min()),
        sign=True,
        ids=(*both.id, *both.id_other),
    )


# --- forgetting


def with_forgetting(table: Table, runs: pd.DataFrame) -> Table:
    """The table with a column of forgetting; without runs that measured it, the table as it is. Another
    text than that of most runs is not compared."""
    shown = runs[runs.id.isin(table.ids) & runs.forgetting.notna()]
    if shown.empty:
        return table
    texts = Counter(shown.forgetting_text)
    most = min(texts, key=lambda text: (-texts[text], text))
    entries, others = list[Entry](), list[str]()
    for row in table.rows:
        of = row_runs(table, row, runs)
        alike = of[(of.forgetting_text == most) & of.forgetting.notna()].forgetting
        if len(alike):
            spread = float(alike.std()) if len(alike) > 1 else math.nan
            number = Number(
                float(alike.median()), spread, len(alike), len(of), 3, sign=True, ids=tuple(of.id)
            )
            entries.append(number)
            continue
        entries.append(NONE if len(of) else "")
        others += [str(row[0])] * bool(of.forgetting.notna().any())
    before = sorted({f"{value:.3f}" for value in shown[shown.forgetting_text == most].forgetting_before})
    first = shown[shown.forgetting_text == most].iloc[0]
    between = before[0] if len(before) == 1 else f"{before[0]} to {before[-1]}"
    notes = [
        f"forgetting: cross-entropy on a text that is not trained on ({first.forgetting_name},"
        f" {first.forgetting_tokens:.0f} tokens), after the last epoch less that of the base model"
        f" ({between}); nats a token, less is better."
    ]
    if others:
        notes.append(f"forgetting on another text, not shown: {', '.join(dict.fromkeys(others))}.")
    return with_column(table, "forgetting", entries, notes)


# --- cost score


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


def over(runs: pd.DataFrame, tasks: Sequence[str]) -> tuple[float, Costs] | None:
    """A row's points and costs over these tasks, means of medians over seeds; None where one is not known,
    or the metric is not in points of which more is better."""
    points, memory, flops = [], [], []
    for task in tasks:
        of = reported(runs[runs.task == task])
        sizes = pd.to_numeric(of[of.status == "done"].peak_memory_bytes)
        known = not of.less.any() and of.number.notna().all() and sizes.notna().all() and (sizes > 0).all()
        if of.empty or sizes.empty or not known or of.added_flops.isna().any():
            return None
        points.append(float(of.number.median()))
        memory.append(float(sizes.median()))
        flops.append(float(of.added_flops.iloc[0]))
    return statistics.fmean(points), Costs(float(runs.parameters.max()), max(flops), statistics.fmean(memory))


def with_score(table: Table, runs: pd.DataFrame, which: str) -> Table:
    """The table with a column of scores for its rows of ours. which: "paper", with PEFT-Bench's constants, or
    "model", with those of the table's model. A table without a source column stays as it is."""
    if "source" not in table.header:
        return table
    rows = [row_runs(table, row, runs) for row in table.rows]
    of_tasks = [set(of.task) for of in rows if len(of)]
    tasks = sorted(set.intersection(*of_tasks)) if of_tasks else []
    known = [over(of, tasks) if len(of) and tasks else None for of in rows]
    constants = PUBLISHED if which == "paper" else _of_model(pd.concat(rows), known)
    entries: list[Entry] = [
        Number(pscp(*found, constants), ids=tuple(of[of.task.isin(tasks)].id))
        if found
        else NONE
        if len(of)
        else ""
        for of, found in zip(rows, known, strict=True)
    ]
    every = set().union(*of_tasks)
    return with_column(table, "cost score", entries, [_note(tasks, len(every), constants, table, any(known))])


def _of_model(runs: pd.DataFrame, known: Sequence[tuple[float, Costs] | None]) -> Costs:
    """Constants of a table's model: its parameters, two FLOPs for each of them and token, and the largest
    memory of the table's rows."""
    memory = max((found[1].memory for found in known if found), default=0.0)
    parameters = float(pd.to_numeric(runs.total_parameters).fillna(0).min()) if len(runs) else 0.0
    return Costs(parameters or math.inf, 2 * TOKENS * parameters or math.inf, memory or math.inf)


def _note(tasks: Sequence[str], every: int, constants: Costs, table: Table, known: bool) -> str:
    if not known:
        why = "the metric is no percentage, memory or FLOPs are not known, or the rows share no task"
        return f"cost score: no row has one ({why})."
    on = ", ".join(table.tasks.get(task, task) for task in tasks)
    if len(tasks) < every:
        on += " (the tasks that every row here has)"
    values = f"{constants.parameters:.3g} parameters, {constants.flops:.3g} FLOPs and"
    values += f" {constants.memory / 1e9:.3g} GB"
    return f"cost score: PSCP of PEFT-Bench over {on}; its constants are {values}."
