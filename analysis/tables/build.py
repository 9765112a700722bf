"""How tables of cells are made: the cells of a part of a table, the paper's numbers beside
them, and a table for each model."""

import pandas as pd

from analysis import paper_comparison
from analysis.paper import printed_numbers
from analysis.render import Table
from analysis.tables.model_table import ModelTable
from analysis.tables.spec import TableSpec, View


def cells_and_printed(spec: TableSpec, view: View) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two frames: the cells of a table, and the paper's numbers with our cells beside them
    (`compare_with_paper`). The second one has no rows if the paper does not have the
    table."""
    cells = spec.cells_in_columns(view)
    printed = printed_numbers()
    if spec.name not in {*printed.table}:
        # the columns of `compare_with_paper` that `ModelTable` reads
        columns = {
            "ran": False,
            "same_size": True,
            "verdict": "",
            "variant": "",
            "ids": "",
        }
        return cells, printed[:0].assign(**columns)
    compared = spec.compared_cells(cells)
    return cells, paper_comparison.compare_with_paper(spec.name, compared, spec.part)


def build_tables(spec: TableSpec, view: View) -> list[Table]:
    """The tables of a part of a table: one for each of the paper's models in it, and for
    each other model that has runs of its kind, if the model has a row."""
    tables = list[Table]()
    for part in spec.parts(view):
        cells, printed = cells_and_printed(spec, part)
        if part.methods:
            # `like` is our row that the paper's is compared with, such as lora_mnli
            names = list(part.methods)
            printed = printed[printed.row.isin(names) | printed.like.isin(names)]
        for model in _models(spec, part, cells):
            frames_of_model = [
                frame[frame.model == model] for frame in (part.runs, cells, printed)
            ]
            tables.append(ModelTable(spec, part, model, *frames_of_model).table())
    return [table for table in tables if table.rows]


def _models(spec: TableSpec, view: View, cells: pd.DataFrame) -> list[str]:
    """The models that may have a table, the paper's first: those of the spec and of the
    cells, without those that the view does not show. A model on which VeRA alone ran
    has no table of ablations."""
    ran = cells[cells.row != "vera"] if spec.is_ablation else cells
    paper_models = [*spec.models]
    if view.models:
        names = list(view.models)
        # A model from a folder goes by its own name and by that of its file in conf/model.
        ran = ran[ran.model.isin(names) | ran.conf_model.isin(names)]
        paper_models = [model for model in paper_models if model in names]
    return list(dict.fromkeys([*paper_models, *sorted({*ran.model})]))
