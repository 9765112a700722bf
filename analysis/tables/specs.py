"""What the tables of cells are: 2, 3, 5, 6, 7 and 12, the demo, and rows x tasks. judged.py has 4 and 13."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from analysis.beside import exact_counts
from analysis.facts import SCORES as KEYS
from analysis.frame import PROTOCOLS, in_cells, reported_cells
from analysis.notes import SELECTED, measured
from analysis.paper import GLUE, GPT2, IMAGES, LLAMAS, ROBERTA, SCORES, VIT
from analysis.render import Cell, Entry, Number, Table, count, diverged, number, of_runs
from analysis.tables.build import Own, Spec, View, build
from runs.record.text import plural


def field(name: str, **how: Any) -> Callable[[Own, pd.DataFrame], Entry]:
    """A column with a number of a row's cell."""
    return lambda own, runs: of_runs(getattr(first(own), name), first(own).ids, **how)


def first(own: Own) -> Cell:
    """The first cell of a row."""
    return next(iter(own.values()))


def chosen_here(model: str, runs: pd.DataFrame, made: pd.DataFrame) -> list[str]:
    """Rows whose size this project chose; other numbers of images a class than the paper's 10; why scores are
    missing, such as for want of Java."""
    found = [
        f"{of['method']}: size and rates chosen here, with {of['count']:,} parameters"
        f" for the paper's {of['printed']}"
        for of in exact_counts()
        if of["model"] == model and of.get("chosen")
    ]
    if model in VIT or (made.family == "images").any():
        for task, other in made.groupby("task").shots.agg(lambda of: set(of) - {10}).items():
            counts = " or ".join("all" if n != n or n is None else f"{n:g}" for n in sorted(other, key=str))
            found += [f"{task}: {counts} images a class"] if other else []
    entries = [entry for of in in_cells(runs, made).texts for entry in of or []]
    return [*found, *sorted({why for entry in entries for why in (entry.get("unavailable") or {}).values()})]


# --- table 3: scores of texts


def scored(spec: Spec, view: View) -> pd.DataFrame:
    """The cells of the five scores: of the last epoch as the paper decodes; by other length penalties; and of
    the best epoch, where it is another. A run that diverged before it had texts has 0."""
    found = [view.cells(spec.seeds, key, key) for key in KEYS]
    runs = in_cells(view.runs, found[0])
    texts = [of or [] for of in runs.texts]
    usual = [of[0]["variant"] if of else "" for of in texts]
    ways = dict.fromkeys(entry["variant"] for of in texts for entry in of)
    for which, way in [*(("last", way) for way in ways), ("best", "")]:
        wanted = [(which, way or own) for own in usual]
        entries = [
            next((one for one in of if (one["which"], one["variant"]) == which_way), None)
            for of, which_way in zip(texts, wanted, strict=True)
        ]
        has = [
            one is not None and (way != own if way else one["epoch"] != end)
            for one, own, end in zip(entries, usual, runs.last_epoch, strict=True)
        ]
        other = pd.Series(has, runs.index, dtype=bool).groupby([runs.model, runs.row]).transform("any")
        none = [0.0 if diverged else math.nan for diverged in runs.diverged]
        scores = {
            key: [zero if of is None else of.get(key) for of, zero in zip(entries, none, strict=True)]
            for key in KEYS
        }
        of_way = replace(view, runs=runs.assign(**scores)[other])
        variant = f"length penalty {way}" if way else "best epoch"
        found += [of_way.cells(spec.seeds, key, key).assign(variant=variant) for key in KEYS]
    return pd.concat([of for of in found if len(of)] or found[:1], ignore_index=True)


# --- table 12: what training costs


