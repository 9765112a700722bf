"""Columns that any table with rows of ours can have beside its own: a number of `frame.runs` over the row's
runs (its median), the difference to another row, forgetting, and the cost score. A column is a function from
the runs of a row to its entry.

forgetting: the cross-entropy on a fixed text after training less that of the base model, in nats a token.

cost score: PEFT-Bench's PSCP (Belanec et al., arXiv 2511.21285, equation 3; the published constants and
table 3 by kinit-sk/PEFT-Factory, scripts/peftfactory/cal_psqp.py at 45de8ee).

    PSCP = P / ((1 + Mp / Cp) (1 + Mf / Cf) (1 + Mm / Cm))

P: the metric in points. Mp: trained parameters. Mf: what a forward pass over one text of 512 tokens
computes beyond the base model, in FLOPs. Mm: the largest memory in training, in bytes. Every exponent is
1."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace

import pandas as pd

from analysis.facts import TOKENS
from analysis.frame import pairs, reported
from analysis.inference import welch_half
from analysis.render import NONE, Entry, Number, Row, Table
from runs.errors import UserError

#: How the columns of `frame.runs` are written, by how their names end.
FORMS = {"bytes": "bytes", "parameters": "count", "rows": "count", "steps": "count"}
FORMS |= dict.fromkeys(("seconds", "best", "last", "value", "crossfit", "half", "optimism"), "number")


def row_runs(table: Table, row: Row, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs behind a row of ours; none for a row of the paper, and for one that belongs to the row above
    it."""
    # Tables 6 and 7 name a setting once, in the paper's row
    named = row[0] != "" or table.header[0] == "setting"
    whose = row[table.header.index("source")] if "source" in table.header else "ours"
    ids = {run for entry in row if isinstance(entry, Number) for run in entry.ids}
    return runs[runs.id.isin(ids)] if named and whose in ("ours", "published") else runs[:0]


def with_column(
    table: Table,
    runs: pd.DataFrame,
    name: str,
    entry: Callable[[pd.DataFrame], Entry],
    notes: Iterable[str] = (),
) -> Table:
    """The table with one more column, before its status. entry: of the runs of a row of ours."""
    at = len(table.header) - (table.header[-1] == "status")
    of_rows = [row_runs(table, row, runs) for row in table.rows]
    entries = [entry(of) if len(of) else "" for of in of_rows]
    rows = [[*row[:at], of, *row[at:]] for row, of in zip(table.rows, entries, strict=True)]
    header = [*table.header[:at], name, *table.header[at:]]
    return replace(table, header=header, rows=rows, notes=[*table.notes, *notes])


def with_numbers(table: Table, runs: pd.DataFrame, name: str) -> Table:
    """The table with a number of `frame.runs`: of each row the median over its runs that did not diverge."""
    form = next((form for end, form in FORMS.items() if name.endswith(end)), "general")
    try:
        numbers = pd.to_numeric(runs[name])
    except (ValueError, TypeError):
        raise UserError(f"columns={name}: {name} is no number of a run") from None

    def entry(of: pd.DataFrame) -> Entry:
        known = numbers[of.index[~of.diverged.astype(bool)]].dropna()
        return Number(float(known.median()), form=form, ids=tuple(of.id)) if len(known) else NONE

    return with_column(table, runs, name, entry)


# --- against another row


def with_against(table: Table, runs: pd.DataFrame, other: str) -> Table:
    """The table with each row's mean difference to another row, over the seeds that both have, measured on
    the same, with half of its 95% interval: by Student's t on pairs and, of several tasks, of the mean over
    tasks (Welch). Positive: the row is better."""
    shown = reported(runs)

    def entry(of: pd.DataFrame) -> Entry:
        row = of.row.iloc[0]
        both = pairs(shown, row, other) if row != other else shown[:0]
        both = both[both.id.isin(of.id)]
        return mean_difference(both) if len(both) else NONE

    note = (
        f"against {other}: mean difference over the seeds that both have (positive: better), +- half of its"
        " 95% interval; over several tasks, the mean of theirs."
    )
    made = with_column(table, runs, f"against {other}", entry, [note])
    at = made.header.index(f"against {other}")
    return made if any(isinstance(row[at], Number) for row in made.rows) else table


