"""The pages as Markdown, through the templates beside this file: results.md with the findings, study.md with
a study, others.md with what independent groups report; words.md, a finding in words; readme.md, the README's
blocks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import pandas as pd

from analysis.figures.figure import Figure, look, svg
from analysis.frame import cells, runs
from analysis.inference import FIRM_PAIRS, MARGIN
from analysis.others import EPOCHS, NAMED, SOURCES, others, setting
from analysis.paper import GLUE, IMAGES, NAMES, ROBERTA, VIT, numbers
from analysis.render import grid, number
from analysis.results import study
from analysis.results.findings import WORDS, Finding, tries
from analysis.results.pooled import forest, summaries
from analysis.tables import made as made_tables
from runs.errors import UserError
from runs.record import Ledger, megabytes, one_line, plural

#: `make results` writes what stands between these lines of the README.
BEGIN, END = "<!-- results of {}: written by make results -->", "<!-- results of {}: end -->"

#: The marker of each source.
MARKS = dict(zip(SOURCES, "osDv^Xp*P<>hd", strict=True))


def environment(*folders: Path, autoescape: bool = False) -> jinja2.Environment:
    """Templates of this folder and of others. autoescape: for HTML; in Markdown the filter `cell` escapes
    labels."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["megabytes"] = megabytes
    made.filters["cell"] = lambda text: one_line(str(text)).replace("|", "\\|").replace("<", "&lt;")
    about = {"plural": plural, "verdicts": WORDS, "firm_pairs": FIRM_PAIRS, "margin": f"{MARGIN:g}"}
    made.globals |= about
    return made


def macros(page: str) -> Any:
    """The macros of a template, by name."""
    return environment().get_template(page).module


def rendered(page: str, **gaps: Any) -> str:
    """A page: its template with the gaps filled, without the blank lines that empty parts leave."""
    return re.sub(r"\n{3,}", "\n\n", environment().get_template(page).render(gaps)).strip() + "\n"


def pages(studies: Mapping[Path, Ledger], docs: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Every page and the pictures that they show, by their paths in docs, of these studies, by their folders;
    and the findings over all tasks (`summaries`). They link what docs/bench has."""
    of = {folder: runs(ledger) for folder, ledger in studies.items()}
    measures = {folder: [*ledger.measures.values()] for folder, ledger in studies.items()}
    found = tries(of, measures)
    made = summaries(found)
    files = others_pages() | {"results.md": overview(found, made, of, sorted(docs.glob("bench/*/*.md")))}
    if plot := forest(made):
        files["results/forest.svg"] = svg(plot)
    for folder, frame in of.items():
        gaps, pictures = study.gaps(folder, frame, measures[folder])
        files |= {f"results/{folder.name}.md": rendered("study.md", **gaps)} | pictures
    return files, made


def overview(
    found: Sequence[Finding],
    made: Sequence[Mapping[str, Any]],
    studies: Mapping[Path, pd.DataFrame] = MappingProxyType({}),
    benches: Sequence[Path] = (),
) -> str:
    """The page of all studies. found: every try; made: their summaries; benches: pages in docs/bench/NAME."""
    ran = [(folder.name, of[of.kind != "failed"]) for folder, of in studies.items()]
    numbers = {name: n for n, name in enumerate(dict.fromkeys(one["finding"] for one in made), 1)}
    gaps = {"found": found, "made": made, "ran": ran, "numbers": numbers, "benches": benches}
    return rendered("results.md", **gaps, drawn=forest(made))


# --- the README's blocks


def headline(runs: pd.DataFrame) -> str:
    """A table of the README: the rows of a study of GLUE, those that train most first."""
    found = cells(runs).sort_values("parameters", ascending=False, kind="stable")
    tasks = {task: name for task, name in GLUE.items() if task in set(found.task)}
    lora = found[found.row == "lora"].parameters.max()
    rows = [
        {"label": of.label.iloc[0], "parameters": size, "ratio": size / lora if lora == lora else 0}
        | {"numbers": [number(next(of[of.task == task].itertuples(), None)) for task in tasks]}
        for (size, _), of in found.groupby(["parameters", "row"], sort=False)
    ]
    return str(macros("readme.md").headline(rows, list(tasks.values()))).strip()


def near_lora(made: Iterable[Mapping[str, Any]]) -> str:
    """The README's sentence on VeRA beside LoRA over all tasks. made: the summaries of findings."""
    near = [one for one in made if one["finding"] == "VeRA is near LoRA with fewer parameters"]
    return str(macros("readme.md").near_lora(near)).strip()


def readme(text: str, study: str, block: str) -> str:
    """The README with a block between its two marks. Raises UserError where a mark is missing."""
    first, last = BEGIN.format(study), END.format(study)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"README.md lacks the lines {first} and {last}")
    return f"{before}{first}\n\n{block}\n\n{last}{after}"


# --- what others report


def others_pages() -> dict[str, str]:
    """The page and its picture, by their paths in docs/."""
    frame, none = others(), runs(Ledger())
    paper = numbers().set_index(["table", "model", "row", "column"]).value.map("{:g}".format).to_dict()
    own = frame.model.isin(NAMED) & frame.column.isin(NAMED)
    glue, elsewhere = less_lora(frame[own & (frame.column == "avg")]), less_lora(frame[~own])
    texts = elsewhere[~elsewhere.column.isin([*GLUE, "DINO similarity", "drift"])].less
    tables = [of for n in (2, 3, 4, 5) for of in made_tables(f"table{n}", none, others="all")]
    tables = [of for of in tables if {row[1] for row in of.texts} & {*frame.label}]
    shown = [(of.title, grid(of.header, of.texts, right=False)) for of in tables]
    gaps: dict[str, Any] = {"sources": SOURCES, "said": _said, "paper": paper.__getitem__, "setting": setting}
    gaps |= {"names": NAMED, "epochs": EPOCHS, "less": glue.to_dict("records"), "tables": shown}
    gaps |= {"texts": len(texts), "below": int((texts < 0).sum())}
    return {"others.md": rendered("others.md", **gaps), "others.svg": svg(others_picture())}


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


def others_picture() -> Figure:
    """Others' VeRA and LoRA less the paper's, task by task; where the paper's LoRA started from MNLI there is
    no point."""
    paper = numbers()[lambda of: of.table.isin(["table2", "table5"]) & (of.like == of.row)]
    paper = paper[paper.row.isin(["vera", "lora"]) & (paper.task != "")]
    on = ["model", "row", "column"]
    both = others().merge(paper[[*on, "value"]], on=on, suffixes=("", "_paper"))
    both = both.assign(difference=both.value - both.value_paper)
    title = "What others report, less what the paper prints, in points"
    return Figure(
        "others", title, both[[*on, "source", "same", "difference"]], [], _draw_others, size=(7.4, 3.6)
    )


def _draw_others(axes: Any, data: pd.DataFrame) -> None:
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