def costs(spec: Spec, view: View) -> pd.DataFrame:
    """The cells of minutes, seconds a step, tokens a second and GB: medians of what a run has."""
    made = view.cells(spec.seeds)
    made = made[made.row.isin(spec.names)]
    numbers = {"minutes": made.train_seconds / 60, "s/step": made.train_seconds / made.steps.clip(lower=1)}
    numbers |= {"tok/s": made.tokens_per_second, "gpu_gb": made.peak_memory_bytes / 1e9}
    return pd.concat([made.assign(column=column, median=of) for column, of in numbers.items()])


# --- rows x tasks


def rows_by_tasks(spec: Spec, view: View) -> pd.DataFrame:
    """The cells of whatever has run, by the number that each task's table reports; what trains most first.
    Rows of a task that were not measured alike have columns of their own."""
    made = reported_cells(view.runs, view.select, view.seeds or spec.seeds)
    of_tasks = in_cells(view.runs, made).groupby(["model", "task"])
    unlike = {(*key, row): words for key, of in of_tasks for row, words in measured(of).items()}
    apart = [unlike[key] and f", {unlike[key]}" for key in zip(made.model, made.task, made.row, strict=True)]
    made = made.assign(column=made.task + apart, column_label=made.task_label + apart, variant="")
    return made.assign(order=-made.parameters).sort_values(["order", "row", "task"], kind="stable")


def counted(cell: Cell, *_: Any) -> Entry:
    """The median of the seeds that have a number, with how many: "76.0 +-1.0 (5)"."""
    of = number(cell, decimals=int(cell.digits), known=True)
    of = of if isinstance(of, Number) else Number(math.nan, n=cell.runs, ids=cell.ids)
    return replace(of, counted=True, mark=diverged(cell), wanted=None)


def over_tasks(name: str, own: Own, runs: pd.DataFrame) -> Entry:
    """The median of a cost over the runs of all tasks that did not diverge."""
    done = runs if runs.diverged.all() else runs[~runs.diverged.astype(bool)]
    of = float(pd.to_numeric(done[name]).median())
    if name == "seconds":
        return of_runs(of, runs.id, decimals=0 if of >= 10 else 1)
    return of_runs(of or math.nan, runs.id, form="bytes")


def of_rows(spec: Spec, view: View, made: pd.DataFrame) -> str:
    """Which numbers the tasks report."""
    by_name = made.groupby("name", sort=False)
    on = {name: ", ".join(dict.fromkeys(of.sort_values("order").task_label)) for name, of in by_name}
    names = "; ".join(f"{name} ({of})" for name, of in on.items())
    return f"Medians over seeds, +- sample standard deviation (seeds): {names}."


ROWS = Spec(
    "",
    lambda runs: runs.model.notna(),
    other="{1.model_label}",
    cells=rows_by_tasks,
    seeds=1,
    entry=counted,
    more={"s/run": partial(over_tasks, "seconds"), "adapter": partial(over_tasks, "adapter_bytes")},
    tail=(),
    first=None,
    how=of_rows,
)


# --- the demo

#: Marks a row whose rate is at an end of its grid.
END = " ^"


def demo(view: View) -> list[Table]:
    """Every method on the demo's task, with what it costs: a table for each model and number of rows."""
    runs = view.runs[view.runs.task == "reviews"]
    asked = runs[["asked_train_rows", "asked_dev_rows"]].apply(tuple, axis=1) if len(runs) else runs.task
    sizes = sorted({*asked[runs.kind == "result"]})
    parts = [replace(view, runs=runs[(asked == size) | (runs.kind == "trial")]) for size in sizes]
    other = "{1.task_label} ({1.model_label}, {1.over}, {1.size}): dev {1.metric}"
    spec = replace(DEMO, other=other if len(sizes) > 1 else other.replace(", {1.size}", ""))
    return [table for part in parts for table in build(spec, part)]