def mean_difference(both: pd.DataFrame) -> Number:
    """Of the pairs of two rows (`frame.pairs`): the mean over tasks, with half of its 95% interval; without
    it where a task has one pair."""
    of_tasks = both.groupby("task").difference.agg(["mean", "var", "size"])
    half = welch_half(of_tasks["var"] / of_tasks["size"] / len(of_tasks) ** 2, of_tasks["size"] - 1)
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
    most = shown.forgetting_text.mode().iloc[0]
    alike = shown[shown.forgetting_text == most]

    def entry(of: pd.DataFrame) -> Entry:
        known = alike[alike.id.isin(of.id)].forgetting
        median, spread = float(known.median()), float(known.std())
        return (
            Number(median, spread, len(known), len(of), 3, sign=True, ids=(*of.id,)) if len(known) else NONE
        )

    before, about = alike.forgetting_before.astype(float), alike.iloc[0]
    between = " to ".join(dict.fromkeys(f"{value:.3f}" for value in (before.min(), before.max())))
    notes = [
        f"forgetting: cross-entropy on a text that is not trained on ({about.forgetting_name},"
        f" {about.forgetting_tokens:.0f} tokens), after the last epoch less that of the base model"
        f" ({between}); nats a token, less is better."
    ]
    others = shown[~shown.row.isin(alike.row)].label
    if len(others):
        notes.append(f"forgetting on another text, not shown: {', '.join(dict.fromkeys(others))}.")
    return with_column(table, runs, "forgetting", entry, notes)


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
    both = zip(astuple(costs), astuple(constants), strict=True)
    return points / math.prod(1 + cost / constant for cost, constant in both)


def points_and_costs(runs: pd.DataFrame, tasks: Sequence[str]) -> tuple[float, Costs] | None:
    """A row's points and costs over these tasks, means of medians over seeds; None where one is not known,
    or the metric is not in points of which more is better."""
    found = list[tuple[float, float, float]]()
    for task in tasks:
        of = reported(runs[runs.task == task])
        sizes = pd.to_numeric(of[of.status == "done"].peak_memory_bytes)
        known = not of.less.any() and of.number.notna().all() and of.added_flops.notna().all()
        if sizes.empty or not known or not (sizes > 0).all():
            return None
        found.append((float(of.number.median()), float(sizes.median()), float(of.added_flops.iloc[0])))
    if not found:
        return None
    points, memory, flops = zip(*found, strict=True)
    costs = Costs(float(runs.parameters.max()), max(flops), statistics.fmean(memory))
    return statistics.fmean(points), costs


def with_score(table: Table, runs: pd.DataFrame, which: str) -> Table:
    """The table with a column of scores for its rows of ours. which: "paper", with PEFT-Bench's constants, or
    "model", with those of the table's model: its parameters, two FLOPs for each of them and token, and the
    largest memory of the table's rows. A table without a source column stays as it is."""
    if "source" not in table.header:
        return table
    rows = [of for of in (row_runs(table, row, runs) for row in table.rows) if len(of)]
    of_tasks = [{*of.task} for of in rows]
    tasks, constants = sorted(set.intersection(*of_tasks)) if of_tasks else [], PUBLISHED
    known = [found for of in rows if (found := points_and_costs(of, tasks))]
    if which == "model":
        total = pd.to_numeric(pd.concat([runs[:0], *rows]).total_parameters).fillna(0).min() or math.inf
        total = float(total) if total == total else math.inf
        memory = max((costs.memory for _, costs in known), default=math.inf)
        constants = Costs(total, 2 * TOKENS * total, memory)

    def entry(of: pd.DataFrame) -> Entry:
        found = points_and_costs(of, tasks)
        return Number(pscp(*found, constants), ids=(*of[of.task.isin(tasks)].id,)) if found else NONE

    if known:
        on = ", ".join(table.tasks.get(task, task) for task in tasks)
        on += " (the tasks that every row here has)" if len(tasks) < len(set().union(*of_tasks)) else ""
        values = f"{constants.parameters:.3g} parameters, {constants.flops:.3g} FLOPs and"
        values += f" {constants.memory / 1e9:.3g} GB"
        note = f"cost score: PSCP of PEFT-Bench over {on}; its constants are {values}."
    else:
        why = "the metric is no percentage, memory or FLOPs are not known, or the rows share no task"
        note = f"cost score: no row has one ({why})."
    return with_column(table, runs, "cost score", entry, [note])
