"""Columns that any table with rows of ours can have beside its own: a number of `frame.runs` over the row's
runs (its median), the difference to another row, and forgetting, the cross-entropy on a fixed text after
training less that of the base model, in nats a token."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.frame import pairs, reported
from analysis.inference import welch_half
from analysis.render import NONE, Entry, Number, of_runs
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
        return of_runs(numbers[of.index[~of.diverged.astype(bool)]].median(), of.id, form=form)

    return Column(name, entry)


def against(other: str, runs: pd.DataFrame, rows: Iterable[pd.DataFrame]) -> list[Column]:
    """Each row's mean difference to another row, over the seeds that both have, measured on the same, with
    half of its 95% interval: by Student's t on pairs and, of several tasks, of the mean over tasks (Welch);
    without it where a task has one pair. Positive: the row is better. Where no row has one there is no
    column."""
    shown = reported(runs)

    def entry(of: pd.DataFrame) -> Entry:
        both = pairs(shown, of.row.iloc[0], other)
        both = both[both.id.isin(of.id) & (both.row != other)]
        tasks = both.groupby("task").difference.agg(["mean", "var", "size"])
        half = welch_half(tasks["var"] / tasks["size"] / max(len(tasks), 1) ** 2, tasks["size"] - 1)
        return of_runs(
            tasks["mean"].mean(),
            (*both.id, *both.id_other),
            spread=float(half) if (tasks["size"] > 1).all() else math.nan,
            decimals=int(both.digits.min()) if len(both) else 1,
            sign=True,
        )

    note = f"against {other}: the mean difference over pairs of one seed, +- half of its 95% interval."
    return [Column(f"against {other}", entry, [note])] if any(entry(of) != NONE for of in rows) else []


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
