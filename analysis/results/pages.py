"""The pages as Markdown, through the templates beside this file: results.md with the
findings, study.md with a study, others.md with what independent groups report;
words.md, a finding in words; readme.md, the README's blocks."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from analysis import figures
from analysis.figures.figure import COLOURS, Figure, Part, look, svg
from analysis.frame import (
    cells,
    every_variant,
    in_cells,
    mark_left_out,
    pairs,
    reported,
    reported_cells,
    runs,
)
from analysis.inference import (
    FIRM_PAIRS,
    MARGIN,
    Mean,
    TwoWay,
    holm,
    mean_of,
    outlying,
    two_way,
)
from analysis.notes import cautions
from analysis.others import EPOCHS, EXACT, NAMED, SOURCES, others, setting
from analysis.paper import GLUE, NAMES, numbers
from analysis.render import NONE, Entry, Table, count, grid, number, of_runs
from analysis.results.findings import WORDS, Finding, collapsed, summaries, tries
from analysis.tables import made as made_tables
from runs.errors import UserError
from runs.record import LEVEL, Ledger, Record, megabytes, one_line, plural

#: `make results` writes what stands between these lines of the README.
BEGIN, END = (
    "<!-- results of {}: written by make results -->",
    "<!-- results of {}: end -->",
)

#: The marker of each source.
MARKS = dict(zip(SOURCES, "osDv^Xp*P<>hd8H.", strict=True))
#: Where the axis ends, in points; a longer interval leaves the picture.
FARTHEST = 11.0
LINES = {
    "paper": ("D", "#000000"),
    "task": ("o", COLOURS["lora"]),
    "pooled": ("s", COLOURS["vera"]),
}
#: Rows without a collapsed run from which on the variance is pooled over them.
MANY = 10


@cache
def environment(*folders: Path, autoescape: bool = False) -> jinja2.Environment:
    """Templates of this folder and of others. autoescape: for HTML; in Markdown the
    filter `cell` escapes labels."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["megabytes"] = megabytes
    made.filters["cell"] = lambda text: (
        one_line(str(text)).replace("|", "\\|").replace("<", "&lt;")
    )
    made.globals |= {
        "plural": plural,
        "verdicts": WORDS,
        "firm_pairs": FIRM_PAIRS,
        "margin": f"{MARGIN:g}",
    }
    return made


def macros(page: str) -> Any:
    """The macros of a template, by name."""
    return environment().get_template(page).module


def rendered(page: str, **gaps: Any) -> str:
    """A page: its template with the gaps filled, without the blank lines that empty
    parts leave."""
    return (
        re.sub(r"\n{3,}", "\n\n", environment().get_template(page).render(gaps)).strip()
        + "\n"
    )