def demo_cells(spec: Spec, view: View) -> pd.DataFrame:
    """The cells, the best first, with their parameters beside LoRA's (ratio); labels say which seeds lack and
    whether a rate is the lowest or highest of those that trials on held-out rows tried."""
    made = view.cells(PROTOCOLS["reviews"])  # a run may have run for another preset first
    trials = view.runs[view.runs.kind == "trial"].groupby(["model", "row"])
    marks = pd.Series("", made.index)
    for rate in ("lr", "lr_head"):
        ends = made[["model", "row"]].join(trials[rate].agg(["min", "max", "nunique"]), on=["model", "row"])
        at_end = (made[rate] == ends["min"]) | (made[rate] == ends["max"])
        marks = marks.mask(at_end & (ends["nunique"] > 1), END)
    fewer = ["" if of.complete else f" ({of.n}/{of.wanted} seeds)" for of in made.itertuples()]
    trains, lora = made.parameters > 0, made[made.row == "lora"].set_index("model").parameters
    of_model, counts = made.groupby("model"), made.runs.map(lambda count: plural(count, "seed"))
    alike = of_model.complete.transform("all") & (of_model.runs.transform("nunique") == 1)
    sizes = [f"{of.train_rows:,} training and {of.dev_rows:,} dev rows" for of in made.itertuples()]
    return made.assign(
        label=made.label + marks + fewer,
        ratio=(made.parameters / made.model.map(lora)).where(trains),
        adapter_bytes=made.adapter_bytes.where(trains),
        head_bytes=4 * made.head_parameters,
        unknown=made.runs - made.n,
        less=-made["median"],
        over=("median of " + counts).where(alike, "median over the seeds there are"),
        size=sizes,
    ).sort_values(["unknown", "less"], kind="stable")


def of_demo(spec: Spec, view: View, made: pd.DataFrame) -> str:
    """What its columns are, and marks."""
    how, results = f"trainable: without the classification head. {made.iloc[0]['size']}.", view.runs
    results = results[(results.model == made.model.iloc[0]) & (results.kind == "result")]
    if view.select in SELECTED:
        how += f" {SELECTED[view.select]}"
    elif (results.evaluations == 1).all():
        how += " The last epoch alone is evaluated."
    if made.label.str.contains(END, regex=False).any():
        how += (
            f" {END.strip()}: its rate is at an end of the grid that was tried; one beyond could be better."
        )
    return how


def with_nan(name: str) -> Callable[[Own, pd.DataFrame], Entry]:
    """A number of the cell that is nan where a seed has none."""

    def entry(own: Own, runs: pd.DataFrame) -> Entry:
        cell = first(own)
        return Number(getattr(cell, name), n=cell.n, mark=diverged(cell) * (name == "median"), ids=cell.ids)

    return entry


DEMO = Spec(
    "demo",
    lambda runs: runs.task == "reviews",
    cells=demo_cells,
    head=("method",),
    tail=(),
    first=None,
    more={
        "trainable": lambda own, runs: count(first(own)),
        "vs LoRA": field("ratio", form="ratio"),
        "best ep.": with_nan("median"),
        "spread": field("spread"),
        "last ep.": with_nan("last"),
        "s/run": field("seconds", decimals=0),
        "adapter": field("adapter_bytes", form="bytes"),
        "head": field("head_bytes", form="bytes"),
    },
    how=of_demo,
    tasks={"reviews": "reviews"},
)


# --- the paper's


def decoded(runs: pd.DataFrame) -> "pd.Series[bool]":
    """The runs of E2E that have texts, diverged before they had any, or are no results."""
    texts = runs.texts.map(lambda of: bool(of) and of == of).astype(bool)
    return (runs.task == "e2e") & (texts | (runs.status == "diverged") | (runs.kind != "result"))


