"""A table of the paper, or of the demo, from records. TABLES names them."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import pandas as pd

from analysis.command import own_and_published
from analysis.frame import SEEDS
from analysis.notes import unfinished_notices
from analysis.paired import comparison_table, paired_differences
from analysis.render import Table
from analysis.tables.build import build_tables, cells_and_printed
from analysis.tables.formulas import recipe_tables, size_claims_table, table1
from analysis.tables.spec import View
from analysis.tables.specs import specs
from analysis.variants import every_variant
from runs.record.ledger import Ledger

#: What makes the tables that need no record.
WITHOUT_RECORDS: dict[str, Callable[[], list[Table]]] = {
    "table1": table1,
    **{f"table{number}": partial(recipe_tables, number) for number in range(8, 12)},
    "claims": size_claims_table,
}
#: The names of all tables, in the order of a page.
TABLES = (
    *(f"table{number}" for number in range(1, 14)),
    "maths",
    "commonsense",
    "lm_eval",
    "demo",
    "claims",
)
#: Tables with numbers of trained models that the paper prints, on which there are
#: verdicts, in the order of a page.
TABLES_WITH_VERDICTS = (
    "table2",
    "table3",
    "table4",
    "table13",
    "table5",
    "table6",
    "table7",
)


def tables_of_ledger(
    name: str,
    ledger: Ledger,
    frames: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    all_variants: bool = False,
    all_own_variants: bool = False,
    against: str = "",
    own_models_only: bool = False,
    **view: Any,
) -> list[Table]:
    """A table's parts by its name, "" for rows x tasks of whatever has run: first of
    what ran on this machine, then of what the project has published.

    frames: the runs of this machine and the published ones, if they are read already.
    all_variants: whether each variant of a row is a row; all_own_variants: only each of
    those that ran here. against: a row, of which tables of the differences from it
    follow. own_models_only: whether published runs on models that have no run of this
    machine in the table are left out, with a note. view: further fields of View."""
    if name in WITHOUT_RECORDS:
        return WITHOUT_RECORDS[name]()
    own_runs, published = frames or own_and_published(ledger)

    def build_part(runs: pd.DataFrame, split_rows: bool, origin: str) -> list[Table]:
        variants = runs
        if split_rows:
            variants = every_variant(runs, keep_nearest_name=name != "")
        tables = tables_of_runs(name, variants, origin=origin, **view)
        if not against:
            return tables
        in_table = runs_of_table(name, variants)
        if tasks := view.get("tasks"):
            in_table = in_table[in_table.task.isin(tasks)]
        models = [table.model for table in tables if table.ids]
        in_table = in_table[in_table.model.isin(models)]
        # The row `against` need not be in the table.
        reference = variants[
            (variants.row == against) & variants.task.isin(in_table.task)
        ]
        compared = pd.concat([in_table, reference]).drop_duplicates("id")
        return tables + _difference_tables(compared, against, origin)

    tables = list[Table]()
    if len(own_runs) or published.empty:
        tables = build_part(own_runs, all_variants or all_own_variants, "ours")
    # A table that has the paper's rows alone comes after those with runs, and only once.
    tables.sort(key=lambda table: not table.ids)
    stopped = _stopped_without_table(name, own_runs, tables, view.get("tasks", ()))
    own_models = {table.model for table in tables if table.ids}
    left_out = list[str]()
    if len(published):
        for table in build_part(published, all_variants, "published"):
            if own_models_only and own_models and table.model not in own_models:
                if table.ids:
                    left_out.append(table.model)
            elif table.ids or not tables:
                tables.append(table)
    if tables:
        tables[0].notes += unfinished_notices(stopped)
    if quoted_models := _quoted_models_left_out(name, tables, view.get("models", ())):
        models = ",".join([*view["models"], quoted_models[0]])
        tables[0].notes.append(
            f"Left out: the paper's rows (model={models} shows them)."
        )
    if left_out:
        models = ", ".join(dict.fromkeys(left_out))
        note = f"Left out: published runs on {models} (model={left_out[0]} shows them)."
        tables[0].notes.append(note)
    return tables


def _quoted_models_left_out(
    name: str, tables: list[Table], models: Collection[str]
) -> list[str]:
    """The models of the paper's rows of a table, if `models` are asked for and none of
    them is among these."""
    if not (name and models and tables):
        return []
    paper_models = [model for spec in specs()[name] for model in spec.models]
    return [] if {*models} & {*paper_models} else paper_models


def _stopped_without_table(
    name: str, own_runs: pd.DataFrame, tables: list[Table], tasks: Collection[str]
) -> pd.DataFrame:
    """The own runs that were stopped early, of models that have none of these tables."""
    runs = runs_of_table(name, own_runs)
    if tasks:
        runs = runs[runs.task.isin(tasks)]
    has_table = runs.model.isin([table.model for table in tables])
    return runs[~has_table & (runs.kind == "stopped")]


def tables_of_runs(
    name: str, runs: pd.DataFrame, tasks: Collection[str] = (), **view: Any
) -> list[Table]:
    """A table's parts from some runs. view: further fields of View."""
    if name in WITHOUT_RECORDS:
        return WITHOUT_RECORDS[name]()
    selected = runs[runs.task.isin(tasks)] if tasks else runs
    table_view = View(selected, tasks=tuple(tasks), **view)
    return [table for spec in specs()[name] for table in build_tables(spec, table_view)]


def _difference_tables(runs: pd.DataFrame, against: str, origin: str) -> list[Table]:
    """Each other row minus the row `against`, by pairs of runs, a table for each
    model."""
    suffix = "" if origin == "ours" else f" ({origin})"
    lines = paired_differences(runs, against, as_reference=True)
    tables = list[Table]()
    for model, of_model in lines.groupby("model", sort=False):
        labels = " and ".join(dict.fromkeys(of_model.right))
        title = f"{model}: each method minus {labels}{suffix}"
        tables.append(comparison_table(of_model, title))
    return tables


def runs_of_table(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that a table is made from, finished or not; all for rows x tasks."""
    parts = [spec.select_runs(runs) for spec in specs()[name]]
    return pd.concat(parts).drop_duplicates("id")


def verdicts(runs: pd.DataFrame) -> pd.DataFrame:
    """Every number that the paper prints of a trained model, beside our cell, with the
    verdict: `compare_with_paper` of each table, in the order of a page."""
    view = View(runs, seeds=SEEDS)
    frames = list[pd.DataFrame]()
    for name in TABLES_WITH_VERDICTS:
        for spec in specs()[name]:
            (part,) = spec.parts(view)
            _, numbers = cells_and_printed(spec, part)
            keys = ["model", "method", "size", "column"]
            frames.append(numbers.drop_duplicates(keys))
    return pd.concat(frames, ignore_index=True)