def pages(
    studies: Mapping[Path, Ledger], docs: Path
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Every page and the pictures that they show, by their paths in docs, of these
    studies, by their folders; and the findings over all tasks (`summaries`). They link
    what docs/bench has."""
    of = {folder: runs(ledger) for folder, ledger in studies.items()}
    measures = {
        folder: [*ledger.measures.values()] for folder, ledger in studies.items()
    }
    found = tries(of, measures)
    made = summaries(found)
    files = others_pages() | {
        "results.md": overview(found, made, of, sorted(docs.glob("bench/*/*.md")))
    }
    if plot := forest(made):
        files["results/forest.svg"] = svg(plot)
    for folder, frame in of.items():
        gaps, pictures = of_study(folder, frame, measures[folder])
        files |= {f"results/{folder.name}.md": rendered("study.md", **gaps)} | pictures
    return files, made


def overview(
    found: Sequence[Finding],
    made: Sequence[Mapping[str, Any]],
    studies: Mapping[Path, pd.DataFrame] = MappingProxyType({}),
    benches: Sequence[Path] = (),
) -> str:
    """The page of all studies. found: every try; made: their summaries; benches: pages
    in docs/bench/NAME."""
    ran = [(folder.name, of[of.kind != "failed"]) for folder, of in studies.items()]
    numbers = {
        name: n
        for n, name in enumerate(dict.fromkeys(one["finding"] for one in made), 1)
    }
    gaps = {
        "found": found,
        "made": made,
        "ran": ran,
        "numbers": numbers,
        "benches": benches,
    }
    return rendered("results.md", **gaps, drawn=forest(made))


def forest(made: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The forest plot of the findings that VeRA is near a row, on several tasks, if
    there are any: by line (title, paper, its averages, task or pooled) the difference
    with its 95% interval. Lines of one kind and label that follow each other share a
    place."""
    lines = list[tuple[Any, ...]]()
    for one in (one for one in made if one["kind"] == "near" and len(one["tasks"]) > 1):
        against = (
            one["finding"]
            .removeprefix("VeRA is near ")
            .removesuffix(" with fewer parameters")
        )
        lines.append(("title", f"less {against}", *[math.nan] * 3))
        lines += [
            ("paper", "the paper's averages", x - y, *[math.nan] * 2)
            for x, y in one["paper"].values()
        ]
        for kind, means in (("task", one["tasks"]), ("pooled", one["analyses"])):
            lines += [
                (kind, name, mean.mean, *mean.interval())
                for name, mean in means.items()
            ]
    data = pd.DataFrame(lines, columns=["kind", "label", "difference", "low", "high"])
    place = (data.label != data.label.shift()) | (data.kind != data.kind.shift())
    data = data.assign(place=place.cumsum() - 1)
    title, size = (
        "VeRA less the other row, in points, with 95% intervals",
        (5.5, 0.7 + 0.16 * place.sum()),
    )
    return Figure("forest", title, data, [], _draw_forest, size=size) if lines else None


def _draw_forest(axes: Any, data: pd.DataFrame) -> None:
    axes.axvspan(-MARGIN, MARGIN, color="#dddddd", zorder=0)
    axes.axvline(0, color="#777777", linewidth=0.8)
    for kind, (marker, colour) in LINES.items():
        of, face = data[data.kind == kind], "none" if kind == "paper" else colour
        axes.hlines(of.place, of.low, of.high, color=colour)
        axes.plot(of.difference, of.place, marker, markersize=4, mfc=face, color=colour)
    names = data.drop_duplicates("place")
    axes.set_xlim(-FARTHEST, FARTHEST)
    axes.set_yticks(names.place, names.label)
    axes.set_ylim(names.place.max() + 0.5, -0.5)
    for label, kind in zip(axes.get_yticklabels(), names.kind, strict=True):
        label.set_fontweight("bold" if kind in ("title", "pooled") else "normal")
    axes.grid(visible=False, axis="y")


# --- the README's blocks


def headline(runs: pd.DataFrame) -> str:
    """A table of the README: the rows of a study of GLUE, those that train most
    first."""
    found = cells(runs).sort_values("parameters", ascending=False, kind="stable")
    tasks = {task: name for task, name in GLUE.items() if task in set(found.task)}
    lora = found[found.row == "lora"].parameters.max()
    rows = [
        {
            "label": of.label.iloc[0],
            "parameters": size,
            "ratio": size / lora if lora == lora else 0,
        }
        | {
            "numbers": [
                number(next(of[of.task == task].itertuples(), None)) for task in tasks
            ]
        }
        for (size, _), of in found.groupby(["parameters", "row"], sort=False)
    ]
    return str(macros("readme.md").headline(rows, list(tasks.values()))).strip()


def near_lora(made: Iterable[Mapping[str, Any]]) -> str:
    """The README's sentence on VeRA beside LoRA over all tasks. made: the summaries of
    findings."""
    near = [
        one
        for one in made
        if one["finding"] == "VeRA is near LoRA with fewer parameters"
    ]
    return str(macros("readme.md").near_lora(near)).strip()


def readme(text: str, study: str, block: str) -> str:
    """The README with a block between its two marks. Raises UserError where a mark is
    missing."""
    first, last = BEGIN.format(study), END.format(study)
    old = re.search(f"{re.escape(first)}.*?{re.escape(last)}", text, re.DOTALL)
    if not old:
        raise UserError(f"README.md lacks the lines {first} and {last}")
    return text.replace(old[0], f"{first}\n\n{block}\n\n{last}")


# --- a study


def of_study(
    folder: Path, runs: pd.DataFrame, measures: Sequence[Record]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What study.md shows, and the pictures by their paths in docs/."""
    path, finished = folder / "NOTES.md", runs[runs.kind != "failed"]
    answer, _, rest = (
        path.read_text().strip().partition("\n\n") if path.is_file() else ("", "", "")
    )
    change, _, details = rest.partition("\n## Details\n")
    # A study may compare settings of one row, such as epochs. A figure, where they
    # would stand on top of each other, has one of them
    made = [
        of
        for make in figures.FIGURES.values()
        for of in make(Part(finished, [*measures]))
        if len(of.data)
    ]
    files = {f"{folder.name}_{figure.name}.svg": figure for figure in made}
    table, page = rows_table(every_variant(finished, paper=True))
    # Columns that say nothing are left out, and what is the same of all rows of a task
    # is said once
    texts = pd.DataFrame(table.texts, columns=table.header or ["task"]).set_index(
        "task"
    )
    page["alike"], page["tables"] = {}, {}
    for task, of in texts.groupby(level=0, sort=False):
        alike = of.iloc[0, 1:][of.iloc[:, 1:].nunique() == 1]
        page["alike"][task] = [
            f"{name} {text}" for name, text in alike.items() if text not in (NONE, "")
        ]
        of = of.drop(columns=alike.index)
        page["tables"][task] = grid([*of], of.to_numpy().tolist())
    page |= {
        "name": folder.name,
        "answer": answer,
        "change": change,
        "details": details,
    }
    over, notes = over_tasks_table(page["like"])
    page |= {
        "over": grid(over.header, over.texts) if over.rows else [],
        "by_task": notes,
    }
    page |= {"figures": [(one_line(of.title), file) for file, of in files.items()]}
    return page, {f"results/{file}": svg(of) for file, of in files.items()}


# --- the rows of a study


def rows_table(runs: pd.DataFrame) -> tuple[Table, dict[str, Any]]:
    """Each row of a study on each task: its number, and what it has more or less than
    VeRA in pairs of one seed, with the 95% interval; bold: firm after Holm's correction
    over the whole table. runs: every variant as a row. With what its notes say: the
    analysis of variance by task where it is pooled, the count of comparisons, whether a
    row's best rate is at an end (^), the metrics, what counts all the same."""
    found, shown = reported_cells(runs), collapsed(reported(mark_left_out(runs)))
    trials = reported(runs[runs.kind == "trial"])
    compared, pooled_over, lines = (
        list[tuple[Any, Mean]](),
        dict[str, Any](),
        list[dict[str, Entry]](),
    )
    like: list[int] = []  # the cells that are not apart
    for (_, task), of_task in found.groupby(["model", "task_label"], sort=False):
        here = in_cells(shown, of_task)
        both, alone = pairs(here, "vera"), apart(here)
        # Seconds on several kinds of processor do not compare
        of_task = of_task.assign(
            seconds=of_task.seconds if here.device.nunique() == 1 else math.nan
        )
        like += of_task.index[~of_task.row.isin(alone)].tolist()
        if many := pooled(here[~here.row.isin(alone)]):
            pooled_over[task] = many._asdict() | {
                "apart": sorted(of_task.label[of_task.row.isin(alone)])
            }
        for cell in of_task.sort_values("parameters", kind="stable").itertuples():
            mean = mean_of(-both[both.row_other == cell.row].difference)
            if many and mean.freedom > 0 and cell.row not in alone:
                mean = Mean(
                    mean.mean,
                    many.deviation * np.sqrt(2 / (mean.freedom + 1)),
                    many.freedom,
                )
            compared.append((cell, mean))
    p = holm([mean.p() for _, mean in compared])
    for (cell, mean), of in zip(compared, p, strict=True):
        line = {
            "method": cell.label + "^" * at_end(cell, trials),
            "model": cell.model_label,
        }
        line |= {"task": cell.task_label, "trained": count(cell)}
        low, high = mean.interval()
        line |= {"median": number(cell, decimals=int(cell.digits))}
        line |= _less_vera(
            mean.mean,
            low,
            high,
            of < 1 - LEVEL,
            ids=cell.ids,
            decimals=int(cell.digits),
        )
        line |= {
            "runs": str(cell.runs),
            "seconds": of_runs(cell.seconds, cell.ids, form="seconds"),
        }
        lines.append(line)
    notes = {
        "pooled": pooled_over,
        "compared": int((~np.isnan(p)).sum()),
        "odd": cautions(found),
    }
    notes |= {
        "ends": any("^" in str(line["method"]) for line in lines),
        "like": found.loc[like],
    }
    notes["metrics"] = (
        found.drop_duplicates(["task", "name"])[["task_label", "name"]]
        .to_numpy()
        .tolist()
    )
    return Table.of("", lines) if lines else Table("", [], []), notes


def _less_vera(
    mean: float, low: float, high: float, firm: bool, **how: Any
) -> dict[str, Entry]:
    """The columns of a difference from VeRA, bold where it is firm, and of its
    interval."""
    less = of_runs(mean, sign=True, **how)
    return {
        "less VeRA": f"**{less}**" if firm else less,
        "95%": of_runs(low, high=high, sign=True, **how),
    }


def over_tasks_table(cells: pd.DataFrame) -> tuple[Table, dict[str, Any]]:
    """What the rows of a study have more or less than VeRA over its tasks, with the 95%
    interval, bold where firm after Holm's correction, and the word of two one-sided
    tests: a mixed model, in which rows are fixed, and tasks, what a row gains on one of
    them and seeds random, by the analysis of variance of the rows' means over seeds. Of
    the rows that have all tasks; with what its notes say. An empty table where rows or
    tasks are few. cells: without those `apart`."""
    shown = cells[cells.parameters > 0]
    shown = shown.assign(
        value=shown["mean"].where(~shown.lower_is_better.astype(bool), -shown["mean"])
    )
    means = shown.pivot_table(
        index="row", columns=["model_label", "task_label"], values="value", sort=False
    )
    means = means.loc[:, means.notna().sum() >= MANY].dropna()
    tasks = [task for _, task in means.columns]
    if len(means) < MANY or len(tasks) < 2 or "vera" not in means.index:
        return Table("", [], []), {}
    of = two_way(means)
    less = means.sub(means.loc["vera"]).mean(axis=1).drop("vera")
    mean = Mean(less, of.deviation * math.sqrt(2 / len(tasks)), of.freedom)
    found = pd.DataFrame(
        {"less": less, "low": mean.interval()[0], "high": mean.interval()[1]}
    )
    found = found.assign(near=mean.near(), firm=holm(mean.p()) < 1 - LEVEL)
    # A row's label on a task where it stands at several settings says which
    about = {"label": lambda of: min(of, key=len), "parameters": "first", "ids": "sum"}
    found = found.join(shown.groupby("row").agg(about))
    lines = list[dict[str, Entry]]()
    for row in found.sort_values("parameters", kind="stable").itertuples():
        line = {"method": str(row.label)} | _less_vera(
            row.less, row.low, row.high, row.firm, ids=row.ids
        )
        lines.append(
            line
            | {"near": "near" if row.near > 0 else "farther" if row.near < 0 else ""}
        )
    return Table.of("", lines), {"tasks": tasks, "compared": len(lines)} | of._asdict()


def at_end(cell: Any, trials: pd.DataFrame) -> bool:
    """Whether the best of the rates that trials tried for a cell, by their medians over
    seeds, each beside its best rate of the head, is the lowest or the highest of
    them."""
    of = trials[
        (trials.conf_row == cell.conf_row)
        & (trials.task == cell.task)
        & (trials.model == cell.model)
    ]
    of = of[
        of.label.map(lambda label: f"{cell.label},".startswith(f"{label},")).astype(
            bool
        )
    ]
    better = of.number.where(~of.lower_is_better.astype(bool), -of.number)
    rate = of.lr_head if cell.method == "head" else of.lr
    rates = (
        better.groupby([rate, of.lr_head], dropna=False)
        .median()
        .groupby(level=0)
        .max()
        .sort_index()
    )
    best = rates.sort_values(ascending=False, kind="stable").index
    return len(rates) > 1 and best[0] in (rates.index[0], rates.index[-1])


def apart(runs: pd.DataFrame) -> list[str]:
    """The rows of one task whose variance is not pooled: with a collapsed run, or above
    that of the others (`outlying`)."""
    fell = runs.groupby("row").collapsed.any()
    of = runs[~runs.row.map(fell)].groupby("row").number
    return [*fell.index[fell], *of.var().index[outlying(of.var(), of.count() - 1)]]


def pooled(runs: pd.DataFrame) -> TwoWay | None:
    """The variance of a run pooled over rows of one task, on the seeds that give it the
    most degrees of freedom; None where rows are few."""
    by_row = runs[runs.parameters > 0].pivot_table(
        index="row", columns="seed", values="number"
    )
    seeds = by_row.notna().sum().sort_values(ascending=False, kind="stable").index
    rows = [by_row[seeds[:count]].dropna() for count in range(2, len(seeds) + 1)]
    most = max(
        rows, key=lambda of: (len(of) - 1) * (of.shape[1] - 1), default=by_row[:0]
    )
    return two_way(most) if len(most) >= MANY else None


# --- what others report


def others_pages() -> dict[str, str]:
    """The page and its picture, by their paths in docs/."""
    frame, none = others(), runs(Ledger())
    paper = (
        numbers()
        .set_index(["table", "model", "row", "column"])
        .value.map("{:g}".format)
        .to_dict()
    )
    # VeRA less the same runner's LoRA, the best of each where there are several
    best = frame.groupby(["row", "label", "model", "column"], sort=False).value.max()
    less = (best["vera"] - best["lora"]).dropna().rename("less").reset_index()
    own = less.model.isin(NAMED) & less.column.isin(NAMED.keys() - EXACT.keys())
    glue = less[own & (less.column == "avg")]
    rewarded = less.column.str.endswith(" by reward")
    images = less.column.isin(["DINO similarity", "drift"])
    texts = less[~own & ~less.column.isin([*GLUE]) & ~images & ~rewarded].less
    by_reward = [
        f"{best['vera'][key]:g} and {best['lora'][key]:g} ({key[0]})"
        for key in less[rewarded].set_index(["label", "model", "column"]).index
    ]
    # What others report of a cell of the paper: "C3A 83.38, VB-LoRA 85.5 (r 1,024, all
    # linear)"
    words = [
        f"{one['label']} {one['value']:g}{'' if one['same'] else f' ({setting(one)})'}"
        for one in frame.to_dict("records")
    ]
    said = (
        pd.Series(words)
        .groupby([frame.model, frame.row, frame.column], sort=False)
        .agg(", ".join)
    )
    tables = [
        of for n in (2, 3, 4, 5) for of in made_tables(f"table{n}", none, others="all")
    ]
    tables = [of for of in tables if {row[1] for row in of.texts} & {*frame.label}]
    shown = [(of.title, grid(of.header, of.texts, right=False)) for of in tables]
    gaps: dict[str, Any] = {
        "sources": SOURCES,
        "said": said.__getitem__,
        "paper": paper.__getitem__,
    }
    gaps |= {
        "names": NAMED,
        "epochs": EPOCHS,
        "less": glue.to_dict("records"),
        "tables": shown,
    }
    gaps |= {"texts": len(texts), "below": int((texts < 0).sum()), "setting": setting}
    gaps |= {"by_reward": ", ".join(by_reward)}
    return {
        "others.md": rendered("others.md", **gaps),
        "others.svg": svg(others_picture()),
    }


def others_picture() -> Figure:
    """Others' VeRA and LoRA less the paper's, task by task; where the paper's LoRA
    started from MNLI there is no point."""
    paper = numbers()[
        lambda of: of.table.isin(["table2", "table5"]) & (of.like == of.row)
    ]
    paper = paper[paper.row.isin(["vera", "lora"]) & (paper.task != "")]
    on = ["model", "row", "column"]
    both = paper[[*on, "value"]].merge(others(), on=on, suffixes=("_paper", ""))
    both = both.assign(difference=both.value - both.value_paper)
    title = "What others report, less what the paper prints, in points"
    return Figure(
        "others",
        title,
        both[[*on, "source", "same", "difference"]],
        [],
        _draw_others,
        size=(7.4, 3.6),
    )


def _draw_others(axes: Any, data: pd.DataFrame) -> None:
    """The cells of the paper side by side, in its order."""
    places = {
        cell: n
        for n, cell in enumerate(
            dict.fromkeys(zip(data.model, data.column, strict=True))
        )
    }
    for (source, row, same), of in data.groupby(["source", "row", "same"], sort=False):
        side, how = (
            (0.15 if row == "vera" else -0.15),
            {"linestyle": "none", "color": look(row)[0]},
        )
        x = [places[key] + side for key in zip(of.model, of.column, strict=True)]
        axes.plot(
            x, of.difference, MARKS[source], fillstyle="full" if same else "none", **how
        )
    axes.axhline(0, color="black", linewidth=1)
    names = [f"{NAMED[model]}, {NAMED[column]}" for model, column in places]
    axes.set_xticks([*places.values()], names, rotation=60, ha="right")
    keys = {NAMES[row]: ("s", look(row)[0], "full") for row in ("vera", "lora")}
    keys |= {
        SOURCES[one]["name"]: (MARKS[one], "#555555", "full") for one in data.source
    }
    for label, (mark, colour, fill) in (
        keys | {"other target modules": ("s", "#555555", "none")}
    ).items():
        axes.plot([], [], mark, color=colour, fillstyle=fill, label=label)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