#: The title of another model's table.
OTHER = "{}'s protocol on {{}}, a model that the paper does not use"
TABLE2 = Spec(
    "table2",
    lambda runs: runs.task.isin(GLUE),
    "Table 2, {}: GLUE dev sets",
    OTHER.format("Table 2"),
    ROBERTA,
    GLUE,
    first=("full", "head", "bitfit", "lora", "vera"),
    notes=chosen_here,
    others=True,
)
TABLE3 = Spec(
    "table3",
    decoded,
    "Table 3, {}: E2E NLG",
    OTHER.format("Table 3"),
    GPT2,
    {key: name for key, (name, _) in SCORES.items()},
    cells=scored,
    seeds=3,
    decimals={key: decimals for key, (_, decimals) in SCORES.items()},
    entry=partial(number, known=True),
    wanted=("bleu",),
    incomplete="{0.runs} of {0.wanted} seeds",
    status=lambda view, first, usual: "" if first.variant else usual,
    first=("full", "lora", "vera"),
    notes=chosen_here,
    tasks={"e2e": "E2E"},
    others=True,
    forgets=True,
)
TABLE5 = Spec(
    "table5",
    lambda runs: runs.family == "images",
    "Table 5, {}: 10 training images a class",
    OTHER.format("Table 5"),
    VIT,
    IMAGES,
    first=("head", "full", "lora", "vera"),
    notes=chosen_here,
    others=True,
)


def _ablation(name: str, part: str, about: str, tasks: Sequence[str], names: dict[str, str]) -> Spec:
    """A part of table 6 or 7. names: of its settings, by our rows."""
    title = f"Table {name[5:]}, {about}, {{}}"
    return Spec(
        name,
        lambda runs: runs.task.isin(GLUE) & runs.row.isin(names),
        title,
        title,
        {"roberta_large": ROBERTA["roberta_large"]},
        {task: GLUE[task] for task in tasks},
        middle="mean",
        head=("setting", "source"),
        first=[*names],
        part=part,
        names=names,
    )


VECTORS = {"vera": "d and b", "vera_only_d": "only d", "vera_only_b": "only b"}
MATRICES = {"vera": "Kaiming uniform", "vera_kaiming_normal": "Kaiming normal"}
MATRICES |= {"vera_uniform": "uniform [0, 0.1]"}
INITIAL_D = {"vera": "0.1", "vera_d_init_1e-7": "1e-7", "vera_d_init_1": "1.0"}
SHARED = {"vera": "shared A, B", "vera_unique": "unique A, B"}
LLAMA_7B = {"llama_7b": LLAMAS["llama_7b"]}
TABLE12 = Spec(
    "table12",
    lambda runs: (runs.family == "instruct") & (runs["rank"] == 64),
    "Table 12, {}: time and memory, rank 64",
    "Table 12's protocol on {}: time and memory, rank 64",
    LLAMA_7B,
    {"minutes": "minutes", "s/step": "s/step", "tok/s": "tok/s", "gpu_gb": "GB"},
    cells=costs,
    seeds=1,
    decimals={"s/step": 2, "tok/s": 0, "gpu_gb": 2},
    entry=lambda cell, _, decimals, verdict: of_runs(cell.median, cell.ids, decimals=decimals),
    more={"device": lambda own, runs: str(first(own).device)},
    status=lambda view, first, usual: view.whose,
    names={"lora": "LoRA r=64", "vera_r64": "VeRA r=64"},
    compared=lambda variant: False,
    how=lambda *_: "minutes: of training alone, the median over seeds. GB: on a CPU the process's.",
    tasks={"alpaca": "Alpaca"},
)
SPECS: dict[str, tuple[Spec, ...]] = {
    "table2": (TABLE2,),
    "table3": (TABLE3,),
    "table5": (TABLE5,),
    "table6": (
        _ablation("table6", "scaling_vectors", "scaling vectors", ("mrpc", "rte"), VECTORS),
        _ablation("table6", "matrix_init", "matrix initialisation", ("mrpc", "rte"), MATRICES),
        _ablation("table6", "d_init", "initial d", ("mrpc", "rte"), INITIAL_D),
    ),
    "table7": (_ablation("table7", "", "random matrices", ("mrpc", "rte", "cola", "stsb"), SHARED),),
    "table12": (TABLE12,),
}
