"""docs/others.md and its picture, from printed/others.yaml: what independent groups report, beside the
paper."""

from typing import Any

import pandas as pd

from analysis.figures.figure import Figure, look, svg
from analysis.frame import runs
from analysis.others import EPOCHS, NAMED, SOURCES, others, setting
from analysis.paper import GLUE, IMAGES, NAMES, ROBERTA, VIT, numbers
from analysis.render import grid
from analysis.results.sections import rendered
from analysis.tables import made
from runs.record import Ledger

MARKS = dict(zip(SOURCES, "osDv^Xp*P<>hd", strict=True))


def pages() -> dict[str, str]:
    """The page and its picture, by their paths in docs/."""
    frame, none = others(), runs(Ledger())
    paper = numbers().set_index(["table", "model", "row", "column"]).value.map("{:g}".format).to_dict()
    own = frame.model.isin(NAMED) & frame.column.isin(NAMED)
    glue, elsewhere = less_lora(frame[own & (frame.column == "avg")]), less_lora(frame[~own])
    texts = elsewhere[~elsewhere.column.isin([*GLUE, "DINO similarity", "drift"])].less
    tables = [of for n in (2, 3, 4, 5) for of in made(f"table{n}", none, others="all")]
    tables = [of for of in tables if {row[1] for row in of.texts} & {*frame.label}]
    shown = [(of.title, grid(of.header, of.texts, right=False)) for of in tables]
    gaps: dict[str, Any] = {"sources": SOURCES, "said": _said, "paper": paper.__getitem__, "setting": setting}
    gaps |= {"names": NAMED, "epochs": EPOCHS, "less": glue.to_dict("records"), "tables": shown}
    gaps |= {"texts": len(texts), "below": int((texts < 0).sum())}
    return {"others.md": rendered("others.md", **gaps), "others.svg": svg(picture())}


def _said(model: str, row: str, column: str) -> str:
    """What others report of a cell of the paper: "C3A 83.38, VB-LoRA 85.5 (r 1,024, all linear)"."""
    of = others().query("model == @model and row == @row and column == @column").to_dict("records")
    return ", ".join(
        f"{one['label']} {one['value']:g}{'' if one['same'] else f' ({setting(one)})'}" for one in of
    )


def less_lora(frame: pd.DataFrame) -> pd.DataFrame:
    """VeRA less the same runner's LoRA, the best of each where there are several, of each number that has
    both: label, model, column, less."""
    best = frame.groupby(["row", "label", "model", "column"], sort=False).value.max()
    return (best["vera"] - best["lora"]).dropna().rename("less").reset_index()


def picture() -> Figure:
    """Others' VeRA and LoRA less the paper's, task by task; where the paper's LoRA started from MNLI there is
    no point."""
    paper = numbers()[lambda of: of.table.isin(["table2", "table5"]) & (of.like == of.row)]
    paper = paper[paper.row.isin(["vera", "lora"]) & (paper.task != "")]
    on = ["model", "row", "column"]
    both = others().merge(paper[[*on, "value"]], on=on, suffixes=("", "_paper"))
    both = both.assign(difference=both.value - both.value_paper)
    title = "What others report, less what the paper prints, in points"
    return Figure("others", title, both[[*on, "source", "same", "difference"]], [], _draw, size=(7.4, 3.6))


def _draw(axes: Any, data: pd.DataFrame) -> None:
    places, at, top = dict[tuple[str, str], float](), 0.0, data.difference.max() + 1
    axes.set_ylim(data.difference.min() - 1, top + 1)
    for models, columns in ((ROBERTA, GLUE), (VIT, IMAGES)):
        for model, name in models.items():
            places |= {(model, column): at + i for i, column in enumerate(columns)}
            axes.text(at + (len(columns) - 1) / 2, top, name, ha="center")
            at += len(columns) + 1
    for (source, row, same), of in data.groupby(["source", "row", "same"], sort=False):
        side, how = (0.15 if row == "vera" else -0.15), {"linestyle": "none", "color": look(row)[0]}
        x = [places[key] + side for key in zip(of.model, of.column, strict=True)]
        axes.plot(x, of.difference, MARKS[source], fillstyle="full" if same else "none", **how)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xticks([*places.values()], [NAMED[column] for _, column in places], rotation=60, ha="right")
    keys = {NAMES[row]: ("s", look(row)[0], "full") for row in ("vera", "lora")}
    keys |= {SOURCES[one]["name"]: (MARKS[one], "#555555", "full") for one in data.source}
    for label, (mark, colour, fill) in (keys | {"other target modules": ("s", "#555555", "none")}).items():
        axes.plot([], [], mark, color=colour, fillstyle=fill, label=label)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
