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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import pandas as pd

from analysis.facts import TOKENS
from analysis.frame import pairs, reported
from analysis.inference import welch_half
from analysis.render import NONE, Entry, Number
from runs.errors import UserError

#: How the columns of `frame.runs` are written, by how their names end.
FORMS = {"bytes": "bytes", "parameters": "count", "rows": "count", "steps": "count"}
FORMS |= dict.fromkeys(("seconds", "best", "last", "value", "crossfit", "half", "optimism"), "number")


@dataclass(frozen=True)
class Column:
    """A column beside a table's own: its name, its entry of the runs of a row of ours, and what notes say."""

    name: str
    entry: Callable[[pd.DataFrame], Entry]
    notes: Sequence[str] = ()


def number_of(name: str, runs: pd.DataFrame) -> Column:
    """A number of `frame.runs`: of each row the median over its runs that did not diverge. runs: all of the
    table's."""
    form = next((form for end, form in FORMS.items() if name.endswith(end)), "general")
    try:
        numbers = pd.to_numeric(runs[name])
    except (ValueError, TypeError):
        raise UserError(f"columns={name}: {name} is no number of a run") from None

    def entry(of: pd.DataFrame) -> Entry:
        known = numbers[of.index[~of.diverged.astype(bool)]].dropna()
        return Number(float(known.median()), form=form, ids=tuple(of.id)) if len(known) else NONE

    return Column(name, entry)


# --- against another row


def against(other: str, runs: pd.DataFrame, rows: Iterable[pd.DataFrame]) -> list[Column]:
    """Each row's mean difference to another row, over the seeds that both have, measured on the same, with
    half of its 95% interval: by Student's t on pairs and, of several tasks, of the mean over tasks (Welch).
    Positive: the row is better. Where no row has one there is no column."""
    shown = reported(runs)

    def entry(of: pd.DataFrame) -> Entry:
        both = pairs(shown, of.row.iloc[0], other)
        both = both[both.id.isin(of.id) & (both.row != other)]
        return mean_difference(both) if len(both) else NONE

    note = (
        f"against {other}: mean difference over the seeds that both have (positive: better), +- half of its"
        " 95% interval; over several tasks, the mean of theirs."
    )
    known = any(isinstance(entry(of), Number) for of in rows)
    return [Column(f"against {other}", entry, [note])] if known else []


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


def forgetting(runs: pd.DataFrame) -> list[Column]:
    """Forgetting, where some of a table's runs measured it; on another text than most, it is not compared."""
    shown = runs[runs.forgetting.notna()]
    if shown.empty:
        return []
    alike = shown[shown.forgetting_text == shown.forgetting_text.mode().iloc[0]]

    def entry(of: pd.DataFrame) -> Entry:
        known = alike[alike.id.isin(of.id)].forgetting
        median, spread, n = float(known.median()), float(known.std()), len(known)
        return Number(median, spread, n, len(of), 3, sign=True, ids=tuple(of.id)) if n else NONE

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
    return [Column("forgetting", entry, notes)]


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


def score(which: str, rows: Sequence[pd.DataFrame], names: Mapping[str, str]) -> Column:
    """The cost score. which: "paper", with PEFT-Bench's constants, or "model", with those of the table's
    model: its parameters, two FLOPs for each of them and token, and the largest memory of the table's rows.
    rows: the runs of each row of ours. names: of tasks."""
    of_tasks = [{*of.task} for of in rows]
    tasks, constants = sorted(set.intersection(*of_tasks)) if of_tasks else [], PUBLISHED
    known = [found for of in rows if (found := points_and_costs(of, tasks))]
    if which == "model":
        totals = [float(pd.to_numeric(of.total_parameters).fillna(0).min()) for of in rows]
        total = min(totals, default=0.0) or math.inf
        memory = max((costs.memory for _, costs in known), default=math.inf)
        constants = Costs(total, 2 * TOKENS * total, memory)

    def entry(of: pd.DataFrame) -> Entry:
        found = points_and_costs(of, tasks)
        return Number(pscp(*found, constants), ids=(*of[of.task.isin(tasks)].id,)) if found else NONE

    why = "the metric is no percentage, memory or FLOPs are not known, or the rows share no task"
    note = f"cost score: no row has one ({why})."
    if known:
        on = ", ".join(names.get(task, task) for task in tasks)
        on += " (the tasks that every row here has)" if len(tasks) < len(set().union(*of_tasks)) else ""
        values = f"{constants.parameters:.3g} parameters, {constants.flops:.3g} FLOPs and"
        note = f"cost score: PSCP of PEFT-Bench over {on}; its constants are {values}"
        note += f" {constants.memory / 1e9:.3g} GB."
    return Column("cost score", entry, [note])
