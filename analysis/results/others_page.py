"""docs/others.md and its picture: what independent groups report of the paper's rows."""

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.figure import Figure, look, svg
from analysis.frame import runs
from analysis.others import (
    DISPLAY_NAMES,
    EPOCHS,
    EXACT,
    reported_sources,
    reports_of_others,
    setup_text,
)
from analysis.paper import GLUE, METHOD_NAMES, printed_numbers
from analysis.render import markdown_grid
from analysis.results.templates import rendered
from analysis.tables import tables_of_runs
from runs.record.ledger import Ledger

#: The marker of each source in the picture.
MARKS = dict(zip(reported_sources(), "osDv^Xp*P<>hd8H.", strict=True))
#: The columns that identify a number of the paper, and one that others report of it.
CELL = ["model", "row", "column"]
#: The paper's tables to which others have reported rows.
TABLES = ("table2", "table3", "table4", "table5")
#: Columns of `others` that are no score of texts.
COLUMNS_WITHOUT_TEXTS = [*GLUE, "DINO similarity", "drift"]
#: The ending of the columns that have numbers after training by reward, that is, by
#: reinforcement learning.
REWARD_SUFFIX = " by reward"


def others_pages() -> dict[str, str]:
    """The page and its picture, by their paths in docs/."""
    differences = vera_minus_lora()
    # DISPLAY_NAMES has the models and columns of the paper, but also the test sets with
    # exact answers (EXACT), which the paper does not have.
    is_paper_column = differences.column.isin(DISPLAY_NAMES.keys() - EXACT.keys())
    is_in_paper = differences.model.isin(DISPLAY_NAMES) & is_paper_column
    averages = differences[is_in_paper & (differences.column == "avg")]
    is_by_reward = differences.column.str.endswith(REWARD_SUFFIX)
    has_no_text = differences.column.isin(COLUMNS_WITHOUT_TEXTS)
    on_texts = differences[~is_in_paper & ~is_by_reward & ~has_no_text]
    page = rendered(
        "others.md",
        sources=reported_sources(),
        # Functions, by which the template looks up a cell: {{ paper((table, ...)) }}
        reports=texts_of_others().__getitem__,
        paper=paper_numbers().__getitem__,
        names=DISPLAY_NAMES,
        epochs=EPOCHS,
        differences=averages.to_dict("records"),
        tables=tables_of_others(),
        text_scores=len(on_texts),
        lower_text_scores=int((on_texts.difference < 0).sum()),
        by_reward=", ".join(numbers_by_reward(differences[is_by_reward])),
        setting=setup_text,
    )
    return {"others.md": page, "others.svg": svg(others_picture())}


def vera_minus_lora() -> pd.DataFrame:
    """VeRA's score minus LoRA's in each source: a line for each source, model and column,
    with both scores (vera, lora) and their `difference`. Where a source reports several
    scores of a row, we take the highest."""
    keys = ["row", "label", "model", "column"]
    best = reports_of_others().groupby(keys, sort=False).value.max()
    scores = pd.DataFrame({row: best[row] for row in ("vera", "lora")}).dropna()
    scores["difference"] = scores.vera - scores.lora
    return scores.reset_index()


def numbers_by_reward(differences: pd.DataFrame) -> list[str]:
    """A text for each of these differences: VeRA's number and LoRA's, with the source."""
    return [
        f"{line.vera:g} and {line.lora:g} ({line.label})"
        for line in differences.itertuples()
    ]


def texts_of_others() -> pd.Series:
    """What others report of each cell of the paper (CELL), as a text: "C3A 83.38,
    VB-LoRA 85.5 (r 1,024, all linear)"."""
    frame = reports_of_others()
    texts = list[str]()
    for line in frame.to_dict("records"):
        suffix = "" if line["same_sites"] else f" ({setup_text(line)})"
        texts.append(f"{line['label']} {line['value']:g}{suffix}")
    keys = [frame.model, frame.row, frame.column]
    return pd.Series(texts).groupby(keys, sort=False).agg(", ".join)


def paper_numbers() -> dict[tuple[str, ...], str]:
    """The paper's numbers as texts, by table, model, row and column."""
    frame = printed_numbers().set_index(["table", *CELL])
    return {key: f"{value:g}" for key, value in frame.value.items()}


def tables_of_others() -> list[tuple[str, list[str]]]:
    """The paper's tables to which others have reported rows: each with its title and its
    lines of Markdown. They have the paper's numbers, too, and none of our runs."""
    no_runs = runs(Ledger())
    # a report's line has its label as source; other sources are the paper
    labels = {*reports_of_others().label}
    tables = list[tuple[str, list[str]]]()
    for name in TABLES:
        for table in tables_of_runs(name, no_runs, others="all"):
            source_column = table.header.index("source")
            sources = {row[source_column] for row in table.texts}
            if sources & labels:
                lines = markdown_grid(table.header, table.texts, right=False)
                tables.append((table.title, lines))
    return tables


def others_picture() -> Figure:
    """The scores of VeRA and LoRA that others report minus the paper's, task by task.
    Where the paper's LoRA started from an adapter trained on MNLI there is no point,
    because no other source says that it did so."""
    paper = printed_numbers()
    is_shown = (
        paper.table.isin(["table2", "table5"])
        # `like` is lora_mnli where the paper's LoRA started from MNLI.
        & (paper.like == paper.row)
        & paper.row.isin(["vera", "lora"])
        & (paper.task != "")
    )
    printed = paper[is_shown][[*CELL, "value"]]
    cells = printed.merge(reports_of_others(), on=CELL, suffixes=("_paper", ""))
    cells = cells.assign(difference=cells.value - cells.value_paper)
    title = "What others report minus what the paper prints, in points"
    data = cells[[*CELL, "source", "same_sites", "difference"]]
    return Figure("others", title, data, [], _draw_others, size=(7.4, 3.6))


def _draw_others(axes: Axes, data: pd.DataFrame) -> None:
    """Draws each source's differences. The cells of the paper stand side by side, in its
    order, VeRA to the right of LoRA. data: a line for each number of a source, with the
    columns of CELL, source, same_sites (whether its target modules are the paper's, or
    not said) and difference."""
    cells = dict.fromkeys(zip(data.model, data.column, strict=True))
    position_of_cell = {cell: position for position, cell in enumerate(cells)}
    groups = data.groupby(["source", "row", "same_sites"], sort=False)
    for (source, row, is_same), group in groups:
        shift = 0.15 if row == "vera" else -0.15
        cells_of_group = zip(group.model, group.column, strict=True)
        axes.plot(
            [position_of_cell[cell] + shift for cell in cells_of_group],
            group.difference,
            MARKS[source],
            fillstyle="full" if is_same else "none",
            linestyle="none",
            color=look(row)[0],
        )
    axes.axhline(0, color="black", linewidth=1)
    axes.set_ylabel("points")
    names = [
        f"{DISPLAY_NAMES[model]}, {DISPLAY_NAMES[column]}" for model, column in cells
    ]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    for label, (mark, colour, fill) in _legend(data).items():
        axes.plot([], [], mark, color=colour, fillstyle=fill, label=label)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _legend(data: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """The marker, colour and fill of each line of the legend, by its label."""
    grey = "#555555"
    legend = {
        METHOD_NAMES[row]: ("s", look(row)[0], "full") for row in ("vera", "lora")
    }
    for source in data.source:
        legend[reported_sources()[source]["name"]] = (MARKS[source], grey, "full")
    legend["other target modules"] = ("s", grey, "none")
    return legend
