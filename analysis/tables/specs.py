"""What the tables of the paper that are rows x columns of cells are: 2, 3, 5, 6 and 7."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from analysis import beside
from analysis.frame import SCORES as KEYS
from analysis.paper import GLUE, GPT2, IMAGES, ROBERTA, SCORES, VIT
from analysis.tables.view import View

OURS = ("full", "head", "bitfit", "lora", "vera")


@dataclass(frozen=True)
class Spec:
    """A table of the paper.

    models: its models, with their names. columns: its tasks, or the scores of its one task, with their
    names. belongs: which runs are its. seeds: of a complete cell. middle: whether it prints medians or
    means. head: its columns before the numbers. first: the order of other models' rows. part: of table 6,
    which of its three, with its settings' names. others: whether rows and tasks that the paper has not are
    shown, too. shows: for the dashboard."""

    name: str
    title: str
    about: str
    models: dict[str, str]
    columns: dict[str, str]
    belongs: Callable[[pd.DataFrame], "pd.Series[bool]"]
    seeds: int = 5
    middle: str = "median"
    head: tuple[str, ...] = ("method", "source", "params")
    first: tuple[str, ...] = OURS
    part: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    others: bool = True
    shows: tuple[str, ...] = ("best",)

    @property
    def scored(self) -> bool:
        """Whether its columns are scores of texts."""
        return self.name == "table3"


def _glue(runs: pd.DataFrame) -> "pd.Series[bool]":
    return runs.task.isin(GLUE)


def _images(runs: pd.DataFrame) -> "pd.Series[bool]":
    return runs.family == "images"


def _decoded(runs: pd.DataFrame) -> "pd.Series[bool]":
    """The runs of E2E that have texts, or diverged before they had any."""
    return (runs.task == "e2e") & (
        runs.texts.map(lambda of: bool(of) and of == of) | (runs.status == "diverged")
    )


def _ablation(name: str, part: str, about: str, settings: dict[str, str]) -> Spec:
    return Spec(
        name,
        f"Table {name[5:]}",
        about,
        {"roberta_large": "RoBERTa-large"},
        GLUE,
        _glue,
        middle="mean",
        head=("setting", "source"),
        part=part,
        settings=settings,
        others=False,
    )


SPECS: dict[str, tuple[Spec, ...]] = {
    "table2": (Spec("table2", "Table 2", "GLUE dev sets", ROBERTA, GLUE, _glue),),
    "table3": (
        Spec(
            *(
                "table3",
                "Table 3",
                "E2E NLG",
                GPT2,
                {key: name for key, (name, _) in SCORES.items()},
                _decoded,
            ),
            seeds=3,
            first=("full", "lora", "vera"),
            shows=KEYS,
        ),
    ),
    "table5": (
        Spec(
            *("table5", "Table 5", "10 training images a class", VIT, IMAGES, _images),
            first=("head", "full", "lora", "vera"),
            shows=("last",),
        ),
    ),
    "table6": (
        _ablation(
            "table6",
            "scaling_vectors",
            "scaling vectors",
            {"vera": "d and b", "only_d": "only d", "only_b": "only b"},
        ),
        _ablation(
            *("table6", "matrix_init", "matrix initialisation"),
            {
                "kaiming_uniform": "Kaiming uniform",
                "kaiming_normal": "Kaiming normal",
                "uniform_0_0.1": "uniform [0, 0.1]",
            },
        ),
        _ablation("table6", "d_init", "initial d", {"0.1": "0.1", "1e-07": "1e-7", "1.0": "1.0"}),
    ),
    "table7": (
        _ablation("table7", "", "random matrices", {"shared": "shared A, B", "unique": "unique A, B"}),
    ),
}


def cells_of(spec: Spec, view: View) -> pd.DataFrame:
    """The cells that a table's numbers come from, with `column`: the task, or the score."""
    view = view.of(spec.belongs(view.runs))
    if view.tasks and not spec.scored:
        view = view.of(view.runs.task.isin(view.tasks))
    if not spec.scored:
        made = view.cells(spec.seeds)
        return made.assign(column=made.task)
    return pd.concat([view.cells(spec.seeds, key).assign(column=key) for key in KEYS], ignore_index=True)


def columns_of(spec: Spec, view: View, model: str, cells: pd.DataFrame) -> dict[str, str]:
    """The columns of a model's table: the paper's, and of another model those that have run."""
    if spec.scored:
        return spec.columns
    names = cells.drop_duplicates("task").set_index("task").task_label.to_dict() if len(cells) else {}
    if not spec.others:
        tasks = set(cells[cells.row != "vera"].task) if model not in spec.models else set(printed_tasks(spec))
    else:
        tasks = set(spec.columns if model in spec.models else ()) | set(names)
    if view.tasks:
        tasks &= set(view.tasks)
    order = spec.columns if spec.others or model not in spec.models else printed_tasks(spec)
    known = {task: spec.columns[task] for task in order if task in tasks and task in spec.columns}
    return known | {task: names.get(task, task) for task in sorted(tasks - set(spec.columns))}


def printed_tasks(spec: Spec) -> list[str]:
    paper = beside.paper()
    return list(paper[(paper.table == spec.name) & (paper.part == spec.part)].task.unique())


def title_of(spec: Spec, model: str) -> str:
    if not spec.others:
        return f"{spec.title}, {spec.about}, {spec.models.get(model, model)}"
    if model in spec.models:
        return f"{spec.title}, {spec.models[model]}: {spec.about}"
    return f"{spec.title}'s protocol on {model}, a model that the paper does not use"


def settings_of(spec: Spec) -> dict[str, str]:
    """The names of an ablation's settings, by our rows."""
    paper = beside.paper()
    of = paper[(paper.table == spec.name) & (paper.part == spec.part)]
    return {row: spec.settings[method] for row, method in zip(of.row, of.method, strict=True)}
