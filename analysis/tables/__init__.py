"""The tables of the paper and others from records, by their names (TABLES)."""

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

#: What makes the tables that need no record, by their names.
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
    """A table's parts, each a table of one model: first of what ran on this machine, then
    of what the project has published.

    name: of TABLES; "" for rows x tasks of whatever has run. frames: the runs of this
    machine and the published ones, if they are read already. all_variants: whether each
    variant of a row (its runs of one combination of settings) is a row of its own;
    all_own_variants: the same for the runs of this machine alone. against: a row; tables
    with the difference of each other row from it follow ("": no such tables).
    own_models_only: whether published runs on models that have no run of this machine in
    the table are left out, with a note. view: further fields of View."""
    if name in WITHOUT_RECORDS:
        return WITHOUT_RECORDS[name]()
    own_runs, published = frames or own_and_published(ledger)
    tables = list[Table]()
    # Without any run there is still a table, with the paper's rows.
    if len(own_runs) or published.empty:
        split_variants = all_variants or all_own_variants
        tables = _tables_of_origin(
            name, own_runs, "ours", split_variants, against, view
        )
    # A table without ids of runs has the paper's rows alone, and comes last. If there is
    # one already, the same table of no published runs is not added below.
    tables.sort(key=lambda table: not table.ids)
    stopped = _stopped_without_table(name, own_runs, tables, view.get("tasks", ()))
    own_models = {table.model for table in tables if table.ids}
    models_left_out = list[str]()
    if len(published):
        published_tables = _tables_of_origin(
            name, published, "published", all_variants, against, view
        )
        for table in published_tables:
            # Without a model of our own, the published tables are all that we can show.
            is_on_another_model = own_models and table.model not in own_models
            if own_models_only and is_on_another_model:
                if table.ids:  # without, it has the paper's rows and leaves out no run
                    models_left_out.append(table.model)
            elif table.ids or not tables:
                tables.append(table)
    if tables:
        tables[0].notes += unfinished_notices(stopped)
    if quoted_models := _quoted_models_left_out(name, tables, view.get("models", ())):
        models = ",".join([*view["models"], quoted_models[0]])
        tables[0].notes.append(
            f"Left out: the paper's rows (model={models} shows them)."
        )
    if models_left_out:
        models = ", ".join(dict.fromkeys(models_left_out))
        command = f"model={models_left_out[0]} shows them"
        tables[0].notes.append(f"Left out: published runs on {models} ({command}).")
    return tables


def _tables_of_origin(
    name: str,
    runs: pd.DataFrame,
    origin: str,
    split_variants: bool,
    against: str,
    view: dict[str, Any],
) -> list[Table]:
    """A table's parts from the runs of one origin ("ours" or "published"), followed by the
    tables of the differences from `against`. split_variants: whether each variant of a row
    is a row of its own. Other arguments: of `tables_of_ledger`."""
    if split_variants:
        # In a named table the nearest variant stands beside the paper's row of its name.
        runs = every_variant(runs, keep_nearest_name=name != "")
    tables = tables_of_runs(name, runs, origin=origin, **view)
    if not against:
        return tables
    runs_in_table = runs_of_table(name, runs)
    if tasks := view.get("tasks"):
        runs_in_table = runs_in_table[runs_in_table.task.isin(tasks)]
    models = [table.model for table in tables if table.ids]
    runs_in_table = runs_in_table[runs_in_table.model.isin(models)]
    # The row `against` need not be in the table.
    is_reference = (runs.row == against) & runs.task.isin(runs_in_table.task)
    compared = pd.concat([runs_in_table, runs[is_reference]]).drop_duplicates("id")
    return tables + _difference_tables(compared, against, origin)


def _quoted_models_left_out(
    name: str, tables: list[Table], models: Collection[str]
) -> list[str]:
    """The models of the paper's rows in a table, if the user asks for other models alone,
    so that no table has these rows; otherwise none. name: of the table. models: those
    that the user asks for."""
    if not (name and models and tables):
        return []
    paper_models = [model for spec in specs()[name] for model in spec.models]
    return [] if {*models} & {*paper_models} else paper_models


def _stopped_without_table(
    name: str, own_runs: pd.DataFrame, tables: list[Table], tasks: Collection[str]
) -> pd.DataFrame:
    """The runs of this machine that belong to a table and were stopped early, and whose
    models have no table that would say so. name: of the table. tasks: those that are
    shown (empty: all)."""
    runs = runs_of_table(name, own_runs)
    if tasks:
        runs = runs[runs.task.isin(tasks)]
    has_table = runs.model.isin([table.model for table in tables])
    return runs[~has_table & (runs.kind == "stopped")]


def tables_of_runs(
    name: str, runs: pd.DataFrame, tasks: Collection[str] = (), **view: Any
) -> list[Table]:
    """A table's parts from some runs, each a table of one model. tasks: those that are
    shown (empty: all). view: further fields of View."""
    if name in WITHOUT_RECORDS:
        return WITHOUT_RECORDS[name]()
    selected = runs[runs.task.isin(tasks)] if tasks else runs
    table_view = View(selected, tasks=tuple(tasks), **view)
    return [table for spec in specs()[name] for table in build_tables(spec, table_view)]


def _difference_tables(runs: pd.DataFrame, against: str, origin: str) -> list[Table]:
    """A table for each model with the differences of each other row from the row
    `against`, by pairs of runs of one seed. origin: what the runs are called, as in
    View."""
    suffix = "" if origin == "ours" else f" ({origin})"
    lines = paired_differences(runs, against, as_reference=True)
    tables = list[Table]()
    for model, of_model in lines.groupby("model", sort=False):
        # A row may have another label, such as another rank, on another task.
        labels = " and ".join(dict.fromkeys(of_model.right))
        title = f"{model}: each method minus {labels}{suffix}"
        tables.append(comparison_table(of_model, title))
    return tables


def runs_of_table(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Those of the runs that a table is made from, finished or not; all of them for
    name="", rows x tasks."""
    parts = [spec.select_runs(runs) for spec in specs()[name]]
    return pd.concat(parts).drop_duplicates("id")


def verdicts(runs: pd.DataFrame) -> pd.DataFrame:
    """Every number that the paper prints of a trained model, beside our cell, with the
    verdict: the lines of `compare_with_paper` for TABLES_WITH_VERDICTS."""
    # A verdict needs SEEDS runs, more than the protocol of some tables has.
    view = View(runs, seeds=SEEDS)
    frames = list[pd.DataFrame]()
    for name in TABLES_WITH_VERDICTS:
        for spec in specs()[name]:
            (part,) = spec.parts(view)  # only kinds without verdicts have several
            _, compared = cells_and_printed(spec, part)
            # A number has a line for each variant of ours that is compared with it, such
            # as each version of the judge. The first one counts.
            keys = ["model", "method", "size", "column"]
            frames.append(compared.drop_duplicates(keys))
    return pd.concat(frames, ignore_index=True)
