"""What a table of cells is (specs.yaml), and what its cells are: a class for each kind
of table."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.frame import KEY, MEDIANS, cells, in_cells, reported_cells
from analysis.notes import SELECTED
from analysis.others import named
from analysis.paper import BENCHES, DECIMALS, GLUE, LLAMAS
from analysis.render import NONE, Cell, Entry, Number, diverged, number
from runs.record import TEXT_SCORES, in_conf

#: How FastChat makes answers: with transformers' default top_k, and none is cut short
#: for want of positions.
FASTCHAT = {"answer_tokens": 1024, "top_p": 1.0, "top_k": 50, "without_room": 0}
#: What is read of a judgement.
JUDGEMENT = [
    "bench",
    "judge",
    "mean",
    "low",
    "high",
    "n",
    "n_valid",
    "turns",
    "answering",
]


@dataclass(frozen=True)
class View:
    """The runs that a table is made from, and how.

    select: how the epoch is chosen (paper, crossfit or half). seeds: of a complete cell
    (None: the table's). tasks, models: those that are shown (empty: all). whose: whose
    runs these are. others: what independent groups report below a row of the paper
    (true: a line; all: a line each). columns: further numbers of `frame.runs`. against:
    a row to which each row's difference is a column."""

    runs: pd.DataFrame
    select: str = "paper"
    seeds: int | None = None
    tasks: Sequence[str] = ()
    models: Sequence[str] = ()
    whose: str = "ours"
    others: str = "false"
    columns: Sequence[str] = ()
    against: str | None = None


class Spec(SimpleNamespace):
    """A part of a table, by its keys in specs.yaml. Its cells are those of the
    metric."""

    def belonging(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Its runs, finished or not."""
        known = {"glue": [*GLUE], "llamas": [*LLAMAS], "names": [*self.names]}
        return runs.query(self.runs, local_dict=known, engine="python")

    def parts(self, view: View) -> list[View]:
        """The views of which each has tables of its own: one of its runs."""
        return [replace(view, runs=self.belonging(view.runs))]

    def cells(self, view: View) -> pd.DataFrame:
        """The cells of its runs with their column, by default the task, and the variant
        of the row's line."""
        value = "value" if view.select == "paper" else view.select
        made = cells(
            view.runs, self.numbers if self.values else value, view.seeds or self.seeds
        )
        of_task = {"column": made.task, "column_label": made.task_label, "variant": ""}
        return made if self.values else made.assign(**of_task)

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The numbers of each run by column, for `frame.cells`."""
        known = runs[[*MEDIANS, *TEXT_SCORES, "steps"]].astype(float)
        each = pd.DataFrame(
            {column: known.eval(of) for column, of in self.values.items()}, runs.index
        )
        return each.melt(
            var_name="column", value_name="number", ignore_index=False
        ).assign(variant="")

    def compares(self, made: pd.DataFrame) -> pd.DataFrame:
        """Those of its cells that stand beside the paper's."""
        return made[made.variant.astype(str).str.fullmatch(self.compared)]

    def entry(self, cell: Cell, column: str, verdict: str) -> Entry:
        """A cell as a number of the table."""
        of = number(cell, self.middle, DECIMALS.get(column, 1), verdict, self.known)
        return (
            of if self.spread or isinstance(of, str) else replace(of, spread=math.nan)
        )

    def reads(self, view: View, made: pd.DataFrame) -> str:
        """What its numbers are. made: its cells."""
        epochs, over = (
            " or ".join(sorted({*made.reported})),
            f"{self.middle.capitalize()}s over seeds",
        )
        chosen = SELECTED.get(view.select, "")
        if chosen and (self.values or (epochs == "last" and view.select == "crossfit")):
            chosen = "select= changes nothing here: the last epoch is reported."
        usual = (
            f"{over} of the {epochs or 'reported'} epoch, +- sample standard deviation."
        )
        return (
            f"{self.how or f'{over}.'} {chosen}" if chosen else str(self.how or usual)
        )

    def deviates(self, runs: pd.DataFrame, made: pd.DataFrame) -> list[str]:
        """How it deviates from the paper's, beside its runs' own deviations: rows whose
        size this project chose; other numbers of images a class than the paper's 10;
        why scores are missing, such as without Java."""
        ran = {*zip(made.model, made.row, strict=True)}
        found = [
            f"{of['method']}: size and rates chosen here, with {of['count']:,} parameters"
            f" for the paper's {of['printed']}"
            for of in in_conf("counts.yaml")
            if of.get("chosen") and (of["model"], of["method"]) in ran
        ]
        images = made[made.family == "images"].groupby("task").shots
        for task, other in images.agg(lambda of: set(of) - {10}).items():
            counts = (
                "all" if n != n or n is None else f"{n:g}"
                for n in sorted(other, key=str)
            )
            found += [f"{task}: {' or '.join(counts)} images a class"] if other else []
        texts = [entry for of in in_cells(runs, made).texts for entry in of or []]
        return [
            *found,
            *sorted(
                {why for of in texts for why in (of.get("unavailable") or {}).values()}
            ),
        ]


def of_cells(
    runs: pd.DataFrame, numbers: pd.DataFrame, shown: pd.DataFrame
) -> pd.DataFrame:
    """The numbers with a line for each run of a cell in each variant and column of
    which `shown` has one."""
    has = runs[KEY].join(shown[["variant", "column"]], how="inner").drop_duplicates()
    every = runs[KEY].rename_axis("run").reset_index().merge(has, on=KEY)
    of_run = numbers[["variant", "column", "number"]].rename_axis("run").reset_index()
    of_run = of_run.drop_duplicates(["run", "variant", "column"])
    return (
        every.merge(of_run, "left", ["run", "variant", "column"])
        .set_index("run")
        .drop(columns=KEY)
    )


class Texts(Spec):
    """Table 3: the five scores of texts."""

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Those of the last epoch as the paper decodes; by other length penalties; and
        of the best epoch, where it is another in one of the row's runs. A run that
        diverged before it had texts has 0."""
        each, scores = runs.explode("texts").dropna(subset="texts"), [*self.columns]
        texts = pd.DataFrame(
            [*each.texts], each.index, ["which", "variant", "epoch", *scores]
        )
        usual = texts.variant == texts.variant.groupby(level=0).transform("first")
        ways = ("length penalty " + texts.variant).where(~usual, "best epoch")
        ways = ways.where(usual == (texts.which == "best"))
        texts = texts.assign(variant=ways, apart=texts.epoch != each.last_epoch).dropna(
            subset="variant"
        )
        long = texts.melt(
            ["variant", "apart"], scores, "column", "number", ignore_index=False
        )
        found = of_cells(runs, long, long[(long.variant != "best epoch") | long.apart])
        silent = runs.index[runs.diverged.astype(bool) & ~runs.texts.astype(bool)]
        found["number"] = found.number.mask(found.index.isin(silent), 0.0)
        return pd.concat([super().numbers(runs), found])


class Judged(Spec):
    """Tables 4 and 13: instruction tuning, judged by MT-Bench or Vicuna-bench; a line
    for each judge."""

    def judgements(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Each judgement of its bench, by seed, with the id and label of its run."""
        each = (
            runs.sort_values("seed", kind="stable")
            .explode("judged")
            .dropna(subset="judged")
        )
        of = pd.DataFrame([*each.judged], each.index, JUDGEMENT).assign(
            id=each.id, label=each.label
        )
        return of[of.bench == self.bench].drop_duplicates(["id", "judge"], keep="last")

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Each judge's mean of each run; a cell that none has judged is there once,
        without."""
        of = self.judgements(runs)
        of = pd.DataFrame(
            {"column": "score", "variant": of.judge, "number": of["mean"].astype(float)}
        )
        judged = of_cells(runs, of, of)
        silent = runs.loc[~runs.index.isin(judged.index), []]
        return pd.concat(
            [judged, silent.assign(column="score", variant="", number=math.nan)]
        )

    def cells(self, view: View) -> pd.DataFrame:
        """With the interval over questions of one run, the medians of each turn, and
        how many judgements have a score."""
        made, each, lines = (
            super().cells(view),
            self.judgements(view.runs),
            list[list[str]](),
        )
        for cell in made.itertuples():
            of = each[each.id.isin(cell.ids) & (each.judge == cell.variant)]
            turns = pd.DataFrame([*of.turns], dtype=float).median()
            one = len(of) == 1 and of.low.notna().all()
            lines.append(
                [f"{of.low.iloc[0]:.2f} to {of.high.iloc[0]:.2f}" if one else NONE]
            )
            lines[-1].append(
                " / ".join(f"{t:.2f}" if t == t else NONE for t in turns) or NONE
            )
            lines[-1].append(f"{of.n_valid.sum()} of {of.n.sum()}" if len(of) else NONE)
        about = pd.DataFrame(
            lines, made.index, ["interval", "turns", "valid"], dtype=object
        )
        elsewhere, wanted = made.task != "alpaca", made[["wanted", "runs"]].max(axis=1)
        label = made.label.where(~elsewhere, made.label + " on " + made.task_label)
        state = np.where(
            made.diverged > 0,
            "diverged",
            f"{view.whose}, not judged by {BENCHES[self.bench]}",
        )
        about["state"] = np.where(made.variant == "", state, "")
        # what nobody has judged lacks no number
        about["n"] = made.n.where(made.variant != "", made.runs)
        return made.assign(
            **about, label=label, wanted=wanted, complete=made.n >= wanted
        )

    def reads(self, view: View, made: pd.DataFrame) -> str:
        """What the scores are; that judges differ, and what to do where nobody has
        judged, where it is so."""
        of = self.judgements(runs := in_cells(view.runs, made))
        other = not of.judge.astype(str).str.fullmatch(self.compared).all()
        return " ".join(
            itertools.compress(self.how, [True, other, len(runs) > of.id.nunique()])
        )

    def deviates(self, runs: pd.DataFrame, made: pd.DataFrame) -> list[str]:
        """How answers were made where that is not FastChat's way, with the labels of
        the rows."""
        found = [
            (f"{key} {of.answering[key]} instead of FastChat's {usual}", of.label)
            for of in self.judgements(in_cells(runs, made)).itertuples()
            for key, usual in FASTCHAT.items()
            if of.answering[key] != usual
        ]
        labels = {
            word: dict.fromkeys(label for of, label in found if of == word)
            for word, _ in found
        }
        return [f"{word} ({', '.join(of)})" for word, of in labels.items()]


class Rows(Spec):
    """Rows x tasks: whatever has run."""

    def cells(self, view: View) -> pd.DataFrame:
        """By the number that each task's table reports; what trains most first. Rows of
        a task that were not measured alike have columns of their own."""
        made = reported_cells(view.runs, view.select, view.seeds or self.seeds)
        apart = ", " + made.measured_apart.where(made.measured_apart != "", None)
        apart = apart.fillna("")
        made = made.assign(
            column=made.task + apart, column_label=made.task_label + apart, variant=""
        )
        return made.sort_values(
            ["parameters", "row", "task"], ascending=[False, True, True]
        )

    def entry(self, cell: Cell, column: str, verdict: str) -> Entry:
        """The median of the seeds that have a number, with how many: "76.0 +-1.0
        (5)"."""
        of = number(cell, decimals=int(cell.digits), known=True)
        of = (
            of
            if isinstance(of, Number)
            else Number(math.nan, n=cell.runs, ids=cell.ids)
        )
        return replace(of, counted=True, mark=diverged(cell), wanted=None)

    def reads(self, view: View, made: pd.DataFrame) -> str:
        """Which numbers the tasks report."""
        by_name = made.groupby("name", sort=False).task_label
        names = "; ".join(
            f"{name} ({', '.join(dict.fromkeys(of))})" for name, of in by_name
        )
        return f"Medians over seeds, +- sample standard deviation (seeds): {names}."


class Exact(Rows):
    """Texts that were read for an answer: a column for each test set (part), and one
    for their average."""

    reads = Spec.reads

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Of the last epoch's texts. A run that diverged before it had any has 0."""
        parts = pd.DataFrame(
            [of[0]["parts"] if of else {} for of in runs.texts], runs.index, dtype=float
        )
        if self.average:
            parts[self.average] = parts.reindex(columns=[*self.columns][:-1]).mean(
                axis=1, skipna=False
            )
        long = parts.melt(
            var_name="column", value_name="number", ignore_index=False
        ).assign(variant="")
        found = of_cells(runs, long, long.dropna())
        zero = runs.diverged.map({True: 0.0}).astype(float)
        return found.assign(number=found.number.fillna(zero[found.index]))

    def cells(self, view: View) -> pd.DataFrame:
        """Their status has what the loss is over and how texts are decoded, in which
        papers differ."""
        made = cells(view.runs, self.numbers, view.seeds or self.seeds)
        loss, state = {True: "prompt and answer", False: "answer"}, list[str]()
        for inputs, beams in zip(made.train_on_inputs, made.beams, strict=True):
            search = f"{beams:g} beams" if beams > 1 else "greedy"
            state.append(f"{view.whose}, loss on {loss[inputs]}, {search}")
        return made.assign(column_label=made.column, digits=1, state=state)


class LmEval(Spec):
    """What lm-eval measured after training, before it, and the difference: a table for
    each task that was trained on."""

    def parts(self, view: View) -> list[View]:
        """One for each task that was trained on."""
        return [
            replace(view, runs=of)
            for _, of in self.belonging(view.runs).groupby("task")
        ]

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Each metric of each task, in a column of those that were asked alike."""
        lines = [
            (run, column_of(of, after), of["asked"], after["value"], before["value"])
            for run, of in runs.lm_eval.explode().dropna().items()
            for after, before in zip(
                of["metrics"], of["before"]["metrics"], strict=True
            )
        ]
        each = pd.DataFrame(
            lines, columns=["run", "column", "asked", "", "before"]
        ).set_index("run")
        # other rows, or another version
        apart = each.groupby("column").asked.transform("nunique") > 1
        each["column"] += (", " + each.asked.str[:4]).where(apart, "")
        each = each.assign(difference=each[""] - each.before).drop(columns="asked")
        long = each.melt(
            "column", var_name="variant", value_name="number", ignore_index=False
        )
        return of_cells(runs, long, long)

    def cells(self, view: View) -> pd.DataFrame:
        """The column is its own label."""
        made = super().cells(view)
        return made.assign(column_label=made.column, wanted=made.runs)

    def entry(self, cell: Cell, column: str, verdict: str) -> Entry:
        """The median of the seeds that have a number, with how many: "0.3541 +-0.0131
        (5)"."""
        of = number(cell, decimals=4, known=True)
        return (
            of
            if isinstance(of, str)
            else replace(of, counted=True, sign=cell.variant == "difference")
        )


def column_of(of: dict[str, Any], metric: dict[str, Any]) -> str:
    """The name of a metric's column: gsm8k exact_match,strict-match, 5 shots."""
    name = f"{of['task']} {metric['metric']},{metric['filter']}".removesuffix(",none")
    shots = f", {of['shots']} shots" if of["shots"] else ""
    less = ", less is better" if metric["higher_is_better"] is False else ""
    return name + shots + less + (f", {of['limit']} rows" if of["limit"] else "")


class Demo(Spec):
    """Every method on the demo's task, with what it costs."""

    def parts(self, view: View) -> list[View]:
        """One for each number of rows."""
        runs = self.belonging(view.runs)
        trials = runs.index[runs.kind == "trial"]
        by_size = runs.drop(trials).groupby(["asked_train_rows", "asked_dev_rows"])
        sizes = [of.index for _, of in by_size if (of.kind == "result").any()]
        return [replace(view, runs=runs.loc[size.union(trials)]) for size in sizes]

    def cells(self, view: View) -> pd.DataFrame:
        """The cells, the best first, with their parameters beside LoRA's (ratio);
        labels say (^) whether a rate is the lowest or highest of those that trials on
        held-out rows tried."""
        made, by, rates = super().cells(view), ["model", "row"], ["lr", "lr_head"]
        trials = view.runs[view.runs.kind == "trial"].groupby(by)[rates]
        known = trials.min(), trials.max(), trials.nunique()
        low, high, tried = (made[by].join(of, on=by)[rates] for of in known)
        ends = ((made[rates] == low) | (made[rates] == high)) & (tried > 1)
        trains, lora = (
            made.parameters > 0,
            made[made.row == "lora"].set_index("model").parameters,
        )
        return made.assign(
            label=made.label + ends.any(axis=1).map({True: " ^", False: ""}),
            ratio=(made.parameters / made.model.map(lora)).where(trains),
            adapter_bytes=made.adapter_bytes.where(trains),
            head_bytes=4 * made.head_parameters,
            unknown=made.runs - made.n,
        ).sort_values(["unknown", "median"], ascending=[True, False])

    def reads(self, view: View, made: pd.DataFrame) -> str:
        """What its numbers are, and what ^ means where a label has it."""
        ends = " ^: its rate is at an end of the grid that was tried; one beyond could be better."
        return super().reads(view, made) + ends * bool(
            made.label.str.endswith(" ^").any()
        )


def _read(name: str, part: dict[str, Any]) -> Spec:
    """A part of specs.yaml, with the names of models and columns."""
    part |= {
        "name": name,
        "models": named(part["models"]),
        "columns": named(part["columns"]),
    }
    part["first"] = [*part["names"]] if part["first"] == [] else part["first"]
    made: Spec = globals()[part["kind"]](**part)
    return made


@cache
def specs() -> dict[str, tuple[Spec, ...]]:
    """The parts of each table of cells, by its name; "" is rows x tasks."""
    tables = yaml.safe_load((Path(__file__).parent / "specs.yaml").read_text())
    defaults = tables.pop("defaults")
    return {
        name: tuple(_read(name, defaults | part) for part in parts)
        for name, parts in tables.items()
    }
