"""Columns that any table with rows of ours can have beside its own: a number of `frame.runs` over the row's
runs (its median), the difference to another row, and forgetting, the cross-entropy on a fixed text after
training less that of the base model, in nats a token."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.frame import pairs, reported
from analysis.inference import welch_half
from analysis.render import NONE, Cell, Entry, Number, diverged, of_runs
from runs.errors import UserError

#: How the columns of `frame.runs` are written, by how their names end.
FORMS = {"bytes": "bytes", "parameters": "count", "rows": "count", "steps": "count"}
FORMS |= dict.fromkeys(("seconds", "best", "last", "value", "crossfit", "half", "optimism"), "number")


@dataclass(frozen=True)
class Column:
    """A column beside the numbers of a table: its name, its entry of the first cell and the runs of a row of
    ours, and what notes say. each: also of a row's further lines. optional: left out where no row has it."""

    name: str
    entry: Callable[[Cell, pd.DataFrame], Entry]
    notes: Sequence[str] = ()
    each: bool = False
    optional: bool = False

    @property
    def key(self) -> str:
        """Its key among a line's entries: a task may have its name."""
        return f"+{self.name}"


def of_cell(name: str, of: str, seeds: bool = False, **how: Any) -> Column:
    """A column of `frame.cells`. seeds: nan where a seed has none."""

    def entry(cell: Cell, runs: pd.DataFrame) -> Entry:
        value, mark = getattr(cell, of), diverged(cell) * (of == "median")
        if isinstance(value, str) or value is None:
            return str(value)
        known = Number(value, n=cell.n, mark=mark, ids=cell.ids)
        return known if seeds else of_runs(value, runs.id, **how)

    return Column(name, entry, each=True)


def number_of(name: str, runs: pd.DataFrame) -> Column:
    """A number of `frame.runs`: of each row the median over its runs that did not diverge. runs: all of the
    table's."""
    form = next((form for end, form in FORMS.items() if name.endswith(end)), "general")
    try:
        numbers = pd.to_numeric(runs[name])
    except (ValueError, TypeError):
        raise UserError(f"columns={name}: {name} is no number of a run") from None

    def entry(_: Cell, of: pd.DataFrame) -> Entry:
        return of_runs(numbers[of.index[~of.diverged.astype(bool)]].median(), of.id, form=form)

    return Column(name, entry)


def against(other: str, runs: pd.DataFrame) -> Column:
    """Each row's mean difference to another row, over the seeds that both have, measured on the same, with
    half of its 95% interval: by Student's t on pairs and, of several tasks, of the mean over tasks (Welch);
    without it where a task has one pair. Positive: the row is better. runs: all of the model."""
    shown = reported(runs)

    def entry(_: Cell, of: pd.DataFrame) -> Entry:
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
    return Column(f"against {other}", entry, [note], optional=True)


def forgetting(runs: pd.DataFrame) -> list[Column]:
    """Forgetting, where some of a table's runs measured it; on another text than most, it is not compared."""
    shown = runs[runs.forgetting.notna()]
    if shown.empty:
        return []
    alike = shown[shown.forgetting_text == shown.forgetting_text.mode().iloc[0]]

    def entry(_: Cell, of: pd.DataFrame) -> Entry:
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
